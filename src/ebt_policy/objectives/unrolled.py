"""The released recipe: unroll the descent from noise, land on the demonstration.

    y_0 ~ N(0, I);  K ~ min_steps + U{0 .. extra_steps - 1}
    y <- rms_normalise(detach(y)) + s_k e;   v <- m v - s exp(E / size) g;   y <- y + v
    L = || y_K - a ||^2

with g = dE/dy at y + m v, s_k falling as a cosine from ``noise_first`` to ``noise_last`` and
the step s jittered per sample by a factor up to ``step_jitter`` either way. Only the last
step's gradient is differentiated (one double backward), so memory does not grow with K.

Normalisation, step size and stopping are per sample here (the released code mixes the batch).
Starting from noise that says nothing of the target, the optimum of this loss is the mean of the
demonstrated chunks: it averages modes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebt_policy.config import DescentConfig, UnrolledConfig
from ebt_policy.descent import normalise_rms, step_size
from ebt_policy.energy.model import Energy, energy_and_gradient
from ebt_policy.shapes import Float


def unrolled(
    energy: Energy,
    actions: Float[Tensor, "b t a"],
    config: UnrolledConfig,
    descent: DescentConfig,
) -> Float[Tensor, "b t a"]:
    """Squared error of each action element after the last step.

    Args:
        energy: with the batch's observations fixed.
        actions: demonstrated chunks, normalised.
        config: number of steps, noise and jitter of training.
        descent: the step rule and momentum that will be used to act.
    """
    sigmas, jitter = schedule(actions, config)
    y, velocity = torch.randn_like(actions), torch.zeros_like(actions)
    for k, sigma in enumerate(sigmas, 1):
        y = normalise_rms(y.detach()) + sigma * torch.randn_like(y)
        with torch.set_grad_enabled(k == len(sigmas)):
            value, gradient = energy_and_gradient(energy, y + descent.momentum * velocity)
        step = jitter * step_size(value, y[0].numel(), descent)
        velocity = descent.momentum * velocity - step * gradient
        y = y + velocity
    return (y - actions).square()


def schedule(
    actions: Float[Tensor, "b t a"], config: UnrolledConfig
) -> tuple[list[float], Float[Tensor, "b 1 1"]]:
    """The noise of each step of one unrolled descent, and each sample's factor of its step size.

    The number of steps and the factors are drawn from torch's global generator.
    """
    count = config.min_steps + int(torch.randint(config.extra_steps, ()).item())
    falls = [0.5 * (1 + math.cos(math.pi * k / max(count - 1, 1))) for k in range(count)]
    sigmas = [config.noise_last + (config.noise_first - config.noise_last) * fall for fall in falls]
    spread = math.log(config.step_jitter)
    jitter = torch.empty(actions.shape[0], 1, 1, device=actions.device).uniform_(-spread, spread)
    return sigmas, jitter.exp()
