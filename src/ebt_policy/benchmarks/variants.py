"""The policies whose chunks are timed: all on one trunk, untrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig, PolicyName, StreamConfig, override
from ebt_policy.descent import Trace
from ebt_policy.policies import DiffusionPolicy, make_policy
from ebt_policy.policies.base import Draws, Policy, draw
from ebt_policy.shapes import Float

# The low-dimensional observation and the actions of robomimic's one-armed tasks.
STREAMS = {"state": StreamConfig((23,))}
ACTION_DIM = 7
_LONGEST_DESCENT = 4


@dataclass(frozen=True)
class Variant:
    """One way to make a chunk.

    Attributes:
        policy, sampler, steps, starts: as in the rows of the result.
        loop: of a diffusion policy: ``diffusers``, or ``bare`` (:class:`BareDiffusionPolicy`).
    """

    policy: PolicyName
    sampler: str
    steps: int
    starts: int = 1
    loop: str = ""

    @property
    def is_optimised(self) -> bool:
        """Whether it is compiled and exported besides.

        A longer descent is as many times its step; the loop through ``diffusers`` is the bare
        one and its scheduler.
        """
        if self.policy == "diffusion":
            return self.loop == "bare"
        return self.policy != "ebt" or self.steps <= _LONGEST_DESCENT

    def make(self, preset: str) -> Policy:
        """The policy, untrained: its weights do not matter to its speed."""
        settings = {
            "descent": [f"descent.steps={self.steps}", f"descent.starts={self.starts}"],
            "ddpm": ["diffusion.sampler=ddpm"],
            "ddim": ["diffusion.sampler=ddim", f"diffusion.ddim_steps={self.steps}"],
            "euler": [f"flow.steps={self.steps}"],
        }.get(self.sampler, [])
        config = PolicyConfig.of_preset(preset, self.policy, STREAMS, ACTION_DIM)
        config = override(config, settings)
        torch.manual_seed(0)
        made = BareDiffusionPolicy(config) if self.loop == "bare" else make_policy(config)
        return made.eval()


VARIANTS = (
    *(Variant("ebt", "descent", steps) for steps in (1, 2, 4, 10, 20)),
    *(Variant("ebt", "descent", steps, 8) for steps in (2, 4, 10, 20)),
    *(
        Variant("diffusion", sampler, steps, loop=loop)
        for sampler, steps in (("ddpm", 100), ("ddim", 10), ("ddim", 2))
        for loop in ("diffusers", "bare")
    ),
    Variant("flow", "euler", 2),
    Variant("mip", "none", 2),
    Variant("regression", "none", 1),
)


class BareDiffusionPolicy(DiffusionPolicy):
    """The same sampling as through ``diffusers``, without its scheduler around every step.

    Coefficients are tables made beforehand, so that a latency is the network's and not a
    scheduler's. In the notation of Ho et al. 2020 (DDPM, equations 6, 7) and Song et al. 2021
    (DDIM, equation 12 with sigma 0), x_0 clipped to [-1, 1]::

        x_0  = (x - sqrt(1 - abar_t) e) / sqrt(abar_t)     of predicted noise e
        e    = (x - sqrt(abar_t) x_0) / sqrt(1 - abar_t)   of predicted actions x_0
        DDPM: x <- sqrt(abar_s) beta_t / (1 - abar_t) x_0
                   + sqrt(alpha_t) (1 - abar_s) / (1 - abar_t) x
                   + sqrt((1 - abar_s) / (1 - abar_t) beta_t) n,    s = t - 1
        DDIM: x <- sqrt(abar_s) x_0 + sqrt(1 - abar_s) e
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self._tabulate()

    def with_sampling(self, settings: Any = None, action_steps: int | None = None) -> Policy:
        """See :meth:`Policy.with_sampling`."""
        other = super().with_sampling(settings, action_steps)
        assert isinstance(other, BareDiffusionPolicy)
        other._tabulate()
        return other

    def _tabulate(self) -> None:
        settings = self.config.diffusion
        steps = settings.training_steps if settings.sampler == "ddpm" else settings.ddim_steps
        schedule = self._schedule(settings.sampler)
        schedule.set_timesteps(steps)
        self.times = [int(time) for time in schedule.timesteps]
        abar = [float(value) for value in schedule.alphas_cumprod]
        gap = settings.training_steps // steps
        self.table = []
        for time_ in self.times:
            now, before = abar[time_], abar[time_ - gap] if time_ >= gap else 1.0
            if settings.sampler == "ddpm":
                alpha = now / before
                to_clean = before**0.5 * (1 - alpha) / (1 - now)
                to_here = alpha**0.5 * (1 - before) / (1 - now)
                spread = ((1 - before) / (1 - now) * (1 - alpha)) ** 0.5
                self.table.append((now, to_clean, to_here, 0.0, spread))
            else:
                self.table.append((now, before**0.5, 0.0, (1 - before) ** 0.5, 0.0))

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        memory = self.network.remember(observation)
        batch, device = len(memory[0][0]), memory[0][0].device
        shape = (self.config.windows.horizon, self.config.action_dim)
        levels = self._level(torch.tensor(self.times, device=device))
        x = self.denoise(
            lambda x, step: self.network(x, memory, levels[step].expand(batch)),
            lambda: draw(shape, batch, generators, device),
        )
        return x, torch.full((batch,), len(self.times)), None

    def denoise(self, evaluate: Callable[[Any, int], Any], fresh: Callable[[], Any]) -> Any:
        """The loop of the equations above, on tensors or on arrays.

        Args:
            evaluate: what the network predicts of x at a step.
            fresh: standard normal draws of the shape of x.
        """
        x = fresh()
        for step, (now, to_clean, to_here, to_noise, spread) in enumerate(self.table):
            made = evaluate(x, step)
            if self.config.diffusion.prediction == "sample":
                clean, noise = made, (x - now**0.5 * made) * (1 - now) ** -0.5
            else:
                clean, noise = (x - (1 - now) ** 0.5 * made) * now**-0.5, made
            clean = clean.clip(-1, 1)
            x = to_clean * clean + (to_noise * noise if to_noise else to_here * x)
            if spread:
                x = x + spread * fresh()
        return x
