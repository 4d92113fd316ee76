"""The energy-based transformer policy: descend E(o, a) from a start, execute, repeat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Trace, best_of, descend
from ebt_policy.energy.model import EnergyModel
from ebt_policy.energy.transformer import Memory
from ebt_policy.objectives.basin import basin
from ebt_policy.objectives.equilibrium import equilibrium
from ebt_policy.objectives.unrolled import unrolled
from ebt_policy.policies.base import Policy, draw
from ebt_policy.shapes import Float


class EnergyPolicy(Policy):
    """EBT-Policy (arXiv 2510.27545): an energy over action chunks, and its descent.

    Example::

        policy = EnergyPolicy(config)
        loss = policy(batch)                                  # one objective, see config
        prediction = policy.predict_chunk({"state": window})  # (b, To, 5) -> (b, Ta, A)
        prediction.trace.energy                               # (b, steps + 1)
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.energy = EnergyModel(config)

    @property
    def sampler(self) -> str:
        return "descent"

    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        energy = self.energy.given(self.energy.remember(observation))
        if self.config.objective == "basin":
            return basin(energy, actions, self.config.basin)
        if self.config.objective == "equilibrium":
            return equilibrium(energy, actions, self.config.equilibrium)
        return unrolled(energy, actions, self.config.unrolled, self.config.descent)

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | None,
        previous: Float[Tensor, "b t a"] | None,
        keep_path: bool = False,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        memory = self.energy.remember(observation)
        start, noise = self.starts(memory, generators, previous)
        settings = self.config.descent
        actions, trace = descend(
            self.energy.given(memory, settings.starts), start, settings, noise, keep_path
        )
        if settings.starts > 1:
            actions, trace = best_of(actions, trace, settings.starts)
        return actions, trace.steps, trace

    def starts(
        self,
        memory: Memory,
        generators: Sequence[torch.Generator] | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "bn t a"], Float[Tensor, "k bn t a"] | None]:
        """Starting chunks (b * starts, T, A) and the draws of the Langevin noise, if any.

        The first of several starts is the centre (zero, or the previous chunk shifted by the
        executed actions) where starts are centred; the others are spread around it.
        """
        settings, windows = self.config.descent, self.config.windows
        centre = self.zero_chunk(memory)
        batch, chunk, device = len(centre), centre.shape[1:], centre.device
        warm = settings.warm_start and previous is not None
        if warm:
            assert previous is not None
            centre = torch.cat(
                [
                    previous[:, windows.action_steps :],
                    previous[:, -1:].expand(-1, windows.action_steps, -1),
                ],
                dim=1,
            )
        exact_first = warm or settings.start == "zero"
        if exact_first and settings.starts == 1:
            start = centre[:, None]
        else:
            spread = settings.start_scale * draw(
                (settings.starts, *chunk), batch, generators, device
            )
            if exact_first:
                spread[:, 0] = 0
            start = centre[:, None] + spread
        noise = None
        if settings.noise > 0:
            noise = draw((settings.starts, settings.steps, *chunk), batch, generators, device)
            noise = noise.flatten(0, 1).transpose(0, 1)
        return start.flatten(0, 1), noise
