"""Intervals for success rates and scores."""

from __future__ import annotations

import math

import numpy as np

from ebt_policy.shapes import Float

_Z95 = 1.959963984540054


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95% Wilson score interval of a success rate (Wilson 1927); right even at 0 and 1.

    Raises:
        ValueError: no episodes, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(f"{successes} successes of {episodes} episodes")
    rate, z2 = successes / episodes, _Z95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = (
        _Z95 / (1 + z2 / episodes)
        * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    )  # fmt: skip
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(values: list[float], resamples: int = 10_000) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean, the same for the same values."""
    array = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(array), size=(resamples, len(array)))
    low, high = np.percentile(array[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_crossed(
    values: Float[np.ndarray, "seeds starts"], resamples: int = 4_000
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over training seeds and starts.

    Both are drawn anew: the same starts were used with every training seed, so a start's luck
    is shared. For a paired comparison give the differences.
    """
    random = np.random.default_rng(0)
    seeds, starts = values.shape
    means = np.empty(resamples)
    for i in range(resamples):
        rows = random.integers(seeds, size=seeds)
        means[i] = values[rows][:, random.integers(starts, size=starts)].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
