"""``data convert``: each format into each, bit for bit, whole or not at all."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import write_zarr
from ebt_policy.cli.main import main
from ebt_policy.demonstrations import Demonstrations, columns, lerobot_writer, open_demonstrations
from ebt_policy.demonstrations.conversion import Conversion, convert, format_of
from ebt_policy.errors import UserError
from lerobot_files import CAMERA, LeRobotFiles

TARGETS = {"zarr": "made.zarr", "robomimic": "made.hdf5", "lerobot": "made"}
ALL = pytest.mark.parametrize("to", TARGETS)


def converted(source: Path, target: Path, **options: Any) -> tuple[Demonstrations, Conversion]:
    to = format_of(target, options.pop("to", None))
    made = convert(open_demonstrations(source), target, to, progress=False, **options)
    assert not list(target.parent.glob(".*"))
    return open_demonstrations(target), made


def all_types(arrays: dict[str, Any]) -> None:
    """A buffer with a key of every kind."""
    random = np.random.default_rng(1)
    arrays["scalar"] = random.normal(size=40)
    arrays["matrix"] = random.normal(size=(40, 2, 3)).astype(np.float16)
    arrays["volume"] = random.normal(size=(40, 2, 3, 5)).astype(np.float32)
    arrays["flag"] = random.random((40, 1)) > 0.5
    arrays["count"] = random.integers(0, 2**63, (40, 2)).astype(np.uint64)
    arrays["big"] = random.normal(size=(40, 2)).astype(">f8")
    arrays["grey"] = random.integers(0, 256, (40, 4, 5, 1)).astype(np.uint8)
    arrays["odd"] = np.array([np.nan, np.inf, -0.0, 1e-45] * 10, np.float32)[:, None]


@pytest.mark.parametrize("steps_of_a_piece", [None, 4])
def test_round_the_formats_and_back(
    tmp_path: Path, steps_of_a_piece: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if steps_of_a_piece is not None:  # episodes in several pieces, data in several files
        monkeypatch.setattr(columns, "_PIECE_BYTES", 4000)
        monkeypatch.setattr(lerobot_writer, "_FILE_BYTES", 1000)
    first = open_demonstrations(write_zarr(tmp_path / "first.zarr", all_types))
    path = tmp_path / "first.zarr"
    for name in ("second", "third.hdf5", "fourth", "last.zarr"):
        converted(path, tmp_path / name, rate=12.5)
        path = tmp_path / name
    last = open_demonstrations(path)
    assert set(first.observations) | set(last.outcomes) == set(last.observations) | {
        "next.reward", "next.done",
    }  # fmt: skip
    assert last.episode_ends.tolist() == first.episode_ends.tolist()
    assert (last.read_actions(0, 40) == first.read_actions(0, 40)).all()
    for key, info in first.observations.items():
        values, was = last.read(key, 0, 40), first.read(key, 0, 40)
        assert values.dtype == info.dtype.newbyteorder("=")
        assert values.tobytes() == was.astype(values.dtype).tobytes(), key
        assert values.shape == ((40, 1) if key == "scalar" else was.shape)


def test_names_and_notes(tmp_path: Path) -> None:
    source = write_zarr(tmp_path / "b.zarr", all_types)
    demonstrations, made = converted(source, tmp_path / "made", rate=10.0, task="do it")
    names = {column.source: column.name for column in made.columns}
    assert names.pop(None) == "action"
    assert names.pop("img") == "observation.images.img"
    assert names.pop("grey") == "observation.images.grey"
    assert len(names) == 8
    assert all(name == f"observation.{key}" for key, name in names.items())
    assert made.notes == ["observation.scalar: shape () became (1,)"]
    assert demonstrations.tasks == ["do it"]
    assert demonstrations.rate == 10
    back, made = converted(tmp_path / "made", tmp_path / "back.hdf5", keys=["observation.state"])
    assert {column.source: column.name for column in made.columns} == {
        None: "action", "observation.state": "state",
    }  # fmt: skip
    assert made.notes[0] == "left behind: what the tasks are called"
    assert "rewards and dones" in made.notes[1]
    assert back.rate == 10
    with h5py.File(tmp_path / "back.hdf5") as file:
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "back"
        assert file["data"].attrs["total"] == 40
        assert file["data/demo_1"].attrs["num_samples"] == 25
        assert file["data/demo_1/dones"][:].tolist() == [0] * 24 + [1]


def test_rewards_and_dones_go_along(tmp_path: Path, hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        for i, demo in enumerate(file["data"].values()):
            demo["rewards"][:] = i + np.arange(len(demo["rewards"])) / 7
            demo["obs/zeros"] = np.zeros((len(demo["rewards"]), 3))  # in zarr: chunks of zeros
    rewards = open_demonstrations(hdf5).read("next.reward", 0, 90)
    _, made = converted(hdf5, tmp_path / "made")
    assert "left behind: all but observations, actions, rewards and dones" in made.notes
    converted(tmp_path / "made", tmp_path / "b.zarr")
    back, _ = converted(tmp_path / "b.zarr", tmp_path / "back.hdf5")
    assert list(back.observations) == ["state", "zeros"]
    assert (back.read("next.reward", 0, 90) == rewards).all()
    with h5py.File(tmp_path / "back.hdf5") as file, h5py.File(hdf5) as first:
        for name in ("rewards", "dones", "actions", "obs/state"):
            was, now = first[f"data/demo_2/{name}"], file[f"data/demo_2/{name}"]
            assert was.dtype == now.dtype
            assert (was[:] == now[:]).all()
        assert json.loads(file["data"].attrs["env_args"])["env_kwargs"] == {}


@pytest.mark.parametrize(("version", "video"), [("v2.1", False), ("v2.1", True), ("v3.0", True)])
def test_lerobot_sources(tmp_path: Path, version: str, video: bool) -> None:
    files = LeRobotFiles(version, video)
    del files.info["features"]["note"]
    source = open_demonstrations(files.write(tmp_path / "source"))
    name = "made" if version == "v2.1" else "made.zarr"
    made, _ = converted(tmp_path / "source", tmp_path / name)
    key = CAMERA if version == "v2.1" else "top"
    assert (made.read(key, 0, 42) == source.read(CAMERA, 0, 42)).all()
    assert made.read("next.done", 0, 42).sum() == 4
    if version == "v2.1":
        assert made.format == "LeRobotDataset v3.0"
        assert made.tasks == source.tasks
        assert made.task_of_step is not None
        assert made.task_of_step.tolist() == files.column("task_index").tolist()


def test_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    source = open_demonstrations(write_zarr(tmp_path / "b.zarr"))
    converted(tmp_path / "b.zarr", tmp_path / "made", rate=10.0)
    found = json.loads((tmp_path / "made/meta/stats.json").read_text())
    states, images = source.read("state", 0, 40).astype(float), source.read("img", 0, 40) / 255
    for key, values in [("observation.state", states), ("observation.images.img", images)]:
        axes = tuple(range(values.ndim - 1))
        for name, expected in [
            ("min", values.min(axes)), ("max", values.max(axes)), ("mean", values.mean(axes)),
            ("std", values.std(axes)),
        ]:  # fmt: skip
            assert np.allclose(np.ravel(found[key][name]), expected, atol=1e-12), (key, name)
        assert found[key]["count"] == [40]
    assert np.shape(found["observation.images.img"]["q99"]) == (3, 1, 1)
    episodes = pq.read_table(tmp_path / "made/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [e["dataset_to_index"] for e in episodes] == [15, 40]
    quantiles = np.quantile(states[:15], [0.01, 0.9], axis=0)
    assert np.allclose(episodes[0]["stats/observation.state/q01"], quantiles[0])
    assert np.allclose(episodes[0]["stats/observation.state/q90"], quantiles[1])
    median = np.ravel(episodes[1]["stats/observation.images.img/q50"])
    assert np.allclose(median, np.median(images[15:].reshape(-1, 3), axis=0), atol=1 / 255)


def like_pusht(arrays: dict[str, Any]) -> None:
    arrays["img"] = arrays["img"].astype(np.float32)


def test_whole_numbers_become_images_others_do_not(tmp_path: Path) -> None:
    source = write_zarr(tmp_path / "b.zarr", like_pusht)
    demonstrations, made = converted(source, tmp_path / "made", rate=10.0)
    assert demonstrations.observations["observation.images.img"].dtype == np.uint8
    assert "observation.images.img: the whole numbers of float32 became uint8 images" in made.notes

    def broken(arrays: dict[str, Any]) -> None:
        arrays["img"] = arrays["img"].astype(np.float32)
        arrays["img"][22, 1, 1, 1] = 0.5

    source = write_zarr(tmp_path / "c.zarr", broken)
    with pytest.raises(UserError, match="img has the shape of images, but in episode 1, step 7"):
        converted(source, tmp_path / "none", rate=10.0)
    assert not (tmp_path / "none").exists()
    converted(source, tmp_path / "states", rate=10.0, keys=["state"])


def with_text(arrays: dict[str, Any]) -> None:
    arrays["note"] = np.array(["text"] * 40)


def with_complex(arrays: dict[str, Any]) -> None:
    arrays["wave"] = np.zeros((40, 2), np.complex64)


def with_six_axes(arrays: dict[str, Any]) -> None:
    arrays["deep"] = np.zeros((40, 1, 1, 1, 1, 1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_text, "note cannot be converted: no numbers; name what can be: --obs img,state"),
        (with_complex, "wave cannot be converted: no numbers"),
        (with_six_axes, "deep cannot be converted: LeRobot has no float64 of shape"),
    ],
)
def test_keys_that_cannot_be_converted_are_named(tmp_path: Path, change: Any, message: str) -> None:
    source = write_zarr(tmp_path / "b.zarr", change)
    with pytest.raises(UserError, match=message):
        converted(source, tmp_path / "made", rate=10.0)
    converted(source, tmp_path / "made", rate=10.0, keys=["state"])


def test_two_keys_of_one_name(tmp_path: Path) -> None:
    def twice(arrays: dict[str, Any]) -> None:
        arrays["observation.state"] = arrays["state"]

    source = write_zarr(tmp_path / "b.zarr", twice)
    with pytest.raises(UserError, match=r"would both be called observation\.state; leave one out"):
        converted(source, tmp_path / "made", rate=10.0)


@ALL
def test_existing_targets_stay(tmp_path: Path, hdf5: Path, to: str) -> None:
    source = write_zarr(tmp_path / "b.zarr") if to == "robomimic" else hdf5
    target = tmp_path / TARGETS[to]
    target.mkdir()
    with pytest.raises(UserError, match="exists already"):
        converted(source, target)
    assert list(target.iterdir()) == []
    target.rmdir()
    converted(source, target)
    with pytest.raises(UserError, match="exists already"):
        converted(source, target)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@ALL
@pytest.mark.parametrize("size", [0, 3000])
def test_full_disk_leaves_nothing(tmp_path: Path, hdf5: Path, to: str, size: int) -> None:
    source = write_zarr(tmp_path / "b.zarr") if to != "zarr" else hdf5
    if to == "zarr":
        with h5py.File(hdf5, "a") as file:
            for demo in file["data"].values():
                demo["obs/noise"] = np.random.default_rng(0).random((len(demo["actions"]), 900))
    target = tmp_path / "folder" / TARGETS[to]
    with full_disk(size), pytest.raises(UserError, match="cannot be written"):
        converted(source, target, **({"rate": 10.0} if to == "lerobot" else {}))
    assert list(target.parent.iterdir()) == []
    converted(source, target, **({"rate": 10.0} if to == "lerobot" else {}))


def test_unwritable_folder(tmp_path: Path, hdf5: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"made\.zarr: cannot be written"):
        converted(hdf5, tmp_path / "file/made.zarr")


@ALL
def test_what_reads_back_differently_is_not_kept(
    tmp_path: Path, hdf5: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ebt_policy.demonstrations import lerobot, robomimic, zarr_buffer

    kinds: dict[str, Any] = {
        "zarr": zarr_buffer.ZarrDemonstrations,
        "robomimic": robomimic.RobomimicDemonstrations,
        "lerobot": lerobot.LeRobotDemonstrations,
    }
    source = open_demonstrations(write_zarr(tmp_path / "b.zarr") if to != "zarr" else hdf5)
    read = kinds[to].read

    def flipped(self: Any, key: str, start: int, stop: int) -> np.ndarray:
        values = read(self, key, start, stop)
        if key.endswith("state"):
            values[-1, 0] += 1
        return values

    monkeypatch.setattr(kinds[to], "read", flipped)
    with pytest.raises(UserError, match="state read back"):
        convert(source, tmp_path / "made", to, rate=10.0, progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "made").exists()
    assert not list(tmp_path.glob(".*"))


def test_damaged_sources_leave_nothing(tmp_path: Path) -> None:
    source = write_zarr(tmp_path / "b.zarr")
    next((source / "data/img").glob("[0-9]*")).write_bytes(b"\0\1\2")
    with pytest.raises(UserError, match="data/img cannot be decoded"):
        converted(source, tmp_path / "made.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["b.zarr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{zarr} {tmp}/made", "does not say its steps per second; give --rate"),
        ("{zarr} {tmp}/made.bin", "its name says no format"),
        ("{zarr} {tmp}/made.zarr.zip", "its name says no format"),
        ("{zarr} {tmp}/other.zarr", "is a Diffusion Policy zarr replay buffer already"),
        ("{zarr} {tmp}/made --to hdf", "invalid choice: 'hdf'"),
        ("{zarr} {tmp}/made --rate 10 --obs state,stat", "no observation key 'stat'"),
        ("{zarr} {tmp}/made --rate 0", "--rate 0.0: it must be above 0"),
        ("{tmp}/nothing {tmp}/made", "no such file or folder"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    zarr = write_zarr(tmp_path / "b.zarr")
    command = ["data", "convert", *arguments.format(zarr=zarr, tmp=tmp_path).split()]
    try:
        code: Any = main(command)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["b.zarr"]


def test_from_a_buffer_to_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, made = write_zarr(tmp_path / "b.zarr"), tmp_path / "made.data"
    command = ["data", "convert", str(source), str(made), "--to", "lerobot", "--rate", "10"]
    assert main([*command, "--task", "Reach the mark"]) == 0
    shown = capsys.readouterr().out
    assert "state                        -> observation.state" in shown
    assert f"{made}: 2 episodes, 40 steps, read back the same" in shown
    assert main(["data", "info", str(made)]) == 0
    assert "task      Reach the mark" in capsys.readouterr().out
    train = ["train", "--data", str(made), "--preset", "tiny", "--steps", "2"]
    assert main([*train, "--out", str(tmp_path / "run")]) == 0
    assert "observing observation.state" in capsys.readouterr().out
