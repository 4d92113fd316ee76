"""The energy of an observation itself: low where the demonstrator has been.

A chunk's energy E(o, a) says which of two chunks suits an observation better. Added to it, any
function of the observation alone would leave every descent as it is; so training a descent does
not determine it, and energies under different observations cannot be compared. This is the
missing term, learned by the same rule as the chunk's (one unit step lands on the demonstration,
see :mod:`ebt_policy.objectives.basin`) with the observation in the place of the chunk:

    F(o) = 1/2 || o - g(o) ||^2,      L = || g(o + s n) - o ||^2,   s ~ U(0, noise),  n ~ N(0, I)

With g frozen the step is o - g(o), so g lands where o would be if it had been demonstrated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebt_policy.shapes import Float

_NOISE = 0.1  # of the range [-1, 1] of the demonstrations
_STEPS, _BATCH, _LEARNING_RATE = 3_000, 128, 1e-3


class ObservationEnergy(nn.Module):
    """F(o) of an observation window, flattened and normalised.

    Args:
        features: of the whole window, To times those of one step.
        width: of the two hidden layers.
    """

    def __init__(self, features: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, features),
        )  # fmt: skip

    def forward(self, windows: Float[Tensor, "b d"]) -> Float[Tensor, b]:
        """F of each window."""
        return 0.5 * (windows - self.layers(windows)).square().sum(1)

    def fit(self, windows: Float[Tensor, "n d"], seed: int) -> None:
        """Learn from demonstrated windows; some seconds on a CPU.

        Args:
            windows: normalised.
            seed: of batches and noise.
        """
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), _LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
        for _ in range(_STEPS):
            chosen = torch.randint(len(windows), (_BATCH,), generator=generator)
            clean = windows[chosen]
            size = _NOISE * torch.rand(_BATCH, 1, generator=generator)
            noised = clean + size * torch.randn(clean.shape, generator=generator)
            loss = (self.layers(noised) - clean).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.requires_grad_(False)
