"""Every setting of the library, typed, with its default in this one place.

A run's folder holds the exact configuration that made it: ``config.json`` is
:class:`PolicyConfig`, ``training.json`` is :class:`TrainingConfig`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ebt_policy.errors import UserError

PolicyName = Literal["ebt", "diffusion", "flow", "mip", "regression", "ibc"]
EnergyForm = Literal["residual", "scalar"]
ObjectiveName = Literal["basin", "annealed", "equilibrium", "unrolled"]
StepRule = Literal["fixed", "energy", "annealed"]
StartName = Literal["proposal", "noise"]
StreamKind = Literal["numbers", "image", "text"]
ImageEncoderName = Literal["conv", "resnet18", "pretrained"]


def _check(config: Any, names: str, above: int | None = None, least: int | None = None) -> None:
    """Check a lower bound of settings by name.

    Raises:
        UserError: names the first setting that is out of range, its value and the bound.
    """
    prefix = type(config).__name__.removesuffix("Config").lower()
    for name in names.split():
        value = getattr(config, name)
        if value is not None and above is not None and not value > above:
            raise UserError(f"{prefix}.{name} = {value}: it must be above {above}")
        if value is not None and least is not None and not value >= least:
            raise UserError(f"{prefix}.{name} = {value}: it must be at least {least}")


@dataclass(frozen=True)
class StreamConfig:
    """One named observation stream, as it stands in the demonstrations.

    Attributes:
        shape: shape of one observation of this stream, without batch or time; (H, W, 3) of an
            image, whose values are RGB in uint8; (D,) of a sentence, once it is embedded.
        angles: indices (into the flattened stream) of angles in radians. Each is replaced
            by its sine and cosine, because an angle that wraps is not a number line.
        elements: indices (into the flattened stream) that the policy sees; None is all.
        kind: numbers, an image, or a sentence.
        encoder: of a sentence, see :mod:`ebt_policy.windows.sentences`: ``hashed``, or the hub
            name or folder of a text encoder for the package ``transformers``.
        may_be_missing: some of the data sets that the policy learned from lack it, so the policy
            acts without it too.
        dropout: share of the windows in training in which numbers are withheld from the network,
            so that it learns what to do without them; acting it is given whatever is there.
    """

    shape: tuple[int, ...]
    angles: tuple[int, ...] = ()
    elements: tuple[int, ...] | None = None
    kind: StreamKind = "numbers"
    encoder: str | None = None
    may_be_missing: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"stream: dropout = {self.dropout}: it must lie in [0, 1)")
        if self.dropout and self.kind != "numbers":
            raise UserError("stream: dropout is for numbers, not for an image or a sentence")
        if (self.encoder is not None) != (self.kind == "text"):
            raise UserError(f"stream: encoder = {self.encoder}: a text, and no other, has one")
        if self.kind == "image":
            if not is_image(self.shape):
                raise UserError(f"stream: shape {self.shape} is no image; expected (H, W, 3)")
            if self.angles or self.elements is not None:
                raise UserError("stream: angles and elements are for numbers, not for an image")
        elif unseen := sorted(set(self.angles) - set(self.seen)):
            raise UserError(f"stream: the angle {unseen[0]} is not among the elements {self.seen}")

    @property
    def seen(self) -> tuple[int, ...]:
        """Indices (into the flattened stream of numbers) that the policy sees."""
        return self.elements if self.elements is not None else tuple(range(math.prod(self.shape)))

    @property
    def features(self) -> int:
        """Number of features of numbers (after the sine-cosine transform) or of a sentence."""
        assert self.kind != "image"
        return len(self.seen) + len(self.angles)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an observation of this shape is an RGB image."""
    return len(shape) == 3 and shape[-1] == 3


