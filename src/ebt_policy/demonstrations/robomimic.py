"""robomimic's HDF5: ``data/demo_<i>/{obs/<key>, actions, ...}``, read and written.

An episode's sentence is ``lang`` in the JSON of its attribute ``ep_meta``, as in robocasa's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.demonstrations.base import Demonstrations, KeyInfo, is_numeric, split_outcomes
from ebt_policy.demonstrations.columns import Column, Piece
from ebt_policy.errors import UserError

# robomimic's EnvType: 1 is robosuite, 2 is gym.
ROBOSUITE, GYM = 1, 2
# At most, HDF5 takes this much around a data set; rewards and dones, where they are made up.
_DATASET_BYTES, _OUTCOME_BYTES = 2**12, 12
# What follows an action, by our name and robomimic's.
OUTCOMES = {"next.reward": "rewards", "next.done": "dones"}


class RobomimicDemonstrations(Demonstrations):
    """A robomimic HDF5 file, optionally only the episodes of a filter key.

    Args:
        path: the file.
        filter_key: name under ``mask/``, for instance ``train``; None takes every episode.

    Raises:
        UserError: the file is truncated, a group is missing, or lengths do not agree.
    """

    format = "robomimic HDF5"

    def __init__(self, path: Path, filter_key: str | None = None) -> None:
        import h5py

        self.path = path
        try:
            self._file: Any = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"{path}: cannot be opened as HDF5, truncated? ({error})") from error
        try:
            self._load(filter_key)
        except UserError:
            raise
        except Exception as error:  # h5py and any group, dataset or attribute of the wrong kind
            raise UserError(
                f"{path}: the HDF5 file is damaged, or not laid out as robomimic's "
                f"({type(error).__name__}: {error})"
            ) from error

    def _load(self, filter_key: str | None) -> None:
        path = self.path
        if "data" not in self._file:
            raise UserError(f"{path}: no group 'data'; this is not a robomimic file")
        data = self._file["data"]
        names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
        if filter_key is not None:
            masks = self._file.get("mask", {})
            if filter_key not in masks:
                raise UserError(
                    f"{path}: no filter key {filter_key!r}; there are "
                    f"{', '.join(sorted(masks)) or 'none'}"
                )
            wanted = [name.decode() for name in masks[filter_key][:]]
            if set(wanted) - set(names):
                raise UserError(
                    f"{path}: filter key {filter_key!r} names {min(set(wanted) - set(names))}, "
                    "which does not exist"
                )
            names = wanted
        if not names:
            raise UserError(f"{path}: the data set is empty (no data/demo_<i>)")
        self._names = sorted(names, key=lambda name: int(name.removeprefix("demo_")))
        ends: list[int] = []
        end = 0
        for name in self._names:
            for part in ("actions", "obs"):
                if part not in data[name]:
                    raise UserError(f"{path}: data/{name}/{part} is missing")
            demo = data[name]
            length = len(demo["actions"])
            keys = _number_keys(demo["obs"])
            shapes = {"actions": demo["actions"].shape[1:]}
            shapes |= {key: demo["obs"][key].shape[1:] for key in keys}
            for key in keys:
                if len(demo["obs"][key]) != length:
                    raise UserError(
                        f"{path}: data/{name}/obs/{key} has {len(demo['obs'][key])} steps, "
                        f"data/{name}/actions has {length}"
                    )
            if length == 0:
                raise UserError(f"{path}: data/{name} has no steps")
            if not ends:
                first, first_shapes = name, shapes
            elif shapes != first_shapes:
                every = {**shapes, **first_shapes}
                key = next(k for k in every if shapes.get(k) != first_shapes.get(k))
                for demo, other in ((name, first), (first, name)):
                    if key != "actions" and key not in data[demo]["obs"]:
                        raise UserError(
                            f"{path}: data/{demo}/obs/{key} is missing; data/{other} has it"
                        )
                raise UserError(
                    f"{path}: data/{name}: {key} has shape {shapes.get(key)} per step, but "
                    f"{first_shapes.get(key)} in data/{first}"
                )
            end += length
            ends.append(end)
        self.episode_ends = np.array(ends, np.int64)
        demo = data[self._names[0]]
        if len(demo["actions"].shape) != 2:
            raise UserError(
                f"{path}: data/{self._names[0]}/actions has shape {demo['actions'].shape}, "
                "expected (steps, A)"
            )
        self.actions = KeyInfo(tuple(demo["actions"].shape[1:]), demo["actions"].dtype)
        keys = _number_keys(demo["obs"])
        self.unread = [key for key in demo["obs"] if key not in keys]
        self.observations, self.outcomes = split_outcomes(
            {
                key: KeyInfo(tuple(demo["obs"][key].shape[1:]), demo["obs"][key].dtype)
                for key in keys
            }
        )
        lengths = np.diff(self.episode_ends, prepend=0).tolist()
        sentences = [json.loads(data[demo].attrs.get("ep_meta", "{}")) for demo in self._names]
        sentences = [meta.get("lang") for meta in sentences]
        if all(isinstance(sentence, str) for sentence in sentences):
            self.tasks = list(dict.fromkeys(sentences))
            row = [self.tasks.index(sentence) for sentence in sentences]
            self.task_of_step = np.repeat(row, lengths)
        for key, name in OUTCOMES.items():
            found = [getattr(data[demo].get(name), "shape", None) for demo in self._names]
            whole = found == [(length,) for length in lengths]
            if whole and key not in self.outcomes and is_numeric(demo[name].dtype):
                self.outcomes[key] = KeyInfo((), demo[name].dtype)
        arguments = json.loads(data.attrs.get("env_args", "{}"))
        rate = arguments.get("env_kwargs", {}).get("control_freq")
        self.rate = float(rate) if rate is not None else None
        bounds = arguments.get("env_kwargs", {}).get("action_bounds")
        if bounds is not None:
            self.action_bounds = (float(bounds[0]), float(bounds[1]))
        elif arguments.get("type") == ROBOSUITE:
            self.action_bounds = (-1.0, 1.0)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self.require(key)
        in_obs = key not in OUTCOMES or key in self._file[f"data/{self._names[0]}/obs"]
        return self._read(f"obs/{key}" if in_obs else OUTCOMES[key], start, stop)

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        return self._read("actions", start, stop)

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        parts, starts = [], self.episode_starts
        first = int(np.searchsorted(self.episode_ends, start, side="right"))
        for episode in range(first, self.episodes):
            begin = int(starts[episode])
            if begin >= stop:
                break
            try:
                array = self._file[f"data/{self._names[episode]}/{name}"]
                parts.append(array[max(start - begin, 0) : stop - begin])
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{self.path}: data/{self._names[episode]}/{name} cannot be read ({error}); "
                    "the file is damaged"
                ) from error
        return np.concatenate(parts)


def _number_keys(group: Any) -> list[str]:
    """Observation keys that hold numbers; strings and nested groups are not observed."""
    return [key for key in group if hasattr(group[key], "dtype") and is_numeric(group[key].dtype)]


@dataclass
class Episode:
    """One recorded episode of ``n`` steps.

    Attributes:
        observations: per key (n, *shape), each taken before the action of its step.
        actions: (n, A), as they were executed.
        rewards: (n,).
        success: whether the task succeeded.
        seed: of the start.
        sentence: that says what was to be done, if there is one.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    success: bool
    seed: int
    sentence: str | None = None


