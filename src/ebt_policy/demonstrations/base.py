"""One view of recorded episodes, whatever file they are in."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.shapes import Bool, Float

_BLOCK_BYTES = 2**22
# A range below this share of the values' size is rounding noise, not movement.
CONSTANT_RANGE = 1e-5
# What follows an action (LeRobot's name for it): no policy observes it unless told to.
OUTCOME_PREFIX = "next."
# What LeRobot puts before the names of images, and of other observations.
IMAGE_PREFIX, OBSERVATION_PREFIX = "observation.images.", "observation."
# What observations and policies call the sentence of what is to be done (LeRobot's name for it).
TASK = "task"


def plain_name(key: str) -> str:
    """A key without what LeRobot puts before it: ``state`` for ``observation.state``."""
    return key.removeprefix(IMAGE_PREFIX).removeprefix(OBSERVATION_PREFIX)


@dataclass(frozen=True)
class KeyInfo:
    """Shape of one time step of a key (without time), and its element type."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Demonstrations(ABC):
    """Episodes of observations and actions, concatenated over time and read on demand.

    Nothing but shapes is read until :meth:`read` asks for it, and then only that key.

    Attributes:
        path: the file or folder.
        format: name of the format.
        episode_ends: exclusive end of each episode in the concatenated steps.
        observations: the observation keys.
        outcomes: keys of what followed an action, ``next.reward`` and the like.
        unread: names of what is recorded step by step but holds no numbers.
        actions: shape and type of the actions.
        rate: control steps per second, where the file says so.
        action_bounds: the legal range of the actions, where the file says so.
        tasks: sentences that say what is to be done, where the file has some.
        task_of_step: (steps,) which of ``tasks`` each step belongs to.
        faults: contradictions within the files, which nothing should be learned from.
        file_ends: exclusive end, in steps, of each file that the steps lie in.
        parts: the data sets of a mixture, one after the other.
    """

    path: Path
    format: str
    episode_ends: np.ndarray
    observations: dict[str, KeyInfo]
    outcomes: Mapping[str, KeyInfo] = MappingProxyType({})
    unread: Sequence[str] = ()
    actions: KeyInfo
    rate: float | None = None
    action_bounds: tuple[float, float] | None = None
    tasks: Sequence[str] = ()
    task_of_step: np.ndarray | None = None
    faults: Sequence[str] = ()
    file_ends: np.ndarray | None = None
    parts: Sequence[Demonstrations] = ()

    @abstractmethod
    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Steps ``start`` to ``stop`` of an observation or outcome: (stop - start, *shape).

        Raises:
            UserError: the key does not exist or the file is damaged there.
        """

    @abstractmethod
    def read_actions(self, start: int, stop: int) -> np.ndarray:
        """Steps ``start`` to ``stop`` of the actions: (stop - start, A)."""

    def spans(self, key: str | None) -> Iterator[tuple[int, int]]:
        """First step and exclusive end of pieces of some megabytes, none in two files.

        Args:
            key: an observation or outcome; None means the actions.
        """
        info = self.actions if key is None else self.require(key)
        each = max(1, _BLOCK_BYTES // max(1, int(np.prod(info.shape)) * info.dtype.itemsize))
        file_ends = [self.steps] if self.file_ends is None else self.file_ends.tolist()
        for begin, end in pairwise([0, *file_ends]):
            for start in range(begin, end, each):
                yield start, min(start + each, end)

    def blocks(self, key: str | None) -> Iterator[tuple[int, np.ndarray]]:
        """All steps of an observation key, or of the actions (None), some megabytes at a time.

        Yields:
            The first step of a block, and its values.
        """
        for start, stop in self.spans(key):
            yield (
                start,
                self.read_actions(start, stop) if key is None else self.read(key, start, stop),
            )

    def has(self, key: str) -> bool:
        """Whether an observation, or as :data:`TASK` the sentence, was recorded at all."""
        return key in self.observations or (key == TASK and self.task_of_step is not None)

    def lacking(self, key: str) -> Bool[np.ndarray, n] | None:
        """At which steps a key is missing, where some data sets of a mixture lack it."""
        lack = [not part.has(key) for part in self.parts]
        return np.repeat(lack, [part.steps for part in self.parts]) if any(lack) else None

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def steps(self) -> int:
        """Number of steps in all episodes together."""
        return int(self.episode_ends[-1])

    @property
    def episode_starts(self) -> np.ndarray:
        """First step of each episode in the concatenated steps."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    def require(self, key: str) -> KeyInfo:
        """The key's shape and type.

        Raises:
            UserError: there is no such key; the message lists those that exist.
        """
        keys = {**self.observations, **self.outcomes}
        if key not in keys:
            raise UserError(
                f"{self.path}: no observation key {key!r}; "
                f"there are {', '.join(sorted(self.observations))}"
            )
        return keys[key]


def is_numeric(dtype: np.dtype) -> bool:
    """Whether a key holds numbers (or booleans), which is all that a policy can observe."""
    return dtype.kind in "fiub"


def split_outcomes(
    keys: Mapping[str, KeyInfo],
) -> tuple[dict[str, KeyInfo], dict[str, KeyInfo]]:
    """Observations and outcomes, told apart by name."""
    outcomes = {k: info for k, info in keys.items() if k.startswith(OUTCOME_PREFIX)}
    return {k: info for k, info in keys.items() if k not in outcomes}, outcomes


def episode_of_step(episode_ends: np.ndarray, step: int) -> tuple[int, int]:
    """Episode that holds a concatenated step, and the step's index within it."""
    episode = int(np.searchsorted(episode_ends, step, side="right"))
    return episode, int(step - (episode_ends[episode - 1] if episode else 0))


def constant_dimensions(
    low: Float[np.ndarray, d], high: Float[np.ndarray, d]
) -> Bool[np.ndarray, d]:
    """Which dimensions do not move, given their smallest and largest values."""
    size = np.maximum(np.abs(low), np.abs(high))
    return high - low <= np.maximum(CONSTANT_RANGE * size, 1e-8)


class Digest:
    """SHA-256 of an array's raw bytes in C order and little endian, block by block."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, block: np.ndarray) -> None:
        """The next steps."""
        little = block.astype(block.dtype.newbyteorder("<"), copy=False)
        self._hash.update(np.ascontiguousarray(little).tobytes())

    def hex(self) -> str:
        """Of all that was added."""
        return self._hash.hexdigest()
