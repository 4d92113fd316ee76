"""What the ``meta/`` folder of a LeRobotDataset says, v3.0 and v2.1 alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.demonstrations.base import KeyInfo, is_numeric
from ebt_policy.errors import UserError

ACTION = "action"
INFO = "meta/info.json"
# LeRobot's own columns, and their types.
INDEX_COLUMNS: dict[str, np.dtype] = {
    "timestamp": np.dtype(np.float32),
    "frame_index": np.dtype(np.int64),
    "episode_index": np.dtype(np.int64),
    "index": np.dtype(np.int64),
    "task_index": np.dtype(np.int64),
}


@dataclass(frozen=True)
class Info:
    """``meta/info.json``.

    Attributes:
        root: the data set's folder.
        version: ``codebase_version``, for instance ``v3.0``.
        rate: ``fps``.
        numbers: shape and type of the features that hold numbers, ``action`` included.
        images: of those whose images are in the parquet files, as (H, W, C).
        videos: of those whose images are in MP4 files, as (H, W, C).
        unread: names of the other features.
        content: the whole file.
    """

    root: Path
    version: str
    rate: float
    numbers: dict[str, KeyInfo]
    images: dict[str, KeyInfo]
    videos: dict[str, KeyInfo]
    unread: list[str]
    content: dict[str, Any]

    @property
    def packed(self) -> bool:
        """Whether a file holds many episodes (v3), not one (v2)."""
        return self.version.startswith("v3.")


@dataclass(frozen=True)
class EpisodeRecord:
    """What ``meta/`` says of one episode.

    Attributes:
        index: its ``episode_index``.
        length: its number of steps.
        file: of its rows, relative to the data set's folder.
        span: its first row among all and its exclusive end, where stated (v3).
        videos: per key, the file and the time in it at which the episode begins, in seconds.
    """

    index: int
    length: int
    file: str
    span: tuple[int, int] | None
    videos: dict[str, tuple[str, float]]


def read_info(root: Path) -> Info:
    """Read ``meta/info.json``.

    Raises:
        UserError: it is damaged, or of a version that is not read here.
    """
    path = root / INFO
    try:
        content = json.loads(path.read_text())
        version, rate = str(content["codebase_version"]), float(content["fps"])
        if not version.startswith(("v2.", "v3.")):
            raise UserError(
                f"{path}: codebase_version is {version}; v3.0 and v2.1 are read (LeRobot's own "
                "scripts convert older data sets)"
            )
        if not rate > 0:
            raise UserError(f"{path}: fps is {content['fps']}; it must be above 0")
        info = Info(root, version, rate, {}, {}, {}, [], content)
        for key, feature in content["features"].items():
            if key not in INDEX_COLUMNS:
                _sort_feature(info, key, feature)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or not laid out as LeRobot's ({type(error).__name__}: {error})"
        ) from error
    action = info.numbers.get(ACTION)
    if action is None or len(action.shape) != 1:
        found = f"has shape {action.shape}" if action else "is missing"
        raise UserError(f"{path}: the feature {ACTION!r} {found}, expected numbers of shape (A,)")
    return info


def _sort_feature(info: Info, key: str, feature: dict[str, Any]) -> None:
    dtype, shape = feature["dtype"], tuple(int(extent) for extent in feature["shape"])
    if dtype in ("image", "video"):
        details = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        if details.get("is_depth_map") or details.get("video.is_depth_map") or len(shape) != 3:
            info.unread.append(key)
            return
        names = feature.get("names")
        if isinstance(names, list) and str(names[0]).startswith("channel"):
            shape = (*shape[1:], shape[0])
        kind = info.images if dtype == "image" else info.videos
        kind[key] = KeyInfo(shape, np.dtype(np.uint8))
        return
    try:
        numbers = np.dtype(dtype)
    except TypeError:
        numbers = np.dtype(object)
    if is_numeric(numbers):
        info.numbers[key] = KeyInfo(shape, numbers)
    else:
        info.unread.append(key)


def read_tasks(info: Info) -> list[str]:
    """The sentences that ``task_index`` counts.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = info.root / ("meta/tasks.parquet" if info.packed else "meta/tasks.jsonl")
    tasks: dict[int, str] = {}
    for row in _rows(path):
        # The sentences are pandas' index, which older files leave without a name.
        task = row.get("task", row.get("__index_level_0__"))
        if not isinstance(task, str) or not isinstance(row.get("task_index"), int):
            raise UserError(f"{path}: expected task_index and task, found {row}")
        tasks[row["task_index"]] = task
    if sorted(tasks) != list(range(len(tasks))):
        raise UserError(f"{path}: task_index does not count from 0: {sorted(tasks)}")
    return [tasks[index] for index in range(len(tasks))]


def read_episodes(info: Info) -> list[EpisodeRecord]:
    """What is said of each episode, in order.

    Raises:
        UserError: a file is missing or damaged.
    """
    if info.packed:
        where = info.root / "meta/episodes"
        paths = files_in_order(where)
    else:
        where = info.root / "meta/episodes.jsonl"
        paths = [where]
    if not paths:
        raise UserError(f"{where}: holds no parquet file")
    try:
        records = [_record(info, row) for path in paths for row in _rows(path)]
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{where}: damaged, or not laid out as LeRobot's ({type(error).__name__}: {error})"
        ) from error
    return sorted(records, key=lambda record: record.index)


def _record(info: Info, row: dict[str, Any]) -> EpisodeRecord:
    index, content = int(row["episode_index"]), info.content
    videos = {}
    if info.packed:
        file = content["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        span = (int(row["dataset_from_index"]), int(row["dataset_to_index"]))
        for key in info.videos:
            video = content["video_path"].format(
                video_key=key, chunk_index=row[f"videos/{key}/chunk_index"],
                file_index=row[f"videos/{key}/file_index"],
            )  # fmt: skip
            videos[key] = (video, float(row[f"videos/{key}/from_timestamp"]))
        return EpisodeRecord(index, int(row["length"]), file, span, videos)
    place = {"episode_chunk": index // int(content["chunks_size"]), "episode_index": index}
    for key in info.videos:
        videos[key] = (content["video_path"].format(video_key=key, **place), 0.0)
    return EpisodeRecord(
        index, int(row["length"]), content["data_path"].format(**place), None, videos
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, without the statistics, or lines of a JSON-lines file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            yield from file.read(columns=names).to_pylist()
        else:
            yield from (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error


def files_in_order(folder: Path) -> list[Path]:
    """The parquet files below a folder, by the numbers in their names."""

    def numbers(path: Path) -> list[int]:
        text = "".join(c if c.isdigit() else " " for c in str(path.relative_to(folder)))
        return [int(part) for part in text.split()]

    return sorted(folder.glob("**/*.parquet"), key=lambda path: (numbers(path), path))


def one_line(error: Exception) -> str:
    """An error of a library, as part of ours."""
    return " ".join(str(error).split())
