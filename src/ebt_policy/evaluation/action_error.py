"""How far the actions that a policy chooses are from those that were demonstrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy
from ebt_policy.shapes import Float
from ebt_policy.training.files import read_summary
from ebt_policy.windows.arrays import load_arrays
from ebt_policy.windows.windows import Windows

_ROWS = 256  # observations at once


def unseen_windows(run: Path, policy: Policy, data: str) -> Windows:
    """All windows of demonstrations that a run has not learned from.

    Raises:
        UserError: it has, or they lack what the policy observes.
    """
    demonstrations = open_demonstrations(data)
    arrays, summary = load_arrays(demonstrations, policy.config.streams), read_summary(run)
    if summary is not None and summary["data"]["sha256"] == arrays.sha256:
        raise UserError(
            f"--data {data}: {run} has learned from these; others are needed, for instance "
            "ebt-policy collect … --seed 50000"
        )
    every = np.arange(demonstrations.episodes)
    return Windows(arrays, demonstrations.episode_ends, every, policy.config.windows)


def chunk_starts(windows: Windows) -> torch.Tensor:
    """Indices of the windows at which a policy that acts from the start would look."""
    since = windows.steps - windows.first
    return (since % windows.config.action_steps == 0).nonzero().flatten()


def action_errors(
    policy: Policy, windows: Windows, indices: torch.Tensor
) -> Float[np.ndarray, "n ta a"]:
    """Differences between the actions that a policy would execute and the demonstrated ones.

    In half ranges of the actions that it was trained on; NaN beyond an episode's end. Window i
    has its own generator, seeded with i, so that ways of acting meet the same draws.
    """
    executed = windows.config.executed
    parts = []
    for some in indices.split(_ROWS):
        batch = windows.gather(some)
        generators = [torch.Generator().manual_seed(int(i)) for i in some]
        chosen = policy.predict_chunk(batch.observations, generators).actions
        normalise = policy.action_normaliser.normalise
        gap = normalise(torch.from_numpy(chosen)) - normalise(batch.actions[:, executed])
        parts.append(gap.masked_fill(~batch.valid[:, executed, None], torch.nan))
    return torch.cat(parts).numpy()
