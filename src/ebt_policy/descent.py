"""Descent: from starting chunks to actions, given nothing but an energy.

    z_k     = y_k + noise e_k                   (walk)
    g_k     = dE/dy at z_k + m v_k              (Nesterov look-ahead, momentum m)
    v_{k+1} = m v_k - s_k g_k                   (s_k = step, or step * exp(E / size))
    y_{k+1} = z_k + v_{k+1}                     (jump)

An annealed energy has a landscape for every level; the rule ``annealed`` takes its K steps at the
levels 0, 1/K, ... (K - 1)/K, of sizes 1/K, 1/(K - 1), ... 1, see
:mod:`ebt_policy.objectives.annealed`.

With noise of one size at every step the iterates are a walk through the chunks that suit the
observation, each followed by a jump to the bottom (Saremi & Hyvarinen 2019, arXiv 1903.02334):
any number of steps gives a sample, where a plain descent would end in the most frequent chunk.

Everything is per sample: a sample's result does not depend on its batch, and a sample whose step,
walk and jump together, has led almost nowhere no longer moves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ebt_policy.config import DescentConfig
from ebt_policy.energy.model import Energy, GivenEnergy, energy_and_gradient
from ebt_policy.shapes import Bool, Float, Int

# exp(E / size) is the released step rule; beyond this exponent a step would only overflow.
MAX_EXPONENT = 5.0
_ORDER = 3  # of the differences that smoothness is about: jerk


@dataclass
class Trace:
    """What a descent did, for each sample (of several starts: the one that was chosen).

    Attributes:
        energy: (b, K + 1), at each iterate that was evaluated; the last is the final energy.
        gradient_norm: (b, K), root mean square of the gradient's elements at each step.
        steps: (b,), steps that moved the sample, those taken before the start included.
        path: K + 1 iterates (b, T, A), kept only on request.

    K is the number of steps after the start.
    """

    energy: Float[Tensor, "b k1"]
    gradient_norm: Float[Tensor, "b k"]
    steps: Int[Tensor, b]
    path: list[Tensor] = field(default_factory=list)


def rms(actions: Float[Tensor, "b t a"]) -> Float[Tensor, b]:
    """Root mean square of each sample's elements."""
    return actions.square().mean((1, 2)).sqrt()


def normalise_rms(actions: Float[Tensor, "b t a"]) -> Float[Tensor, "b t a"]:
    """Bring each sample, by itself, to root mean square 1 (the released code's iterates)."""
    return actions / rms(actions).clamp(min=1e-6)[:, None, None]


def step_size(
    energy: Float[Tensor, b], elements: int, config: DescentConfig
) -> Float[Tensor, "b 1 1"]:
    """The step of each sample: constant, or growing with the energy per element.

    ``energy``: alpha = alpha_0 / tau * exp(mean energy), as released. With the energy summed
    over T * A elements the released alpha_0 / tau of 111 is a step of about 1.
    """
    scale = torch.full_like(energy, config.step_size)
    if config.rule == "energy":
        scale = scale * (energy / elements).clamp(-MAX_EXPONENT, MAX_EXPONENT).exp()
    return scale[:, None, None]


