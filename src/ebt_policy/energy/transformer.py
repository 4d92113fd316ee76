"""The trunk that every policy here shares: action tokens that look at an observation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ebt_policy.config import NetworkConfig, PolicyConfig
from ebt_policy.energy.encoder import ObservationEncoder
from ebt_policy.energy.layers import ActionBlock, Chain, RMSNorm, Tape, sine_cosine
from ebt_policy.shapes import Float

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values of the observation, one pair for each action block, (b, heads, To, d)."""


def repeat_memory(memory: Memory, times: int) -> Memory:
    """Repeat every sample of a memory ``times`` times in a row (several starts each)."""
    return [
        (keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0))
        for keys, values in memory
    ]


class ActionTransformer(nn.Module):
    """Maps (action chunk, observation) to one vector per action.

    Stem MLP and fixed sine-cosine positions, then blocks of self-attention, cross-attention to
    the observation and feed-forward; RMSNorm and an MLP head to ``action_dim`` outputs per
    token. Action token t sees observation step s only if t >= s.

    Args:
        network: sizes.
        observation_steps, horizon: To and T.
        action_dim: A.
        levels: whether there is a noise-level (or diffusion-time) input.
        extra_outputs: outputs per token beyond ``action_dim``.
        empty: whether there are learned tokens for "no chunk yet".
        head: whether it has one; without, its outputs are the tokens.
    """

    def __init__(
        self,
        network: NetworkConfig,
        observation_steps: int,
        horizon: int,
        action_dim: int,
        levels: bool,
        extra_outputs: int = 0,
        empty: bool = False,
        head: bool = True,
    ) -> None:
        super().__init__()
        width = network.width
        self.stem = Chain(nn.Linear(action_dim, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.level = (
            nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), nn.Linear(width, width))
            if levels
            else None
        )
        self.blocks = nn.ModuleList(ActionBlock(network) for _ in range(network.action_blocks))
        self.head = (
            Chain(
                RMSNorm(width), nn.Linear(width, width), nn.GELU("tanh"),
                nn.Linear(width, action_dim + extra_outputs),
            )
            if head
            else Chain()
        )  # fmt: skip
        self.empty = nn.Parameter(torch.randn(horizon, width) * 0.02) if empty else None
        actions = torch.arange(horizon)
        visible = actions[:, None] >= torch.arange(observation_steps)[None, :]
        self.register_buffer("positions", sine_cosine(actions.float(), width), persistent=False)
        self.register_buffer("visible", visible, persistent=False)
        self.positions: Tensor
        self.visible: Tensor

    def remember(self, tokens: Float[Tensor, "b s w"]) -> Memory:
        """Keys and values of the observation tokens for every block, computed once."""
        blocks = cast(list[ActionBlock], list(self.blocks))
        return [block.cross_attention.keys_values(tokens) for block in blocks]

    def forward(
        self,
        actions: Float[Tensor, "b t a"],
        memory: Memory,
        level: Float[Tensor, b] | None = None,
        tape: Tape | None = None,
    ) -> Float[Tensor, "b t outputs"]:
        """One output vector per action; ``level`` is in [0, 1] where the model has that input."""
        tokens = self.tokens(actions, memory, level, tape)
        # Energies are compared and differentiated: their head stays float32 under autocast.
        with torch.autocast(tokens.device.type, enabled=False):
            return self.head(tokens.to(self.positions.dtype), tape)

    def pullback(
        self, gradient: Float[Tensor, "b t outputs"], tape: Tape
    ) -> Float[Tensor, "b t a"]:
        """The gradient of the actions from that of the outputs (no dropout, no autocast)."""
        gradient = self.head.pullback(gradient, tape)
        for block in reversed(cast(list[ActionBlock], list(self.blocks))):
            gradient = block.pullback(gradient, tape)
        return self.stem.pullback(gradient, tape)

    def tokens(
        self,
        actions: Float[Tensor, "b t a"] | None,
        memory: Memory,
        level: Float[Tensor, b] | None = None,
        tape: Tape | None = None,
        free: Float[Tensor, "b t 1"] | None = None,
    ) -> Float[Tensor, "b t w"]:
        """The action tokens after the last block.

        Args:
            actions: the chunk; without it, learned tokens that stand for "no chunk yet".
            memory: of the observations.
            level: the noise level, where the model has that input.
            tape: for the pullback.
            free: 0 where an action is decided. Where it is 1, ``actions`` hold the last decided
                one, whose token is added to the learned one.
        """
        if actions is None:
            assert self.empty is not None
            tokens = self.empty.expand(len(memory[0][0]), -1, -1)
        else:
            tokens = self.stem(actions, tape)
            if free is not None:
                assert self.empty is not None
                is_begun = 1 - free[:, :1]  # a free first action means that nothing is decided
                tokens = torch.where(free > 0, self.empty + is_begun * tokens, tokens)
        tokens = tokens + self.positions
        if self.level is not None:
            assert level is not None
            features = sine_cosine(level * 1000.0, self.positions.shape[-1])
            tokens = tokens + self.level(features)[:, None]
        for block, (keys, values) in zip(self.blocks, memory, strict=True):
            tokens = block(tokens, keys, values, self.visible, tape)
        return tokens


def action_transformer(
    config: PolicyConfig, levels: bool = False, extra_outputs: int = 0, empty: bool = False,
    head: bool = True,
) -> ActionTransformer:  # fmt: skip
    """The action transformer of a policy's configuration; see :class:`ActionTransformer`."""
    windows = config.windows
    return ActionTransformer(
        config.network, windows.observation_steps, windows.horizon, config.action_dim, levels,
        extra_outputs, empty, head,
    )  # fmt: skip


class Network(nn.Module):
    """Observation encoder and action transformer: the same network for every policy.

    Args:
        config: of the policy.
        levels: whether the action transformer takes a noise level.
        extra_outputs, empty: see :class:`ActionTransformer`.
    """

    called_in_acting = ("remember", "forward")

    def __init__(
        self, config: PolicyConfig, levels: bool, extra_outputs: int = 0, empty: bool = False
    ) -> None:
        super().__init__()
        self.encoder = ObservationEncoder(config)
        self.transformer = action_transformer(config, levels, extra_outputs, empty)

    def remember(self, observation: dict[str, Float[Tensor, "b s ..."]]) -> Memory:
        """Encode normalised observation streams, once for all uses of the chunk."""
        return self.transformer.remember(self.encoder(observation))

    def forward(
        self,
        actions: Float[Tensor, "b t a"],
        memory: Memory,
        level: Float[Tensor, b] | None = None,
    ) -> Float[Tensor, "b t outputs"]:
        return self.transformer(actions, memory, level)
