"""A slice through the energy of ``planar/fork``, and descents on it, as numbers to be drawn.

The slice is spanned by two directions of the space of chunks: from the mean of the two ways to
one of them, and along the mean (how fast the chunk goes). A descent moves in all T * A dimensions;
its path is projected onto the slice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebt_policy.benchmarks.study import EVALUATION_SEED
from ebt_policy.descent import descend
from ebt_policy.energy.transformer import repeat_memory
from ebt_policy.errors import UserError
from ebt_policy.policies import EnergyPolicy
from ebt_policy.policies.files import load_policy
from ebt_policy.tasks.planar import CLEARANCE, DEMONSTRATED_SPEEDS, ROUTES, ForkEnvironment, route

_SIDE = 61
_ACROSS, _ALONG = 1.7, 0.7
_DESCENTS = 8


def _demonstrated(observation: np.ndarray, side: float, horizon: int, first: int) -> np.ndarray:
    """The chunk (T, 2) of the middle of one way, from the start of the episode."""
    shares = np.linspace(0, 1, 1001)
    points = route(observation[:2], observation[4:], side, CLEARANCE, shares)
    travelled = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    steps = np.maximum(np.arange(horizon) - first, 0) + 1
    wanted = steps * np.mean(DEMONSTRATED_SPEEDS)
    return points[np.searchsorted(travelled, wanted).clip(max=1000)]


def fork_landscape(run: Path) -> dict[str, Any]:
    """Energies on the slice and eight two-step descents from the first evaluation start.

    Args:
        run: an energy policy of the ``basin`` objective, trained on the fork.

    Returns:
        ``across``, ``along``: the slice's axes; ``energy``: (along, across); ``paths``: for each
        descent the proposal, the walk and the jump on the slice; ``chunks``: the same as points
        of the plane, (descents, 3, T, 2); ``demonstrated``, ``disc``, ``goal``, ``point``: the
        scene.

    Raises:
        UserError: the run holds another policy.
    """
    policy = load_policy(run)
    if not isinstance(policy, EnergyPolicy) or policy.config.objective != "basin":
        raise UserError(f"{run}: a landscape needs an energy policy of the basin objective")
    settings = dataclasses.replace(policy.config.descent, steps=2, starts=1, tolerance=0.0)
    acting = policy.with_sampling(settings)
    assert isinstance(acting, EnergyPolicy)
    windows = policy.config.windows
    state = ForkEnvironment().reset(EVALUATION_SEED)["state"]
    seen = torch.from_numpy(np.repeat(state[None, None], windows.observation_steps, 1))
    normalise, unnormalise = (
        policy.action_normaliser.normalise,
        policy.action_normaliser.unnormalise,
    )
    above, below = (
        normalise(
            torch.from_numpy(
                _demonstrated(state, side, windows.horizon, windows.observation_steps - 1)
            ).float()
        )
        for side in ROUTES.values()
    )
    middle, aside = (above + below) / 2, (above - below) / 2
    ahead = middle - middle[:1]
    across = torch.linspace(-_ACROSS, _ACROSS, _SIDE)
    along = torch.linspace(-_ALONG, _ALONG, _SIDE)
    basis = torch.linalg.pinv(torch.stack([aside.flatten(), ahead.flatten()], 1))
    with torch.no_grad():
        memory = acting.energy.remember(policy.normalise_observation({"state": seen}))
        grid = middle + across[None, :, None, None] * aside + along[:, None, None, None] * ahead
        flat = grid.flatten(0, 1)
        energy = acting.energy.given(memory, len(flat))(flat).reshape(_SIDE, _SIDE)
        generators = [torch.Generator().manual_seed(i) for i in range(_DESCENTS)]
        memory = repeat_memory(memory, _DESCENTS)
        start, draws, taken = acting.starts(memory, generators, None)
        energies = acting.energy.given(memory)
        _, trace = descend(energies, start, settings, draws, keep_path=True, taken=taken)
    assert draws is not None
    noised = start + settings.noise * draws[0]
    iterates = torch.stack([trace.path[0], noised, trace.path[1]], 1)  # (descents, 3, T, 2)
    paths = (iterates - middle).flatten(2) @ basis.T
    return {
        "across": _listed(across), "along": _listed(along), "energy": _listed(energy),
        "paths": _listed(paths), "chunks": _listed(unnormalise(iterates)),
        "demonstrated": _listed(unnormalise(torch.stack([above, below]))),
        "point": _listed(state[:2]), "disc": _listed(state[2:4]), "goal": _listed(state[4:]),
    }  # fmt: skip


def _listed(values: Any) -> Any:
    return np.round(np.asarray(values, np.float64), 4).tolist()
