"""Several data sets as one, for a policy that is to do what all of them show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ebt_policy.demonstrations.base import Demonstrations, KeyInfo
from ebt_policy.errors import UserError
from ebt_policy.shapes import Int


class MixedDemonstrations(Demonstrations):
    """The episodes of several data sets, one set after the other: what any of them observes.

    Where a data set lacks a key, zeros stand for it; :meth:`lacking` says where.

    Args:
        parts: two or more.

    Raises:
        UserError: actions differ in shape.
    """

    format = "mixture"

    def __init__(self, parts: Sequence[Demonstrations]) -> None:
        self.parts, first = parts, parts[0]
        self.path = Path("+".join(part.path.name for part in parts))
        for part in parts[1:]:
            if part.actions.shape != first.actions.shape:
                raise UserError(
                    f"{part.path}: its actions have shape {part.actions.shape}, those of "
                    f"{first.path} {first.actions.shape}; one policy cannot learn both"
                )
        ends = np.cumsum([part.steps for part in parts])
        self._ends: list[int] = ends.tolist()
        offsets = (ends - [part.steps for part in parts]).tolist()
        pairs = list(zip(parts, offsets, strict=True))
        self.episode_ends = np.concatenate([part.episode_ends + at for part, at in pairs])
        self.file_ends = np.concatenate(
            [at + (np.array([p.steps]) if p.file_ends is None else p.file_ends) for p, at in pairs]
        )
        self.actions = first.actions
        self.observations = {}
        for part in parts:
            for key, info in part.observations.items():
                self.observations.setdefault(key, info)
        self.rate = first.rate if all(part.rate == first.rate for part in parts) else None
        if any(part.task_of_step is not None for part in parts):
            self.tasks = list(dict.fromkeys(task for part in parts for task in part.tasks))
            self.task_of_step = np.concatenate([self._sentences(part) for part in parts])

    def _sentences(self, part: Demonstrations) -> Int[np.ndarray, n]:
        """Which sentence each step of a part has; the first where it has none."""
        if part.task_of_step is None:
            return np.zeros(part.steps, np.int64)
        rows: np.ndarray = np.array([self.tasks.index(task) for task in part.tasks])
        return rows[part.task_of_step]

    def require(self, key: str) -> KeyInfo:
        """The key's shape and type.

        Raises:
            UserError: no data set has it, or its shape differs among them.
        """
        info = super().require(key)
        first, *others = (part for part in self.parts if key in part.observations)
        for part in others:
            found = part.observations[key].shape
            if found != info.shape:
                raise UserError(
                    f"{part.path}: observation {key!r} has shape {found} per step, but "
                    f"{info.shape} in {first.path}"
                )
        return info

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self.require(key)
        return self._read(key, start, stop)

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        return self._read(None, start, stop)

    def _read(self, key: str | None, start: int, stop: int) -> np.ndarray:
        found, begin = [], 0
        for part, end in zip(self.parts, self._ends, strict=True):
            first, last = max(start, begin) - begin, min(stop, end) - begin
            if first < last:
                if key is None:
                    found.append(part.read_actions(first, last))
                elif key in part.observations:
                    found.append(part.read(key, first, last))
                else:
                    info = self.observations[key]
                    found.append(np.zeros((last - first, *info.shape), info.dtype))
            begin = end
        return np.concatenate(found)
