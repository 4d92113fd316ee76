"""Min-max normalisation to [-1, 1], saved with the policy.

    x_n = (x - centre) / half_range,   centre = (max + min) / 2,   half_range = (max - min) / 2

A dimension that is constant in the demonstrations has no range: it is only centred, and on the
way back it is the constant again, whatever the policy says.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from ebt_policy.demonstrations.base import constant_dimensions
from ebt_policy.errors import UserError
from ebt_policy.shapes import Float


def held(values: Tensor, limit: float | None) -> Tensor:
    """Normalised numbers at most ``limit`` from the middle; None: as they are."""
    return values if limit is None else values.clamp(-limit, limit)


class Normaliser(nn.Module):
    """Min-max normaliser of one stream of numbers.

    Args:
        features: number of dimensions.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("half_range", torch.ones(features))
        self.register_buffer("moves", torch.ones(features))
        self.centre: Tensor
        self.half_range: Tensor
        self.moves: Tensor

    def fit(self, blocks: Iterable[Float[np.ndarray, "_ d"]], source: str) -> None:
        """Take the range from all values of some blocks.

        Raises:
            UserError: a value is NaN or infinite; ``source`` says where it came from.
        """
        lows, highs, first = [], [], 0
        for values in blocks:
            if not np.isfinite(values).all():
                row, dimension = np.argwhere(~np.isfinite(values))[0]
                raise UserError(
                    f"{source}: step {first + row}, dimension {dimension} is "
                    f"{values[row, dimension]}; every value must be finite"
                )
            lows.append(values.min(0))
            highs.append(values.max(0))
            first += len(values)
        low, high = np.min(lows, 0).astype(np.float64), np.max(highs, 0).astype(np.float64)
        still = constant_dimensions(low, high)
        half = np.where(still, 1.0, (high - low) / 2)
        self.centre.copy_(torch.from_numpy((low + high) / 2))
        self.half_range.copy_(torch.from_numpy(half))
        self.moves.copy_(torch.from_numpy(~still))

    def normalise(self, values: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """To [-1, 1] over the range of the demonstrations; beyond it outside that range."""
        return (values - self.centre) / self.half_range

    def unnormalise(self, values: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Back to the units of the demonstrations; constant dimensions are their constant."""
        return values * (self.half_range * self.moves) + self.centre
