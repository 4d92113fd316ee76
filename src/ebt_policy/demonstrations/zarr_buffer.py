"""Diffusion Policy's replay buffer: a zarr store, as a folder or as a ``.zarr.zip``.

``data/<key>`` holds every episode's steps one after another, ``meta/episode_ends`` the
exclusive end of each episode.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.demonstrations.base import Demonstrations, KeyInfo
from ebt_policy.errors import UserError

ACTION = "action"


def store_root(path: Path) -> str | None:
    """Where the buffer's group lies inside a folder or zip: "" is the top, None is nowhere."""
    if path.is_dir():
        names = [str(p.relative_to(path)) for p in path.glob("**/episode_ends") if p.is_dir()]
        names = [f"{name}/" for name in names]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        return None
    marker = "meta/episode_ends/"
    roots = sorted({name[: name.index(marker)] for name in names if marker in name}, key=len)
    return roots[0].rstrip("/") if roots else None


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
        root = store_root(path)
        if root is None:
            raise UserError(f"{path}: holds no zarr replay buffer (no meta/episode_ends)")
        try:
            if path.is_dir():
                self._group: Any = zarr.open_group(str(path / root), mode="r")
            else:
                store = zarr.storage.ZipStore(str(path), mode="r")
                self._group = zarr.open_group(store, path=root or None, mode="r")
            data = self._group["data"]
            arrays = {name: data[name] for name in data.array_keys()}
        except Exception as error:  # zarr raises many kinds for a damaged store
            raise UserError(
                f"{path}: the zarr store is damaged ({type(error).__name__}: {error})"
            ) from error
        if ACTION not in arrays:
            raise UserError(f"{path}: data/{ACTION} is missing; there are {', '.join(arrays)}")
        self.episode_ends = self._decode(self._group["meta/episode_ends"], "meta/episode_ends")
        self.episode_ends = self.episode_ends.astype(np.int64)
        if len(self.episode_ends) == 0:
            raise UserError(f"{path}: the data set is empty (meta/episode_ends has no entry)")
        if (np.diff(self.episode_ends, prepend=0) < 1).any():
            raise UserError(
                f"{path}: meta/episode_ends must rise from above 0, found {self.episode_ends[:8]}…"
            )
        for name, array in arrays.items():
            if array.shape[0] != self.steps:
                raise UserError(
                    f"{path}: data/{name} has {array.shape[0]} steps, but the last of "
                    f"meta/episode_ends is {self.steps} (a truncated file?)"
                )
        action = arrays.pop(ACTION)
        if len(action.shape) != 2:
            raise UserError(f"{path}: data/action has shape {action.shape}, expected (steps, A)")
        self._action, self._arrays = action, arrays
        self.actions = KeyInfo(tuple(action.shape[1:]), action.dtype)
        self.observations = {n: KeyInfo(tuple(a.shape[1:]), a.dtype) for n, a in arrays.items()}
        rate = self._group.attrs.get("rate")
        self.rate = float(rate) if rate is not None else None

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self.require(key)
        return self._decode(self._arrays[key], f"data/{key}", slice(start, stop))

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        return self._decode(self._action, f"data/{ACTION}", slice(start, stop))

    def missing_chunks(self, key: str) -> int:
        """Number of a key's chunks that are absent; zarr itself reads these as zeros."""
        array = self._action if key == ACTION else self._arrays[key]
        return int(array.nchunks - array.nchunks_initialized)

    def _decode(self, array: Any, name: str, part: slice = slice(None)) -> np.ndarray:
        # A lost chunk would silently read as zeros, so its absence is an error here.
        if int(array.nchunks_initialized) < int(array.nchunks):
            raise UserError(
                f"{self.path}: {name} has {array.nchunks_initialized} of {array.nchunks} chunks "
                "(a truncated copy?)"
            )
        try:
            return np.asarray(array[part])
        except Exception as error:  # each codec has its own exceptions
            raise UserError(
                f"{self.path}: {name} cannot be decoded ({type(error).__name__}: {error}); "
                "the file is damaged"
            ) from error
