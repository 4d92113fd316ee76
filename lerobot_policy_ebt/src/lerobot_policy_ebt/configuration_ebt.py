"""LeRobot's view of a :class:`~ebt_policy.config.PolicyConfig`, and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION

from ebt_policy.config import (
    DESCENT_DEFAULTS,
    FORM_DEFAULTS,
    PRESETS,
    BasinConfig,
    DescentConfig,
    EquilibriumConfig,
    NetworkConfig,
    ObjectiveName,
    PolicyConfig,
    StreamConfig,
    TrainingConfig,
    UnrolledConfig,
    WindowConfig,
)
from ebt_policy.errors import UserError


@PreTrainedConfig.register_subclass("ebt")
@dataclass
class EBTConfig(PreTrainedConfig):
    """An energy policy; ``--policy.NAME=VALUE`` sets each of these.

    Attributes:
        n_obs_steps, horizon, n_action_steps: To, T and Ta of
            :class:`~ebt_policy.config.WindowConfig`.
        preset: ``tiny``, ``small`` or ``paper``: the network and the learning rate.
        objective: ``basin``, ``annealed``, ``equilibrium`` or ``unrolled``.
        network: ``None`` is the preset's.
        descent: ``None`` is the objective's.
        observation_limit: as in :class:`~ebt_policy.config.PolicyConfig`; without effect where
            ``normalization_mapping`` does not scale what is observed to [-1, 1].
        ema_power: the moving average that acts forgets by 1 - (1 + step)^-power at each step.
        optimizer_lr: ``None`` is the preset's.
    """

    n_obs_steps: int = WindowConfig.observation_steps
    horizon: int = WindowConfig.horizon
    n_action_steps: int = WindowConfig.action_steps

    preset: str = "small"
    objective: ObjectiveName = "basin"
    network: NetworkConfig | None = None
    basin: BasinConfig = field(default_factory=BasinConfig)
    equilibrium: EquilibriumConfig = field(default_factory=EquilibriumConfig)
    unrolled: UnrolledConfig = field(default_factory=UnrolledConfig)
    descent: DescentConfig | None = None
    observation_limit: float | None = PolicyConfig.observation_limit

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "STATE": NormalizationMode.MIN_MAX,
            "ENV": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    ema_power: float = TrainingConfig.ema_power
    optimizer_lr: float | None = None
    optimizer_weight_decay: float = TrainingConfig.weight_decay
    optimizer_grad_clip_norm: float = TrainingConfig.gradient_clip
    scheduler_warmup_steps: int = TrainingConfig.warmup_steps

    def __post_init__(self) -> None:
        """Fill in what the preset and the objective decide, so that it is saved.

        Raises:
            UserError: there is no such preset, or the windows do not fit each other.
        """
        super().__post_init__()
        if self.preset not in PRESETS:
            raise UserError(f"policy.preset = {self.preset}: it is one of {', '.join(PRESETS)}")
        self.network = self.network or PRESETS[self.preset].network
        self.descent = self.descent or DESCENT_DEFAULTS[self.objective]
        if self.optimizer_lr is None:
            self.optimizer_lr = PRESETS[self.preset].learning_rate
        _ = self.windows

    @property
    def windows(self) -> WindowConfig:
        """To, T and Ta."""
        return WindowConfig(self.n_obs_steps, self.horizon, self.n_action_steps)

    @property
    def policy_config(self) -> PolicyConfig:
        """The policy, once its features are known: one stream for each of them.

        Raises:
            UserError: see :meth:`validate_features`.
        """
        self.validate_features()
        assert self.network is not None
        assert self.descent is not None
        is_scaled = all(
            mode is NormalizationMode.MIN_MAX
            for kind, mode in self.normalization_mapping.items()
            if kind in ("STATE", "ENV")
        )
        return PolicyConfig(
            policy="ebt",
            streams={name: StreamConfig(tuple(f.shape)) for name, f in self.input_features.items()},
            action_dim=self.action_feature.shape[0],
            network=self.network,
            windows=self.windows,
            form=FORM_DEFAULTS[self.objective],
            objective=self.objective,
            basin=self.basin,
            equilibrium=self.equilibrium,
            unrolled=self.unrolled,
            descent=self.descent,
            observation_limit=self.observation_limit if is_scaled else None,
        )

    # -- what LeRobot asks for -------------------------------------------------------------

    def validate_features(self) -> None:
        """Check that there are states to see and one action to learn.

        Raises:
            UserError: a feature is an image, there is no other, or the action is no vector.
        """
        features = self.input_features or {}
        images = sorted(name for name, f in features.items() if f.type is FeatureType.VISUAL)
        states = {name: f for name, f in features.items() if name not in images}
        if images:
            kept = ", ".join(
                f'"{name}": {{"type": "{f.type.value}", "shape": {list(f.shape)}}}'
                for name, f in states.items()
            )
            raise UserError(
                f"policy.input_features: {', '.join(images)} is an image, and policy.type=ebt sees "
                f"states only; name what it is to see: --policy.input_features='{{{kept}}}'"
            )
        if not states:
            raise UserError(
                "policy.input_features: there is none; policy.type=ebt needs observation.state, "
                "observation.environment_state or another vector among the observations"
            )
        if self.action_feature is None or len(self.action_feature.shape) != 1:
            found = {name: f.shape for name, f in (self.output_features or {}).items()}
            raise UserError(f"policy.output_features: {found}; it must have one vector {ACTION!r}")

    @property
    def observation_delta_indices(self) -> list[int]:
        """Observations of a window, relative to now."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """Actions of a chunk, relative to now: it begins at the oldest observation."""
        first = 1 - self.n_obs_steps
        return list(range(first, first + self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        return CosineAnnealingWithWarmupSchedulerConfig(self.scheduler_warmup_steps)
