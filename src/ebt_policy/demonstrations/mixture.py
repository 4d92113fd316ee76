"""Several data sets as one, for a policy that is to do what all of them show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ebt_policy.demonstrations.base import Demonstrations
from ebt_policy.errors import UserError


class MixedDemonstrations(Demonstrations):
    """The episodes of several data sets, one set after the other: what all of them observe.

    Args:
        parts: two or more.

    Raises:
        UserError: actions or a common key differ in shape, or there is no common key.
    """

    format = "mixture"

    def __init__(self, parts: Sequence[Demonstrations]) -> None:
        self._parts, first = parts, parts[0]
        self.path = Path("+".join(part.path.name for part in parts))
        for part in parts[1:]:
            if part.actions.shape != first.actions.shape:
                raise UserError(
                    f"{part.path}: its actions have shape {part.actions.shape}, those of "
                    f"{first.path} {first.actions.shape}; one policy cannot learn both"
                )
            for key in first.observations.keys() & part.observations.keys():
                found, wanted = part.observations[key].shape, first.observations[key].shape
                if found != wanted:
                    raise UserError(
                        f"{part.path}: observation {key!r} has shape {found} per step, but "
                        f"{wanted} in {first.path}"
                    )
        self.part_ends = ends = np.cumsum([part.steps for part in parts])
        self._ends: list[int] = ends.tolist()
        offsets = (ends - [part.steps for part in parts]).tolist()
        pairs = list(zip(parts, offsets, strict=True))
        self.episode_ends = np.concatenate([part.episode_ends + at for part, at in pairs])
        self.file_ends = np.concatenate(
            [at + (np.array([p.steps]) if p.file_ends is None else p.file_ends) for p, at in pairs]
        )
        self.actions = first.actions
        self.observations = {
            key: info
            for key, info in first.observations.items()
            if all(key in part.observations for part in parts)
        }
        if not self.observations:
            raise UserError(f"{self.path}: no observation key is in all of these data")
        self.rate = first.rate if all(part.rate == first.rate for part in parts) else None
        if all(part.task_of_step is not None for part in parts):
            self.tasks = list(dict.fromkeys(task for part in parts for task in part.tasks))
            rows = [np.array([self.tasks.index(task) for task in part.tasks]) for part in parts]
            self.task_of_step = np.concatenate(
                [row[part.task_of_step] for row, part in zip(rows, parts, strict=True)]
            )

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self.require(key)
        return self._read(key, start, stop)

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        return self._read(None, start, stop)

    def _read(self, key: str | None, start: int, stop: int) -> np.ndarray:
        found, begin = [], 0
        for part, end in zip(self._parts, self._ends, strict=True):
            first, last = max(start, begin) - begin, min(stop, end) - begin
            if first < last:
                found.append(
                    part.read_actions(first, last) if key is None else part.read(key, first, last)
                )
            begin = end
        return np.concatenate(found)
