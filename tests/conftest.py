from __future__ import annotations

import os

# Before NumPy and torch are loaded: the tests run side by side, and a process that a test starts
# would otherwise take a thread for every core, all of which then wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ebt_policy.config import (
    DESCENT_DEFAULTS,
    FORM_DEFAULTS,
    PRESETS,
    NetworkConfig,
    PolicyConfig,
    StreamConfig,
)
from ebt_policy.demonstrations.robomimic import Episode, write_robomimic
from ebt_policy.policies import Policy, make_policy

torch.set_num_threads(1)

NETWORK = NetworkConfig(width=16, heads=2, encoder_blocks=1, action_blocks=2)


def config(**changes: Any) -> PolicyConfig:
    """A policy of a few thousand parameters; its descent is its objective's."""
    base = PolicyConfig(
        policy="ebt",
        streams={"state": StreamConfig((5,), angles=(4,)), "extra": StreamConfig((2, 3))},
        action_dim=2,
        network=NETWORK,
    )
    objective = changes.get("objective", base.objective)
    defaults = {"form": FORM_DEFAULTS[objective], "descent": DESCENT_DEFAULTS[objective]}
    return replace(base, **(defaults | changes))


def policy(seed: int = 0, **changes: Any) -> Policy:
    """An untrained policy with normalisers of some range."""
    torch.manual_seed(seed)
    made = make_policy(config(**changes))
    random = np.random.default_rng(0)
    made.fit_normalisers(
        {"state": random.normal(size=(50, 5)), "extra": random.normal(size=(50, 2, 3))},
        random.normal(size=(50, 2)) * 100,
        np.arange(50),
        "test",
    )
    return made


def observations(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "state": random.normal(size=(batch, 2, 5)).astype(np.float32),
        "extra": random.normal(size=(batch, 2, 2, 3)).astype(np.float32),
    }


def generators(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


def episodes(lengths: list[int], seed: int = 0) -> list[Episode]:
    """Episodes of a point that moves to the origin; actions are its velocity."""
    random = np.random.default_rng(seed)
    made: list[Episode] = []
    for length in lengths:
        position = random.uniform(-1, 1, 2)
        states, actions = [], []
        for _ in range(length):
            action = -0.2 * position
            states.append(np.concatenate([position, [0.5]]))
            actions.append(action)
            position = position + action
        made.append(
            Episode(
                {"state": np.array(states, np.float32)},
                np.array(actions, np.float32),
                np.zeros(length),
                True,
                len(made),
            )
        )
    return made


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset of this name with the network of the tests."""
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], network=NETWORK))


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    path = tmp_path / "demos.hdf5"
    write_robomimic(
        path, episodes([20, 25, 30, 15]), "toy", {"control_freq": 10, "action_bounds": [-1, 1]}
    )
    return path


@pytest.fixture
def zarr_folder(tmp_path: Path) -> Path:
    return write_zarr(tmp_path / "buffer.zarr")


def write_zarr(path: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """A replay buffer in zarr 2, with an image key."""
    import zarr

    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "action": random.uniform(-1, 1, (40, 2)).astype(np.float32),
        "state": random.normal(size=(40, 3)).astype(np.float32),
        "img": random.integers(0, 255, (40, 8, 8, 3)).astype(np.uint8),
        "episode_ends": np.array([15, 40]),
    }
    if change is not None:
        change(arrays)
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, array in arrays.items():
        where = "meta" if name == "episode_ends" else "data"
        stored = group.create_array(
            f"{where}/{name}", shape=array.shape, dtype=array.dtype,
            chunks=(max(1, min(10, array.shape[0])), *array.shape[1:]),
        )  # fmt: skip
        stored[:] = array
    return path