@dataclass(frozen=True)
class WindowConfig:
    """The policy's view of time, in control steps (Diffusion Policy's convention).

    ::

        observation  o o                  observation_steps = To = 2
        prediction   a a a a ... a a a a  horizon           = T  = 16
        executed       a a a ... a        action_steps      = Ta = 8
                       ^ now

    The chunk starts at the oldest observation, so the action for "now" has index To - 1.
    """

    observation_steps: int = 2
    horizon: int = 16
    action_steps: int = 8

    def __post_init__(self) -> None:
        _check(self, "observation_steps horizon action_steps", least=1)
        if self.observation_steps - 1 + self.action_steps > self.horizon:
            raise UserError(
                f"window: observation_steps - 1 + action_steps = "
                f"{self.observation_steps - 1 + self.action_steps} exceeds horizon = {self.horizon}"
            )

    @property
    def executed(self) -> slice:
        """The part of a predicted chunk that is executed before the next one."""
        first = self.observation_steps - 1
        return slice(first, first + self.action_steps)


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the observation encoder and of the action transformer."""

    width: int
    heads: int
    encoder_blocks: int
    action_blocks: int
    feedforward_ratio: int = 1
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "width heads encoder_blocks action_blocks feedforward_ratio", least=1)
        if self.width % (2 * self.heads):
            raise UserError(
                f"network.width = {self.width}: it must be an even multiple of heads = {self.heads}"
            )
        if not 0 <= self.attention_dropout < 1:
            raise UserError(
                f"network.attention_dropout = {self.attention_dropout}: it must lie in [0, 1)"
            )


@dataclass(frozen=True)
class VisionConfig:
    """How image streams are prepared (``windows/images.py``) and encoded (``energy/vision.py``).

    Attributes:
        encoder: ``conv`` is small enough for a CPU, ``resnet18`` is Diffusion Policy's choice,
            ``pretrained`` a vision transformer of the package ``transformers``.
        keypoints: of the spatial softmax, per camera.
        shared: one backbone for all cameras instead of one each.
        crop: share of height and width that is seen: a random part in training, the middle in
            acting.
        jitter: in training each colour's gain and offset change by up to this share of its range.
        pretrained: hub name or folder of a ``pretrained`` backbone.
        architecture: of that backbone, as ``transformers`` describes it: a saved policy needs
            neither the hub nor the folder. Read from there by ``train``.
        pixels: side of the picture that a ``pretrained`` backbone is shown.
        frozen: a ``pretrained`` backbone is not trained further. With ``crop`` 1 and ``jitter`` 0
            each picture is encoded once, before the training, and its features are kept on disk,
            see :mod:`ebt_policy.training.features`.
    """

    encoder: ImageEncoderName = "conv"
    keypoints: int = 32
    shared: bool = False
    crop: float = 0.9
    jitter: float = 0.1
    pretrained: str | None = None
    architecture: dict[str, Any] | None = None
    pixels: int = 224
    frozen: bool = True

    def __post_init__(self) -> None:
        _check(self, "keypoints pixels", least=1)
        _check(self, "jitter", least=0)
        if not 0 < self.crop <= 1:
            raise UserError(f"vision.crop = {self.crop}: it must lie in (0, 1]")
        is_pretrained = self.encoder == "pretrained"
        if any(
            (given is not None) != is_pretrained for given in (self.pretrained, self.architecture)
        ):
            raise UserError(
                f"vision.encoder = {self.encoder} with vision.pretrained = {self.pretrained}: a "
                "pretrained encoder, and no other, has a hub name or folder and the architecture "
                "read there; train --encoder NAME sets all three"
            )

    @property
    def is_still(self) -> bool:
        """Whether training sees every picture as acting does: whole, in its own colours."""
        return self.crop == 1 and self.jitter == 0

    @property
    def keeps_features(self) -> bool:
        """Whether a picture's features are always the same, so that it is encoded but once."""
        return self.encoder == "pretrained" and self.frozen and self.is_still


@dataclass(frozen=True)
class Preset:
    """A network with the learning rate it trains well at."""

    network: NetworkConfig
    learning_rate: float


