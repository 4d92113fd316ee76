"""Annealed energy: flow matching whose velocity is the gradient of a scalar.

    x = t a + (1 - t) e,   t ~ U(0, 1),   e ~ N(0, I)
    L = || x - dE_t(o, x)/dx - a ||^2 / max(1 - t, least_noise)^2

At the optimum a unit step from x lands on E[a | o, x], whatever the level t, and the loss is that
of flow matching (Lipman et al. 2022, arXiv 2210.02747) for the velocity -dE_t/dx / (1 - t). Acting
is a descent through the levels: a step of size 1 / (K - k) at level k / K, for k = 0 ... K - 1, is
Euler's for that velocity, and the last is a unit step.

At the level 0 a chunk says nothing, and the step goes towards the mean of what is demonstrated
under the observation; the levels in between make a choice of it. The noise in every sample keeps
the network from learning the demonstrations by heart, which the ways of ``basin`` do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.config import AnnealedConfig
from ebt_policy.energy.model import GivenEnergy, energy_and_gradient
from ebt_policy.shapes import Float


def annealed(
    energy: GivenEnergy, actions: Float[Tensor, "b t a"], config: AnnealedConfig
) -> Float[Tensor, "b t a"]:
    """Squared error of each element of the velocity (one double backward).

    Args:
        energy: with the batch's observations fixed.
        actions: demonstrated chunks, normalised.
        config: where the weight of small noise ends.
    """
    level = torch.rand(len(actions), device=actions.device)
    clean = level[:, None, None]
    point = torch.lerp(torch.randn_like(actions), actions, clean)
    _, gradient = energy_and_gradient(energy.at(level), point)
    return ((point - gradient - actions) / (1 - clean).clamp(min=config.least_noise)).square()
