"""Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): DDPM or DDIM.

    L = || e - f(o, sqrt(abar_t) a + sqrt(1 - abar_t) e, t) ||^2,   t ~ U{0 .. 99}   (epsilon)
    L = || a - f(o, sqrt(abar_t) a + sqrt(1 - abar_t) e, t) ||^2                     (sample)

on the same encoder and trunk as the energy policy; the schedules are those of ``diffusers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Trace
from ebt_policy.energy.transformer import Network, repeat_memory
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Draws, Policy, draw
from ebt_policy.shapes import Float


class DiffusionPolicy(Policy):
    """100 training steps; acts by DDPM-100 or DDIM."""

    acting = "diffusion"

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.network = Network(config, levels=True)
        self._training_schedule = self._schedule("ddpm")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # The schedule moves its table to the device by itself when it is first used, and a step
        # that was compiled before would be compiled again.
        moved = super()._apply(fn, recurse)
        self._training_schedule.alphas_cumprod = fn(self._training_schedule.alphas_cumprod)
        return moved

    @property
    def sampler(self) -> str:
        return self.config.diffusion.sampler

    def _schedule(self, name: str) -> Any:
        # Imported here: the core must import without the libraries of the baselines.
        from diffusers import DDIMScheduler, DDPMScheduler

        return (DDPMScheduler if name == "ddpm" else DDIMScheduler)(
            num_train_timesteps=self.config.diffusion.training_steps,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            prediction_type=self.config.diffusion.prediction,
        )

    def with_sampling(self, settings: Any = None, action_steps: int | None = None) -> Policy:
        """As of every policy; what the network was trained for stays as it is.

        Raises:
            UserError: another prediction or number of noise levels than in training.
        """
        was = self.config.diffusion
        for name in ("prediction", "training_steps"):
            trained = getattr(was, name)
            if settings is not None and (asked := getattr(settings, name)) != trained:
                raise UserError(
                    f"diffusion.{name} = {asked}: this policy was trained for {trained}"
                )
        return super().with_sampling(settings, action_steps)

    def _level(self, times: Tensor) -> Tensor:
        return times.float() / self.config.diffusion.training_steps

    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        noise = torch.randn_like(actions)
        times = torch.randint(
            self.config.diffusion.training_steps, (len(actions),), device=actions.device
        )
        noised = self._training_schedule.add_noise(actions, noise, times)
        predicted = self.network(noised, self.network.remember(observation), self._level(times))
        target = noise if self.config.diffusion.prediction == "epsilon" else actions
        return (predicted - target).square()

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        settings = self.config.diffusion
        memory = self.network.remember(observation)
        batch, device = len(memory[0][0]), memory[0][0].device
        shape = (settings.samples, self.config.windows.horizon, self.config.action_dim)
        chunk = draw(shape, batch, generators, device).flatten(0, 1)
        if settings.samples > 1:
            memory = repeat_memory(memory, settings.samples)
        schedule = self._schedule(settings.sampler)
        steps = settings.training_steps if settings.sampler == "ddpm" else settings.ddim_steps
        schedule.set_timesteps(steps)
        # diffusers draws each sample's noise from its own generator when given a list.
        assert not isinstance(generators, Draws)
        own = None
        if generators is not None:
            own = [generator for generator in generators for _ in range(settings.samples)]
        for time in schedule.timesteps:
            times = time.to(device).expand(len(chunk))
            predicted = self.network(chunk, memory, self._level(times))
            chunk = schedule.step(predicted, time, chunk, generator=own).prev_sample
        chunk = chunk.unflatten(0, (batch, settings.samples)).mean(1)
        return chunk, torch.full((batch,), steps), None
