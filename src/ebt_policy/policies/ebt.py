"""The energy-based transformer policy: descend E(o, a) from a start, execute, repeat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Smoothness, Trace, best_of, descend, mean_of
from ebt_policy.energy.model import EnergyModel, Prefix, is_alive
from ebt_policy.energy.transformer import Memory
from ebt_policy.objectives.annealed import annealed
from ebt_policy.objectives.basin import basin, near
from ebt_policy.objectives.equilibrium import equilibrium
from ebt_policy.objectives.noise import smooth
from ebt_policy.objectives.unrolled import unrolled
from ebt_policy.policies.base import Draws, Policy, draw
from ebt_policy.shapes import Float


class EnergyPolicy(Policy):
    """EBT-Policy (arXiv 2510.27545): an energy over action chunks, and its descent.

    Example::

        policy = EnergyPolicy(config)
        loss = policy(batch)                                  # one objective, see config
        prediction = policy.predict_chunk({"state": window})  # (b, To, 5) -> (b, Ta, A)
        prediction.trace.energy                               # (b, steps)
    """

    acting = "descent"

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.energy = EnergyModel(config)

    @property
    def sampler(self) -> str:
        return "descent"

    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        memory = self.energy.remember(observation)
        if self.config.objective == "basin":
            count = near(len(actions), self.config.basin)
            energy = self.energy.given([(keys[:count], values[:count]) for keys, values in memory])
            prefix = self._draw_prefix(actions)
            ways = self.energy.proposals(memory, prefix)
            free = None if prefix is None else prefix.free
            return basin(energy, *ways, actions, self.config.basin, free)
        energy = self.energy.given(memory)
        if self.config.objective == "annealed":
            return annealed(energy, actions, self.config.annealed)
        if self.config.objective == "equilibrium":
            return equilibrium(energy, actions, self.config.equilibrium)
        return unrolled(energy, actions, self.config.unrolled, self.config.descent)

    def _draw_prefix(self, actions: Float[Tensor, "b t a"]) -> Prefix | None:
        """Prefixes of 0 to To - 1 + Ta actions for a share of the batch, none for the rest."""
        share, windows = self.config.basin.prefix_share, self.config.windows
        if share == 0:
            return None
        # One action at least is left to be found.
        longest = min(windows.executed.stop, windows.horizon - 1)
        has_prefix = torch.rand(len(actions), 1, device=actions.device) < share
        length = torch.randint(longest + 1, (len(actions), 1), device=actions.device) * has_prefix
        return Prefix.of(actions, length)

    @property
    def holds_prefix(self) -> bool:
        return self.config.objective == "basin" and self.config.basin.prefix_share > 0

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
        prefix: Prefix | None = None,
        keep_path: bool = False,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        memory, settings = self.energy.remember(observation), self.config.descent
        prefix = self._held(prefix, previous)
        smoothness = self._smoothness(prefix, memory)
        start, noise, taken = self.starts(memory, generators, previous, prefix, smoothness)
        free = None if prefix is None else prefix.repeated(settings.starts).free
        energy = self.energy.given(memory, settings.starts)
        actions, trace = descend(energy, start, settings, noise, keep_path, taken, free, smoothness)
        if settings.starts > 1 and settings.pick == "mean":
            actions, trace = mean_of(actions, trace, settings.starts, self.energy.given(memory))
        elif settings.starts > 1:
            actions, trace = best_of(actions, trace, settings.starts)
        return actions, trace.steps, trace

    def sample_after(
        self,
        prefix: Prefix,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        return self.sample(observation, generators, previous, prefix)

    def _held(
        self, prefix: Prefix | None, previous: Float[Tensor, "b t a"] | None
    ) -> Prefix | None:
        """The actions at the beginning of the chunk that stay as they are.

        With smoothness, where nothing else is decided, those that were executed since the oldest
        observation. Without, and without having learned to go on from a prefix, none.
        """
        if self.config.descent.smoothness == 0:
            return prefix if self.holds_prefix else None
        if prefix is None and previous is not None:
            executed = self.config.windows.executed.start
            lengths = torch.full((len(previous), 1), executed, device=previous.device)
            return Prefix.of(previous, lengths)
        return prefix

    def starts(
        self,
        memory: Memory,
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
        prefix: Prefix | None = None,
        smoothness: Smoothness | None = None,
    ) -> tuple[Float[Tensor, "bn t a"], Float[Tensor, "k bn t a"] | None, int]:
        """Where the descent begins.

        Returns:
            Starting chunks (b * starts, T, A): a proposal (the same for all starts of a sample,
            so that every way is taken as often as it was demonstrated), made smooth, noise, or
            what was planned before; a prefix is in its place. The draws of the noise for each
            step, if there is any. And the steps taken so far: 1 if the start is a proposal, else 0.
        """
        settings, windows = self.config.descent, self.config.windows
        batch, device = len(memory[0][0]), memory[0][0].device
        chunk = (windows.horizon, self.config.action_dim)
        taken = 0
        if settings.warm_start and previous is not None:
            start = previous.repeat_interleave(settings.starts, 0)
        elif settings.start == "proposal":
            start, taken = self.proposal(memory, generators, prefix), 1
            start = start.repeat_interleave(settings.starts, 0)
        else:
            start = draw((settings.starts, *chunk), batch, generators, device).flatten(0, 1)
        if prefix is not None:
            start = prefix.repeated(settings.starts).over(start)
        if smoothness is not None and taken:
            start = smoothness.between(start)
        left = settings.steps - taken
        if settings.noise == 0 or left == 0:
            return start, None, taken
        draws = draw((settings.starts, left, *chunk), batch, generators, device)
        noise = smooth(draws.flatten(0, 2)).unflatten(0, (-1, left)).transpose(0, 1)
        return start, noise, taken

    def proposal(
        self,
        memory: Memory,
        generators: Sequence[torch.Generator] | Draws | None,
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "b t a"]:
        """One of the living ways for each sample, drawn as often as it is the way."""
        chunks, logits = self.energy.proposals(memory, prefix if self.holds_prefix else None)
        logits = logits.masked_fill(~is_alive(logits), -torch.inf)
        # The normal distribution function makes a uniform draw of a normal one.
        uniform = torch.special.ndtr(draw((1,), len(chunks), generators, chunks.device))
        below = logits.softmax(1).cumsum(1)[:, :-1] < uniform
        return chunks[torch.arange(len(chunks), device=chunks.device), below.sum(1)]

    def _smoothness(self, prefix: Prefix | None, memory: Memory) -> Smoothness | None:
        weight = self.config.descent.smoothness
        if weight == 0:
            return None
        decided = 0 if prefix is None else int((1 - prefix.free[0]).sum())
        return Smoothness.of(weight, self.config.windows.horizon, decided, memory[0][0].device)
