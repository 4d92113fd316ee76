"""LeRobotDataset v3.0, written without LeRobot; images are PNG in the parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.demonstrations.columns import Column, Piece
from ebt_policy.demonstrations.lerobot_meta import INDEX_COLUMNS, INFO

_FILES_PER_CHUNK, _FILE_BYTES = 1000, 100 * 2**20
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)

Statistics = dict[str, np.ndarray]


def write_lerobot(
    folder: Path,
    columns: Sequence[Column],
    pieces: Iterable[Piece],
    rate: float,
    tasks: Sequence[str],
    task_of_step: np.ndarray,
) -> None:
    """Write episodes; the folder must not exist.

    Args:
        folder: to write.
        columns: the features, ``action`` included, under LeRobot's names.
        pieces: of the episodes, in order.
        rate: steps per second.
        tasks: sentences.
        task_of_step: (steps,) which of them each step belongs to.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {column.name: column for column in columns}
    types |= {name: Column(None, name, (1,), dtype) for name, dtype in INDEX_COLUMNS.items()}
    metadata = {b"huggingface": json.dumps({"info": {"features": _hub_types(types)}}).encode()}
    records: list[dict[str, Any]] = []
    statistics: list[dict[str, Statistics]] = []
    writer, file_number, end = None, 0, 0
    try:
        for tables, values, length in _episodes(types, pieces, rate, task_of_step):
            place = {
                "chunk_index": file_number // _FILES_PER_CHUNK,
                "file_index": file_number % _FILES_PER_CHUNK,
            }
            path = folder / _DATA.format(**place)
            table = pa.concat_tables(tables).replace_schema_metadata(metadata)
            if writer is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, table.schema, write_page_checksum=True)
            writer.write_table(table, row_group_size=length)  # one row group per episode
            statistics.append(values)
            start, end = end, end + length
            records.append(
                {
                    "episode_index": len(records),
                    "tasks": [tasks[i] for i in np.unique(task_of_step[start:end])],
                    "length": length,
                    **{f"data/{name}": value for name, value in place.items()},
                    "dataset_from_index": start,
                    "dataset_to_index": end,
                    **{
                        f"stats/{name}/{kind}": value.tolist()
                        for name, kinds in values.items()
                        for kind, value in kinds.items()
                    },
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                }
            )
            if path.stat().st_size >= _FILE_BYTES:
                writer.close()
                writer, file_number = None, file_number + 1
    finally:
        if writer is not None:
            writer.close()
    episodes = folder / "meta/episodes/chunk-000/file-000.parquet"
    episodes.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(records), episodes)
    pq.write_table(_task_table(tasks), folder / "meta/tasks.parquet")
    overall = {name: _aggregate([values[name] for values in statistics]) for name in types}
    _write_json(
        folder / "meta/stats.json",
        {n: {kind: v.tolist() for kind, v in kinds.items()} for n, kinds in overall.items()},
    )
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(records),
        "total_frames": end,
        "total_tasks": len(tasks),
        "chunks_size": _FILES_PER_CHUNK,
        "data_files_size_in_mb": _FILE_BYTES // 2**20,
        "video_files_size_in_mb": 200,
        "fps": int(rate) if rate == int(rate) else rate,
        "splits": {"train": f"0:{len(records)}"},
        "data_path": _DATA,
        "video_path": None,
        "features": {name: _feature(column) for name, column in types.items()},
    }
    _write_json(folder / INFO, info)


def _episodes(
    types: dict[str, Column], pieces: Iterable[Piece], rate: float, task_of_step: np.ndarray
) -> Iterator[tuple[list[Any], dict[str, Statistics], int]]:
    """Per episode: its rows as tables, the statistics of each column, and its length."""
    import pyarrow as pa

    tables: list[Any] = []
    numbers: dict[str, list[np.ndarray]] = {}
    counts: dict[str, np.ndarray] = {}  # of pixel values, per channel
    length = 0
    for piece in pieces:
        steps = np.arange(piece.start, piece.stop)
        frame = length + np.arange(len(steps))
        index = {
            "timestamp": (frame / rate).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(len(steps), piece.episode),
            "index": steps,
            "task_index": task_of_step[steps],
        }
        values = piece.values | index
        arrays = []
        for name, column in types.items():
            if column.is_image:
                pixels = values[name].reshape(-1, column.shape[-1])
                found = [np.bincount(channel, minlength=256) for channel in pixels.T]
                counts[name] = counts.get(name, np.int64(0)) + np.stack(found)
                arrays.append(_images(values[name]))
            else:
                numbers.setdefault(name, []).append(values[name])
                arrays.append(_numbers(values[name].astype(column.dtype, copy=False), column))
        tables.append(pa.table(arrays, names=list(types)))
        length += len(steps)
        if piece.ends_episode:
            statistics = {
                name: _of_images(counts[name], length)
                if column.is_image
                else _of_numbers(np.concatenate(numbers[name]), column)
                for name, column in types.items()
            }
            yield tables, statistics, length
            tables, numbers, counts, length = [], {}, {}, 0


