"""Quadratic basin: ask one unit step of descent to land on the demonstration.

    L = || x - dE(o, x)/dx - a ||^2                              (mean over the chunk)

with x = 0 for a share of the batch and x = a + s * e for the rest, e ~ N(0, I) and
s ~ U(0, noise). At the optimum dE/dx = x - E[a | o, x]: near a demonstration the landscape is a
bowl of curvature one, so the step size is 1 and nothing is left to tune; from x = 0 the first
step is plain regression, which keeps the observation in charge at the far end of the descent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.config import BasinConfig
from ebt_policy.energy.model import Energy, energy_and_gradient
from ebt_policy.shapes import Float


def basin(
    energy: Energy, actions: Float[Tensor, "b t a"], config: BasinConfig
) -> Float[Tensor, "b t a"]:
    """Squared error of each action element after one unit step (one double backward).

    Args:
        energy: with the batch's observations fixed.
        actions: demonstrated chunks, normalised.
        config: share of starts at zero, and largest noise.
    """
    batch = actions.shape[0]
    scale = config.noise * torch.rand(batch, 1, 1, device=actions.device)
    noised = actions + scale * torch.randn_like(actions)
    from_zero = torch.arange(batch, device=actions.device) < round(config.start_share * batch)
    point = torch.where(from_zero[:, None, None], torch.zeros_like(actions), noised)
    _, gradient = energy_and_gradient(energy, point, create_graph=True)
    return (point - gradient - actions).square()
