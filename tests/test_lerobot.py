"""LeRobotDataset folders: both versions, laziness, and every way in which they can be broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import write_zarr
from ebt_policy.cli.main import main
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.inspection import inspect
from ebt_policy.errors import UserError
from ebt_policy.windows.arrays import load_arrays
from ebt_policy.windows.windows import choose_streams
from lerobot_files import CAMERA, LENGTHS, SIZE, TASKS, LeRobotFiles, level, png, write_video

VERSIONS = ["v3.0", "v2.1"]
BOTH = pytest.mark.parametrize("version", VERSIONS)
LEVELS = np.array([level(e, i) for e, length in enumerate(LENGTHS) for i in range(length)])


def problems_of(root: Path) -> list[str]:
    """What ``data info`` names."""
    return inspect(open_demonstrations(root, with_faults=True), progress=False).problems


@BOTH
def test_numbers_are_those_of_the_files(tmp_path: Path, version: str) -> None:
    files = LeRobotFiles(version)
    demonstrations = open_demonstrations(files.write(tmp_path))
    assert demonstrations.format == f"LeRobotDataset {version}"
    assert demonstrations.rate == 10
    assert np.diff(demonstrations.episode_ends, prepend=0).tolist() == list(LENGTHS)
    assert set(demonstrations.observations) == {
        "observation.state", "observation.points", "observation.grip", CAMERA,
    }  # fmt: skip
    assert list(demonstrations.outcomes) == ["next.done"]
    assert demonstrations.unread == ["note"]
    for key in ("observation.state", "observation.points", "observation.grip", "next.done"):
        info, written = demonstrations.require(key), files.column(key)
        values = demonstrations.read(key, 0, 42)
        assert values.dtype == info.dtype
        assert values.shape == (42, *info.shape)
        assert (values == written.reshape(values.shape).astype(info.dtype)).all()
        part = demonstrations.read(key, 5, 33)  # over borders of row groups, episodes and files
        assert (part == values[5:33]).all()
    assert (demonstrations.read_actions(20, 23) == files.column("action")[20:23]).all()
    assert inspect(demonstrations, progress=False).problems == []


@BOTH
def test_every_step_knows_its_task(tmp_path: Path, version: str) -> None:
    demonstrations = open_demonstrations(LeRobotFiles(version).write(tmp_path))
    assert demonstrations.tasks == TASKS
    assert demonstrations.task_of_step is not None
    sentences = [demonstrations.tasks[i] for i in demonstrations.task_of_step]
    assert sentences == ["push it"] * 12 + ["pull it"] * 9 + ["push it"] * 15 + ["pull it"] * 6


@BOTH
@pytest.mark.parametrize("video", [False, True])
def test_images_are_decoded_when_read(tmp_path: Path, version: str, video: bool) -> None:
    demonstrations = open_demonstrations(LeRobotFiles(version, video).write(tmp_path))
    images = demonstrations.read(CAMERA, 0, 42)
    assert images.dtype == np.uint8
    assert images.shape == (42, *SIZE, 3)
    assert (np.abs(images.mean((1, 2, 3)) - LEVELS) <= (2 if video else 0)).all()
    for start, stop in [(30, 32), (3, 5), (4, 6), (20, 22), (0, 1)]:  # forth and back
        assert (demonstrations.read(CAMERA, start, stop) == images[start:stop]).all()


def test_channels_first_features_and_depth(tmp_path: Path) -> None:
    files = LeRobotFiles()
    camera = files.info["features"][CAMERA]
    camera |= {"shape": [3, *SIZE], "names": ["channels", "height", "width"]}
    files.info["features"]["observation.depth"] = {
        "dtype": "video", "shape": [*SIZE, 1], "names": None, "info": {"is_depth_map": True},
    }  # fmt: skip
    for table in files.tables.values():
        table["observation.depth"] = [0] * len(table["index"])
    demonstrations = open_demonstrations(files.write(tmp_path))
    assert demonstrations.observations[CAMERA].shape == (*SIZE, 3)
    assert set(demonstrations.unread) == {"note", "observation.depth"}


def test_training_observes_numbers_and_never_opens_videos(tmp_path: Path) -> None:
    root = LeRobotFiles(video=True).write(tmp_path)
    shutil.rmtree(root / "videos")
    demonstrations = open_demonstrations(root)
    streams = choose_streams(demonstrations, None)
    assert list(streams) == ["observation.state", "observation.points", "observation.grip"]
    arrays = load_arrays(demonstrations, streams)
    assert arrays.observations["observation.points"].shape == (42, 4, 2)
    assert set(choose_streams(demonstrations, "next.done")) == {"next.done"}


def test_outcomes_of_a_zarr_buffer_are_not_observed_by_default(tmp_path: Path) -> None:
    def with_reward(arrays: dict[str, Any]) -> None:
        arrays["next.reward"] = np.ones((40, 1), np.float32)

    demonstrations = open_demonstrations(write_zarr(tmp_path / "b.zarr", with_reward))
    assert list(choose_streams(demonstrations, None)) == ["state"]
    assert demonstrations.read("next.reward", 3, 5).tolist() == [[1], [1]]


# Faults: each is made in an otherwise sound data set; what info and training should say of it.
Break = Callable[[LeRobotFiles], None]


def _cell(episode: int, frame: int, key: str, value: Any) -> Break:
    return lambda files: files.put(episode, frame, key, value)


def _info(key: str, value: Any) -> Break:
    return lambda files: files.info.__setitem__(key, value)


def _record(episode: int, key: str, value: int) -> Break:
    return lambda files: files.records[episode].__setitem__(key, value)


def _dropped_frames(files: LeRobotFiles) -> None:
    for frame in range(8, 15):
        files.put(2, frame, "timestamp", frame / 10 + 0.4)


def _two_grips(files: LeRobotFiles) -> None:
    files.types["observation.grip"] = pa.list_(pa.int32(), 2)
    for table in files.tables.values():
        table["observation.grip"] = [[1, 2]] * len(table["index"])


def _no_column(files: LeRobotFiles) -> None:
    del files.at(3, 0)[0]["observation.state"]


def _unrecorded(files: LeRobotFiles) -> None:
    del files.records[3]


def _recorded_too_much(files: LeRobotFiles) -> None:
    files.records.append(files.records[3] | {"episode_index": 4})


def _apart(files: LeRobotFiles) -> None:
    for frame in range(6):
        files.put(3, frame, "episode_index", 1)


STALE = "stale index: dataset_from_index and dataset_to_index are wrong in meta/episodes: "
FAULTS: dict[str, tuple[Break, str]] = {
    "fps": (_info("fps", 30), "fps is 30, the time stamps have 10 steps a second"),
    "frames": (_dropped_frames, r"1 time stamps are not one step \(1/fps\) .* in episode 2"),
    "column": (_no_column, r"data/.*: column observation.state is missing"),
    "type": (
        _two_grips,
        r"observation.grip is stored as fixed_size_list<.*, .* says \(1,\)",
    ),
    "episodes": (_info("total_episodes", 9), "total_episodes is 9, the data files have 4"),
    "steps": (_info("total_frames", 99), "total_frames is 99, meta/episodes has 42"),
    "tasks": (_info("total_tasks", 9), "total_tasks is 9, meta/tasks has 2"),
    "length": (_record(1, "length", 10), r"length is wrong .*: episode 1 \(10, but 9 rows\)"),
    "lost": (_unrecorded, "stale index: meta/episodes says nothing of episode 3"),
    "extra": (_recorded_too_much, "episode 4"),
    "index": (_cell(3, 2, "index", 0), "the column index does not count the rows in episode 3"),
    "frame": (_cell(0, 3, "frame_index", 7), "frame_index does not count from 0 in episode 0"),
    "apart": (_apart, "the rows of episode 1 are not together"),
    "task": (_cell(0, 3, "task_index", 7), "task_index 7 in the data has no sentence"),
}


@BOTH
@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_contradictions_are_named_and_refused(
    tmp_path: Path, version: str, change: Break, message: str
) -> None:
    files = LeRobotFiles(version)
    change(files)
    root = files.write(tmp_path)
    assert any(re.search(message, problem) for problem in problems_of(root)), problems_of(root)
    with pytest.raises(UserError, match=rf"^{re.escape(str(root))}"):
        open_demonstrations(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_record(1, "dataset_to_index", 30), STALE + r"episode 1 \(\(12, 30\), but length 9\)"),
        (_record(2, "dataset_from_index", 20), r"episode 2 \(\(20, 36\), but rows \(21, 36\)\)"),
        (_record(1, "data/file_index", 7), r"data/chunk-000/file-007.parquet is missing; .* 1$"),
    ],
)
def test_stale_records_of_v3(tmp_path: Path, change: Break, message: str) -> None:
    files = LeRobotFiles()
    change(files)
    root = files.write(tmp_path)
    assert any(re.search(message, problem) for problem in problems_of(root)), problems_of(root)
    with pytest.raises(UserError):
        open_demonstrations(root)


STATE, POINTS, GRIP = "observation.state", "observation.points", "observation.grip"
IMAGE = {"bytes": png(0, (16, 16)), "path": None}


@BOTH
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (STATE, [1.0] * 4, r"has shape \(4,\) in episode 3, step 2; meta/info.json says \(3,\)"),
        (POINTS, [[1.0]] * 4, r"has shape \(4, 1\) in episode 3, step 2"),
        (POINTS, [[1.0, 2.0]] * 3, r"has shape \(3, 2\) in episode 3, step 2"),
        (POINTS, [[1.0, None]] * 4, "has an empty cell in episode 3, step 2"),
        (GRIP, None, "has an empty cell in episode 3, step 2"),
        (CAMERA, IMAGE, r"has shape \(16, 16, 3\) in episode 3, step 2"),
        (CAMERA, {"bytes": b"\x89PNG", "path": None}, "of episode 3, step 2 is no image"),
        (CAMERA, None, "of episode 3, step 2 is no image"),
    ],
)
def test_steps_of_another_shape_are_refused_when_read(
    tmp_path: Path, version: str, key: str, value: Any, message: str
) -> None:
    files = LeRobotFiles(version)
    files.put(3, 2, key, value)
    root = files.write(tmp_path)
    demonstrations = open_demonstrations(root)
    with pytest.raises(UserError, match=message):
        list(demonstrations.blocks(key))
    (problem,) = problems_of(root)
    assert problem.startswith(f"{key}: data/")
    assert re.search(message, problem)
    assert demonstrations.read_actions(0, 42).shape == (42, 2)


@BOTH
@pytest.mark.parametrize("how", ["truncated", "footer", "page", "no parquet", "no columns"])
def test_corrupt_parquet(tmp_path: Path, version: str, how: str) -> None:
    files = LeRobotFiles(version)
    root = files.write(tmp_path)
    name = list(files.tables)[-1]
    path = root / name
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "footer":
        content[-400:-8] = bytes(392)
    elif how == "page":
        column = pq.ParquetFile(path).metadata.row_group(0)
        start = next(
            column.column(i).data_page_offset
            for i in range(column.num_columns)
            if column.column(i).path_in_schema == "timestamp"
        )
        content[start : start + 60] = bytes(60)
    elif how == "no parquet":
        content = bytearray(b"hello")
    path.write_bytes(content)
    if how == "no columns":
        pq.write_table(pq.read_table(path, columns=["action"]), path)
    (problem,) = problems_of(root)  # what follows from the lost rows is not a problem of its own
    assert problem.startswith(f"{name} cannot be read (")
    with pytest.raises(UserError, match=re.escape(f"{name} cannot be read")):
        open_demonstrations(root)


def test_a_column_damaged_within_is_refused_when_it_is_read(tmp_path: Path) -> None:
    files = LeRobotFiles()
    root = files.write(tmp_path)
    path = root / list(files.tables)[-1]
    group = pq.ParquetFile(path).metadata.row_group(0)
    state = next(
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.startswith(STATE)
    )
    content = bytearray(path.read_bytes())
    content[state.data_page_offset : state.data_page_offset + 40] = bytes(40)
    path.write_bytes(content)
    demonstrations = open_demonstrations(root)
    with pytest.raises(UserError, match=r"observation\.state cannot be read"):
        load_arrays(demonstrations, choose_streams(demonstrations, STATE))
    load_arrays(demonstrations, choose_streams(demonstrations, GRIP))
    (problem,) = problems_of(root)
    assert problem.startswith(f"{STATE}: {list(files.tables)[-1]}")


@BOTH
def test_videos_that_are_missing_damaged_or_of_another_size(tmp_path: Path, version: str) -> None:
    files = LeRobotFiles(version, video=True)
    root = files.write(tmp_path)
    names = list(files.videos)
    (root / names[0]).unlink()
    levels = files.videos[names[-1]]
    for damage, message in [
        (lambda path: write_video(path, levels, (16, 48)), r"holds frames of shape \(16, 48, 3\)"),
        (lambda path: write_video(path, levels[:-3]), "lacks frames for some of its steps"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot be opened as a video"),
    ]:
        damage(root / names[-1])
        found = problems_of(root)
        assert len(found) == 2, found
        assert found[0] == f"{CAMERA}: {names[0]}: no such video"
        assert found[1].startswith(f"{CAMERA}: {names[-1]}: ")
        assert re.search(message, found[1])
        demonstrations = open_demonstrations(root)
        with pytest.raises(UserError, match="no such video"):
            demonstrations.read(CAMERA, 0, 1)
        with pytest.raises(UserError, match=message):
            demonstrations.read(CAMERA, 36, 42)


@BOTH
def test_parts_of_meta_that_cannot_be_read(tmp_path: Path, version: str) -> None:
    files = LeRobotFiles(version, video=True)
    root = files.write(tmp_path)
    if version == "v3.0":
        (root / "meta/tasks.parquet").write_bytes(b"PAR1")
        shutil.rmtree(root / "meta/episodes")
        expected = ["meta/episodes: holds no parquet file", "meta/tasks.parquet: cannot be read"]
    else:
        (root / "meta/tasks.jsonl").write_text("{")
        (root / "meta/episodes.jsonl").write_text('{"episode_index": 0}\n')
        expected = ["meta/episodes.jsonl: damaged", "meta/tasks.jsonl: cannot be read"]
    found = problems_of(root)
    for part in [*expected, "where the video of a step is is not known"]:
        assert any(part in problem for problem in found), found
    with pytest.raises(UserError, match=r"meta/episodes.*; and 1 more faults"):
        open_demonstrations(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_info("codebase_version", "v1.6"), "codebase_version is v1.6; v3.0 and v2.1 are read"),
        (_info("fps", 0), "fps is 0; it must be above 0"),
        (_info("fps", None), "not laid out as LeRobot's"),
        (_info("features", []), "not laid out as LeRobot's"),
        (_info("features", {"action": 1}), "not laid out as LeRobot's"),
        (_info("features", {}), "the feature 'action' is missing"),
        (_info("features", {"action": {"dtype": "float32", "shape": [2, 2]}}), r"shape \(2, 2\)"),
    ],
)
def test_info_that_makes_no_sense(tmp_path: Path, change: Break, message: str) -> None:
    files = LeRobotFiles()
    root = files.write(tmp_path)
    change(files)
    (root / "meta/info.json").write_text(json.dumps(files.info))
    with pytest.raises(UserError, match=f"meta/info.json: .*{message}"):
        open_demonstrations(root, with_faults=True)
    (root / "meta/info.json").write_text("{")
    with pytest.raises(UserError, match=r"meta/info\.json: damaged"):
        open_demonstrations(root)


def test_no_data_at_all(tmp_path: Path) -> None:
    root = LeRobotFiles().write(tmp_path)
    shutil.rmtree(root / "data")
    with pytest.raises(UserError, match="no step can be read from data/"):
        open_demonstrations(root, with_faults=True)


def test_info_names_all_and_training_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One corrupt parquet, a missing video, a wrong fps, mixed shapes and a stale index at once."""
    files = LeRobotFiles(video=True)
    files.info["fps"] = 25
    files.put(0, 3, STATE, [1.0] * 4)
    files.records[1]["dataset_to_index"] = 30
    root = files.write(tmp_path / "data")
    names = list(files.tables)
    (root / names[1]).write_bytes((root / names[1]).read_bytes()[:1000])
    (root / next(iter(files.videos))).unlink()
    assert main(["data", "info", str(root)]) == 0
    shown = capsys.readouterr().out
    for part in [
        "! data/chunk-000/file-001.parquet cannot be read",
        "! meta/info.json: fps is 25, the time stamps have 10 steps a second",
        f"! {STALE}episode 1 ((12, 30), but length 9)",
        "! observation.images.top: videos/observation.images.top/chunk-000/file-000.mp4: no such",
        "! observation.state: data/chunk-000/file-000.parquet: observation.state has shape (4,)",
    ]:
        assert part in shown, shown
    train = ["train", "--data", str(root), "--preset", "tiny", "--steps", "2"]
    assert main([*train, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "data/chunk-000/file-001.parquet cannot be read" in error
    assert "more faults (ebt-policy data info shows all)" in error
    assert len(error.splitlines()) == 1


@BOTH
@pytest.mark.parametrize("video", [False, True])
def test_whatever_is_damaged_there_is_a_word_for_it(
    tmp_path: Path, version: str, video: bool
) -> None:
    """Bytes overwritten, lost or flipped in any file: problems, or one line; nothing else."""
    root = LeRobotFiles(version, video).write(tmp_path)
    random = np.random.default_rng(0)
    for path in sorted(file for file in root.rglob("*") if file.is_file()):
        whole = path.read_bytes()
        for how in ("cut", "overwritten", "flipped"):
            content = bytearray(whole)
            at = int(random.integers(len(content)))
            if how == "cut":
                content = content[:at]
            elif how == "overwritten":
                content[at : at + 8] = random.bytes(8)
            else:
                content[at] ^= 1 << int(random.integers(8))
            path.write_bytes(content)
            words = ""
            try:
                inspect(open_demonstrations(root, with_faults=True), progress=False).text()
                open_demonstrations(root)
            except UserError as error:
                words = str(error)
            assert "\n" not in words
        path.write_bytes(whole)
    assert problems_of(root) == []


def test_without_python_3_12_the_real_tests_fail_and_say_so(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "scripts/setup-lerobot"
    result = subprocess.run(
        ["bash", str(script), str(tmp_path / "venv")],
        capture_output=True, text=True, env={**os.environ, "PYTHON": str(tmp_path / "python3.12")},
    )  # fmt: skip
    assert result.returncode == 2
    assert "no Python 3.12 found" in result.stderr
    assert not (tmp_path / "venv").exists()
