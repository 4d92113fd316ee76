"""Two-scale quadratic basin: one unit step of descent is to land on the demonstration.

Far from every demonstration the chunk says nothing and the landscape is a bowl around what the
observation alone predicts, p(o) (``EnergyModel.proposal``); near them it is E(o, x):

    L = || p(o) - a ||^2  +  || x - dE(o, x)/dx - a ||^2,      x = a + s n

with n half smooth, half white noise and s ~ U(0, noise). The first term is plain regression (one
forward and one backward pass); the second needs a double backward, on ``near_share`` of the batch.
At the optimum dE/dx = x - E[a | o, x] (Tweedie): the landscape is a bowl of curvature one around
every way that was demonstrated, so the step is 1 and nothing is left to tune.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.config import BasinConfig
from ebt_policy.energy.model import Energy, energy_and_gradient
from ebt_policy.objectives.noise import smooth
from ebt_policy.shapes import Float


def basin(
    energy: Energy,
    proposal: Float[Tensor, "b t a"],
    actions: Float[Tensor, "b t a"],
    config: BasinConfig,
) -> Float[Tensor, "b t a"]:
    """Squared error of each action element, of both scales (one double backward).

    Args:
        energy: the near landscape, with the first ``near(batch, config)`` observations fixed.
        proposal: the far landscape's minimum for every observation.
        actions: demonstrated chunks, normalised.
        config: share of the batch for the near landscape, and its noise.
    """
    errors = (proposal - actions).square()
    count = near(len(actions), config)
    target = actions[:count]
    scale = config.noise * torch.rand(count, 1, 1, device=actions.device)
    is_smooth = torch.rand(count, 1, 1, device=actions.device) < 0.5
    draws = torch.randn_like(target)
    point = target + scale * torch.where(is_smooth, smooth(draws), draws)
    _, gradient = energy_and_gradient(energy, point, create_graph=True)
    landing = (point - gradient - target).square() * (len(actions) / count)
    return torch.cat([errors[:count] + landing, errors[count:]])


def near(batch: int, config: BasinConfig) -> int:
    """How many samples of a batch train the near landscape."""
    return max(1, round(config.near_share * batch))
