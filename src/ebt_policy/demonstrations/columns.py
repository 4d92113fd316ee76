"""What a converter hands to a format's writer: columns, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ebt_policy.demonstrations.base import Demonstrations, episode_of_step
from ebt_policy.errors import UserError

_PIECE_BYTES = 2**26


@dataclass(frozen=True)
class Column:
    """A key as it is written.

    Attributes:
        source: its name in the demonstrations that it is read from; None means the actions.
        name: its name where it is written.
        shape: of one step, where it is written.
        dtype: where it is written.
        is_image: whether it is written as images, which hold bytes.
    """

    source: str | None
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_image: bool = False


@dataclass(frozen=True)
class Piece:
    """Some steps of one episode.

    Attributes:
        episode: its number.
        start: first step, among all steps.
        stop: exclusive end.
        values: of each column, by its written name: (stop - start, *shape).
        ends_episode: whether the episode ends here.
    """

    episode: int
    start: int
    stop: int
    values: dict[str, np.ndarray]
    ends_episode: bool


def read_pieces(source: Demonstrations, columns: Sequence[Column]) -> Iterator[Piece]:
    """Everything, in order, in pieces of some tens of megabytes, none in two episodes.

    Raises:
        UserError: the source is damaged, or what should become an image is none.
    """
    of_step = sum(int(np.prod(column.shape)) * column.dtype.itemsize for column in columns)
    each = max(1, _PIECE_BYTES // of_step)
    starts, ends = source.episode_starts.tolist(), source.episode_ends.tolist()
    for episode, (first, end) in enumerate(zip(starts, ends, strict=True)):
        for start in range(first, end, each):
            stop = min(start + each, end)
            values = {column.name: _read(source, column, start, stop) for column in columns}
            yield Piece(episode, start, stop, values, stop == end)


def _read(source: Demonstrations, column: Column, start: int, stop: int) -> np.ndarray:
    if column.source is None:
        values = source.read_actions(start, stop)
    else:
        values = source.read(column.source, start, stop)
    with np.errstate(invalid="ignore"):  # what does not fit is noticed below
        written = values.astype(column.dtype, copy=False)
    if column.is_image and values.dtype != column.dtype:
        wrong = (written != values).reshape(len(values), -1).any(1)
        if wrong.any():
            episode, within = episode_of_step(
                source.episode_ends, start + int(np.flatnonzero(wrong)[0])
            )
            raise UserError(
                f"{source.path}: {column.source} has the shape of images, but in episode "
                f"{episode}, step {within} not whole numbers from 0 to 255: it cannot become "
                "images without loss; leave it out with --obs"
            )
    return written.reshape(len(values), *column.shape)
