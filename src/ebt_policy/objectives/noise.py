"""Noise for chunks: as smooth over time as actions are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebt_policy.shapes import Float

_WAVES = 6


def smooth(draws: Float[Tensor, "b t a"]) -> Float[Tensor, "b t a"]:
    """White draws to noise of mean square 1 whose spectrum over the chunk falls as 1/frequency.

    White noise leaves the slow part of a chunk, where ways differ, almost untouched: a network
    trained on it reads the answer off the chunk and stops looking at the observation. Noise of
    this colour hides the slow part as well, and resembles what a coarse prediction gets wrong.

    Args:
        draws: standard normal; the first min(T, 6) rows of each chunk are used.
    """
    horizon = draws.shape[1]
    count = min(_WAVES, horizon)
    time = (torch.arange(horizon, device=draws.device) + 0.5) / horizon
    waves = torch.stack(
        [torch.cos(math.pi * k * time) * (2**0.5 if k else 1) / (1 + k) for k in range(count)]
    )
    waves = waves / waves.square().sum(0).mean().sqrt()
    return torch.einsum("kt,bka->bta", waves.to(draws.dtype), draws[:, :count])
