"""``data info``: what a file of demonstrations holds, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ebt_policy.demonstrations.base import Demonstrations, constant_dimensions, episode_of_step
from ebt_policy.demonstrations.zarr_buffer import ZarrDemonstrations


@dataclass
class KeySummary:
    """Ranges of one key over all steps, per element of the flattened shape."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: np.ndarray
    high: np.ndarray
    problems: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """What ``data info`` prints."""

    path: str
    format: str
    episodes: int
    steps: int
    shortest: int
    longest: int
    rate: float | None
    keys: list[KeySummary]

    @property
    def problems(self) -> list[str]:
        """Every problem found, with the key it is in."""
        return [f"{key.name}: {problem}" for key in self.keys for problem in key.problems]

    def text(self) -> str:
        """The summary for a terminal."""
        rate = f"{self.rate:g} Hz" if self.rate else "not stated in the file"
        lines = [
            f"{self.path}",
            f"  format    {self.format}",
            f"  episodes  {self.episodes} ({self.shortest}-{self.longest} steps each)",
            f"  steps     {self.steps}",
            f"  rate      {rate}",
            f"  {'key':<28}{'shape':<16}{'type':<10}range",
        ]
        for key in self.keys:
            spread = f"{key.low.min():.6g} … {key.high.max():.6g}"
            lines.append(f"  {key.name:<28}{key.shape!s:<16}{key.dtype:<10}{spread}")
            if 1 < len(key.low) <= 8:
                parts = (f"{a:.4g}…{b:.4g}" for a, b in zip(key.low, key.high, strict=True))
                lines.append(f"  {'':<54}{'  '.join(parts)}")
        lines += [f"  ! {problem}" for problem in self.problems] or ["  no problems found"]
        return "\n".join(lines)


def inspect(demonstrations: Demonstrations, progress: bool = True) -> Summary:
    """Read everything once, in pieces, and summarise it.

    Args:
        demonstrations: the opened file.
        progress: show a progress bar (images take a while).

    Raises:
        UserError: a part of the file cannot be decoded.
    """
    lengths = np.diff(demonstrations.episode_ends, prepend=0)
    names = ["action", *sorted(demonstrations.observations)]
    keys = []
    with tqdm(
        total=len(names) * demonstrations.steps, unit="step", disable=not progress, leave=False
    ) as bar:
        for name in names:
            keys.append(_summarise(demonstrations, name, bar))
    return Summary(
        str(demonstrations.path), demonstrations.format, demonstrations.episodes,
        demonstrations.steps, int(lengths.min()), int(lengths.max()), demonstrations.rate, keys,
    )  # fmt: skip


def _summarise(demonstrations: Demonstrations, name: str, bar: tqdm) -> KeySummary:
    is_action = name == "action"
    info = demonstrations.actions if is_action else demonstrations.observations[name]
    size = int(np.prod(info.shape))
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    summary = KeySummary(name, info.shape, str(info.dtype), low, high)
    if isinstance(demonstrations, ZarrDemonstrations):
        missing = demonstrations.missing_chunks(name)
        if missing and size == 1:
            summary.problems.append(f"{missing} chunks are absent: all zeros, or truncated")
        elif missing:
            summary.problems.append(f"truncated: {missing} chunks are missing")
            summary.low, summary.high = np.full(size, np.nan), np.full(size, np.nan)
            return summary
    nonfinite, first_bad = 0, -1
    for start, part in demonstrations.blocks(None if is_action else name):
        flat = part.reshape(len(part), -1)
        if flat.dtype.kind == "f":
            bad = ~np.isfinite(flat)
            if bad.any():
                if first_bad < 0:
                    first_bad = start + int(np.argwhere(bad)[0][0])
                nonfinite += int(bad.sum())
                flat = np.where(bad, np.nan, flat)
            low[:] = np.fmin(low, np.fmin.reduce(flat, axis=0))
            high[:] = np.fmax(high, np.fmax.reduce(flat, axis=0))
        else:
            low[:] = np.minimum(low, flat.min(0))
            high[:] = np.maximum(high, flat.max(0))
        bar.update(len(part))
    if nonfinite:
        episode, step = episode_of_step(demonstrations.episode_ends, first_bad)
        summary.problems.append(
            f"{nonfinite} values are NaN or infinite, the first in episode {episode}, step {step}"
        )
    still = constant_dimensions(low, high)
    if len(info.shape) < 3 and still.any():
        where = ", ".join(str(i) for i in np.flatnonzero(still))
        summary.problems.append(f"constant dimensions: {where}")
    if is_action:
        bounds = demonstrations.action_bounds
        if bounds is not None and ((low < bounds[0]).any() or (high > bounds[1]).any()):
            outside = np.flatnonzero((low < bounds[0]) | (high > bounds[1]))
            summary.problems.append(
                f"out of range [{bounds[0]:g}, {bounds[1]:g}] in dimensions "
                + ", ".join(f"{i} ({low[i]:.4g}…{high[i]:.4g})" for i in outside)
            )
    return summary
