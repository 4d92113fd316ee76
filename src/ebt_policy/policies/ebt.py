"""The energy-based transformer policy: descend E(o, a) from a start, execute, repeat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Anchor, Trace, best_of, descend
from ebt_policy.energy.model import EnergyModel, Prefix, is_alive
from ebt_policy.energy.transformer import Memory
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
        anchor = self._anchor(previous, prefix)
        start, noise, taken = self.starts(memory, generators, previous, prefix, anchor)
        free = None if prefix is None else prefix.repeated(settings.starts).free
        near = None if anchor is None else anchor.repeated(settings.starts)
        energy = self.energy.given(memory, settings.starts)
        actions, trace = descend(energy, start, settings, noise, keep_path, taken, free, near)
        if settings.starts > 1:
            actions, trace = best_of(actions, trace, settings.starts)
        return actions, trace.steps, trace

    def sample_after(
        self,
        prefix: Prefix,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        return self.sample(observation, generators, previous, prefix if self.holds_prefix else None)

    def starts(
        self,
        memory: Memory,
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
        prefix: Prefix | None = None,
        anchor: Anchor | None = None,
    ) -> tuple[Float[Tensor, "bn t a"], Float[Tensor, "k bn t a"] | None, int]:
        """Where the descent begins.

        Returns:
            Starting chunks (b * starts, T, A): a proposal (the same for all starts of a sample,
            so that every way is taken as often as it was demonstrated), noise, or what was
            planned before; a prefix is in its place. The draws of the noise for each step, if
            there is any. And the steps taken so far: 1 if the start is a proposal, else 0.
        """
        settings, windows = self.config.descent, self.config.windows
        batch, device = len(memory[0][0]), memory[0][0].device
        chunk = (windows.horizon, self.config.action_dim)
        taken = 0
        if settings.warm_start and previous is not None:
            start = previous.repeat_interleave(settings.starts, 0)
        elif settings.start == "proposal":
            start, taken = self.proposal(memory, generators, prefix, anchor), 1
            start = start.repeat_interleave(settings.starts, 0)
        else:
            start = draw((settings.starts, *chunk), batch, generators, device).flatten(0, 1)
        if prefix is not None:
            start = prefix.repeated(settings.starts).over(start)
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
        anchor: Anchor | None = None,
    ) -> Float[Tensor, "b t a"]:
        """One of the living ways for each sample, drawn as often as it is the way.

        With an anchor, as often as it is the way of who has planned that: the responsibilities of
        the basin's objective, with the weighted error to the anchor for that to a demonstration.
        """
        chunks, logits = self.energy.proposals(memory, prefix)
        logits = logits.masked_fill(~is_alive(logits), -torch.inf)
        if anchor is not None:
            apart = (chunks - anchor.actions[:, None]).square().mean(-1, keepdim=True)
            error = (apart * anchor.weights).sum((2, 3)) / anchor.weights.sum()
            logits = logits - error / (2 * self.config.basin.way_width**2)
        # The normal distribution function makes a uniform draw of a normal one.
        uniform = torch.special.ndtr(draw((1,), len(chunks), generators, chunks.device))
        below = logits.softmax(1).cumsum(1)[:, :-1] < uniform
        taken = chunks[torch.arange(len(chunks), device=chunks.device), below.sum(1)]
        return taken if anchor is None else anchor.between(taken)

    def _anchor(
        self, previous: Float[Tensor, "b t a"] | None, prefix: Prefix | None
    ) -> Anchor | None:
        """What was planned before, if the chunk should stay near it."""
        weight, windows = self.config.descent.continuity, self.config.windows
        if weight == 0 or previous is None:
            return None
        first = windows.executed.start
        if prefix is not None:
            first = int((1 - prefix.free[0]).sum())
        after = torch.arange(windows.horizon, device=previous.device) - first
        return Anchor(previous, (weight * 0.5**after * (after >= 0))[:, None])
