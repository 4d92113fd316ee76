"""``data info``: what a file of demonstrations holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ebt_policy.config import WindowConfig, is_image
from ebt_policy.demonstrations.base import Demonstrations, constant_dimensions, episode_of_step
from ebt_policy.demonstrations.zarr_buffer import ZarrDemonstrations
from ebt_policy.errors import UserError

# Of one key, so many problems with its files are named one by one.
_NAMED = 20


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
    tasks: Sequence[str] = ()
    faults: Sequence[str] = ()
    short: int = 0  # episodes that are shorter than the chunk of a policy by default

    @property
    def problems(self) -> list[str]:
        """Every problem found: the faults of the whole, then each key's."""
        of_keys = [f"{key.name}: {problem}" for key in self.keys for problem in key.problems]
        return [*self.faults, *of_keys]

    def text(self) -> str:
        """The summary for a terminal."""
        rate = f"{self.rate:g} Hz" if self.rate else "not stated in the file"
        chunk = f"{self.short} shorter than a chunk of {WindowConfig.horizon}, which is padded"
        each = "steps each" + (f"; {chunk}" if self.short else "")
        lines = [
            f"{self.path}",
            f"  format    {self.format}",
            f"  episodes  {self.episodes} ({self.shortest}-{self.longest} {each})",
            f"  steps     {self.steps}",
            f"  rate      {rate}",
            *(f"  task      {task}" for task in self.tasks),
            f"  {'key':<28}{'shape':<16}{'type':<10}range",
        ]
        for key in self.keys:
            finite = np.isfinite(key.low).any()
            spread = f"{key.low.min():.6g} … {key.high.max():.6g}" if finite else "not read"
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

    What cannot be read is a problem, not an error.
    """
    lengths = np.diff(demonstrations.episode_ends, prepend=0)
    names = ["action", *sorted(demonstrations.observations), *sorted(demonstrations.outcomes)]
    keys = []
    with tqdm(
        total=len(names) * demonstrations.steps, unit="step", disable=not progress, leave=False
    ) as bar:
        for name in names:
            keys.append(_summarise(demonstrations, name, bar))
    return Summary(
        str(demonstrations.path), demonstrations.format, demonstrations.episodes,
        demonstrations.steps, int(lengths.min()), int(lengths.max()), demonstrations.rate, keys,
        demonstrations.tasks, demonstrations.faults, int((lengths < WindowConfig.horizon).sum()),
    )  # fmt: skip


def missing(demonstrations: Demonstrations, keys: Iterable[str]) -> str:
    """Which data sets of a mixture lack which of some keys, in a line; empty where none does."""
    keys = [key for key in keys if demonstrations.has(key)]
    lacks = [(part.path, [k for k in keys if not part.has(k)]) for part in demonstrations.parts]
    return "; ".join(f"{path} has no {', no '.join(lost)}" for path, lost in lacks if lost)


def _summarise(demonstrations: Demonstrations, name: str, bar: tqdm) -> KeySummary:
    is_action = name == "action"
    key = None if is_action else name
    info = demonstrations.actions if key is None else demonstrations.require(key)
    size = int(np.prod(info.shape))
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    summary = KeySummary(name, info.shape, str(info.dtype), low, high)
    if isinstance(demonstrations, ZarrDemonstrations):
        missing = demonstrations.missing_chunks(name)
        if missing and size == 1:
            summary.problems.append(f"{missing} chunks are absent: all zeros, or truncated")
        elif missing:
            summary.problems.append(f"truncated: {missing} chunks are missing")
            return summary
    if len(info.shape) > 2 and name in demonstrations.observations and not is_image(info.shape):
        summary.problems.append(
            f"shape {info.shape} is neither numbers nor an RGB image (H, W, 3); train refuses it"
        )
    nonfinite, first_bad, errors = 0, -1, list[str]()
    unlike_pixels, first_unlike = 0, -1
    for start, stop in demonstrations.spans(key):
        bar.update(stop - start)
        try:
            part = (
                demonstrations.read_actions(start, stop)
                if key is None
                else demonstrations.read(key, start, stop)
            )
        except UserError as error:
            errors.append(str(error).removeprefix(f"{demonstrations.path}").lstrip("/: "))
            continue
        flat = part.reshape(len(part), -1)
        if is_image(info.shape) and flat.dtype != np.uint8:
            unlike = np.isfinite(flat) & ((flat < 0) | (flat > 255) | (flat != np.floor(flat)))
            if unlike.any():
                if first_unlike < 0:
                    first_unlike = start + int(np.argwhere(unlike)[0][0])
                unlike_pixels += int(unlike.sum())
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
    errors = list(dict.fromkeys(errors))
    summary.problems += errors[:_NAMED]
    if len(errors) > _NAMED:
        summary.problems.append(f"and {len(errors) - _NAMED} more pieces that cannot be read")
    if nonfinite:
        episode, step = episode_of_step(demonstrations.episode_ends, first_bad)
        summary.problems.append(
            f"{nonfinite} values are NaN or infinite, the first in episode {episode}, step {step}"
        )
    if unlike_pixels:
        episode, step = episode_of_step(demonstrations.episode_ends, first_unlike)
        summary.problems.append(
            f"{unlike_pixels} values are no whole numbers from 0 to 255, the first in episode "
            f"{episode}, step {step}; train refuses such an image"
        )
    still = constant_dimensions(low, high) & np.isfinite(low)
    if len(info.shape) < 3 and name not in demonstrations.outcomes and still.any():
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
