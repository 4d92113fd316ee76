"""Two-scale quadratic basin: a step of descent is to land on the demonstration.

Far from every demonstration a chunk says nothing, and the landscape is a bowl around each of K
ways p_k(o) that the observation alone suggests (``EnergyModel.proposals``); near them it is
E(o, x):

    L = sum over k of w_k || p_k(o) - a ||^2  -  c sum over k of r_k log pi_k(o)          (far)
      + w(s) || x - dE(o, x)/dx - a ||^2, x = a + s n,      s ~ U(0, noise)               (near)

Far: r is the responsibility of way k for the demonstration under pi_k exp(-e_k^2 / 2 width^2) with
e_k the root mean square error of way k and

    width^2 = way_width^2 + way_error_share * mean over the batch of min_k e_k^2.

As long as all ways are wrong they learn together, and what none has learned is not shared out among
them (they would be the centres of a k-means on the residuals, and acting would draw one of these);
as they fit, they part. A way that is hardly ever responsible under an observation is dead there: it
is not taken, and a small weight draws it towards every demonstration until it fits some; living
ways are drawn to theirs alone. (Relaxed winner-takes-all, Rupprecht et al. 2017, arXiv 1612.00197,
draws all of them, and so a rare way towards the mean of the others.) With one way this is plain
regression. One forward and one backward pass, for the whole batch.

Near: n is smooth or white noise, half and half, and w(s) = max(1, noise / max(s, least_noise))^2.
It is 1 with the default noise; the errors of wider noise would hide those of little noise without
it. At the optimum dE/dx = x - E[a | o, x] (Tweedie): the landscape is a bowl of curvature one
around every demonstrated way, so the step is 1 and nothing is left to tune. This needs a double
backward (compiled, one through the layers' pullbacks), on ``near_share`` of the batch.

Split: in one transformer the far landscape, which learns the demonstrations by heart, seems to cost
the near one precision. With ``split`` each has its own; they share the encoder of observations. It
is meant for wide noise: the chunk of a way, walked away from by
``descent.noise`` several times at once, and the mean of where the steps lead (``descent.pick``) is
one step down the energy smoothed over that noise.

For real-time chunking some chunks begin with a prefix of actions that are decided already (cf.
Black et al. 2025, arXiv 2506.07339): both landscapes see it as it is, and learn the rest alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebt_policy.config import BasinConfig
from ebt_policy.energy.model import Energy, energy_and_gradient, is_alive
from ebt_policy.objectives.noise import smooth
from ebt_policy.shapes import Float

_PULL = 0.05  # over K: weight of a dead way's error, where the responsible ones' sum to 1
_FREQUENCY_WEIGHT = 0.01  # of the cross-entropy of pi, whose scale is that of squared errors


def basin(
    energy: Energy,
    proposals: Float[Tensor, "b k t a"],
    logits: Float[Tensor, "b k"],
    actions: Float[Tensor, "b t a"],
    config: BasinConfig,
    free: Float[Tensor, "b t 1"] | None = None,
) -> Float[Tensor, "b t a"]:
    """Squared error of each action element, of both scales (one double backward).

    Args:
        energy: the near landscape, with the first ``near(batch, config)`` observations fixed.
        proposals: the far landscape's minima for every observation.
        logits: of how often each of them is the way.
        actions: demonstrated chunks, normalised.
        config: share of the batch for the near landscape, its noise, the ways.
        free: 0 for the actions of a prefix, which are given, 1 for those to be learned.
    """
    errors = far(proposals, logits, actions, config, free)
    count = near(len(actions), config)
    target = actions[:count]
    scale = config.noise * torch.rand(count, 1, 1, device=actions.device)
    is_smooth = torch.rand(count, 1, 1, device=actions.device) < 0.5
    draws = torch.randn_like(target)
    noise = scale * torch.where(is_smooth, smooth(draws), draws)
    if free is not None:
        noise = noise * free[:count]
    point = target + noise
    _, gradient = energy_and_gradient(energy, point)
    weight = (config.noise / scale.clamp(min=config.least_noise)).clamp(min=1).square()
    landing = weight * (point - gradient - target).square() * (len(actions) / count)
    if free is not None:
        landing = landing * free[:count]
    return torch.cat([errors[:count] + landing, errors[count:]])


def far(
    proposals: Float[Tensor, "b k t a"],
    logits: Float[Tensor, "b k"],
    actions: Float[Tensor, "b t a"],
    config: BasinConfig,
    free: Float[Tensor, "b t 1"] | None = None,
) -> Float[Tensor, "b t a"]:
    """The far part of the loss, the cross-entropy of the ways spread over a chunk's elements."""
    errors = (proposals - actions[:, None]).square()
    if free is not None:
        errors = errors * free[:, None]
    frequencies = logits.log_softmax(1)
    with torch.no_grad():
        squared = errors.mean((2, 3))
        if free is not None:
            squared = squared / free.mean((1, 2))[:, None]
        width = config.way_width**2 + config.way_error_share * squared.min(1).values.mean()
        fit = -squared / (2 * width)
        responsible = (fit + frequencies).softmax(1)
        weights = responsible + _PULL / logits.shape[1] * ~is_alive(logits)
    entropy = -(responsible * frequencies).sum(1)
    return (weights[:, :, None, None] * errors).sum(1) + _FREQUENCY_WEIGHT * entropy[:, None, None]


def near(batch: int, config: BasinConfig) -> int:
    """How many samples of a batch train the near landscape."""
    return max(1, round(config.near_share * batch))