PRESETS: dict[str, Preset] = {
    "tiny": Preset(NetworkConfig(width=64, heads=4, encoder_blocks=2, action_blocks=3), 2e-3),
    "small": Preset(NetworkConfig(width=128, heads=4, encoder_blocks=2, action_blocks=4), 1e-3),
    # The released low-dim template: 8.6 M parameters, 3e-5. Its attention dropout of 0.3 is left
    # out: the descent does not stand it (docs/objectives.md).
    "paper": Preset(NetworkConfig(width=256, heads=4, encoder_blocks=8, action_blocks=8), 3e-5),
    # For images and language on GPUs (docs/scale.md): about 100 M parameters.
    "large": Preset(
        NetworkConfig(width=768, heads=12, encoder_blocks=3, action_blocks=7, feedforward_ratio=4),
        1e-4,
    ),
}


@dataclass(frozen=True)
class BasinConfig:
    """Quadratic basin: see :mod:`ebt_policy.objectives.basin`.

    Attributes:
        near_share: of a batch, that trains the near landscape.
        noise: largest standard deviation s of what demonstrated chunks are displaced by.
        least_noise: errors of a chunk displaced by s weigh (noise / s)^2, below this s as at it;
            where no noise is wider they weigh alike.
        split: the far landscape has an action transformer of its own, so that neither of the two
            learns at the other's cost; they share the encoder of observations.
        ways: K, minima of the far landscape.
        way_width, way_error_share: how narrow a way is.
        prefix_share: of a batch, whose chunks begin with actions that are decided already, for
            real-time chunking (``Policy.predict_chunk``). 0 trains a policy that has none.
    """

    near_share: float = 0.25
    noise: float = 0.25
    least_noise: float = 0.25
    split: bool = False
    ways: int = 8
    way_width: float = 0.03
    way_error_share: float = 0.5
    prefix_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.near_share <= 1:
            raise UserError(f"basin.near_share = {self.near_share}: it must lie in (0, 1]")
        _check(self, "noise least_noise way_width", above=0)
        _check(self, "way_error_share", least=0)
        if not 0 <= self.prefix_share <= 1:
            raise UserError(f"basin.prefix_share = {self.prefix_share}: it must lie in [0, 1]")
        _check(self, "ways", least=1)


@dataclass(frozen=True)
class AnnealedConfig:
    """Annealed energy: see :mod:`ebt_policy.objectives.annealed`.

    Attributes:
        least_noise: standard deviation below which errors weigh no more.
    """

    least_noise: float = 0.05

    def __post_init__(self) -> None:
        _check(self, "least_noise", above=0)


@dataclass(frozen=True)
class EquilibriumConfig:
    """Equilibrium matching: see :mod:`ebt_policy.objectives.equilibrium`."""

    gradient_scale: float = 4.0
    decay_from: float = 0.8

    def __post_init__(self) -> None:
        _check(self, "gradient_scale", above=0)
        if not 0 <= self.decay_from < 1:
            raise UserError(f"equilibrium.decay_from = {self.decay_from}: it must lie in [0, 1)")


@dataclass(frozen=True)
class UnrolledConfig:
    """The released recipe: see :mod:`ebt_policy.objectives.unrolled`."""

    min_steps: int = 6
    extra_steps: int = 4
    noise_first: float = 0.2
    noise_last: float = 0.002
    step_jitter: float = 1.5

    def __post_init__(self) -> None:
        _check(self, "min_steps extra_steps step_jitter", least=1)
        _check(self, "noise_first noise_last", least=0)


