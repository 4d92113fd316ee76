"""Data sets between this project and the real lerobot package, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from conftest import write_zarr
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.conversion import convert, format_of
from lerobot_files import CAMERA, LENGTHS, SIZE, TASKS, LeRobotFiles

pytestmark = pytest.mark.lerobot


def like_pusht(arrays: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    arrays["keypoint"] = random.normal(size=(40, 9, 2)).astype(np.float32)
    arrays["n_contacts"] = np.arange(40, dtype=np.float32)[:, None]
    arrays["joints"] = random.normal(size=(40, 7))
    arrays["next.done"] = np.isin(np.arange(40), (14, 39))[:, None]


def test_what_we_convert_lerobot_reads(tmp_path: Path) -> None:
    source = open_demonstrations(write_zarr(tmp_path / "b.zarr", like_pusht))
    root = tmp_path / "made"
    convert(source, root, "lerobot", rate=10.0, task="Reach the mark", progress=False)
    data = LeRobotDataset("local/made", root=root, delta_timestamps={"action": [-0.1, 0.0, 0.1]})
    assert (data.fps, data.num_episodes, data.num_frames) == (10, 2, 40)
    actions, keys = source.read_actions(0, 40), ("state", "keypoint", "n_contacts", "joints")
    values = {key: source.read(key, 0, 40) for key in (*keys, "img", "next.done")}
    for step in range(40):
        item = data[step]
        assert item["task"] == "Reach the mark"
        assert item["episode_index"] == (step >= 15)
        assert item["frame_index"] == step - 15 * (step >= 15)
        first, last = (0, 14) if step < 15 else (15, 39)
        window = np.clip(np.arange(step - 1, step + 2), first, last)
        assert (item["action"].numpy() == actions[window]).all()
        for key in keys:
            read = item[f"observation.{key}"].numpy()
            written = values[key][step]
            # lerobot hands float64 out as float32.
            assert (read == written.astype(read.dtype)).all()
        assert item["next.done"] == bool(values["next.done"][step, 0])
        image = item["observation.images.img"]
        assert (torch.round(image * 255).permute(1, 2, 0).numpy() == values["img"][step]).all()
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)))
    assert batch["observation.keypoint"].shape == (8, 9, 2)
    assert batch["observation.images.img"].shape == (8, 3, 8, 8)


def written_by_lerobot(root: Path, video: bool) -> tuple[LeRobotDataset, dict[str, np.ndarray]]:
    """Four episodes of every kind of feature, recorded through lerobot's own interface."""
    random = np.random.default_rng(0)
    steps = sum(LENGTHS)
    frames = np.zeros((steps, *SIZE, 3), np.uint8)
    frames += (np.arange(steps) * 5).astype(np.uint8)[:, None, None, None]
    values: dict[str, np.ndarray] = {
        "action": random.normal(size=(steps, 2)).astype(np.float32),
        "observation.state": random.normal(size=(steps, 3)).astype(np.float32),
        "observation.points": random.normal(size=(steps, 4, 2)),
        "observation.grip": np.arange(steps, dtype=np.int64)[:, None],
        "next.success": random.random((steps, 1)) > 0.5,
        CAMERA: frames,
    }
    features: dict[str, dict[str, Any]] = {
        key: {"dtype": str(array.dtype), "shape": array.shape[1:], "names": None}
        for key, array in values.items()
    }
    features[CAMERA]["dtype"] = "video" if video else "image"
    features[CAMERA]["names"] = ["height", "width", "channels"]
    data = LeRobotDataset.create("local/recorded", 10, features, root=root, use_videos=video)
    step = 0
    for episode, length in enumerate(LENGTHS):
        for _ in range(length):
            frame = {key: array[step] for key, array in values.items()}
            data.add_frame({**frame, "task": TASKS[episode % 2]})
            step += 1
        data.save_episode()
    data.finalize()
    return LeRobotDataset("local/recorded", root=root), values


@pytest.mark.parametrize("video", [False, True])
def test_what_lerobot_records_we_read(tmp_path: Path, video: bool) -> None:
    data, values = written_by_lerobot(tmp_path / "recorded", video)
    demonstrations = open_demonstrations(tmp_path / "recorded")
    assert demonstrations.rate == 10
    assert np.diff(demonstrations.episode_ends, prepend=0).tolist() == list(LENGTHS)
    assert (demonstrations.read_actions(0, 42) == values.pop("action")).all()
    images = demonstrations.read(CAMERA, 0, 42)
    if not video:
        assert (images == values[CAMERA]).all()
    del values[CAMERA]
    for key, written in values.items():
        read = demonstrations.read(key, 0, 42)
        assert read.dtype == written.dtype
        assert (read == written).all()
    assert demonstrations.task_of_step is not None
    for step in range(0, 42, 5):
        item = data[step]
        assert demonstrations.tasks[demonstrations.task_of_step[step]] == item["task"]
        theirs = (item[CAMERA] * 255).permute(1, 2, 0).numpy()
        assert np.abs(theirs - images[step]).max() <= 1.01  # another rounding of the colours


@pytest.mark.parametrize("video", [False, True])
def test_there_and_back_again(tmp_path: Path, video: bool) -> None:
    """lerobot -> robomimic -> zarr -> LeRobot, read by lerobot."""
    first, _ = written_by_lerobot(tmp_path / "recorded", video)
    path = tmp_path / "recorded"
    for name in ("a.hdf5", "a.zarr", "back"):
        source, target = open_demonstrations(path), tmp_path / name
        convert(source, target, format_of(target, None), rate=10.0, progress=False)
        path = target
    last = LeRobotDataset("local/back", root=path)
    assert set(first.features) <= set(last.features)
    for step in range(42):
        was, now = first[step], last[step]
        for key in first.features.keys() - {"task_index"}:
            if key == CAMERA:
                assert (was[key] - now[key]).abs().max() <= 1.01 / 255
            else:
                assert was[key].dtype == now[key].dtype
                assert torch.equal(was[key], now[key]), key
    for key in ("action", "observation.state", "observation.points"):
        for kind in ("min", "max", "mean", "std"):
            was, now = first.meta.stats[key][kind], last.meta.stats[key][kind]
            assert was.shape == now.shape
            assert np.allclose(was, now, atol=1e-6)


@pytest.mark.parametrize("video", [False, True])
def test_lerobots_own_conversion_of_v2_says_the_same(tmp_path: Path, video: bool) -> None:
    """What we read of a v2.1 data set is what is in it once lerobot has made it v3.0."""
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    files = LeRobotFiles("v2.1", video)
    old = open_demonstrations(files.write(tmp_path / "old"))
    files.write(tmp_path / "new")
    convert_dataset("local/new", root=tmp_path / "new", push_to_hub=False)
    new = open_demonstrations(tmp_path / "new")
    assert (old.format, new.format) == ("LeRobotDataset v2.1", "LeRobotDataset v3.0")
    assert old.observations == new.observations
    assert (old.episode_ends == new.episode_ends).all()
    assert old.tasks == new.tasks
    assert (np.asarray(old.task_of_step) == np.asarray(new.task_of_step)).all()
    assert (old.read_actions(0, 42) == new.read_actions(0, 42)).all()
    for key in old.observations:
        assert (old.read(key, 0, 42) == new.read(key, 0, 42)).all(), key
