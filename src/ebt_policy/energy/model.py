"""The energy: one scalar for an action chunk under an observation.

Let f(o, a) be the action transformer's output, one vector per action. Two forms:

* ``scalar`` (as released):  E(o, a) = sum over t, i of f(o, a)[t, i]
* ``residual``:              E(o, a) = 1/2 ||a - f(o, a)||^2 + sum over t of b(o, a)[t]

where b is one more output per action: without it every fixed point of f would have the energy 0,
and the energy could not tell a demonstrated way from a spurious one.

Under the objective ``annealed`` there is one such landscape for every level t from 0, where a chunk
is nothing but noise, to 1, where it is as demonstrated; f and b are told t, and

    E_t(o, x) = 1/2 ||x||^2 - <x, f> + t (1/2 ||f||^2 + sum over t of b)      (``residual``)

which is the second form at t = 1. Its gradient is x - f - J'(x - t f) + t db/dx: at any level a
unit step leads to f, up to what the landscape's curvature adds.

All are *summed* over the chunk, so that the gradient with respect to the chunk has the scale
of an action whatever the chunk's length. The released code takes the mean instead and makes up
for it with a step of about T * A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ebt_policy.config import EnergyForm, PolicyConfig
from ebt_policy.energy.layers import RMSNorm, Tape
from ebt_policy.energy.transformer import Memory, Network, action_transformer, repeat_memory
from ebt_policy.shapes import Bool, Float, Int

Energy = Callable[[Float[Tensor, "b t a"]], Float[Tensor, "b"]]
"""An energy whose observation is fixed; all that an objective or a descent sees of a model."""


@dataclass(frozen=True)
class Prefix:
    """The first actions of each chunk, where they are decided already (real-time chunking).

    Attributes:
        actions: normalised chunks: the prefixes, and their last actions from there on.
        free: 0 where an action belongs to the prefix, 1 where it is still to be found.
    """

    actions: Float[Tensor, "b t a"]
    free: Float[Tensor, "b t 1"]

    @classmethod
    def of(cls, chunks: Float[Tensor, "b t a"], lengths: Int[Tensor, "b 1"]) -> Prefix:
        """The first actions of chunks, so many of each."""
        place = torch.arange(chunks.shape[1], device=chunks.device)
        last = place.minimum((lengths - 1).clamp(min=0))[..., None].expand_as(chunks)
        free = (place >= lengths)[..., None].to(chunks.dtype)
        return cls(chunks.gather(1, last), free)

    def over(self, chunks: Float[Tensor, "b t a"]) -> Float[Tensor, "b t a"]:
        """Other chunks with these prefixes."""
        return torch.where(self.free > 0, chunks, self.actions)

    def repeated(self, starts: int) -> Prefix:
        """Each sample's prefix ``starts`` times in a row."""
        return Prefix(*(part.repeat_interleave(starts, 0) for part in (self.actions, self.free)))


class EnergyModel(nn.Module):
    """E(o, a), low where the demonstrator would act so."""

    called_in_acting = ("remember", "proposals", "value_and_gradient", "forward")

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.form: EnergyForm = config.form
        self.is_annealed = config.policy == "ebt" and config.objective == "annealed"
        self.dropout = config.network.attention_dropout
        has_ways = config.policy == "ebt" and config.objective == "basin"
        split = config.basin.split  # which the configuration allows with ways alone
        self.network = Network(
            config, levels=self.is_annealed, extra_outputs=int(config.form == "residual"),
            empty=has_ways and not split,
        )  # fmt: skip
        self.far = action_transformer(config, empty=True, head=False) if split else None
        self.ways = Ways(config) if has_ways else None

    def remember(self, observation: dict[str, Float[Tensor, "b s ..."]]) -> Memory:
        """Encode an observation once; the result serves any number of energy evaluations.

        Where the far landscape has a transformer of its own, its keys and values come last.
        """
        tokens = self.network.encoder(observation)
        memory = self.network.transformer.remember(tokens)
        return memory if self.far is None else memory + self.far.remember(tokens)

    def forward(
        self,
        actions: Float[Tensor, "b t a"],
        memory: Memory,
        level: Float[Tensor, b] | None = None,
    ) -> Float[Tensor, b]:
        """Energies of normalised chunks; sample i depends on chunk i and memory i alone.

        Args:
            actions: the chunks.
            memory: of the observations.
            level: t of an annealed energy, 1 if it is not given; the other energies have none.
        """
        level = self._level(actions, level)
        return self._energy(actions, self.network(actions, self._near(memory), level), level)

    def _near(self, memory: Memory) -> Memory:
        return memory[: len(self.network.transformer.blocks)]

    def _level(
        self, actions: Float[Tensor, "b t a"], level: Float[Tensor, b] | None
    ) -> Float[Tensor, b] | None:
        return actions.new_ones(len(actions)) if self.is_annealed and level is None else level

    def _energy(
        self,
        actions: Float[Tensor, "b t a"],
        outputs: Float[Tensor, "b t o"],
        level: Float[Tensor, b] | None,
    ) -> Float[Tensor, b]:
        if self.form == "scalar":
            return outputs.sum((1, 2))
        landing, offset = outputs[..., :-1], outputs[..., -1]
        if level is None:
            return 0.5 * (actions - landing).square().sum((1, 2)) + offset.sum(1)
        own = 0.5 * landing.square().sum((1, 2)) + offset.sum(1)
        return (actions * (0.5 * actions - landing)).sum((1, 2)) + level * own

    def value_and_gradient(
        self,
        actions: Float[Tensor, "b t a"],
        memory: Memory,
        level: Float[Tensor, b] | None = None,
    ) -> tuple[Float[Tensor, b], Float[Tensor, "b t a"]]:
        """E and dE/da by the layers' own pullbacks, as autograd's to rounding.

        Nothing is differentiated to get there: training differentiates it once, not twice, and
        under ``torch.no_grad`` no graph is kept. Not with dropout or autocast.
        """
        transformer, tape = self.network.transformer, Tape()
        level = self._level(actions, level)
        outputs = transformer(actions, self._near(memory), level, tape)
        values = self._energy(actions, outputs, level)
        if self.form == "scalar":
            return values, transformer.pullback(torch.ones_like(outputs), tape)
        landing, offset = outputs[..., :-1], torch.ones_like(outputs[..., -1:])
        share = offset if level is None else offset * level[:, None, None]
        slopes = torch.cat([share * landing - actions, share], -1)
        return values, actions - landing + transformer.pullback(slopes, tape)

    def proposals(
        self, memory: Memory, prefix: Prefix | None = None
    ) -> tuple[Float[Tensor, "b k t a"], Float[Tensor, "b k"]]:
        """The minima p_k of the far landscape, and the logits of how often each is the way.

        Far from every demonstration a chunk says nothing, so there the energy looks at the
        observation alone and is an exact bowl around each way, min over k of 1/2 ||a - p_k(o)||^2:
        one unit step lands on a p_k, for the price of a forward pass. Only ``basin`` trains it.

        Args:
            memory: of the observations.
            prefix: actions that are decided already; the ways are how the chunk may go on then,
                and mean nothing before.
        """
        assert self.ways is not None
        actions, free = (None, None) if prefix is None else (prefix.actions, prefix.free)
        transformer = self.network.transformer
        if self.far is not None:
            transformer, memory = self.far, memory[len(self.network.transformer.blocks) :]
        return self.ways(transformer.tokens(actions, memory, free=free))

    def given(self, memory: Memory, starts: int = 1) -> GivenEnergy:
        """The energy under one observation per sample, each repeated for ``starts`` chunks."""
        memory = self._near(memory)
        return GivenEnergy(self, repeat_memory(memory, starts) if starts > 1 else memory)


