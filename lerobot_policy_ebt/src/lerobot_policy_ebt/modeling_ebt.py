"""An :class:`~ebt_policy.policies.EnergyPolicy` behind LeRobot's interface.

What it sees and gives is normalised already: LeRobot's processors do that, so that the policy's
own normalisers stay the identity.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from ebt_policy.errors import UserError
from ebt_policy.policies import EnergyPolicy
from ebt_policy.policies.base import moved_on
from ebt_policy.shapes import Float
from lerobot_policy_ebt.configuration_ebt import EBTConfig


class EBTPolicy(PreTrainedPolicy):
    """Learns by the policy's objective, acts by its descent with averaged weights.

    Both sets of weights are in ``model.safetensors``, so that training can be resumed. The average
    is taken in :meth:`update`, which LeRobot calls after each optimiser step; an average that
    LeRobot itself may take has to stay off.

    Args:
        config: with its features.
        kwargs: statistics and description of the data set, which LeRobot gives every policy;
            they are the processors' business.

    Raises:
        UserError: the features do not suit the policy.
    """

    config_class = EBTConfig
    name = "ebt"

    def __init__(self, config: EBTConfig, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(config)
        self.policy = EnergyPolicy(config.policy_config)
        self.ema = copy.deepcopy(self.policy).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.updates: Tensor
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, strict: bool = True, **kwargs: Any
    ) -> Self:
        """As LeRobot's, but weights that are missing or left over are an error by default."""
        return super().from_pretrained(pretrained_name_or_path, strict=strict, **kwargs)

    # -- learning ------------------------------------------------------------------------

    def get_optim_params(self) -> Iterator[nn.Parameter]:
        return self.policy.parameters()

    def forward(
        self, batch: Mapping[str, Tensor], reduction: Literal["mean", "none"] = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """The objective's squared error, 0 where an action is padding; of the EMA in evaluation.

        Args:
            batch: observations (b, To, *shape), ``action`` (b, T, A) and ``action_is_pad`` (b, T).
            reduction: ``mean`` over the batch, or ``none``: one loss (b,) for each sample.

        Returns:
            The loss, and nothing to log beside it.

        Raises:
            UserError: an observation is missing.
        """
        policy = self.policy if self.training else self.ema
        observation = policy.normalise_observation(self._windows(batch))
        errors = policy.errors(observation, batch[ACTION])
        if f"{ACTION}_is_pad" in batch:
            errors = errors * ~batch[f"{ACTION}_is_pad"][..., None]
        losses = errors.mean((1, 2))
        return (losses.mean() if reduction == "mean" else losses), {}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averaged weights towards the learned ones."""
        self.updates += 1
        weight = (1 + self.updates.item()) ** -self.config.ema_power
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.policy.parameters()), weight)

    # -- acting --------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the episode: observation window, queued actions and previous chunk."""
        self._window: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._queue: deque[Tensor] = deque()
        self._previous: np.ndarray | None = None

    def supports_rtc(self) -> bool:
        """Whether it was trained to go on from actions that are decided."""
        return self.ema.holds_prefix

    def predict_action_chunk(
        self,
        batch: Mapping[str, Tensor],
        inference_delay: int = 0,
        prev_chunk_left_over: Float[Tensor, "n a"] | None = None,
    ) -> Float[Tensor, "b t a"]:
        """The chunk from now on, T - To + 1 normalised actions. Holds no state.

        Args:
            batch: observation windows (b, To, *shape), or single observations (b, *shape), which
                are taken to have been the same for To steps.
            inference_delay: control steps that will pass before this chunk is there.
            prev_chunk_left_over: normalised actions from now on, of which so many are decided; the
                chunk begins with them. Rows of zeros at its end are none.

        Raises:
            UserError: an observation is missing, has another shape, or is not finite.
        """
        windows = self._windows(batch)
        prefix = None
        if prev_chunk_left_over is not None and self.supports_rtc():
            (size,) = {len(values) for values in windows.values()}
            prefix = self._prefix(prev_chunk_left_over, inference_delay, size)
        plan = self.ema.predict_chunk(windows, prefix=prefix).plan
        return torch.from_numpy(plan[:, self.config.n_obs_steps - 1 :]).to(self.updates.device)

    def select_action(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "b a"]:
        """The next normalised action of each environment; ``reset`` when their episodes begin.

        A new chunk is predicted every Ta steps, from the last To observations (the first one
        repeated at the beginning of an episode)::

            step          0   1 ... 7   8   9 ...
            observation   o   o ... o   o   o
            chunk         |-- Ta = 8 --||-- Ta = 8 --

        Args:
            batch: observations (b, *shape).

        Raises:
            UserError: an observation is missing, has another shape, or is not finite.
        """
        self._window.append(self._observation(batch))
        if not self._queue:
            steps = [self._window[0]] * (self.config.n_obs_steps - len(self._window))
            steps += self._window
            windows = {name: torch.stack([s[name] for s in steps], 1) for name in steps[0]}
            prediction = self.ema.predict_chunk(windows, previous=self._previous)
            self._previous = moved_on(prediction.plan, self.config.n_action_steps)
            actions = torch.from_numpy(prediction.actions).to(self.updates.device)
            self._queue.extend(actions.unbind(1))
        return self._queue.popleft()

    def _prefix(self, left: Float[Tensor, "n a"], delay: int, batch: int) -> np.ndarray | None:
        """The first actions of the chunk, where some from now on are decided.

        LeRobot tells of no earlier ones; the first stands for them, as it does where an episode
        begins.
        """
        used = left.any(1).nonzero()
        most = self.config.horizon - self.config.n_obs_steps
        count = min(delay, int(used[-1]) + 1 if len(used) else 0, most)
        if count == 0:
            return None
        decided = left[:count].detach().float().cpu().numpy()
        first = np.repeat(decided[:1], self.config.n_obs_steps - 1, 0)
        return np.repeat(np.concatenate([first, decided])[None], batch, 0)

    def _observation(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the policy sees of a batch."""
        names = self.policy.stream_names
        missing = [name for name in names if name not in batch]
        if missing:
            raise UserError(
                f"the batch has no {missing[0]!r} (it has {', '.join(sorted(batch))}); the policy "
                f"was trained on {', '.join(names)}"
            )
        return {name: batch[name] for name in names}

    def _windows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Observations (b, To, *shape); single ones are repeated."""
        windows = self._observation(batch)
        for name, values in windows.items():
            if values.ndim == 1 + len(self.policy.config.streams[name].shape):
                steps = [values] * self.config.n_obs_steps
                windows[name] = torch.stack(steps, 1)
        return windows
