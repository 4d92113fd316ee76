"""Equilibrium matching with an explicit energy (Wang & Du 2025, arXiv 2510.02300).

    x = g a + (1 - g) e,   g ~ U(0, 1),   e ~ N(0, I)
    L = || dE(o, x)/dx - (e - a) c(g) ||^2,   c(g) = scale * min(1, (1 - g) / (1 - decay_from))

c vanishes at the data, so demonstrations are equilibria of the descent; there is no noise-level
input, so one landscape serves every number of steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.config import EquilibriumConfig
from ebt_policy.energy.model import Energy, energy_and_gradient
from ebt_policy.shapes import Float


def equilibrium(
    energy: Energy, actions: Float[Tensor, "b t a"], config: EquilibriumConfig
) -> Float[Tensor, "b t a"]:
    """Squared error of each element of the gradient (one double backward).

    Args:
        energy: with the batch's observations fixed.
        actions: demonstrated chunks, normalised.
        config: gradient scale (lambda in the paper) and where it begins to fall.
    """
    mix = torch.rand(actions.shape[0], 1, 1, device=actions.device)
    noise = torch.randn_like(actions)
    point = mix * actions + (1 - mix) * noise
    magnitude = config.gradient_scale * ((1 - mix) / (1 - config.decay_from)).clamp(max=1)
    _, gradient = energy_and_gradient(energy, point)
    return (gradient - (noise - actions) * magnitude).square()
