"""Data loading: how much faster batches are gathered than learned from, and in what memory."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.benchmarks.memory import own_mb
from ebt_policy.config import PRESETS, PolicyConfig, TrainingConfig, WindowConfig
from ebt_policy.demonstrations import Demonstrations, open_demonstrations
from ebt_policy.provenance import provenance
from ebt_policy.training.trainer import Trainer
from ebt_policy.windows.arrays import map_arrays, store_arrays
from ebt_policy.windows.windows import BatchOrder, Windows, choose_streams

_WARMUP = 3
_LARGER = 10
_BATCHES = 300  # gathered before memory is looked at


class Repeated(Demonstrations):
    """Demonstrations several times over: a larger data set than one has.

    Args:
        once: the demonstrations.
        times: how often.
    """

    def __init__(self, once: Demonstrations, times: int) -> None:
        self.once = once
        self.path, self.format = once.path, once.format
        self.observations, self.actions = once.observations, once.actions
        offsets = np.arange(times)[:, None] * once.steps
        self.episode_ends = (offsets + once.episode_ends).reshape(-1)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """See :meth:`Demonstrations.read`."""
        return np.concatenate([self.once.read(key, *part) for part in self._parts(start, stop)])

    def read_actions(self, start: int, stop: int) -> np.ndarray:
        """See :meth:`Demonstrations.read_actions`."""
        return np.concatenate([self.once.read_actions(*part) for part in self._parts(start, stop)])

    def _parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        steps, parts = self.once.steps, []
        while start < stop:
            first = start % steps
            last = min(steps, first + stop - start)
            parts.append((first, last))
            start += last - first
        return parts


def measure_loading(
    data: str, obs: str | None, preset: str, batch_size: int, rounds: int, compiled: bool
) -> dict[str, Any]:
    """Windows gathered and windows learned from in a second, in turns on one thread.

    Args:
        data: the demonstrations.
        obs: observation keys as ``train --obs`` takes them.
        preset: size of the default policy that is trained.
        batch_size: of both.
        rounds: timed batches and training steps.
        compiled: compile the training step.

    Returns:
        ``loading_per_second``, ``training_per_second`` (whole steps, loading among them), their
        ``ratio`` (median over rounds); and ``memory``: windows, megabytes of the data as read, of
        the index, and of memory of its own (not of mapped files) that a process takes for
        gathering, for the data set and one ten times as large.
    """
    demonstrations = open_demonstrations(data)
    streams = choose_streams(demonstrations, obs)
    config = PolicyConfig.of_preset(preset, "ebt", streams, demonstrations.actions.shape[0])
    training = TrainingConfig(
        data=demonstrations.path.name, steps=1, batch_size=batch_size, compile=compiled,
        learning_rate=PRESETS[preset].learning_rate,
    )  # fmt: skip
    loading, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(demonstrations, config, training, Path(folder) / "run")
        for round_ in tqdm(range(_WARMUP + rounds), desc=f"batches of {batch_size}, {preset}"):
            began = time.perf_counter()
            trainer.windows.gather(trainer.order.indices(round_))
            gathered = time.perf_counter()
            trainer.one_step(progress=0.5)
            ended = time.perf_counter()
            if round_ >= _WARMUP:
                loading.append(gathered - began)
                whole.append(ended - gathered)
        memory = []
        for times in (1, _LARGER):
            repeated = Repeated(demonstrations, times)
            kept = Path(folder) / f"arrays-{times}"
            store_arrays(repeated, streams, kept)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                arguments = (kept, repeated.episode_ends, config.windows, batch_size)
                memory.append(pool.submit(_memory, *arguments).result())
    return {
        "data": demonstrations.path.name, "preset": preset, "batch_size": batch_size,
        "rounds": rounds, "compiled": compiled, "threads": 1,
        "loading_per_second": round(batch_size / float(np.median(loading))),
        "training_per_second": round(batch_size / float(np.median(whole)), 1),
        "ratio": round(float(np.median(np.divide(whole, loading))), 1),
        "memory": memory, **provenance(),
    }  # fmt: skip


def _memory(
    kept: Path, episode_ends: np.ndarray, config: WindowConfig, batch_size: int
) -> dict[str, Any]:
    """What gathering takes of this process's own memory, in a process that does only that."""
    torch.set_num_threads(1)
    before = own_mb("RssAnon")
    arrays = map_arrays(kept)
    windows = Windows(arrays, episode_ends, np.arange(len(episode_ends)), config)
    order = BatchOrder(len(windows), batch_size, seed=0)
    for step in range(_BATCHES):
        windows.gather(order.indices(step))
    values = [arrays.actions, *arrays.observations.values()]
    index = [windows.steps, windows.first, windows.last, order.indices(0)]
    return {
        "windows": len(windows),
        "data_mb": round(sum(v.nbytes for v in values) / 1e6, 2),
        "index_mb": round(sum(t.untyped_storage().nbytes() for t in index) / 1e6, 2),
        "taken_mb": round(own_mb("RssAnon") - before, 2),
    }
