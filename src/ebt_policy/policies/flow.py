"""Flow matching (rectified flow; Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022).

    x = (1 - t) e + t a,   t ~ U(0, 1),   L = || f(o, x, t) - (a - e) ||^2
    act: x_0 ~ N(0, I);   x <- x + f(o, x, t) / N   for t = 0, 1/N, ..., (N - 1)/N

on the same encoder and trunk as the energy policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Trace
from ebt_policy.energy.transformer import Network
from ebt_policy.policies.base import Draws, Policy, draw
from ebt_policy.shapes import Float


class FlowPolicy(Policy):
    """Velocity prediction; acts by Euler steps."""

    acting = "flow"

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.network = Network(config, levels=True)

    @property
    def sampler(self) -> str:
        return "euler"

    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        noise = torch.randn_like(actions)
        time = torch.rand(len(actions), device=actions.device)
        point = torch.lerp(noise, actions, time[:, None, None])
        velocity = self.network(point, self.network.remember(observation), time)
        return (velocity - (actions - noise)).square()

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        memory, steps = self.network.remember(observation), self.config.flow.steps
        zeros = self.zero_chunk(memory)
        batch, device = len(zeros), zeros.device
        chunk = draw(tuple(zeros.shape[1:]), batch, generators, device)
        for k in range(steps):
            time = torch.full((batch,), k / steps, device=device)
            chunk = chunk + self.network(chunk, memory, time) / steps
        return chunk, torch.full((batch,), steps), None
