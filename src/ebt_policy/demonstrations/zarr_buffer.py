"""Diffusion Policy's replay buffer: a zarr store, as a folder or as a ``.zarr.zip``; written, too.

``data/<key>`` holds every episode's steps one after another, ``meta/episode_ends`` the
exclusive end of each episode.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.demonstrations.base import (
    Demonstrations,
    KeyInfo,
    is_numeric,
    split_outcomes,
)
from ebt_policy.demonstrations.columns import Column, Piece
from ebt_policy.errors import UserError

ACTION = "action"
_CHUNK_BYTES = 2**21
# By these keys the published PushT data is recognised: 10 Hz, actions are pixels.
PUSHT_KEYS = {"state", "keypoint", "n_contacts"}


def store_root(path: Path) -> str | None:
    """Where the buffer's group lies inside a folder or zip: "" is the top, None is nowhere.

    Raises:
        UserError: there are several; which one is meant?
    """
    if path.is_dir():
        names = [str(p.relative_to(path)) for p in path.glob("**/episode_ends") if p.is_dir()]
        names = [f"{name}/" for name in names]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        return None
    marker = "meta/episode_ends/"
    roots = sorted({name[: name.index(marker)] for name in names if marker in name})
    roots.sort(key=len)
    if len(roots) > 1 and roots[0] != "":
        raise UserError(
            f"{path}: holds several replay buffers: {', '.join(roots)}; name one of them"
        )
    return roots[0].rstrip("/") if roots else None


def _missing_chunks(array: Any) -> int:
    return int(array.nchunks - array.nchunks_initialized)


class ZarrDemonstrations(Demonstrations):
    """A Diffusion Policy replay buffer.

    Args:
        path: the store's folder or zip file.

    Raises:
        UserError: an array is missing, damaged, or does not fit the others.
    """

    format = "Diffusion Policy zarr replay buffer"

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        self._whole: set[str] = set()
        root = store_root(path)
        if root is None:
            raise UserError(f"{path}: holds no zarr replay buffer (no meta/episode_ends)")
        self._root = root
        try:
            if path.is_dir():
                self._group: Any = zarr.open_group(str(path / root), mode="r")
            else:
                store = zarr.storage.ZipStore(str(path), mode="r")
                self._group = zarr.open_group(store, path=root or None, mode="r")
            data = self._group["data"]
            arrays = {name: data[name] for name in data.array_keys()}
            ends = self._group["meta/episode_ends"]
        except Exception as error:  # zarr raises many kinds for a damaged store
            raise UserError(
                f"{path}: the zarr store is damaged ({type(error).__name__}: {error})"
            ) from error
        if ACTION not in arrays:
            raise UserError(f"{path}: data/{ACTION} is missing; there are {', '.join(arrays)}")
        self.episode_ends = self._decode(ends, "meta/episode_ends")
        self.episode_ends = self.episode_ends.astype(np.int64)
        if self.episode_ends.ndim != 1:
            raise UserError(
                f"{path}: meta/episode_ends has shape {self.episode_ends.shape}, not (n,)"
            )
        if len(self.episode_ends) == 0:
            raise UserError(f"{path}: the data set is empty (meta/episode_ends has no entry)")
        if (np.diff(self.episode_ends, prepend=0) < 1).any():
            raise UserError(
                f"{path}: meta/episode_ends must rise from above 0, found {self.episode_ends[:8]}…"
            )
        for name, array in arrays.items():
            if array.shape[:1] != (self.steps,):
                raise UserError(
                    f"{path}: data/{name} has {array.shape[0] if array.shape else 'no'} steps, "
                    f"but the last of meta/episode_ends is {self.steps} (a truncated file?)"
                )
        action = arrays.pop(ACTION)
        if len(action.shape) != 2:
            raise UserError(f"{path}: data/action has shape {action.shape}, expected (steps, A)")
        self._action, self._arrays = action, arrays
        self.actions = KeyInfo(tuple(action.shape[1:]), action.dtype)
        self.unread = [name for name, array in arrays.items() if not is_numeric(array.dtype)]
        self.observations, self.outcomes = split_outcomes(
            {
                name: KeyInfo(tuple(array.shape[1:]), array.dtype)
                for name, array in arrays.items()
                if name not in self.unread
            }
        )
        if set(arrays) >= PUSHT_KEYS:
            self.rate, self.action_bounds = 10.0, (0.0, 512.0)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self.require(key)
        return self._decode(self._arrays[key], f"data/{key}", slice(start, stop))

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        return self._decode(self._action, f"data/{ACTION}", slice(start, stop))

    def missing_chunks(self, key: str) -> int:
        """Number of a key's chunks that are absent; zarr reads these as the fill value."""
        array = self._action if key == ACTION else self._arrays[key]
        return _missing_chunks(array)

    def _decode(self, array: Any, name: str, part: slice = slice(None)) -> np.ndarray:
        # Writers may leave out a chunk that is all zeros, which one number per step can be (a
        # flag, a closed gripper). A whole row of zeros for many steps is a lost chunk.
        if int(np.prod(array.shape[1:])) > 1 and _missing_chunks(array):
            raise UserError(
                f"{self.path}: {name} has {array.nchunks_initialized} of {array.nchunks} chunks "
                "(a truncated copy?)"
            )
        if name not in self._whole:
            self._check_lengths(array, name)
            self._whole.add(name)
        try:
            return np.asarray(array[part])
        except Exception as error:  # each codec has its own exceptions
            raise UserError(
                f"{self.path}: {name} cannot be decoded ({type(error).__name__}: {error}); "
                "the file is damaged"
            ) from error

    def _check_lengths(self, array: Any, name: str) -> None:
        """Check a folder's chunks against their headers: Blosc decodes a part of one without error.

        Raises:
            UserError: a chunk is shorter or longer than it says.
        """
        is_blosc = any(getattr(c, "codec_id", None) == "blosc" for c in array.compressors)
        if not (is_blosc and self.path.is_dir()):
            return
        for chunk in (self.path / self._root / name).rglob("*"):
            if chunk.name.startswith(".") or not chunk.is_file():
                continue
            with chunk.open("rb") as file:
                stated = int.from_bytes(file.read(16)[12:], "little")
            if stated != (found := chunk.stat().st_size):
                raise UserError(
                    f"{self.path}: {name} cannot be decoded (chunk {chunk.name} has {found} bytes, "
                    f"its header says {stated}); the file is damaged"
                )


def write_zarr(
    folder: Path, columns: Sequence[Column], pieces: Iterable[Piece], episode_ends: np.ndarray
) -> None:
    """Write a replay buffer as a zarr-2 folder, which must not exist.

    Args:
        folder: to write.
        columns: the arrays under ``data/``, ``action`` included.
        pieces: of the episodes, in order.
        episode_ends: exclusive ends.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    import zarr

    group = zarr.open_group(str(folder), mode="w-", zarr_format=2)
    steps = int(episode_ends[-1])
    arrays: dict[str, Any] = {}
    for column in columns:
        of_step = max(1, int(np.prod(column.shape)) * column.dtype.itemsize)
        chunk = min(steps, max(1, _CHUNK_BYTES // of_step))
        arrays[column.name] = group.create_array(
            f"data/{column.name}", shape=(steps, *column.shape), dtype=column.dtype,
            chunks=(chunk, *column.shape), config={"write_empty_chunks": True},
        )  # fmt: skip
    for piece in pieces:
        for name, array in arrays.items():
            array[piece.start : piece.stop] = piece.values[name]
    ends = group.create_array("meta/episode_ends", shape=episode_ends.shape, dtype="int64")
    ends[:] = episode_ends
