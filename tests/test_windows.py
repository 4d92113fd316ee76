"""Windows, masks, splits, batch order, normalisers and the choice of streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import episodes, write_zarr
from ebt_policy.config import StreamConfig, WindowConfig
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.errors import UserError
from ebt_policy.windows.arrays import Arrays, load_arrays, map_arrays, store_arrays
from ebt_policy.windows.normaliser import Normaliser
from ebt_policy.windows.windows import (
    BatchOrder,
    Windows,
    choose_streams,
    split_episodes,
)

CONFIG = WindowConfig(observation_steps=2, horizon=5, action_steps=3)


def counting_windows(lengths: list[int], chosen: list[int]) -> Windows:
    """Observation and action of step k of all episodes are the number k."""
    ends = np.cumsum(lengths)
    steps = np.arange(ends[-1], dtype=np.float32)
    arrays = Arrays({"k": steps[:, None]}, steps[:, None], {})
    return Windows(arrays, ends, np.array(chosen), CONFIG)


def test_windows_repeat_the_episode_border_and_mask_it() -> None:
    windows = counting_windows([4, 6], [1])
    assert len(windows) == 6
    batch = windows.gather(torch.arange(6))
    assert batch.observations["k"][:, :, 0].tolist()[:2] == [[4, 4], [4, 5]]
    assert batch.actions[0, :, 0].tolist() == [4, 4, 5, 6, 7]
    assert batch.valid[0].tolist() == [False, True, True, True, True]
    assert batch.actions[5, :, 0].tolist() == [8, 9, 9, 9, 9]
    assert batch.valid[5].tolist() == [True, True, False, False, False]


def test_the_action_for_now_has_index_to_minus_one() -> None:
    batch = counting_windows([20], [0]).gather(torch.arange(3, 15))
    now = batch.observations["k"][:, -1, 0]
    assert torch.equal(batch.actions[:, CONFIG.executed][:, 0, 0], now)


def test_one_step_episode_makes_one_window() -> None:
    batch = counting_windows([1], [0]).gather(torch.tensor([0]))
    assert batch.valid[0].tolist() == [False, True, False, False, False]


def test_windows_never_cross_episodes() -> None:
    windows = counting_windows([3, 7, 5], [0, 2])
    batch = windows.gather(torch.arange(len(windows)))
    seen = set(batch.actions.flatten().tolist()) | set(batch.observations["k"].flatten().tolist())
    assert seen == {0, 1, 2, 10, 11, 12, 13, 14}


def test_split_is_by_episode_reproducible_and_never_empty() -> None:
    training, validation = split_episodes(40, 0.05, seed=3)
    assert sorted([*training, *validation]) == list(range(40))
    assert len(validation) == 2
    assert np.array_equal(split_episodes(40, 0.05, seed=3)[1], validation)
    assert not np.array_equal(split_episodes(40, 0.05, seed=4)[1], validation)
    assert [len(part) for part in split_episodes(1, 0.5, 0)] == [1, 0]
    assert [len(part) for part in split_episodes(3, 0.0, 0)] == [3, 0]


def test_batch_order_is_a_function_of_the_step() -> None:
    order = BatchOrder(10, 3, seed=0)
    epoch = torch.cat([order.indices(step) for step in range(3)])
    assert len(set(epoch.tolist())) == 9
    later = order.indices(7)
    assert torch.equal(BatchOrder(10, 3, seed=0).indices(7), later)  # without the steps before
    assert not torch.equal(BatchOrder(10, 3, seed=1).indices(7), later)
    assert len(BatchOrder(2, 128, seed=0).indices(5)) == 2


def test_normaliser_maps_the_range_to_one_and_back() -> None:
    values = np.random.default_rng(0).uniform(-3, 500, (100, 4)).astype(np.float32)
    normaliser = Normaliser(4)
    normaliser.fit(np.array_split(values, 3), "test")
    normed = normaliser.normalise(torch.from_numpy(values))
    assert normed.min(0).values.tolist() == pytest.approx([-1] * 4, abs=1e-5)
    assert normed.max(0).values.tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert np.allclose(normaliser.unnormalise(normed).numpy(), values, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_constant_dimension_stays_finite_and_comes_back_as_it_was(noise: float) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype(np.float32)
    values[:, 1] = 0.7 + noise * values[:, 0]
    normaliser = Normaliser(2)
    normaliser.fit(np.array_split(values, 3), "test")
    normed = normaliser.normalise(torch.from_numpy(values))
    assert normed[:, 1].abs().max() < 1e-5
    wild = torch.tensor([[0.0, 0.9]])
    assert normaliser.unnormalise(wild)[0, 1].item() == pytest.approx(0.7, abs=1e-6)


def test_normaliser_names_a_nan() -> None:
    values = np.zeros((5, 2), np.float32)
    values[3, 1] = np.nan
    with pytest.raises(UserError, match="where it is from: step 3, dimension 1 is nan"):
        Normaliser(2).fit(np.array_split(values, 2), "where it is from")


def test_nan_in_actions_is_named_by_episode_and_step(tmp_path: Path) -> None:
    made = episodes([10, 12])
    made[1].actions[7, 1] = np.nan
    path = tmp_path / "nan.hdf5"
    write_robomimic(path, made, "toy", {})
    demonstrations = open_demonstrations(path)
    with pytest.raises(UserError, match="actions is nan in episode 1, step 7, element 1"):
        load_arrays(demonstrations, choose_streams(demonstrations, None))


def test_stream_of_another_shape_is_refused(hdf5: Path) -> None:
    with pytest.raises(UserError, match=r"shape \(3,\) per step, the policy expects \(4,\)"):
        load_arrays(open_demonstrations(hdf5), {"state": StreamConfig((4,))})


def test_mapped_arrays_are_those_in_memory(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demonstrations = open_demonstrations(hdf5)
    streams = {"state": StreamConfig((3,))}
    whole = load_arrays(demonstrations, streams)
    monkeypatch.setattr("ebt_policy.demonstrations.base._BLOCK_BYTES", 100)  # some steps
    assert len(list(demonstrations.blocks("state"))) > 3
    for _ in range(2):  # what is there is replaced
        store_arrays(demonstrations, streams, tmp_path / "arrays")
    mapped = map_arrays(tmp_path / "arrays")
    assert isinstance(mapped.actions, np.memmap)
    assert np.array_equal(mapped.actions, whole.actions)
    assert np.array_equal(mapped.observations["state"], whole.observations["state"])
    assert mapped.sha256 == whole.sha256
    assert set(whole.sha256) == {"action", "episode_ends", "state"}
    mapped.actions[0] = 7
    assert map_arrays(tmp_path / "arrays").actions[0, 0] != 7


def test_arrays_that_cannot_be_written_are_named(tmp_path: Path, hdf5: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/arrays: the data's arrays cannot be written"):
        store_arrays(open_demonstrations(hdf5), {}, tmp_path / "file/arrays")


def test_default_streams(tmp_path: Path, hdf5: Path) -> None:
    assert choose_streams(open_demonstrations(hdf5), None) == {"state": StreamConfig((3,))}

    def like_pusht(arrays: dict[str, np.ndarray]) -> None:
        arrays["state"] = np.zeros((40, 5), np.float32)
        arrays["keypoint"] = np.zeros((40, 9, 2), np.float32)
        arrays["n_contacts"] = np.zeros((40, 1), np.float32)

    pusht = open_demonstrations(write_zarr(tmp_path / "p.zarr", like_pusht))
    assert choose_streams(pusht, None) == {"state": StreamConfig((5,), angles=(4,))}
    assert choose_streams(pusht, "state:angles=") == {"state": StreamConfig((5,))}
    assert choose_streams(pusht, "keypoint,state:angles=4+0+4") == {
        "keypoint": StreamConfig((9, 2)),
        "state": StreamConfig((5,), angles=(0, 4)),
    }
    assert choose_streams(pusht, "keypoint:dropout=0.5,state:angles=4:dropout=0") == {
        "keypoint": StreamConfig((9, 2), dropout=0.5),
        "state": StreamConfig((5,), angles=(4,)),
    }
    for keys, message in [
        ("img:angles=0", "is an image"),
        ("img:dropout=0.5", "is an image"),
        ("state:dropout=1", "state:dropout=1: dropout is a share from 0"),
        ("state:dropout=nan", "dropout is a share"),
        ("state:dropout", "dropout is a share"),
        ("nothing", "no observation key 'nothing'"),
        ("state:angles=5", "has 5 elements"),
        ("state:degrees=4", "write KEY, KEY:angles"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_streams(pusht, keys)
