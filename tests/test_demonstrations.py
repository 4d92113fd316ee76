"""Files of demonstrations: formats, laziness, and every way in which they can be broken."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from conftest import episodes, write_zarr
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.inspection import inspect
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.errors import UserError


def zipped(folder: Path, inside: str = "") -> Path:
    path = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, Path(inside) / file.relative_to(folder))
    return path


def test_robomimic_round_trip_is_lossless(hdf5: Path) -> None:
    demonstrations = open_demonstrations(hdf5)
    made = episodes([20, 25, 30, 15])
    assert demonstrations.episode_ends.tolist() == [20, 45, 75, 90]
    assert demonstrations.rate == 10
    assert demonstrations.action_bounds == (-1, 1)
    actions = np.concatenate([e.actions for e in made])
    states = np.concatenate([e.observations["state"] for e in made])
    assert (demonstrations.read_actions(0, 90) == actions).all()
    assert (demonstrations.read("state", 18, 50) == states[18:50]).all()  # over two borders


def test_robomimic_layout_is_what_its_readers_expect(hdf5: Path) -> None:
    with h5py.File(hdf5) as file:
        assert file["data"].attrs["total"] == 90
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "toy"
        demo = file["data/demo_1"]
        assert demo.attrs["num_samples"] == 25
        assert set(demo) == {"actions", "dones", "obs", "rewards", "states"}
        assert demo["dones"][-1] == 1
        assert demo["dones"][:-1].sum() == 0


def test_demos_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "many.hdf5"
    write_robomimic(path, episodes(list(range(3, 15))), "toy", {})
    assert np.diff(open_demonstrations(path).episode_ends, prepend=0).tolist() == list(range(3, 15))


def test_filter_key_selects_episodes(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["mask/train"] = np.array([b"demo_0", b"demo_3"])
    assert open_demonstrations(hdf5, "train").episode_ends.tolist() == [20, 35]
    with pytest.raises(UserError, match="'valid'; there are train"):
        open_demonstrations(hdf5, "valid")


@pytest.mark.parametrize("kind", ["folder", "zip", "zip with a folder inside"])
def test_zarr_is_recognised_by_content(zarr_folder: Path, kind: str) -> None:
    path = zarr_folder
    if kind != "folder":
        path = zipped(zarr_folder, "a/b.zarr" if "inside" in kind else "")
        path = path.rename(path.with_name("anything.bin"))
    demonstrations = open_demonstrations(path)
    assert demonstrations.episode_ends.tolist() == [15, 40]
    assert demonstrations.observations["img"].shape == (8, 8, 3)
    assert demonstrations.read("state", 12, 17).shape == (5, 3)
    assert demonstrations.read_actions(0, 40).shape == (40, 2)


def test_training_on_states_never_reads_images(zarr_folder: Path) -> None:
    """Images whose chunks are gone do no harm to a state policy."""
    from ebt_policy.windows.arrays import load_arrays
    from ebt_policy.windows.windows import choose_streams

    shutil.rmtree(zarr_folder / "data/img")
    write_zarr_metadata_only(zarr_folder)
    demonstrations = open_demonstrations(zarr_folder)
    streams = choose_streams(demonstrations, None)
    assert list(streams) == ["state"]
    load_arrays(demonstrations, streams)
    with pytest.raises(UserError, match="data/img has 0 of 4 chunks"):
        demonstrations.read("img", 0, 1)


def write_zarr_metadata_only(folder: Path) -> None:
    import zarr

    group = zarr.open_group(str(folder), mode="a")
    group.create_array("data/img", shape=(40, 8, 8, 3), dtype="uint8", chunks=(10, 8, 8, 3))


def test_info_names_what_is_there_and_what_is_wrong(tmp_path: Path) -> None:
    made = episodes([20, 30])
    made[1].actions[4, 1] = np.nan
    made[0].actions[3, 0] = 7
    path = tmp_path / "bad.hdf5"
    write_robomimic(path, made, "toy", {"control_freq": 20, "action_bounds": [-1, 1]})
    summary = inspect(open_demonstrations(path), progress=False)
    text = summary.text()
    assert "2 (20-30 steps each)" in text
    assert "20 Hz" in text
    assert any("NaN or infinite, the first in episode 1, step 4" in p for p in summary.problems)
    assert any("state: constant dimensions: 2" in p for p in summary.problems)
    assert any("out of range [-1, 1] in dimensions 0 (" in p for p in summary.problems)


def test_info_flags_a_truncated_zarr(zarr_folder: Path) -> None:
    next((zarr_folder / "data/img").glob("[0-9]*")).unlink()
    problems = inspect(open_demonstrations(zarr_folder), progress=False).problems
    assert any("img: truncated: 1 chunks are missing" in problem for problem in problems)


def test_truncated_hdf5(hdf5: Path) -> None:
    content = hdf5.read_bytes()
    hdf5.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated"):
        open_demonstrations(hdf5)


def test_zarr_with_a_lost_chunk_is_not_read_as_zeros(zarr_folder: Path) -> None:
    next((zarr_folder / "data/action").glob("[0-9]*")).unlink()
    with pytest.raises(UserError, match="data/action has 3 of 4 chunks"):
        open_demonstrations(zarr_folder).read_actions(0, 40)


def test_zarr_with_a_damaged_chunk(zarr_folder: Path) -> None:
    next((zarr_folder / "data/action").glob("[0-9]*")).write_bytes(b"\0\1\2")
    with pytest.raises(UserError, match="data/action cannot be decoded"):
        open_demonstrations(zarr_folder).read_actions(0, 40)


def test_truncated_zip(zarr_folder: Path) -> None:
    path = zipped(zarr_folder)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated"):
        open_demonstrations(path)


def drop_steps(arrays: dict[str, Any]) -> None:
    arrays["state"] = arrays["state"][:33]


def no_episodes(arrays: dict[str, Any]) -> None:
    arrays["episode_ends"] = np.zeros(0, np.int64)


def falling_ends(arrays: dict[str, Any]) -> None:
    arrays["episode_ends"] = np.array([30, 20, 40])


def flat_actions(arrays: dict[str, Any]) -> None:
    arrays["action"] = arrays["action"][:, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_steps, "data/state has 33 steps, but the last of meta/episode_ends is 40"),
        (no_episodes, "the data set is empty"),
        (falling_ends, "meta/episode_ends must rise"),
        (flat_actions, r"data/action has shape \(40,\), expected \(steps, A\)"),
    ],
)
def test_inconsistent_zarr(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_demonstrations(write_zarr(tmp_path / "bad.zarr", change))


def test_data_info_names_what_train_refuses_or_pads(tmp_path: Path) -> None:
    made = episodes([20, 15])
    for episode in made:
        length = len(episode.actions)
        episode.observations |= {
            "chw": np.zeros((length, 3, 8, 8), np.uint8),
            "unit": np.zeros((length, 8, 8, 3), np.float32),
            "whole": np.full((length, 8, 8, 3), 7.0, np.float32),
        }
    made[1].observations["unit"][2, 0, 0] = 0.5
    write_robomimic(tmp_path / "d.hdf5", made, "toy", {})
    summary = inspect(open_demonstrations(tmp_path / "d.hdf5"), progress=False)
    said = "2 (15-20 steps each; 1 shorter than a chunk of 16, which is padded)"
    assert said in summary.text()
    assert [problem for problem in summary.problems if "constant" not in problem] == [
        "chw: shape (3, 8, 8) is neither numbers nor an RGB image (H, W, 3); train refuses it",
        "unit: 3 values are no whole numbers from 0 to 255, the first in episode 1, step 2; train "
        "refuses such an image",
    ]


def test_hdf5_with_unequal_lengths_shapes_or_nothing(tmp_path: Path, hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_2/obs/state"]
        file["data/demo_2/obs/state"] = np.zeros((29, 3))
    with pytest.raises(UserError, match="data/demo_2/obs/state has 29 steps"):
        open_demonstrations(hdf5)
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_2/obs/state"]
        file["data/demo_2/obs/state"] = np.zeros((30, 4))
    with pytest.raises(UserError, match=r"demo_2: state has shape \(4,\) per step, but \(3,\)"):
        open_demonstrations(hdf5)
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_2/obs/state"]
    with pytest.raises(UserError, match="data/demo_2/obs/state is missing; data/demo_0 has it"):
        open_demonstrations(hdf5)
    with h5py.File(hdf5, "a") as file:
        file["data/demo_2/obs/state"] = np.zeros((30, 3))
        file["data/demo_1/obs/more"] = np.zeros((25, 1))
    with pytest.raises(UserError, match="data/demo_0/obs/more is missing; data/demo_1 has it"):
        open_demonstrations(hdf5)
    empty = tmp_path / "empty.hdf5"
    write_robomimic(empty, [], "toy", {})
    with pytest.raises(UserError, match="the data set is empty"):
        open_demonstrations(empty)


def broken_layouts() -> dict[str, Callable[[Any], None]]:
    def replace(name: str, value: Any) -> Callable[[Any], None]:
        def change(file: Any) -> None:
            del file[name]
            file[name] = value

        return change

    def attribute(text: str) -> Callable[[Any], None]:
        return lambda file: file["data"].attrs.__setitem__("env_args", text)

    return {
        "env_args is no JSON": attribute("{"),
        "env_args is a list": attribute("[]"),
        "env_kwargs is null": attribute('{"env_kwargs": null}'),
        "action bounds are a number": attribute('{"env_kwargs": {"action_bounds": 1}}'),
        "actions is a group": lambda file: (
            file["data/demo_0"].pop("actions"),
            file.create_group("data/demo_0/actions/x"),
        )[0],
        "data is an array": replace("data", np.zeros(3)),
        "obs is an array": replace("data/demo_0/obs", np.zeros(3)),
    }


@pytest.mark.parametrize("name", broken_layouts())
def test_robomimic_files_of_another_layout_are_named(hdf5: Path, name: str) -> None:
    with h5py.File(hdf5, "a") as file:
        broken_layouts()[name](file)
    with pytest.raises(UserError, match="not laid out as robomimic's"):
        open_demonstrations(hdf5)


def test_strings_and_nested_groups_are_not_observed(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        for demo in file["data"].values():
            demo["obs/note"] = np.array([b"text"] * demo.attrs["num_samples"])
            demo.create_group("obs/nested")
        file.create_group("data/demo_x")
    assert set(open_demonstrations(hdf5).observations) == {"state"}


def test_flag_that_is_zero_for_a_whole_chunk_can_be_read(tmp_path: Path) -> None:
    """zarr 3 leaves such chunks out; for one number per step they may well be zeros."""

    def with_flag(arrays: dict[str, Any]) -> None:
        arrays["done"] = np.zeros((40, 1), np.float32)
        arrays["done"][14] = 1

    demonstrations = open_demonstrations(write_zarr(tmp_path / "flag.zarr", with_flag))
    assert demonstrations.read("done", 0, 40).sum() == 1
    problems = inspect(demonstrations, progress=False).problems
    assert any("done: 3 chunks are absent: all zeros, or truncated" in p for p in problems)


def test_folder_of_several_buffers_asks_which(tmp_path: Path) -> None:
    for name in ("a.zarr", "b.zarr"):
        write_zarr(tmp_path / "many" / name)
    with pytest.raises(UserError, match=r"several replay buffers: a\.zarr/, b\.zarr/"):
        open_demonstrations(tmp_path / "many")


def test_missing_key_lists_those_that_exist(hdf5: Path) -> None:
    with pytest.raises(UserError, match="no observation key 'states'; there are state"):
        open_demonstrations(hdf5).read("states", 0, 1)


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK not really"])
def test_unknown_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        open_demonstrations(path)
    with pytest.raises(UserError, match="no such file"):
        open_demonstrations(tmp_path / "absent")


def test_unwritable_folder_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_robomimic(blocked / "demos.hdf5", episodes([5]), "toy", {})