@dataclass(frozen=True)
class GivenEnergy:
    """An energy model with its observations fixed."""

    model: EnergyModel
    memory: Memory
    level: Float[Tensor, b] | None = None

    def __call__(self, actions: Float[Tensor, "b t a"]) -> Float[Tensor, b]:
        return self.model(actions, self.memory, self.level)

    def at(self, level: Float[Tensor, b]) -> GivenEnergy:
        """An annealed energy's landscape at a level."""
        return GivenEnergy(self.model, self.memory, level)

    @property
    def has_pullback(self) -> bool:
        """Whether its gradient can be had by :meth:`EnergyModel.value_and_gradient` now."""
        device = self.memory[0][0].device.type
        drops = self.model.training and self.model.dropout > 0
        return not drops and not torch.is_autocast_enabled(device)


class Ways(nn.Module):
    """Tokens to K chunks and their logits."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        width, self.count = config.network.width, config.basin.ways
        self.hidden = nn.Sequential(RMSNorm(width), nn.Linear(width, width), nn.GELU("tanh"))
        self.chunks = nn.Linear(width, self.count * config.action_dim)
        self.logits = nn.Linear(width, self.count)

    def forward(
        self, tokens: Float[Tensor, "b t w"]
    ) -> tuple[Float[Tensor, "b k t a"], Float[Tensor, "b k"]]:
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = self.hidden(tokens.to(self.chunks.weight.dtype))
            chunks = self.chunks(hidden).unflatten(-1, (self.count, -1)).movedim(2, 1)
            return chunks, self.logits(hidden.mean(1))


def is_alive(logits: Float[Tensor, "b k"]) -> Bool[Tensor, "b k"]:
    """Whether each way is taken at all: not where it is rarer than half its fair share.

    One at least always is.
    """
    return logits.softmax(1) >= 0.5 / logits.shape[1]


def energy_and_gradient(
    energy: Energy, actions: Float[Tensor, "b t a"]
) -> tuple[Float[Tensor, b], Float[Tensor, "b t a"]]:
    """E and dE/da of each sample.

    Both can be differentiated by the network's parameters, unless this is called under
    ``torch.no_grad``: then nothing is kept beyond the gradient itself.

    Args:
        energy: with its observation fixed.
        actions: where to evaluate; what they depend on is not differentiated.
    """
    keep = torch.is_grad_enabled()
    compiling = torch.compiler.is_compiling()
    given = energy if isinstance(energy, GivenEnergy) else None
    # To train eagerly, autograd's own is the quicker.
    if given is not None and given.has_pullback and (compiling or not keep):
        return given.model.value_and_gradient(actions.detach(), given.memory, given.level)
    if compiling:
        # The form of it that torch.compile can see through; torch 2.11 not through a GivenEnergy.
        one = (
            energy
            if given is None
            else partial(given.model, memory=given.memory, level=given.level)
        )

        def total(chunks: Tensor) -> tuple[Tensor, Tensor]:
            values = one(chunks)
            return values.sum(), values

        gradient, (_, values) = torch.func.grad_and_value(total, has_aux=True)(actions.detach())
        return values, gradient
    with torch.enable_grad():
        chunks = actions.detach().requires_grad_()
        values = energy(chunks)
        (gradient,) = torch.autograd.grad(values.sum(), chunks, create_graph=keep)
    return (values if keep else values.detach()), gradient
