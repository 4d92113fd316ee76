"""Where a LeRobotDataset contradicts itself: ``meta/`` and the index columns against the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ebt_policy.demonstrations.lerobot_meta import INFO, EpisodeRecord, Info

# fps may differ from the time stamps by this share: they are stored as float32.
_RATE_SHARE = 0.01
_NAMED = 5


@dataclass(frozen=True)
class Rows:
    """The index columns of all data files that can be read, each (steps,).

    Attributes:
        files: names of all data files.
        lost: names of those that cannot be read; their rows are not here.
        time: ``timestamp``, in seconds from the beginning of the episode.
        frame: ``frame_index``.
        episode: ``episode_index``.
        index: ``index``, the number of the row among all.
        task: ``task_index``.
    """

    files: list[str]
    lost: list[str]
    time: np.ndarray
    frame: np.ndarray
    episode: np.ndarray
    index: np.ndarray
    task: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """First row of each episode."""
        return np.flatnonzero(np.diff(self.episode, prepend=self.episode[0] - 1))


def find_faults(
    info: Info, records: Sequence[EpisodeRecord], tasks: Sequence[str], rows: Rows
) -> list[str]:
    """Every contradiction, one sentence each.

    Args:
        info: ``meta/info.json``.
        records: what is said of the episodes; empty if that cannot be read.
        tasks: the sentences; empty if they cannot be read.
        rows: what is there.
    """
    found = [*_rows(rows), *_rate(info, rows)]
    if records:
        found += _episodes(records, rows)
    missing = {record.file for record in records} - set(rows.files)
    whole = not rows.lost and not missing  # else the rows are known to be too few
    for total, said, counted in [
        ("total_episodes", len(records), len(rows.starts)),
        ("total_frames", sum(record.length for record in records), len(rows.index)),
    ]:
        stated = info.content.get(total)
        if records and stated != said:
            found.append(f"{INFO}: {total} is {stated}, meta/episodes has {said}")
        if whole and stated != counted:
            found.append(f"{INFO}: {total} is {stated}, the data files have {counted}")
    if tasks:
        stated = info.content.get("total_tasks")
        if stated != len(tasks):
            found.append(f"{INFO}: total_tasks is {stated}, meta/tasks has {len(tasks)}")
        unknown = np.unique(rows.task[(rows.task < 0) | (rows.task >= len(tasks))])
        if len(unknown):
            found.append(
                f"task_index {some(unknown.tolist())} in the data has no sentence in meta/tasks"
            )
    return found


def _rows(rows: Rows) -> Iterator[str]:
    """Index columns that do not count as they should."""
    starts = rows.starts
    lengths = np.diff(starts, append=len(rows.episode))
    episodes = rows.episode[starts]
    if len(np.unique(episodes)) < len(episodes):
        again, counts = np.unique(episodes, return_counts=True)
        yield f"the rows of episode {some(again[counts > 1].tolist())} are not together"
    expected = np.arange(len(rows.frame)) - np.repeat(starts, lengths)
    wrong = np.unique(rows.episode[rows.frame != expected])
    if len(wrong):
        yield f"frame_index does not count from 0 in episode {some(wrong.tolist())}"
    if not rows.lost:
        wrong = np.unique(rows.episode[rows.index != np.arange(len(rows.index))])
        if len(wrong):
            yield f"the column index does not count the rows in episode {some(wrong.tolist())}"


def _rate(info: Info, rows: Rows) -> Iterator[str]:
    """Time stamps that do not agree with ``fps``."""
    inside = np.diff(rows.episode) == 0
    gaps = np.diff(rows.time.astype(np.float64))[inside]
    if not len(gaps):
        return
    usual = float(np.median(gaps))
    if not abs(usual * info.rate - 1) <= _RATE_SHARE:
        found = f"{1 / usual:.4g}" if usual > 0 else "no"
        yield f"{INFO}: fps is {info.rate:g}, the time stamps have {found} steps a second"
        return
    # Not a number or not in order is irregular as well.
    irregular = ~(np.abs(gaps * info.rate - 1) < 0.5)
    if irregular.any():
        episodes = np.unique(rows.episode[1:][inside][irregular])
        yield (
            f"{int(irregular.sum())} time stamps are not one step (1/fps) after the one before, "
            f"in episode {some(episodes.tolist())}"
        )


def _episodes(records: Sequence[EpisodeRecord], rows: Rows) -> Iterator[str]:
    """Episodes whose record is not what the data files hold."""
    starts = rows.starts
    ends = np.append(starts[1:], len(rows.episode))
    there = {int(rows.episode[s]): (int(s), int(e)) for s, e in zip(starts, ends, strict=True)}
    by_file: dict[str, list[int]] = {}
    lengths, spans = [], []
    for record in records:
        by_file.setdefault(record.file, []).append(record.index)
        if record.span is not None and record.span[1] - record.span[0] != record.length:
            spans.append(f"episode {record.index} ({record.span}, but length {record.length})")
        if record.index not in there:
            continue
        start, end = there[record.index]
        if record.length != end - start:
            lengths.append(f"episode {record.index} ({record.length}, but {end - start} rows)")
        if rows.lost:  # what comes before is not known; the rows count themselves
            start, end = int(rows.index[start]), int(rows.index[start]) + end - start
        if record.span not in (None, (start, end)):
            spans.append(f"episode {record.index} ({record.span}, but rows {(start, end)})")
    if lengths:
        yield f"stale index: length is wrong in meta/episodes: {some(lengths)}"
    if spans:
        yield (
            "stale index: dataset_from_index and dataset_to_index are wrong in meta/episodes: "
            f"{some(spans)}"
        )
    for file in sorted(by_file.keys() - set(rows.files)):
        yield f"{file} is missing; it should hold episode {some(by_file[file])}"
    if set(rows.files) - by_file.keys():
        yield f"{some(sorted(set(rows.files) - by_file.keys()))}: in no record of meta/episodes"
    unrecorded = sorted(there.keys() - {record.index for record in records})
    if unrecorded:
        yield f"stale index: meta/episodes says nothing of episode {some(unrecorded)}"
    absent = sorted(i for f, here in by_file.items() if f in rows.files for i in here)
    absent = [i for i in absent if i not in there] if not rows.lost else []
    if absent:
        yield f"stale index: no rows in the data files for episode {some(absent)}"


def some(things: Sequence[object]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(str(thing) for thing in things[:_NAMED])
    more = len(things) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
