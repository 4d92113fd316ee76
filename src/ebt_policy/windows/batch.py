"""The typed batch that training passes to a policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def presence(stream: str) -> str:
    """Under what name observations say where a stream is, if only some of them have it.

    There stands 1 where it is and 0 where anything else is in its place, (b, To, 1). No stream
    has a name like this: in what ``--obs`` names, a colon begins the options.
    """
    return f"{stream}:present"


@dataclass
class Batch:
    """A batch of windows, in the units of the demonstrations.

    Attributes:
        observations: per stream (b, To, *shape), and the :func:`presence` of some; or, of a camera,
            the features that a frozen backbone made of its pictures before, float16
            (b, To, C, p, p).
        actions: (b, T, A).
        valid: (b, T), False where the action is a repetition beyond the episode's end.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        observations = {name: values.to(device) for name, values in self.observations.items()}
        return Batch(observations, self.actions.to(device), self.valid.to(device))
