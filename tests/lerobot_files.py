"""A small LeRobotDataset, written by hand: four episodes of two tasks, with a camera."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

RATE = 10
LENGTHS = (12, 9, 15, 6)
TASKS = ["push it", "pull it"]
CAMERA = "observation.images.top"
SIZE = (32, 48)


def level(episode: int, frame: int) -> int:
    """Brightness of the camera's image, which is the same all over."""
    return 40 * episode + 5 * frame


def png(brightness: int, size: tuple[int, int] = SIZE) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((*size, 3), brightness, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_video(path: Path, levels: Iterable[int], size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for brightness in levels:
            image = np.full((*size, 3), brightness, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


class LeRobotFiles:
    """What is about to be written; tests break it first.

    Attributes:
        info: ``meta/info.json``.
        records: rows of ``meta/episodes``, by episode.
        tables: columns by data file.
        types: of the columns, where they are not those that come by themselves.
        tasks: sentences.
        videos: brightness of each frame by video file, where ``video`` is true.
    """

    def __init__(self, version: str = "v3.0", video: bool = False) -> None:
        self.packed, self.video = version == "v3.0", video
        random = np.random.default_rng(0)
        number = {"shape": [1], "names": None}
        self.info: dict[str, Any] = {
            "codebase_version": version,
            "fps": RATE,
            "total_episodes": len(LENGTHS),
            "total_frames": sum(LENGTHS),
            "total_tasks": len(TASKS),
            "chunks_size": 1000,
            "features": {
                "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
                "observation.state": {"dtype": "float32", "shape": [3], "names": None},
                "observation.points": {"dtype": "float64", "shape": [4, 2], "names": None},
                "observation.grip": {"dtype": "int32", **number},
                "next.done": {"dtype": "bool", **number},
                "note": {"dtype": "string", **number},
                CAMERA: {
                    "dtype": "video" if video else "image",
                    "shape": [*SIZE, 3],
                    "names": ["height", "width", "channels"],
                },
                "timestamp": {"dtype": "float32", **number},
                **{
                    name: {"dtype": "int64", **number}
                    for name in ("frame_index", "episode_index", "index", "task_index")
                },
            },
        }
        if self.packed:
            place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
            self.info["data_path"] = f"data/{place}.parquet"
            self.info["video_path"] = f"videos/{{video_key}}/{place}.mp4"
        else:
            self.info |= {"total_chunks": 1, "total_videos": len(LENGTHS) if video else 0}
            place = "episode_{episode_index:06d}"
            self.info["data_path"] = f"data/chunk-{{episode_chunk:03d}}/{place}.parquet"
            self.info["video_path"] = (
                f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{place}.mp4"
            )
        self.types = {
            "action": pa.list_(pa.float32(), 2) if self.packed else pa.list_(pa.float32()),
            "observation.state": pa.list_(pa.float32()),
            "observation.points": pa.list_(pa.list_(pa.float64())),
            "observation.grip": pa.int32(),
            "timestamp": pa.float32(),
        }
        self.tasks = list(TASKS)
        self.records: list[dict[str, Any]] = []
        self.tables: dict[str, dict[str, list[Any]]] = {}
        self.videos: dict[str, list[int]] = {}
        first = 0
        for episode, length in enumerate(LENGTHS):
            record: dict[str, Any] = {"episode_index": episode, "length": length}
            record["tasks"] = [TASKS[episode % 2]]
            numbers = {"episode_chunk": 0, "episode_index": episode}
            if self.packed:
                numbers = {"chunk_index": 0, "file_index": episode // 2}  # two episodes a file
                record |= {f"data/{name}": value for name, value in numbers.items()}
                record |= {"dataset_from_index": first, "dataset_to_index": first + length}
            film = self.videos.setdefault(
                self.info["video_path"].format(video_key=CAMERA, **numbers), []
            )
            if self.packed and video:
                record |= {f"videos/{CAMERA}/{name}": value for name, value in numbers.items()}
                record[f"videos/{CAMERA}/from_timestamp"] = len(film) / RATE
                record[f"videos/{CAMERA}/to_timestamp"] = (len(film) + length) / RATE
            film += [level(episode, frame) for frame in range(length)]
            self.records.append(record)
            table = self.tables.setdefault(self.info["data_path"].format(**numbers), {})
            columns = {
                "action": random.normal(size=(length, 2)).astype(np.float32).tolist(),
                "observation.state": random.normal(size=(length, 3)).astype(np.float32).tolist(),
                "observation.points": random.normal(size=(length, 4, 2)).tolist(),
                "observation.grip": list(range(length)),
                "next.done": [False] * (length - 1) + [True],
                "note": ["text"] * length,
                "timestamp": [frame / RATE for frame in range(length)],
                "frame_index": list(range(length)),
                "episode_index": [episode] * length,
                "index": list(range(first, first + length)),
                "task_index": [episode % 2] * length,
            }
            if not video:
                columns[CAMERA] = [
                    {"bytes": png(level(episode, frame)), "path": None} for frame in range(length)
                ]
            for name, values in columns.items():
                table.setdefault(name, []).extend(values)
            first += length

    def column(self, key: str) -> np.ndarray:
        """All rows of a column."""
        return np.concatenate([np.array(table[key]) for table in self.tables.values()])

    def at(self, episode: int, frame: int) -> tuple[dict[str, list[Any]], int]:
        """The table that a step lies in, and its row."""
        for table in self.tables.values():
            places = zip(table["episode_index"], table["frame_index"], strict=True)
            for row, place in enumerate(places):
                if place == (episode, frame):
                    return table, row
        raise KeyError((episode, frame))

    def put(self, episode: int, frame: int, key: str, value: Any) -> None:
        """Replace one cell."""
        table, row = self.at(episode, frame)
        table[key][row] = value

    def write(self, root: Path) -> Path:
        for name, columns in self.tables.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays = {key: pa.array(v, self.types.get(key)) for key, v in columns.items()}
            # Row groups that do not end where episodes do.
            pq.write_table(pa.table(arrays), path, row_group_size=7)
        if self.video:
            for name, levels in self.videos.items():
                write_video(root / name, levels)
        meta = root / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        (meta / "info.json").write_text(json.dumps(self.info))
        tasks = [{"task_index": i, "task": task} for i, task in enumerate(self.tasks)]
        if self.packed:
            # pandas calls a nameless index so.
            named = pa.table(
                {
                    "task_index": [task["task_index"] for task in tasks],
                    "__index_level_0__": [task["task"] for task in tasks],
                }
            )
            pq.write_table(named, meta / "tasks.parquet")
            (meta / "episodes/chunk-000").mkdir(parents=True, exist_ok=True)
            records = [record | {"stats/action/max": [1.0, 2.0]} for record in self.records]
            pq.write_table(
                pa.Table.from_pylist(records), meta / "episodes/chunk-000/file-000.parquet"
            )
        else:
            write_lines(meta / "tasks.jsonl", tasks)
            write_lines(meta / "episodes.jsonl", self.records)
            numbers = {"min": [0.0] * 2, "max": [0.0] * 2, "mean": [0.0] * 2, "std": [0.0] * 2}
            write_lines(
                meta / "episodes_stats.jsonl",
                [
                    {"episode_index": i, "stats": {"action": {**numbers, "count": [length]}}}
                    for i, length in enumerate(LENGTHS)
                ],
            )
        return root


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
