"""Intervals for success rates and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def score_interval(scores: Sequence[float], successes: Sequence[bool]) -> tuple[float, float]:
    """95% interval of the mean score: of a proportion where success is all that is scored."""
    if all(score == success for score, success in zip(scores, successes, strict=True)):
        return wilson(sum(successes), len(successes))
    return bootstrap_mean(list(scores))


def bootstrap_crossed(
    values: Float[np.ndarray, "seeds starts"],
    tasks: int = 1,
    resamples: int = 4_000,
    are_differences: bool = False,
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over training seeds and starts.

    NaN stands for what does not count, an episode in which nothing happened for instance.

    Both are drawn anew: the same starts were used with every training seed, so a start's luck
    is shared. For a paired comparison give the differences. Where all values are 0 or all are 1
    there is nothing to draw from, and the interval is Wilson's.

    Args:
        values: of each training seed and start.
        tasks: the starts of how many tasks stand after each other, equally many of each; starts
            are drawn within their task.
        resamples: how many.
        are_differences: of two successes each: where all are alike the truth may lie on either
            side of 0.
    """
    known = values[~np.isnan(values)]
    one = float(known[0])
    if np.all(known == one) and one in (-1, 0, 1):
        low, high = wilson(int(abs(known.sum())), known.size)
        if one == 0 and are_differences:
            return -high, high
        return (-high, -low) if one < 0 else (low, high)
    random = np.random.default_rng(0)
    seeds, starts = values.shape
    each = starts // tasks
    first = each * np.arange(tasks)[:, None]
    means = np.empty(resamples)
    for i in range(resamples):
        rows = random.integers(seeds, size=seeds)
        columns = (first + random.integers(each, size=(tasks, each))).ravel()
        drawn = values[rows][:, columns]
        means[i] = drawn[~np.isnan(drawn)].mean() if not np.isnan(drawn).all() else np.nan
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)
