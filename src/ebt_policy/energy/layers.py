"""Attention blocks that can be differentiated twice.

Training an energy differentiates a gradient, and PyTorch's fused attention has neither a
double backward nor forward-mode derivatives. Chunks are short (T = 16 and To = 2 tokens), so
plain matrix products cost nothing extra here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ebt_policy.config import NetworkConfig
from ebt_policy.shapes import Bool, Float


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weight, which under autocast is float32."""

    def forward(self, tokens: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        return super().forward(tokens.to(self.weight.dtype))


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys (QK-norm).

    Keys and values are made apart from the attention itself, so that those of the observation
    can be computed once and used in every descent step.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)
        self.dropout = dropout

    def keys_values(
        self, tokens: Float[Tensor, "b s w"]
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """Keys and values of ``tokens``, split into heads."""
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        return self.key_norm(self._split(key)), self._split(value)

    def forward(
        self,
        tokens: Float[Tensor, "b t w"],
        keys: Float[Tensor, "b h s d"],
        values: Float[Tensor, "b h s d"],
        visible: Bool[Tensor, "t s"] | None = None,
    ) -> Float[Tensor, "b t w"]:
        """Attend from ``tokens`` to ``keys``; ``visible`` is False where that is forbidden."""
        query = self.query_norm(self._split(self.query(tokens)))
        scores = query @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        weights = functional.dropout(scores.softmax(-1), self.dropout, self.training)
        return self.output((weights @ values).transpose(1, 2).flatten(2))

    def _split(self, tokens: Float[Tensor, "b s w"]) -> Float[Tensor, "b h s d"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear; ``ratio`` is the hidden width over the outer one."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, ratio * width), nn.GELU("tanh"), nn.Linear(ratio * width, width)
        )

    def forward(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        return self.layers(tokens)


class EncoderBlock(nn.Module):
    """Pre-norm causal self-attention and feed-forward, over observation tokens."""

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__()
        width = network.width
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, network.heads, network.attention_dropout)
        self.feedforward_norm = RMSNorm(width)
        self.feedforward = FeedForward(width, network.feedforward_ratio)

    def forward(
        self, tokens: Float[Tensor, "b s w"], visible: Bool[Tensor, "s s"]
    ) -> Float[Tensor, "b s w"]:
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention(normed, *self.attention.keys_values(normed), visible)
        return tokens + self.feedforward(self.feedforward_norm(tokens))


class ActionBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the observation, and feed-forward."""

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__()
        width = network.width
        self.self_norm = RMSNorm(width)
        self.self_attention = Attention(width, network.heads, network.attention_dropout)
        self.cross_norm = RMSNorm(width)
        self.cross_attention = Attention(width, network.heads, network.attention_dropout)
        self.feedforward_norm = RMSNorm(width)
        self.feedforward = FeedForward(width, network.feedforward_ratio)

    def forward(
        self,
        tokens: Float[Tensor, "b t w"],
        observation_keys: Float[Tensor, "b h s d"],
        observation_values: Float[Tensor, "b h s d"],
        visible: Bool[Tensor, "t s"],
    ) -> Float[Tensor, "b t w"]:
        normed = self.self_norm(tokens)
        tokens = tokens + self.self_attention(normed, *self.self_attention.keys_values(normed))
        tokens = tokens + self.cross_attention(
            self.cross_norm(tokens), observation_keys, observation_values, visible
        )
        return tokens + self.feedforward(self.feedforward_norm(tokens))


def sine_cosine(positions: Float[Tensor, "*n"], width: int) -> Float[Tensor, "*n w"]:
    """Fixed sinusoidal features of ``positions`` (Vaswani et al. 2017, section 3.5)."""
    half = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * 10_000.0 ** (-half / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