def _numbers(values: np.ndarray, column: Column) -> Any:
    """Numbers as LeRobot stores them: bare, as a list of fixed length, or as nested lists."""
    import pyarrow as pa

    array = pa.array(values.reshape(-1))
    if column.shape == (1,):
        return array
    if len(column.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(array, column.shape[0])
    for extent in reversed(column.shape):
        offsets = np.arange(0, len(array) + 1, extent, dtype=np.int32)
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def _images(images: np.ndarray) -> Any:
    """Images (n, H, W, C) as PNG: they decode to the same bytes."""
    import pyarrow as pa
    from PIL import Image

    contents = []
    for image in images:
        content = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
            content, "PNG", compress_level=1
        )
        contents.append(content.getvalue())
    paths = pa.nulls(len(contents), pa.string())
    return pa.StructArray.from_arrays([pa.array(contents, pa.binary()), paths], ["bytes", "path"])


def _of_numbers(values: np.ndarray, column: Column) -> Statistics:
    """Statistics of an episode's numbers over all but the last axis, as LeRobot keeps them."""
    flat = values.reshape(-1, column.shape[-1]).astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinite numbers there is no deviation
        found = {
            "min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0),
            "count": np.array([len(values)]),
        }  # fmt: skip
        for share, quantile in zip(_QUANTILES, np.quantile(flat, _QUANTILES, axis=0), strict=True):
            found[f"q{round(100 * share):02d}"] = quantile
    return found


def _of_images(counts: np.ndarray, length: int) -> Statistics:
    """Statistics of pixels in [0, 1] per channel (C, 1, 1), from how often each value occurs."""
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    present = counts > 0
    found = {
        "min": values[present.argmax(1)],
        "max": values[255 - present[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1)),
    }
    for share in _QUANTILES:
        found[f"q{round(100 * share):02d}"] = values[
            (shares.cumsum(1) < share).sum(1).clip(max=255)
        ]
    shaped = {kind: value.reshape(-1, 1, 1) for kind, value in found.items()}
    return shaped | {"count": np.array([length])}


def _aggregate(episodes: Sequence[Statistics]) -> Statistics:
    """Statistics of all episodes; of quantiles the mean, which is how LeRobot joins them."""
    stacked = {kind: np.stack([e[kind] for e in episodes]) for kind in episodes[0]}
    count = stacked.pop("count")
    share = count.reshape(-1, *[1] * (stacked["mean"].ndim - 1)) / count.sum()
    with np.errstate(invalid="ignore"):
        found = {kind: (share * values).sum(0) for kind, values in stacked.items()}
        spread = stacked["std"] ** 2 + (stacked["mean"] - found["mean"]) ** 2
        found["std"] = np.sqrt((share * spread).sum(0))
    found["min"], found["max"] = stacked["min"].min(0), stacked["max"].max(0)
    return found | {"count": count.sum(0)}


def _feature(column: Column) -> dict[str, Any]:
    names = ["height", "width", "channels"] if column.is_image else None
    dtype = "image" if column.is_image else str(column.dtype)
    return {"dtype": dtype, "shape": list(column.shape), "names": names}


def _hub_types(columns: dict[str, Column]) -> dict[str, Any]:
    """The columns' types as the library ``datasets`` notes them in a parquet file."""
    types: dict[str, Any] = {}
    for name, column in columns.items():
        value = {"dtype": str(column.dtype), "_type": "Value"}
        if column.is_image:
            types[name] = {"_type": "Image"}
        elif column.shape == (1,):
            types[name] = value
        elif len(column.shape) == 1:
            types[name] = {"feature": value, "length": column.shape[0], "_type": "List"}
        else:
            kind = f"Array{len(column.shape)}D"
            types[name] = {"shape": list(column.shape), "dtype": str(column.dtype), "_type": kind}
    return types


def _task_table(tasks: Sequence[str]) -> Any:
    """Sentences as pandas' index, which is where LeRobot looks for them."""
    import pyarrow as pa

    def noted(name: str, kind: str, dtype: str) -> dict[str, Any]:
        return {
            "name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype,
            "metadata": None,
        }  # fmt: skip

    note = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [noted("task_index", "int64", "int64"), noted("task", "unicode", "object")],
    }
    table = pa.table({"task_index": np.arange(len(tasks)), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(note)})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n")