@dataclass(frozen=True)
class Smoothness:
    """1/2 weight ||D a||^2 beside the energy: D takes third differences along the chunk.

    Of positions that is the squared jerk, by which smooth movements are told (Flash & Hogan
    1985). Energies add: the chunk that minimises both is near what the energy asks for and goes
    on smoothly from the actions that are decided. A trace shows the learned energy alone, and of
    several starts it is the one that chooses.

    Attributes:
        curvature: weight D'D.
        inverse: of 1 + curvature for the actions that are not decided, 0 for those that are.
    """

    curvature: Float[Tensor, "t t"]
    inverse: Float[Tensor, "t t"]

    @classmethod
    def of(cls, weight: float, horizon: int, decided: int, device: torch.device) -> Smoothness:
        """For chunks of ``horizon`` actions, of which the first ``decided`` stay as they are."""
        # A chunk that is too short for a difference has none, and is not curved by any.
        differences = torch.eye(horizon).diff(n=min(_ORDER, horizon), dim=0)
        curvature = weight * differences.T @ differences
        inverse = torch.zeros(horizon, horizon)
        free = slice(decided, horizon)
        inverse[free, free] = torch.linalg.inv(torch.eye(horizon - decided) + curvature[free, free])
        return cls(curvature.to(device), inverse.to(device))

    def step(
        self, gradient: Float[Tensor, "b t a"], chunks: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        """Newton's step against the sum, for an energy of that gradient and of curvature one."""
        return self.inverse @ (gradient + self.curvature @ chunks)

    def between(self, chunks: Float[Tensor, "b t a"]) -> Float[Tensor, "b t a"]:
        """The minima of the sum, for an energy with bowls of curvature one around ``chunks``."""
        return chunks - self.step(torch.zeros_like(chunks), chunks)


def descend(
    energy: Energy,
    start: Float[Tensor, "b t a"],
    config: DescentConfig,
    noise: Float[Tensor, "k b t a"] | None = None,
    keep_path: bool = False,
    taken: int = 0,
    free: Float[Tensor, "b t 1"] | None = None,
    smoothness: Smoothness | None = None,
) -> tuple[Float[Tensor, "b t a"], Trace]:
    """Descend ``energy`` from ``start``; works inside ``no_grad`` and ``inference_mode`` too.

    Args:
        energy: with its observation fixed.
        start: normalised chunks.
        config: step rule, limits and stopping.
        noise: draws of variance 1 for each step, needed if ``config.noise`` is not 0.
        keep_path: keep every iterate in the trace.
        taken: steps that led to ``start`` already; they count towards ``config.steps``.
        free: 1 for the actions that descend, 0 for those that stay as they are in ``start``;
            without it all descend.
        smoothness: descended with the energy; steps are Newton's for the curvature that it adds.

    Returns:
        The last iterates and the trace.

    Raises:
        ValueError: noise is asked for and ``noise`` is missing, or the rule is ``annealed`` and
            the energy has no levels.
    """
    if config.noise > 0 and noise is None and config.steps > taken:
        raise ValueError("config.noise > 0 needs the noise argument: one draw for each step")
    is_annealed = config.rule == "annealed"
    if is_annealed and not isinstance(energy, GivenEnergy):
        raise ValueError("config.rule = annealed needs the energy of a model, with its levels")
    began = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():
        y = start.detach().clone()
        velocity = torch.zeros_like(y)
        active = torch.ones(len(y), dtype=torch.bool, device=y.device)
        steps = torch.full((len(y),), taken, dtype=torch.int64, device=y.device)
        energies, norms, path = [], [], [y]
        for k in range(taken, config.steps):
            point = before = normalise_rms(y) if config.normalise else y
            if noise is not None:
                walk = noise[k - taken] if free is None else noise[k - taken] * free
                point = point + config.noise * walk
            ahead = point + config.momentum * velocity
            here = energy
            if is_annealed and isinstance(energy, GivenEnergy):
                here = energy.at(torch.full_like(y[:, 0, 0], k / config.steps))
            value, gradient = energy_and_gradient(here, ahead)
            if smoothness is not None:
                gradient = smoothness.step(gradient, ahead)
            if free is not None:
                gradient = gradient * free
            energies.append(value)
            norms.append(rms(gradient))
            size = step_size(value, y[0].numel(), config)
            if is_annealed:
                size = size / (config.steps - k)
            velocity = config.momentum * velocity - size * gradient
            moved = point + velocity
            y = select(active, moved, y)
            steps = steps + active
            if keep_path:
                path.append(y)
            active = active & (rms(moved - before) > config.tolerance)
            if config.tolerance > 0 and not bool(active.any()):
                break
            if config.max_ms is not None and 1e3 * (time.perf_counter() - began) > config.max_ms:
                break
        energies.append(energy(normalise_rms(y) if config.normalise else y))
    slopes = torch.stack(norms, 1) if norms else y.new_zeros(len(y), 0)
    trace = Trace(torch.stack(energies, 1), slopes, steps, path if keep_path else [])
    return y, trace


def select(
    chosen: Bool[Tensor, b], one: Float[Tensor, "b t a"], other: Float[Tensor, "b t a"]
) -> Float[Tensor, "b t a"]:
    """``one`` where a sample is chosen, ``other`` elsewhere."""
    return torch.where(chosen[:, None, None], one, other)


def best_of(
    actions: Float[Tensor, "bn t a"], trace: Trace, starts: int
) -> tuple[Float[Tensor, "b t a"], Trace]:
    """Of each sample's ``starts`` consecutive rows keep the one with the lowest final energy."""
    final = trace.energy[:, -1].nan_to_num(nan=torch.inf).unflatten(0, (-1, starts))
    rows = final.argmin(1) + starts * torch.arange(len(final), device=final.device)
    return actions[rows], Trace(
        trace.energy[rows],
        trace.gradient_norm[rows],
        trace.steps[rows],
        [iterate[rows] for iterate in trace.path],
    )


def mean_of(
    actions: Float[Tensor, "bn t a"], trace: Trace, starts: int, energy: Energy
) -> tuple[Float[Tensor, "b t a"], Trace]:
    """The mean of each sample's ``starts`` consecutive rows, and of what is in their trace.

    Args:
        actions: of all starts.
        trace: of all starts.
        starts: of each sample.
        energy: of one chunk for each sample: the final energy is that of the mean.
    """

    def mean(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, starts)).mean(1)

    middle = mean(actions)
    with torch.inference_mode(False), torch.no_grad():
        final = energy(middle)[:, None]
    return middle, Trace(
        torch.cat([mean(trace.energy)[:, :-1], final], 1),
        mean(trace.gradient_norm),
        trace.steps.unflatten(0, (-1, starts)).amax(1),
        [mean(iterate) for iterate in trace.path],
    )
