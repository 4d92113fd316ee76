"""Implicit behavioural cloning (Florence et al. 2021, arXiv 2109.00137).

    L = -log  exp(-E(o, a)) / (exp(-E(o, a)) + sum over n of exp(-E(o, x_n)))       (InfoNCE)

over counter-examples x_n, drawn uniformly from the box of demonstrated actions and moved
down the energy by Langevin steps where that is the search. Acts by the same search: the
derivative-free one resamples around the best points with shrinking noise, the Langevin one
follows the gradient; the chunk of lowest energy is executed. The energy is that of the energy
policy: same encoder, trunk and form. In the tens of dimensions of a chunk uniform
counter-examples are told apart without effort, and the derivative-free variant learns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Trace
from ebt_policy.energy.model import Energy, EnergyModel, energy_and_gradient
from ebt_policy.energy.transformer import Memory
from ebt_policy.policies.base import Draws, Policy, draw
from ebt_policy.shapes import Float


class IBCPolicy(Policy):
    """A contrastively trained energy and a search over chunks."""

    acting = "ibc"

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.energy = EnergyModel(config)

    @property
    def sampler(self) -> str:
        return self.config.ibc.search

    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        """InfoNCE of each sample, spread over its elements (there is no error of an element)."""
        settings = self.config.ibc
        count = settings.counter_examples
        memory = self.energy.remember(observation)
        spread = 2 * torch.rand(len(actions), count, *actions.shape[1:], device=actions.device) - 1
        chunks = spread.flatten(0, 1)
        if settings.search == "langevin":
            noise = torch.randn(settings.iterations, *chunks.shape, device=chunks.device)
            chunks = self._langevin(self.energy.given(memory, count), chunks, noise)
        candidates = torch.cat([actions[:, None], chunks.unflatten(0, (-1, count))], 1)
        energies = self.energy.given(memory, count + 1)(candidates.flatten(0, 1))
        logits = -energies.unflatten(0, (-1, count + 1))
        target = torch.zeros(len(actions), dtype=torch.int64, device=actions.device)
        loss = functional.cross_entropy(logits, target, reduction="none")
        loss = loss + self._steepness(memory, actions)
        return loss[:, None, None].expand_as(actions)

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        settings = self.config.ibc
        memory = self.energy.remember(observation)
        zeros = self.zero_chunk(memory)
        batch, count, shape = len(zeros), settings.samples, tuple(zeros.shape[1:])
        energy = self.energy.given(memory, count)
        draws = draw((settings.iterations + 1, count, *shape), batch, generators, zeros.device)
        # The normal distribution function makes uniform draws in [-1, 1] of normal ones.
        chunks = (2 * torch.special.ndtr(draws[:, 0]) - 1).flatten(0, 1)
        noise = draws[:, 1:].transpose(0, 1).flatten(1, 2)
        if settings.search == "langevin":
            chunks = self._langevin(energy, chunks, noise)
        else:
            scale = settings.noise
            for k in range(settings.iterations):
                order = energy(chunks).unflatten(0, (batch, count)).argsort(1)
                # Each of the best eighth has eight children; the best itself stays.
                children = torch.arange(count, device=zeros.device) % max(count // 8, 1)
                parents = order[:, children]
                rows = parents + count * torch.arange(batch, device=zeros.device)[:, None]
                moved = scale * noise[k].unflatten(0, (batch, count))
                moved[:, 0] = 0
                chunks = (chunks[rows.flatten()] + moved.flatten(0, 1)).clamp(-1, 1)
                scale *= settings.shrink
        final = energy(chunks).unflatten(0, (batch, count))
        best = final.argmin(1) + count * torch.arange(batch, device=zeros.device)
        return chunks[best], torch.full((batch,), settings.iterations + 1), None

    def _steepness(self, memory: Memory, actions: Float[Tensor, "b t a"]) -> Float[Tensor, b]:
        """Penalty on slopes above ``max_slope`` around the data (appendix of the paper)."""
        around = (actions + self.config.ibc.noise * torch.randn_like(actions)).clamp(-1, 1)
        _, gradient = energy_and_gradient(self.energy.given(memory), around)
        return (gradient.abs().amax((1, 2)) - self.config.ibc.max_slope).clamp(min=0).square()

    def _langevin(
        self, energy: Energy, chunks: Float[Tensor, "n t a"], noise: Float[Tensor, "k n t a"]
    ) -> Float[Tensor, "n t a"]:
        """Noisy gradient steps inside the box, step and noise falling together."""
        settings, scale = self.config.ibc, self.config.ibc.noise
        with torch.no_grad():
            for draws in noise:
                _, gradient = energy_and_gradient(energy, chunks)
                move = -settings.step_size * scale * gradient.clamp(-1, 1) + scale * draws * 0.5
                chunks = (chunks + move).clamp(-1, 1)
                scale *= settings.shrink
        return chunks
