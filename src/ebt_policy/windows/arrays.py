"""What is learned from, step by step: in memory, or in files mapped into it.

Numbers are float32, images uint8; of a sentence every step has its number in a table of vectors.

Mapped files are read by the pages that a batch touches, and the system drops pages when memory is
short: a data set may be larger than memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ebt_policy.config import StreamConfig, StreamKind
from ebt_policy.demonstrations import Demonstrations
from ebt_policy.demonstrations.base import Digest, episode_of_step
from ebt_policy.errors import UserError
from ebt_policy.shapes import Float, Int, Shaped
from ebt_policy.windows.batch import presence
from ebt_policy.windows.images import to_uint8
from ebt_policy.windows.sentences import embed_all

_INDEX, _ACTIONS, _STREAM = "arrays.json", "actions", "stream-{}"
_SENTENCES = "sentences-{}"
_TYPES: dict[StreamKind, type] = {"numbers": np.float32, "image": np.uint8, "text": np.int64}


@dataclass(frozen=True)
class Arrays:
    """All steps of some demonstrations.

    Attributes:
        observations: per stream (steps, *shape), float32 or uint8; of a text (steps,), the row of
            ``sentences``. Where some data sets of a mixture lack it, also its presence (steps, 1),
            see :func:`ebt_policy.windows.batch.presence`.
        actions: (steps, A).
        sha256: of the raw arrays they were read from and of the episodes' ends, by name.
        sentences: per text stream the vector of each sentence (k, D).
    """

    observations: dict[str, Shaped[np.ndarray, "n ..."]]
    actions: Float[np.ndarray, "n a"]
    sha256: dict[str, str]
    sentences: dict[str, Float[np.ndarray, "k d"]] = field(default_factory=dict)


def load_arrays(demonstrations: Demonstrations, streams: Mapping[str, StreamConfig]) -> Arrays:
    """Read the streams a policy uses, and the actions, into memory; nothing else is read.

    Raises:
        UserError: a key is missing, has another shape, or holds NaN or infinity; an image holds
            anything but whole numbers from 0 to 255.
    """
    _check_streams(demonstrations, streams)
    steps, hashes = demonstrations.steps, _own_hashes(demonstrations)
    actions = np.empty((steps, *demonstrations.actions.shape), np.float32)
    hashes["action"] = _read(demonstrations, None, actions)
    observations, sentences = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, stream in streams.items():
        if stream.kind == "text":
            observations[name], sentences[name], hashes[name] = _texts(demonstrations, stream)
        else:
            observations[name] = np.empty((steps, *stream.shape), _TYPES[stream.kind])
            hashes[name] = _read(demonstrations, name, observations[name], stream.kind)
    observations |= _presences(demonstrations, streams)
    return Arrays(observations, actions, hashes, sentences)


def store_arrays(
    demonstrations: Demonstrations, streams: Mapping[str, StreamConfig], folder: Path
) -> None:
    """Read the same into files of a folder, a block at a time, for :func:`map_arrays`.

    What the folder held before is unlinked first: processes that have it mapped go on reading it.

    Raises:
        UserError: as :func:`load_arrays`; or the files cannot be written.
    """
    _check_streams(demonstrations, streams)
    steps, hashes = demonstrations.steps, _own_hashes(demonstrations)
    presences = _presences(demonstrations, streams)
    index: dict[str, Any] = {
        "sha256": hashes,
        "actions": (steps, *demonstrations.actions.shape),
        "observations": {
            n: (s.kind, (steps, *(() if s.kind == "text" else s.shape))) for n, s in streams.items()
        }
        | {name: ("numbers", values.shape) for name, values in presences.items()},
        "sentences": {
            n: (len(demonstrations.tasks), *s.shape) for n, s in streams.items() if s.kind == "text"
        },
    }
    newest = folder if folder.parent.exists() else folder.parent
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with (folder / _ACTIONS).open("wb") as file:
            hashes["action"] = _read(demonstrations, None, file)
        for number, (name, stream) in enumerate(streams.items()):
            path = folder / _STREAM.format(number)
            if stream.kind == "text":
                rows, vectors, hashes[name] = _texts(demonstrations, stream)
                rows.tofile(path)
                vectors.tofile(folder / _SENTENCES.format(number))
                continue
            with path.open("wb") as file:
                hashes[name] = _read(demonstrations, name, file, stream.kind)
        for number, values in enumerate(presences.values(), len(streams)):
            values.tofile(folder / _STREAM.format(number))
        (folder / _INDEX).write_text(json.dumps(index))
    except BaseException as error:
        shutil.rmtree(newest, ignore_errors=True)  # what is there is whole
        if isinstance(error, OSError):
            raise UserError(
                f"{folder}: the data's arrays cannot be written ({error.strerror or error}); free "
                "some space, or put the run elsewhere"
            ) from error
        raise


def map_arrays(folder: Path) -> Arrays:
    """Map what :func:`store_arrays` wrote; any number of processes may.

    They can be written to without changing the files.
    """
    index = json.loads((folder / _INDEX).read_text())

    def mapped(file: str, kind: StreamKind, shape: list[int]) -> np.ndarray:
        return np.memmap(folder / file, _TYPES[kind], "c", shape=tuple(shape))

    observations, sentences = {}, {}
    for number, (name, (kind, shape)) in enumerate(index["observations"].items()):
        observations[name] = mapped(_STREAM.format(number), kind, shape)
        if kind == "text":
            vectors = index["sentences"][name]
            sentences[name] = mapped(_SENTENCES.format(number), "numbers", vectors)
    actions = mapped(_ACTIONS, "numbers", index["actions"])
    return Arrays(observations, actions, index["sha256"], sentences)


def _own_hashes(demonstrations: Demonstrations) -> dict[str, str]:
    digest = Digest()
    digest.add(demonstrations.episode_ends)
    return {"episode_ends": digest.hex()}


def _check_streams(demonstrations: Demonstrations, streams: Mapping[str, StreamConfig]) -> None:
    """Check that the data have what a policy observes.

    Raises:
        UserError: a key is missing or has another shape; or there are no sentences. A data set of
            a mixture has none of the streams, or lacks one that may not be missing.
    """
    for part in demonstrations.parts:
        if not any(part.has(name) for name in streams):
            raise UserError(f"{part.path}: has none of the observations {', '.join(streams)}")
        for name, stream in streams.items():
            if not (part.has(name) or stream.may_be_missing):
                raise UserError(
                    f"{part.path}: has no observation {name!r}, which is not among those that the "
                    "policy may miss (may_be_missing in its configuration)"
                )
    for name, stream in streams.items():
        if stream.kind == "text":
            if demonstrations.task_of_step is None:
                raise UserError(
                    f"{demonstrations.path}: no sentence says what is done in it; the policy "
                    f"observes one as {name!r}"
                )
            continue
        info = demonstrations.require(name)
        if info.shape != stream.shape:
            raise UserError(
                f"{demonstrations.path}: observation {name!r} has shape {info.shape} per step, "
                f"the policy expects {stream.shape}"
            )


def _presences(
    demonstrations: Demonstrations, streams: Mapping[str, StreamConfig]
) -> dict[str, Float[np.ndarray, "n 1"]]:
    """Under their names, the presences of the streams that some data sets of a mixture lack."""
    lacking = {presence(name): demonstrations.lacking(name) for name in streams}
    return {
        name: 1 - steps[:, None].astype(np.float32)
        for name, steps in lacking.items()
        if steps is not None
    }


def _texts(
    demonstrations: Demonstrations, stream: StreamConfig
) -> tuple[Int[np.ndarray, n], Float[np.ndarray, "k d"], str]:
    """Which sentence each step has, the sentences' vectors, and the hash of both."""
    rows, encoder = demonstrations.task_of_step, stream.encoder
    assert rows is not None
    assert encoder is not None
    digest = Digest()
    digest.add(rows.astype(np.int64))
    digest.add(np.frombuffer("\n".join(demonstrations.tasks).encode(), np.uint8))
    try:
        vectors = embed_all(np.array(demonstrations.tasks), encoder)
    except UserError as error:
        raise UserError(f"{demonstrations.path}: {error}") from error
    return rows.astype(np.int64), vectors, digest.hex()


def _read(
    demonstrations: Demonstrations,
    key: str | None,
    into: np.ndarray | BinaryIO,
    kind: StreamKind = "numbers",
) -> str:
    """Read an observation key, or the actions, as its kind is kept; the hash of what was read."""
    digest = Digest()
    for start, raw in demonstrations.blocks(key):
        digest.add(raw)
        if kind == "image":
            values, bad = to_uint8(raw)
            wanted = "an image is whole numbers from 0 to 255"
        else:
            values = raw.astype(np.float32)
            bad, wanted = _first_infinite(values), "remove or repair this episode"
        if bad is not None:
            episode, step = episode_of_step(demonstrations.episode_ends, start + bad[0])
            raise UserError(
                f"{demonstrations.path}: {key or 'actions'} is {raw[bad]} in episode {episode}, "
                f"step {step}, element {', '.join(map(str, bad[1:])) or 0}; {wanted} "
                "(ebt-policy data info shows all)"
            )
        if isinstance(into, np.ndarray):
            into[start : start + len(values)] = values
        else:
            into.write(np.ascontiguousarray(values).data)
    return digest.hex()


def _first_infinite(values: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first value that is NaN or infinite."""
    bad = ~np.isfinite(values)
    return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None