@dataclass(frozen=True)
class DescentConfig:
    """How an energy is descended: see :mod:`ebt_policy.descent`.

    Attributes:
        steps: hard limit on steps one after the other; the proposal, where that is the start, is
            the first of them.
        max_ms: hard limit on milliseconds, checked between steps; ``None`` is no limit.
        rule: ``fixed`` steps by ``step_size``; ``energy`` by ``step_size * exp(E / size)``;
            ``annealed`` leads an annealed energy through ``steps`` levels.
        step_size: the step for a gradient of an energy that is summed over the chunk.
        momentum: Nesterov momentum.
        noise: standard deviation of the smooth noise added before every gradient step.
        tolerance: a step that moves a sample by less than this (root mean square) is its last.
        start: ``proposal`` is a minimum of the far landscape (see ``EnergyModel.proposals``),
            ``noise`` is N(0, I).
        starts: number of starts.
        pick: of several starts the one with the ``lowest`` final energy is returned, or their
            ``mean``, which is more precise where there is one way to act, and what nobody
            demonstrated where there are several.
        warm_start: begin from what the previous chunk planned for the same control steps.
        smoothness: weight of the squared third differences of the chunk, the actions that are
            decided before it among them, beside the energy; the energy's curvature is about 1.
        normalise: bring each iterate to root mean square 1 before a step (released recipe).
    """

    steps: int = 2
    max_ms: float | None = None
    rule: StepRule = "fixed"
    step_size: float = 1.0
    momentum: float = 0.0
    noise: float = 0.05
    tolerance: float = 0.0
    start: StartName = "proposal"
    starts: int = 1
    pick: Literal["lowest", "mean"] = "lowest"
    warm_start: bool = False
    smoothness: float = 0.0
    normalise: bool = False

    def __post_init__(self) -> None:
        _check(self, "steps starts", least=1)
        _check(self, "max_ms step_size", above=0)
        _check(self, "momentum noise tolerance smoothness", least=0)
        if self.rule == "annealed":
            plain = DescentConfig(noise=0.0, start="noise")
            for name in ("max_ms", "momentum", "noise", "tolerance", "start", "warm_start",
                         "smoothness", "normalise"):  # fmt: skip
                value, needed = getattr(self, name), getattr(plain, name)
                if value != needed:
                    raise UserError(
                        f"descent.{name} = {value}: rule = annealed goes from noise through all "
                        f"of its levels; --set descent.{name}={json.dumps(needed)}"
                    )
        alike = self.start == "proposal" and (self.noise == 0 or self.steps == 1)
        if self.starts > 1 and (alike or (self.warm_start and self.noise == 0)):
            raise UserError(
                f"descent.starts = {self.starts} with descent.noise = {self.noise} and "
                f"descent.steps = {self.steps}: they would all be the same; give a noise above 0 "
                "and two steps or more"
            )


