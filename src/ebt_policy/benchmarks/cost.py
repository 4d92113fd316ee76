"""What one training step costs: every method side by side, as ratios within one run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.benchmarks.objectives import METHODS
from ebt_policy.config import PRESETS, PolicyConfig, TrainingConfig, override
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.errors import UserError
from ebt_policy.provenance import provenance
from ebt_policy.tasks import make_task
from ebt_policy.tasks.collection import collect
from ebt_policy.training.trainer import Trainer
from ebt_policy.windows.windows import choose_streams

REFERENCE = "diffusion"
TASK, DEMONSTRATIONS = "planar/fork", 50
_WARMUP = 3


def make_trainers(
    preset: str, sizes: dict[str, int], folder: Path, compiled: bool = True
) -> dict[str, Trainer]:
    """Trainers of some methods, as ``train`` makes them, on demonstrations of the fork.

    Args:
        preset: size of the network.
        sizes: batch size of each method.
        folder: of the demonstrations, which are collected if it has none.
        compiled: whether those methods that the study compiles are compiled.
    """
    data = folder / "fork.hdf5"
    if not data.exists():
        task = make_task(TASK)
        episodes = collect(task, DEMONSTRATIONS, seed=0, progress=False)
        write_robomimic(data, episodes, task.name, {"control_freq": task.rate})
    demonstrations = open_demonstrations(str(data), None)
    made = {}
    for name, batch_size in sizes.items():
        method = METHODS[name]
        config = PolicyConfig.of_preset(
            preset, method.policy, choose_streams(demonstrations, None),
            demonstrations.actions.shape[0], method.objective,
        )  # fmt: skip
        training = TrainingConfig(
            data=data.name, steps=1, batch_size=batch_size,
            compile=compiled and method.compile, learning_rate=PRESETS[preset].learning_rate,
        )  # fmt: skip
        made[name] = Trainer(
            demonstrations, override(config, method.settings), training, folder / name
        )
    return made


def measure_cost(
    preset: str, batch_size: int | None, rounds: int, methods: Sequence[str] | None = None
) -> dict[str, Any]:
    """Median time of a whole training step of every method, as ``train`` takes it.

    The methods take turns within each round, so that whatever else the machine does meets all
    of them. CPU time of one thread on a CPU, wall-clock time on an accelerator.

    Args:
        preset: size of the network.
        batch_size: samples of a step; None is the batch that each method is trained with.
        rounds: timed steps of each method.
        methods: names of those that are measured; None is all but variants of another's cost.

    Returns:
        For each method its batch, milliseconds, and the ratio to a Diffusion Policy step with
        the quartiles of the ratio over rounds.

    Raises:
        UserError: a method is none of the study's, or Diffusion Policy is not among them.
    """
    own = [name for name, method in METHODS.items() if not method.cost]
    chosen = own if methods is None else list(methods)
    for name in chosen:
        if name not in METHODS:
            raise UserError(f"--methods {name}: expected some of {', '.join(METHODS)}")
    if REFERENCE not in chosen:
        raise UserError(f"--methods {','.join(chosen)}: {REFERENCE} is what others are compared to")
    sizes = {name: batch_size or METHODS[name].batch_size for name in chosen}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(preset, sizes, Path(folder))
        for count in tqdm(range(_WARMUP + rounds), desc=f"training steps, {preset}"):
            for name, trainer in trainers.items():
                began = trainer.clock()
                trainer.one_step(progress=0.5)
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize()
                if count >= _WARMUP:
                    times[name].append(1e3 * (trainer.clock() - began))
    reference = np.array(times[REFERENCE])
    return {
        "preset": preset, "rounds": rounds,
        "methods": {
            name: {
                "batch_size": sizes[name],
                "ms": round(float(np.median(taken)), 2),
                "ratio": round(float(np.median(taken / reference)), 3),
                "quartiles": np.percentile(taken / reference, [25, 75]).round(3).tolist(),
            }
            for name, taken in ((n, np.array(t)) for n, t in times.items())
        },
        **provenance(),
    }  # fmt: skip


def with_added(known: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Costs and those of further methods, which were measured later beside the reference.

    Times compare within one run only, so their ratio to the reference is what is taken over; which
    run it is from stands with each of them.
    """
    reference = known["methods"][REFERENCE]["ms"]
    run = {name: measured[name] for name in (*provenance(), "rounds")}
    return known | {
        "methods": known["methods"] | {
            name: cost | {"ms": round(cost["ratio"] * reference, 2), "added": run}
            for name, cost in measured["methods"].items()
            if name != REFERENCE
        }
    }  # fmt: skip
