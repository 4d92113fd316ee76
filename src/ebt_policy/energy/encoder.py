"""Observation encoder: named streams to one token per observation step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebt_policy.config import NetworkConfig
from ebt_policy.energy.layers import EncoderBlock
from ebt_policy.shapes import Float


class ObservationEncoder(nn.Module):
    """Per-step features, learned positions, causal self-attention (``method`` as released).

    A token is the sum of one linear map per stream, which for number streams is the linear map
    of their concatenation; further kinds of stream join by adding their own term.

    Args:
        features: number of features of each stream.
        observation_steps: To.
        network: sizes.
    """

    def __init__(
        self, features: dict[str, int], observation_steps: int, network: NetworkConfig
    ) -> None:
        super().__init__()
        # ModuleDict keys may not hold dots; the index keeps any stream name legal.
        self.names = sorted(features)
        self.streams = nn.ModuleList(nn.Linear(features[n], network.width) for n in self.names)
        self.positions = nn.Parameter(torch.randn(observation_steps, network.width) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock(network) for _ in range(network.encoder_blocks))
        steps = torch.arange(observation_steps)
        self.register_buffer("visible", steps[:, None] >= steps[None, :], persistent=False)
        self.visible: Tensor

    def forward(self, observation: dict[str, Float[Tensor, "b s _"]]) -> Float[Tensor, "b s w"]:
        """Encode normalised streams, each (batch, To, features)."""
        tokens = self.positions + sum(
            layer(observation[name]) for name, layer in zip(self.names, self.streams, strict=True)
        )
        for block in self.blocks:
            tokens = block(tokens, self.visible)
        return tokens
