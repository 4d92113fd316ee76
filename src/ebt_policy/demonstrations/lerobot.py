"""LeRobotDataset v3.0 and v2.1, read without LeRobot: parquet through pyarrow, MP4 through PyAV.

The data files are the truth: their rows, in order, are the steps. What ``meta/`` and the index
columns say of them is compared (:mod:`ebt_policy.demonstrations.lerobot_faults`), and where
they contradict each other, :attr:`LeRobotDemonstrations.faults` says so.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebt_policy.demonstrations.base import (
    Demonstrations,
    KeyInfo,
    episode_of_step,
    split_outcomes,
)
from ebt_policy.demonstrations.lerobot_faults import Rows, find_faults, some
from ebt_policy.demonstrations.lerobot_meta import (
    ACTION,
    INDEX_COLUMNS,
    INFO,
    Info,
    files_in_order,
    one_line,
    read_episodes,
    read_info,
    read_tasks,
)
from ebt_policy.demonstrations.video import Video
from ebt_policy.errors import UserError

LEROBOT = "LeRobotDataset"
Found = TypeVar("Found")


def is_lerobot(path: Path) -> bool:
    """Whether a folder is a LeRobotDataset."""
    return (path / INFO).is_file()


@dataclass(frozen=True)
class _DataFile:
    """A parquet file of steps: ``group_ends`` are exclusive ends of its row groups."""

    name: str
    metadata: Any
    group_ends: np.ndarray


class LeRobotDemonstrations(Demonstrations):
    """A LeRobotDataset's folder.

    Image features are keys of shape (H, W, C), uint8, decoded when they are read. What can be
    read is there even if the data set has faults; nothing should be learned from it then.

    Args:
        path: the folder that holds ``meta/info.json``.

    Raises:
        UserError: ``meta/info.json`` is damaged, or no step can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._info = info = read_info(path)
        self.format = f"{LEROBOT} {info.version}"
        self.rate = info.rate
        self.actions = info.numbers[ACTION]
        keys = {k: i for k, i in info.numbers.items() if k != ACTION} | info.images | info.videos
        self.observations, self.outcomes = split_outcomes(keys)
        self.unread = info.unread
        self.faults: list[str] = []
        records = self._or_fault(read_episodes)
        self.tasks = self._or_fault(read_tasks)
        rows = self._open_files()
        self.episode_ends = np.append(rows.starts[1:], len(rows.episode))
        self.task_of_step = rows.task
        self._times = rows.time
        by_index = {record.index: record for record in records}
        self._records = [by_index.get(int(rows.episode[start])) for start in rows.starts]
        self.faults += find_faults(info, records, self.tasks, rows)
        self._groups: dict[str, tuple[tuple[int, int], Any]] = {}
        self._open_videos: dict[str, Video] = {}

    def _or_fault(self, read: Callable[[Info], list[Found]]) -> list[Found]:
        """What a part of ``meta/`` says, or nothing and a fault."""
        try:
            return read(self._info)
        except UserError as error:
            self.faults.append(str(error).removeprefix(f"{self.path}/"))
            return []

    def _open_files(self) -> Rows:
        """Read the footers and the index columns of every data file.

        Files that cannot be read become faults.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._files: list[_DataFile] = []
        tables, names, lost = [], [], []
        for path in files_in_order(self.path / "data"):
            name = str(path.relative_to(self.path))
            names.append(name)
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    metadata, schema = file.metadata, file.schema_arrow
                    absent = [column for column in INDEX_COLUMNS if column not in schema.names]
                    if absent:
                        raise pa.ArrowInvalid(f"no column {', '.join(absent)}")
                    table = file.read(columns=list(INDEX_COLUMNS))
                    if len(table) != metadata.num_rows:
                        raise pa.ArrowInvalid(f"{len(table)} rows of {metadata.num_rows}")
                    if any(column.null_count for column in table.columns):
                        raise pa.ArrowInvalid("an index column has empty cells")
                if not metadata.num_rows:
                    continue
                tables.append([table[c].to_numpy().astype(t) for c, t in INDEX_COLUMNS.items()])
            except (OSError, ValueError, pa.ArrowException) as error:
                lost.append(name)
                self.faults.append(f"{name} cannot be read ({one_line(error)})")
                continue
            self.faults += [f"{name}: {fault}" for fault in self._misfits(schema)]
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._files.append(_DataFile(name, metadata, np.cumsum(sizes)))
        if not self._files:
            reason = f": {some(self.faults)}" if self.faults else ""
            raise UserError(f"{self.path}: no step can be read from data/{reason}")
        self.file_ends = np.cumsum([file.metadata.num_rows for file in self._files])
        time, frame, episode, index, task = map(np.concatenate, zip(*tables, strict=True))
        return Rows(names, lost, time, frame, episode, index, task)

    def _misfits(self, schema: Any) -> list[str]:
        """Columns that are missing, or stored in a way that does not fit their feature."""
        found = []
        for key, info in {**self._info.numbers, **self._info.images}.items():
            if key not in schema.names:
                found.append(f"column {key} is missing")
            elif not self._fits(key, info, schema.field(key).type):
                found.append(
                    f"{key} is stored as {schema.field(key).type}, {INFO} says {info.shape}"
                )
        return found

    def _fits(self, key: str, info: KeyInfo, stored: Any) -> bool:
        """Whether a column's type can hold a feature's shape, as far as the type tells."""
        import pyarrow as pa

        if key in self._info.images:
            return pa.types.is_struct(stored) and stored.get_field_index("bytes") >= 0
        stored = getattr(stored, "storage_type", stored)  # the library datasets' own types
        sizes: list[int | None] = []
        while pa.types.is_nested(stored) and stored.num_fields == 1:
            sizes.append(getattr(stored, "list_size", None))
            stored = stored.field(0).type
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
        if not any(is_kind(stored) for is_kind in kinds):
            return False
        if not sizes and info.shape == (1,):
            return True
        return len(sizes) == len(info.shape) and all(
            size in (None, extent) for size, extent in zip(sizes, info.shape, strict=True)
        )

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        info = self.require(key)
        if key in self._info.videos:
            return self._read_video(key, info, start, stop)
        return self._read_column(key, info, start, stop)

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        return self._read_column(ACTION, self.actions, start, stop)

    def _read_video(self, key: str, info: KeyInfo, start: int, stop: int) -> np.ndarray:
        images = np.empty((stop - start, *info.shape), np.uint8)
        for step in range(start, stop):
            episode, _ = episode_of_step(self.episode_ends, step)
            record = self._records[episode]
            if record is None:
                raise UserError(f"{self.path}: {key}: where the video of a step is is not known")
            name, offset = record.videos[key]
            video = self._open_videos.get(key)
            if video is None or video.path != self.path / name:
                if video is not None:
                    video.close()
                video = self._open_videos[key] = Video(self.path / name)
            if (*video.size, 3) != info.shape:
                raise UserError(
                    f"{video.path}: holds frames of shape {(*video.size, 3)}, {INFO} says "
                    f"{info.shape}"
                )
            time = offset + float(self._times[step])
            images[step - start] = video.frame(time, 0.5 / self._info.rate)
        return images

    def _read_column(self, key: str, info: KeyInfo, start: int, stop: int) -> np.ndarray:
        assert self.file_ends is not None
        parts = []
        number = int(np.searchsorted(self.file_ends, start, side="right"))
        while start < stop:
            file = self._files[number]
            first = int(self.file_ends[number] - file.group_ends[-1])  # step of its first row
            group = int(np.searchsorted(file.group_ends, start - first, side="right"))
            group_end = first + int(file.group_ends[group])
            values = self._group(key, number, group)
            end = min(stop, group_end)
            part = values.slice(len(values) - (group_end - start), end - start)
            parts.append(self._decode(key, info, part, start, file.name))
            start = end
            if start == self.file_ends[number]:
                number += 1
        return np.concatenate(parts)

    def _group(self, key: str, number: int, group: int) -> Any:
        """A column of one row group; the last one of each column is kept."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        place, values = self._groups.get(key, (None, None))
        if place != (number, group):
            file = self._files[number]
            try:
                with pq.ParquetFile(
                    self.path / file.name, metadata=file.metadata, page_checksum_verification=True
                ) as opened:
                    column = opened.read_row_group(group, columns=[key])[key]
                if len(column) != file.metadata.row_group(group).num_rows:
                    raise pa.ArrowInvalid(f"{len(column)} rows are left")
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                raise UserError(
                    f"{self.path}/{file.name}: {key} cannot be read ({one_line(error)}); damaged?"
                ) from error
            values = column.combine_chunks()
            values = getattr(values, "storage", values)  # the library datasets' own types
            self._groups[key] = ((number, group), values)
        return values

    def _decode(self, key: str, info: KeyInfo, part: Any, step: int, name: str) -> np.ndarray:
        """Some rows of a column, the first of which is ``step``: (n, *shape)."""
        import pyarrow.compute as pc

        if not self._fits(key, info, part.type):
            raise UserError(
                f"{self.path}/{name}: {key} is stored as {part.type}, {INFO} says {info.shape}"
            )
        if key in self._info.images:
            images = np.empty((len(part), *info.shape), np.uint8)
            for i, cell in enumerate(part):
                content = cell["bytes"].as_py() if cell.is_valid else None
                images[i] = self._decode_image(key, info, content, step + i, name)
            return images
        rows = np.arange(len(part))  # the step that each number belongs to
        for depth, extent in enumerate(info.shape):
            self._check_filled(key, part, rows + step, name)
            if not hasattr(part.type, "value_type"):  # (1,) may be stored as the number itself
                break
            lengths = pc.list_value_length(part).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != extent)
            if len(wrong):
                shape = (*info.shape[:depth], int(lengths[wrong[0]]), *info.shape[depth + 1 :])
                self._check_shape(key, info, shape, step + int(rows[wrong[0]]), name)
            part, rows = part.flatten(), np.repeat(rows, extent)
        self._check_filled(key, part, rows + step, name)
        return part.to_numpy(zero_copy_only=False).astype(info.dtype).reshape(-1, *info.shape)

    def _check_filled(self, key: str, part: Any, steps: np.ndarray, name: str) -> None:
        if part.null_count:
            empty = np.flatnonzero(part.is_null().to_numpy(zero_copy_only=False))[0]
            episode, within = episode_of_step(self.episode_ends, int(steps[empty]))
            raise UserError(
                f"{self.path}/{name}: {key} has an empty cell in episode {episode}, step {within}"
            )

    def _decode_image(
        self, key: str, info: KeyInfo, content: bytes | None, step: int, name: str
    ) -> np.ndarray:
        from PIL import Image

        try:
            image = np.asarray(Image.open(io.BytesIO(content or b"")))
        except (OSError, ValueError, SyntaxError) as error:
            episode, within = episode_of_step(self.episode_ends, step)
            raise UserError(
                f"{self.path}/{name}: {key} of episode {episode}, step {within} is no image that "
                f"can be decoded ({error})"
            ) from error
        if image.ndim == 2:
            image = image[:, :, None]
        self._check_shape(key, info, image.shape, step, name)
        return image

    def _check_shape(
        self, key: str, info: KeyInfo, shape: tuple[int, ...], step: int, name: str
    ) -> None:
        if shape != info.shape:
            episode, within = episode_of_step(self.episode_ends, step)
            raise UserError(
                f"{self.path}/{name}: {key} has shape {shape} in episode {episode}, step {within}; "
                f"{INFO} says {info.shape}"
            )