# The form and the descent that belong to each objective's landscape.
FORM_DEFAULTS: dict[ObjectiveName, EnergyForm] = {
    "basin": "residual",
    "annealed": "residual",
    "equilibrium": "scalar",
    "unrolled": "scalar",
}
DESCENT_DEFAULTS: dict[ObjectiveName, DescentConfig] = {
    "basin": DescentConfig(),
    "annealed": DescentConfig(rule="annealed", noise=0.0, start="noise"),
    "equilibrium": DescentConfig(
        steps=10, step_size=0.05, momentum=0.5, noise=0.0, start="noise"
    ),
    "unrolled": DescentConfig(
        steps=21, rule="energy", momentum=0.9, noise=0.0, tolerance=1e-3, start="noise",
        normalise=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion Policy: squared-cosine schedule (Chi et al. 2023).

    Attributes:
        prediction: what the network predicts, as ``diffusers`` calls it: the noise (``epsilon``,
            as published) or the actions (``sample``, which is no draw: ``samples`` are). As losses
            of the actions that follow from the prediction they differ in the weight of the noise
            levels alone: predicted noise weighs little noise more, by the ratio of signal to noise.
        training_steps: noise levels in training, and steps of ``ddpm``.
        sampler: how a chunk is drawn.
        ddim_steps: of ``ddim``.
        samples: chunks drawn at once under an observation; their mean is executed. It is far
            more precise than one of them where there is one way to act, and is what nobody
            demonstrated where there are several.
    """

    prediction: Literal["epsilon", "sample"] = "epsilon"
    training_steps: int = 100
    sampler: Literal["ddpm", "ddim"] = "ddim"
    ddim_steps: int = 10
    samples: int = 1

    def __post_init__(self) -> None:
        _check(self, "training_steps ddim_steps samples", least=1)
        if self.ddim_steps > self.training_steps:
            raise UserError(
                f"diffusion.ddim_steps = {self.ddim_steps}: at most training_steps = "
                f"{self.training_steps}"
            )


@dataclass(frozen=True)
class MIPConfig:
    """Two-step regression: see :mod:`ebt_policy.policies.mip`."""

    level: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UserError(f"mip.level = {self.level}: it must lie between 0 and 1")


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching: see :mod:`ebt_policy.policies.flow`."""

    steps: int = 10

    def __post_init__(self) -> None:
        _check(self, "steps", least=1)


@dataclass(frozen=True)
class IBCConfig:
    """Implicit behavioural cloning: see :mod:`ebt_policy.policies.ibc`.

    Attributes:
        counter_examples: per demonstration, in training.
        search: how chunks are searched when acting (and counter-examples, for ``langevin``).
        samples: chunks searched at once when acting.
        iterations: rounds of resampling, or Langevin steps.
        noise: standard deviation of the first round; each next one is ``shrink`` times smaller.
        step_size: of the Langevin steps, in units of the noise.
        max_slope: of the energy along any action element, beyond which training penalises it.
    """

    counter_examples: int = 16
    search: Literal["derivative-free", "langevin"] = "langevin"
    samples: int = 32
    iterations: int = 10
    noise: float = 0.2
    shrink: float = 0.8
    step_size: float = 1.0
    max_slope: float = 3.0

    def __post_init__(self) -> None:
        _check(self, "counter_examples samples iterations", least=1)
        _check(self, "noise shrink step_size max_slope", above=0)


@dataclass(frozen=True)
class PolicyConfig:
    """All that a saved policy needs to be built again; a run's ``config.json``.

    Attributes:
        observation_limit: how far from the middle of the demonstrations a network sees an observed
            number, in half their range (in its own unit where they have one value): one that lies
            beyond is seen at the limit. What a network makes of numbers beyond all that it was
            trained on is chance; held there, it goes by the others, for instance by where an
            object is as seen from the hand. None (``null`` on a command line): no limit.
        sentence_noise: standard deviation of the noise on a sentence's vector in training, of
            half the range that the demonstrations' sentences have in each dimension: what is
            learned is a neighbourhood of every sentence instead of the sentence alone, and
            paraphrases lie there.
        observation_noise: of normal noise on observed numbers in training, the largest standard
            deviation, in half ranges of the demonstrations: each stream of each window gets one
            drawn from U(0, this), and all its steps the same noise, so that speeds stay. It is
            meant to hide what tells demonstrations apart, so that they are not learned by heart.
    """

    policy: PolicyName
    streams: dict[str, StreamConfig]
    action_dim: int
    network: NetworkConfig
    windows: WindowConfig = field(default_factory=WindowConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    observation_limit: float | None = 1.3
    sentence_noise: float = 0.3
    observation_noise: float = 0.0
    form: EnergyForm = "residual"
    objective: ObjectiveName = "basin"
    basin: BasinConfig = field(default_factory=BasinConfig)
    annealed: AnnealedConfig = field(default_factory=AnnealedConfig)
    equilibrium: EquilibriumConfig = field(default_factory=EquilibriumConfig)
    unrolled: UnrolledConfig = field(default_factory=UnrolledConfig)
    descent: DescentConfig = field(default_factory=DescentConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    mip: MIPConfig = field(default_factory=MIPConfig)
    ibc: IBCConfig = field(default_factory=IBCConfig)

    @classmethod
    def of_preset(
        cls,
        preset: str,
        policy: PolicyName,
        streams: dict[str, StreamConfig],
        action_dim: int,
        objective: ObjectiveName = "basin",
    ) -> PolicyConfig:
        """A policy on a preset's network, with the form and descent of its objective."""
        return cls(
            policy, streams, action_dim, PRESETS[preset].network, objective=objective,
            form=FORM_DEFAULTS[objective], descent=DESCENT_DEFAULTS[objective],
        )  # fmt: skip

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Height and width of every image stream."""
        return {n: (s.shape[0], s.shape[1]) for n, s in self.streams.items() if s.kind == "image"}

    @property
    def may_be_missing(self) -> list[str]:
        """Names of the streams that the policy acts without, too."""
        return [name for name, stream in self.streams.items() if stream.may_be_missing]

    def __post_init__(self) -> None:
        if not self.streams:
            raise UserError("streams is empty: a policy needs at least one observation stream")
        if any(s.dropout for s in self.streams.values()) and not any(
            s.dropout == 0 and not s.may_be_missing for s in self.streams.values()
        ):
            raise UserError(
                f"streams: {', '.join(self.streams)} have dropout or may be missing, so the policy "
                "would learn from nothing at times; leave one that is always there without dropout"
            )
        if self.observation_limit is not None and not self.observation_limit >= 1:
            raise UserError(
                f"observation_limit = {self.observation_limit}: it must be at least 1, where the "
                "demonstrations end"
            )
        if not self.sentence_noise >= 0:
            raise UserError(f"sentence_noise = {self.sentence_noise}: it must be at least 0")
        if not self.observation_noise >= 0:
            raise UserError(f"observation_noise = {self.observation_noise}: it must be at least 0")
        if self.action_dim < 1:
            raise UserError(f"action_dim = {self.action_dim}: it must be at least 1")
        if self.objective == "unrolled" and self.form == "residual":
            raise UserError(
                "form = residual diverges under objective = unrolled (its energy is never below "
                "0, so every step exp(E / size) is above the bowl's curvature); use form=scalar"
            )
        if self.policy == "ebt" and self.objective == "annealed" and self.form != "residual":
            raise UserError(f"form = {self.form}: objective = annealed has none but residual")
        if self.policy == "ebt" and (self.objective == "annealed") != (
            self.descent.rule == "annealed"
        ):
            raise UserError(
                f"descent.rule = {self.descent.rule}: the rule annealed belongs to the objective "
                f"annealed, and the other rules to the others; objective = {self.objective}"
            )
        if self.basin.split and (self.policy, self.objective) != ("ebt", "basin"):
            raise UserError(
                f"basin.split = true: policy = {self.policy}, objective = {self.objective} has one "
                "landscape alone"
            )
        if self.policy == "ebt" and self.objective != "basin" and self.descent.start == "proposal":
            raise UserError(
                f"descent.start = proposal: objective = {self.objective} trains none; use noise"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How a policy is trained; a run's ``training.json``.

    Exactly one of ``steps`` and ``budget_seconds`` is set. The budget is training time
    (validation and checkpoints excluded): CPU time per thread on a CPU, so that two runs
    beside each other get the same, and wall-clock time on an accelerator.

    Attributes:
        weights: share of each data set of a mixture in the windows that are learned from; None is
            by their numbers of windows.
        batch_size: of one optimiser step, all processes and parts together.
        accumulation: parts that a process cuts its share of a batch into, one after the other:
            less memory, the same step for a loss without random numbers; the width that ``basin``
            fits is that of each part.
        shard_optimizer: AdamW's moments divided among the processes (ZeRO, stage 1) instead of
            kept by each.
        compile: fuse the training step with ``torch.compile``: up to twice as many steps a second
            on a CPU, after one to three minutes of compiling, which no budget counts. Needs a C++
            compiler there. One GPU alone, without accumulation, replays the step as CUDA graphs,
            where it would else wait for its kernels to be started. The random numbers of a step
            are other ones than without.
    """

    data: str
    filter_key: str | None = None
    weights: tuple[float, ...] | None = None
    steps: int | None = None
    budget_seconds: float | None = None
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema_power: float = 0.75
    validation_share: float = 0.05
    validation_windows: int = 256
    checkpoint_seconds: float = 60.0
    bf16: bool = False
    shard_optimizer: bool = False
    compile: bool = False
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.budget_seconds is None):
            raise UserError("training: give exactly one of --steps and --budget")
        _check(
            self, "steps batch_size accumulation threads warmup_steps validation_windows", least=1
        )
        _check(self, "budget_seconds learning_rate gradient_clip ema_power", above=0)
        _check(self, "weight_decay checkpoint_seconds seed", least=0)
        if not all(0 < weight < math.inf for weight in self.weights or ()):
            raise UserError(f"training.weights = {self.weights}: each must be above 0")
        if not 0 <= self.validation_share < 1:
            raise UserError(
                f"training.validation_share = {self.validation_share}: it must lie in [0, 1)"
            )


@dataclass(frozen=True)
class ServerConfig:
    """How a policy is served: see :mod:`ebt_policy.serving.server`.

    Attributes:
        host: address to listen on; any but the machine's own (loopback) needs an API key.
        port: 0 is any free one.
        max_mb: largest message, in millions of bytes.
        budget_ms: from a message's arrival to its reply; what would be later is a hold command.
            ``None`` is no limit.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_mb: float = 16.0
    budget_ms: float | None = None

    def __post_init__(self) -> None:
        _check(self, "max_mb budget_ms", above=0)
        if not math.isfinite(self.max_mb):
            raise UserError(f"server.max_mb = {self.max_mb}: it must be finite")
        if not 0 <= self.port < 2**16:
            raise UserError(f"server.port = {self.port}: it must lie in [0, 65535]")


@dataclass(frozen=True)
class DimensionLimits:
    """What one dimension of the action may do.

    Attributes:
        kind: ``absolute`` is a target, which is held by repeating it; ``delta`` is a change or a
            velocity, which is held by zero.
        low, high: range of the action; ``None`` is the range of the demonstrations.
        step: most that the target may change in a control step (``absolute``), or largest
            magnitude of the action (``delta``); ``None`` is no limit.
    """

    kind: Literal["absolute", "delta"] = "absolute"
    low: float | None = None
    high: float | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name} = {value}: it must be finite")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise UserError(f"low = {self.low} is above high = {self.high}")
        if self.step is not None and self.step <= 0:
            raise UserError(f"step = {self.step}: it must be above 0")


@dataclass(frozen=True)
class LimitsConfig:
    """The file of ``serve --limits``: one entry for each dimension of the action, in order."""

    dimensions: tuple[DimensionLimits, ...]


Config = TypeVar("Config")


def to_json(config: Any) -> str:
    """Write a configuration dataclass as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(kind: type[Config], text: str, source: str) -> Config:
    """Read a configuration dataclass, strictly: unknown, missing and mistyped keys are errors.

    Args:
        kind: the dataclass to build.
        text: JSON text.
        source: what to name in errors, for instance the file's path.

    Raises:
        UserError: the text is no JSON, or does not describe a ``kind``.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error
    try:
        return typing.cast(Config, _convert(kind, value, source))
    except UserError as error:
        message = str(error)
        raise UserError(message if source in message else f"{source}: {message}") from error


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Replace values by dotted name: ``override(config, ["descent.steps=3"])``.

    All are replaced before the result is checked, so their order does not matter.

    Raises:
        UserError: no such setting, or the values do not fit their types or each other.
    """
    tree = json.loads(to_json(config))
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise UserError(f"--set {assignment}: write it as name=value, e.g. descent.steps=3")
        *path, last = name.split(".")
        node = tree
        for part in [*path, last]:
            if not isinstance(node, dict) or part not in node:
                there = f"there are {', '.join(sorted(node))}" if isinstance(node, dict) else ""
                raise UserError(f"--set {assignment}: no setting {part!r}; {there}")
            parent, node = node, node[part]
        try:
            parent[last] = json.loads(text)
        except json.JSONDecodeError:
            parent[last] = text
    return typing.cast(Config, _convert(type(config), tree, "--set"))


def _convert(kind: Any, value: Any, source: str) -> Any:
    """Convert parsed JSON to a type of the configuration."""
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{source}: expected an object, found {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise UserError(f"{source}: unknown setting {unknown[0]!r}")
        required = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if required - set(value):
            raise UserError(f"{source}: setting {min(required - set(value))!r} is missing")
        return kind(**{k: _convert(hints[k], v, f"{source}: {k}") for k, v in value.items()})
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{source}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, source)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, source) for item in value)
    if origin is dict and isinstance(value, dict):
        return {k: _convert(arguments[1], v, f"{source}: {k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, never to a user.
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and isinstance(value, bool) == (kind is bool)
    ):
        return value
    raise UserError(f"{source}: {value!r} is not of type {getattr(kind, '__name__', kind)}")
