"""``data convert``: demonstrations of one format as another, without loss.

Numbers stay the same bit for bit; images become PNG in LeRobot. Names follow one rule::

    zarr, robomimic    state              agentview_image                     action(s)
    LeRobot            observation.state  observation.images.agentview_image  action

``next.…``, what follows an action, keeps its name; robomimic calls ``next.reward`` ``rewards``
and ``next.done`` ``dones``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from tqdm import tqdm

from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.base import (
    IMAGE_PREFIX,
    OBSERVATION_PREFIX,
    OUTCOME_PREFIX,
    Demonstrations,
    Digest,
    plain_name,
)
from ebt_policy.demonstrations.columns import Column, Piece, read_pieces
from ebt_policy.demonstrations.lerobot import LEROBOT, LeRobotDemonstrations
from ebt_policy.demonstrations.lerobot_writer import write_lerobot
from ebt_policy.demonstrations.robomimic import (
    OUTCOMES,
    RobomimicDemonstrations,
    write_robomimic_columns,
)
from ebt_policy.demonstrations.zarr_buffer import ACTION, ZarrDemonstrations, write_zarr
from ebt_policy.errors import UserError

FormatName = Literal["zarr", "robomimic", "lerobot"]
_SUFFIXES: dict[str, FormatName] = {
    ".zarr": "zarr", ".hdf5": "robomimic", ".h5": "robomimic", "": "lerobot",
}  # fmt: skip
_FORMATS: dict[FormatName, str] = {
    "zarr": ZarrDemonstrations.format,
    "robomimic": RobomimicDemonstrations.format,
    "lerobot": f"{LEROBOT} v3.0",
}


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        columns: what was written, from what.
        notes: what is different or was left behind, a sentence each.
        sha256: of the raw values of each column, by its written name.
    """

    columns: list[Column]
    notes: list[str]
    sha256: dict[str, str]


def format_of(path: Path, name: str | None) -> FormatName:
    """The format to write: by ``--to``, else by the name of what is written.

    Raises:
        UserError: neither says.
    """
    if name is not None:
        if name not in get_args(FormatName):
            raise UserError(f"--to {name}: it must be one of {', '.join(get_args(FormatName))}")
        return cast(FormatName, name)
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"{path}: its name says no format; write .zarr, .hdf5 or a folder without a suffix "
            f"(LeRobot), or give --to {'|'.join(get_args(FormatName))}"
        )
    return _SUFFIXES[path.suffix]