def write_robomimic(
    path: Path, episodes: Iterable[Episode], environment: str, settings: dict[str, Any]
) -> None:
    """Write episodes as robomimic HDF5; the file appears whole or not at all.

    Args:
        path: the file to write.
        episodes: in order; the i-th becomes ``data/demo_<i>``.
        environment: name for ``env_args``.
        settings: ``env_kwargs``, for instance ``control_freq``.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    import h5py

    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            data = file.create_group("data")
            total = 0
            for index, episode in enumerate(episodes):
                length = len(episode.actions)
                demo = _create_demo(data, index, length)
                demo.create_dataset("actions", data=episode.actions.astype(np.float32))
                demo.create_dataset("rewards", data=episode.rewards.astype(np.float32))
                demo.create_dataset("dones", data=_last_is_done(length))
                for key, values in episode.observations.items():
                    demo.create_dataset(f"obs/{key}", data=values)
                demo.attrs["seed"] = episode.seed
                demo.attrs["success"] = episode.success
                if episode.sentence is not None:
                    demo.attrs["ep_meta"] = json.dumps({"lang": episode.sentence})
                total += length
            _describe(data, total, environment, settings)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_robomimic_columns(
    path: Path,
    columns: Sequence[Column],
    pieces: Iterable[Piece],
    episode_ends: np.ndarray,
    environment: str,
    settings: dict[str, Any],
) -> None:
    """Write converted episodes as robomimic HDF5.

    Args:
        path: the file to write.
        columns: the keys, ``action`` and outcomes included.
        pieces: of the episodes, in order; rewards of 0 and a done at the end of each stand in
            for outcomes that they lack.
        episode_ends: exclusive ends.
        environment: name for ``env_args``.
        settings: ``env_kwargs``.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    import h5py

    def place_of(column: Column) -> str:
        if column.source is None:
            return "actions"
        is_outcome = column.name in OUTCOMES and column.shape == ()
        return OUTCOMES[column.name] if is_outcome else f"obs/{column.name}"

    places = {column.name: place_of(column) for column in columns}
    lengths = np.diff(episode_ends, prepend=0).tolist()
    of_step = sum(int(np.prod(c.shape)) * c.dtype.itemsize for c in columns) + _OUTCOME_BYTES
    around = _DATASET_BYTES * len(lengths) * (len(columns) + 5)
    _reserve(path, of_step * int(episode_ends[-1]) + around)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for piece in pieces:
            length = lengths[piece.episode]
            first = int(episode_ends[piece.episode]) - length
            if piece.start == first:
                demo = _create_demo(data, piece.episode, length)
                for column in columns:
                    demo.create_dataset(places[column.name], (length, *column.shape), column.dtype)
                if "rewards" not in demo:
                    demo.create_dataset("rewards", data=np.zeros(length, np.float32))
                if "dones" not in demo:
                    demo.create_dataset("dones", data=_last_is_done(length))
            for name, place in places.items():
                demo[place][piece.start - first : piece.stop - first] = piece.values[name]
        _describe(data, int(episode_ends[-1]), environment, settings)


def _reserve(path: Path, size: int) -> None:
    """Make sure of room for a file before it is written.

    HDF5 cannot close a file that outgrows the disk; it would take the process with it.

    Raises:
        OSError: there is not so much room.
    """
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _create_demo(data: Any, index: int, length: int) -> Any:
    demo = data.create_group(f"demo_{index}")
    demo.attrs["num_samples"] = length
    # No simulator state is recorded; robomimic's readers expect the key.
    demo.create_dataset("states", data=np.zeros((length, 0), np.float32))
    return demo


def _last_is_done(length: int) -> np.ndarray:
    dones = np.zeros(length, np.int64)
    dones[-1] = 1
    return dones


def _describe(data: Any, total: int, environment: str, settings: dict[str, Any]) -> None:
    data.attrs["total"] = total
    data.attrs["env_args"] = json.dumps(
        {"env_name": environment, "type": GYM, "env_kwargs": settings}
    )
