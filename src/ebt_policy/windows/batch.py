"""The typed batch that training passes to a policy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """A batch of windows, in the units of the demonstrations.

    Attributes:
        observations: per stream (b, To, *shape).
        actions: (b, T, A).
        valid: (b, T), False where the action is a repetition beyond the episode's end.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    valid: Tensor