def convert(
    source: Demonstrations,
    target: Path,
    to: FormatName,
    keys: Sequence[str] | None = None,
    rate: float | None = None,
    task: str | None = None,
    progress: bool = True,
) -> Conversion:
    """Write demonstrations in another format; the target appears whole and verified, or not.

    Args:
        source: the opened demonstrations.
        target: file or folder to write.
        to: its format.
        keys: observations to convert; None means all that there is.
        rate: steps per second; None means what the source says.
        task: sentence for LeRobot, where the source has none; None means the source's name.
        progress: show a progress bar.

    Raises:
        UserError: the target exists or cannot be written, a key cannot be converted, or what
            was written does not read back as it should.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; choose another name or remove it")
    if source.format == _FORMATS[to]:
        raise UserError(f"{source.path}: is a {source.format} already")
    if rate is not None and not rate > 0:
        raise UserError(f"--rate {rate}: it must be above 0")
    rate = rate or source.rate
    if to == "lerobot" and rate is None:
        raise UserError(f"{source.path}: does not say its steps per second; give --rate")
    columns = _columns(source, to, keys)
    partial = target.with_name(f".{target.name}.part")
    try:
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        digests = {column.name: Digest() for column in columns}
        total = (1 + len(columns)) * source.steps
        with tqdm(total=total, unit="step", disable=not progress, leave=False) as bar:
            pieces = _watched(read_pieces(source, columns), digests, bar)
            if to == "zarr":
                write_zarr(partial, columns, pieces, source.episode_ends)
            elif to == "robomimic":
                known = {"control_freq": rate, "action_bounds": source.action_bounds}
                settings = {name: value for name, value in known.items() if value is not None}
                write_robomimic_columns(
                    partial, columns, pieces, source.episode_ends, target.stem, settings
                )
            else:
                tasks = source.tasks or [task or source.path.stem]
                of_step = source.task_of_step
                if of_step is None:
                    of_step = np.zeros(source.steps, np.int64)
                assert rate is not None
                write_lerobot(partial, columns, pieces, rate, tasks, of_step)
            sha256 = {name: digest.hex() for name, digest in digests.items()}
            _verify(partial, source, columns, sha256, bar)
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(partial)
    return Conversion(columns, _notes(source, columns, to), sha256)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def _watched(pieces: Iterator[Piece], digests: dict[str, Digest], bar: tqdm) -> Iterator[Piece]:
    """The same pieces, hashed and counted as they go by."""
    for piece in pieces:
        for name, digest in digests.items():
            digest.add(piece.values[name])
        yield piece
        bar.update(piece.stop - piece.start)


def _columns(source: Demonstrations, to: FormatName, keys: Sequence[str] | None) -> list[Column]:
    """What is written of a source.

    Raises:
        UserError: a key cannot be converted, or two would get the same name.
    """
    if keys is None and source.unread:
        raise UserError(
            f"{source.path}: {', '.join(sorted(source.unread))} cannot be converted: no numbers; "
            f"name what can be: --obs {','.join(sorted(source.observations))}"
        )
    chosen = [*(source.observations if keys is None else keys), *source.outcomes]
    columns = [_column(source, None, to), *(_column(source, key, to) for key in chosen)]
    names: dict[str, str | None] = {}
    for column in columns:
        if column.name in names:
            raise UserError(
                f"{source.path}: {names[column.name] or 'the actions'} and {column.source} would "
                f"both be called {column.name}; leave one out with --obs"
            )
        names[column.name] = column.source
    return columns


def _column(source: Demonstrations, key: str | None, to: FormatName) -> Column:
    info = source.actions if key is None else source.require(key)
    shape, dtype = info.shape, info.dtype.newbyteorder("=")
    if to != "lerobot":
        name = ACTION if key is None else plain_name(key)
        bare = to == "robomimic" and name in OUTCOMES and shape == (1,)
        return Column(key, name, () if bare else shape, dtype)
    is_image = len(shape) == 3 and shape[-1] in (1, 3)
    if not is_image and (dtype.itemsize > 8 or len(shape) > 5):
        raise UserError(
            f"{source.path}: {key or ACTION} cannot be converted: LeRobot has no {dtype} of shape "
            f"{shape}; --obs names what is converted"
        )
    if key is None:
        name = ACTION
    elif key.startswith((OUTCOME_PREFIX, OBSERVATION_PREFIX)):
        name = key
    else:
        name = (IMAGE_PREFIX if is_image else OBSERVATION_PREFIX) + key
    return Column(key, name, shape or (1,), np.dtype(np.uint8) if is_image else dtype, is_image)


def _verify(
    path: Path,
    source: Demonstrations,
    columns: Sequence[Column],
    sha256: dict[str, str],
    bar: tqdm,
) -> None:
    """Read back what was written.

    Raises:
        UserError: something is not what it was.
    """
    written = open_demonstrations(path)
    wrong = [] if np.array_equal(written.episode_ends, source.episode_ends) else ["the episodes"]
    if isinstance(written, LeRobotDemonstrations) and source.tasks:
        same = np.array_equal(np.asarray(written.task_of_step), np.asarray(source.task_of_step))
        wrong += [] if same and written.tasks == source.tasks else ["the tasks"]
    for column in columns:
        digest = Digest()
        for _, block in written.blocks(None if column.source is None else column.name):
            digest.add(block)
            bar.update(len(block))
        if digest.hex() != sha256[column.name] or block.dtype != column.dtype:
            wrong.append(column.name)
    if wrong:
        raise UserError(
            f"{path}: {', '.join(wrong)} read back are not what was written; nothing was kept "
            "(a failing disk?)"
        )


def _notes(source: Demonstrations, columns: Sequence[Column], to: FormatName) -> list[str]:
    notes = []
    for column in columns:
        info = source.actions if column.source is None else source.require(column.source)
        if info.dtype.newbyteorder("=") != column.dtype:
            notes.append(f"{column.name}: the whole numbers of {info.dtype} became uint8 images")
        if info.shape != column.shape:
            notes.append(f"{column.name}: shape {info.shape} became {column.shape}")
    if to == "zarr" and source.rate is not None:
        notes.append(f"left behind: the rate, {source.rate:g} Hz")
    if to != "lerobot" and source.tasks:
        notes.append("left behind: what the tasks are called")
    if isinstance(source, RobomimicDemonstrations):
        notes.append("left behind: all but observations, actions, rewards and dones")
    if to == "robomimic":
        made = [name for key, name in OUTCOMES.items() if key not in source.outcomes]
        if made:
            notes.append(
                f"{' and '.join(made)}, which the source has not: no reward, done at each end"
            )
    return notes
