"""Attention blocks that can be differentiated twice, with their reverse pass written out.

Training an energy differentiates a gradient, and PyTorch's fused attention has neither a
double backward nor forward-mode derivatives. Chunks are short (T = 16 and To = 2 tokens), so
plain matrix products cost nothing extra there.

Acting needs one gradient, of the energy with respect to the chunk, and none of the parameters.
A ``forward`` that is given a *tape* (a list) pushes onto it what its ``pullback`` pops again, in
reverse: the same derivative as autograd's, without the upkeep of a graph, in operations that can
be exported. A compiled training step differentiates the pullback, once, by the parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ebt_policy.config import NetworkConfig
from ebt_policy.shapes import Bool, Float

Tape = list[Tensor]
"""What the forward pass leaves for the pullback, last in, first out."""


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weight, which under autocast is float32."""

    def forward(self, tokens: Float[Tensor, "*b w"], tape: Tape | None = None) -> Tensor:
        tokens = tokens.to(self.weight.dtype)
        mean_square = tokens.square().mean(-1, keepdim=True)
        inverse = (mean_square + torch.finfo(tokens.dtype).eps).rsqrt()
        unit = tokens * inverse
        if tape is not None:
            tape += (unit, inverse)
        return unit * self.weight

    def pullback(self, gradient: Float[Tensor, "*b w"], tape: Tape) -> Tensor:
        """The gradient of the input from that of the output."""
        inverse, unit = tape.pop(), tape.pop()
        gradient = gradient * self.weight
        along = (gradient * unit).mean(-1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1) * inverse


class Chain(nn.Sequential):
    """Linear maps, GELUs and RMSNorms, one after the other."""

    def forward(self, tokens: Float[Tensor, "*b _"], tape: Tape | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, RMSNorm):
                tokens = layer(tokens, tape)
                continue
            if isinstance(layer, nn.GELU) and tape is not None:
                tape.append(tokens)
            tokens = layer(tokens)
        return tokens

    def pullback(self, gradient: Float[Tensor, "*b _"], tape: Tape) -> Tensor:
        """The gradient of the input from that of the output."""
        for layer in reversed(self):
            if isinstance(layer, RMSNorm):
                gradient = layer.pullback(gradient, tape)
            elif isinstance(layer, nn.GELU):
                gradient = torch.ops.aten.gelu_backward(
                    gradient, tape.pop(), approximate=layer.approximate
                )
            else:
                assert isinstance(layer, nn.Linear)
                gradient = gradient @ layer.weight
        return gradient


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
        self.scale = (width // heads) ** -0.5

    def keys_values(
        self, tokens: Float[Tensor, "b s w"], tape: Tape | None = None
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """Keys and values of ``tokens``, split into heads."""
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        return self.key_norm(self._split(key), tape), self._split(value)

    def forward(
        self,
        tokens: Float[Tensor, "b t w"],
        keys: Float[Tensor, "b h s d"],
        values: Float[Tensor, "b h s d"],
        visible: Bool[Tensor, "t s"] | None = None,
        tape: Tape | None = None,
    ) -> Float[Tensor, "b t w"]:
        """Attend from ``tokens`` to ``keys``; ``visible`` is False where that is forbidden."""
        query = self.query_norm(self._split(self.query(tokens)), tape)
        if tape is None and not torch.is_grad_enabled():
            mixed = functional.scaled_dot_product_attention(
                query, keys, values, visible, self.dropout if self.training else 0.0
            )
            return self.output(self._merge(mixed))
        scores = query @ keys.transpose(-1, -2) * self.scale
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        weights = scores.softmax(-1)
        if tape is not None:
            tape += (query, keys, values, weights)
        weights = functional.dropout(weights, self.dropout, self.training)
        return self.output(self._merge(weights @ values))

    def pullback(
        self, gradient: Float[Tensor, "b t w"], tape: Tape, to_itself: bool
    ) -> Float[Tensor, "b t w"]:
        """The gradient of the tokens from that of the output, without dropout.

        Args:
            gradient: of the output.
            tape: of the forward pass.
            to_itself: keys and values were those of the same tokens, made before the attention.
        """
        weights, values, keys, query = (tape.pop() for _ in range(4))
        mixed = self._split(gradient @ self.output.weight)
        scores = self.scale * torch.ops.aten._softmax_backward_data(
            mixed @ values.transpose(-1, -2), weights, -1, weights.dtype
        )
        queries = self._merge(self.query_norm.pullback(scores @ keys, tape))
        tokens = queries @ self.query.weight
        if not to_itself:
            return tokens
        key = self.key_norm.pullback(scores.transpose(-1, -2) @ query, tape)
        value = weights.transpose(-1, -2) @ mixed
        both = torch.cat([self._merge(key), self._merge(value)], -1)
        return tokens + both @ self.key_value.weight

    def _split(self, tokens: Float[Tensor, "b s w"]) -> Float[Tensor, "b h s d"]:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, heads: Float[Tensor, "b h s d"]) -> Float[Tensor, "b s w"]:
        return heads.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear; ``ratio`` is the hidden width over the outer one."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.layers = Chain(
            nn.Linear(width, ratio * width), nn.GELU("tanh"), nn.Linear(ratio * width, width)
        )

    def forward(self, tokens: Float[Tensor, "b t w"], tape: Tape | None = None) -> Tensor:
        return self.layers(tokens, tape)


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
        tape: Tape | None = None,
    ) -> Float[Tensor, "b t w"]:
        normed = self.self_norm(tokens, tape)
        own = self.self_attention.keys_values(normed, tape)
        tokens = tokens + self.self_attention(normed, *own, tape=tape)
        normed = self.cross_norm(tokens, tape)
        tokens = tokens + self.cross_attention(
            normed, observation_keys, observation_values, visible, tape
        )
        return tokens + self.feedforward(self.feedforward_norm(tokens, tape), tape)

    def pullback(self, gradient: Float[Tensor, "b t w"], tape: Tape) -> Float[Tensor, "b t w"]:
        """The gradient of the tokens from that of the output, without dropout."""
        inner = self.feedforward.layers.pullback(gradient, tape)
        gradient = gradient + self.feedforward_norm.pullback(inner, tape)
        inner = self.cross_attention.pullback(gradient, tape, to_itself=False)
        gradient = gradient + self.cross_norm.pullback(inner, tape)
        inner = self.self_attention.pullback(gradient, tape, to_itself=True)
        return gradient + self.self_norm.pullback(inner, tape)


def sine_cosine(positions: Float[Tensor, "*n"], width: int) -> Float[Tensor, "*n w"]:
    """Fixed sinusoidal features of ``positions`` (Vaswani et al. 2017, section 3.5)."""
    half = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * 10_000.0 ** (-half / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
