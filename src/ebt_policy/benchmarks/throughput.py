"""Training: samples per second and memory of the objectives and baselines, in turns."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ebt_policy.benchmarks.cost import make_trainers
from ebt_policy.benchmarks.floor import Floor, Shape, multiply_adds, products, traffic
from ebt_policy.benchmarks.memory import peak_mb
from ebt_policy.benchmarks.objectives import METHODS
from ebt_policy.descent import normalise_rms, step_size
from ebt_policy.errors import UserError
from ebt_policy.objectives.unrolled import schedule
from ebt_policy.policies import EnergyPolicy
from ebt_policy.provenance import provenance
from ebt_policy.shapes import Float
from ebt_policy.training.trainer import Trainer

RATIO_BATCH = 128
PLAIN = "plain unrolled"
_SAMPLERS = {
    "basin": "descent", "equilibrium": "descent", "unrolled": "descent", PLAIN: "descent",
    "diffusion": "ddim", "flow": "euler", "mip": "none", "regression": "none",
}  # fmt: skip
_RATIOS = (
    ("default_over_diffusion", "basin", "diffusion"),
    ("plain_unrolled_over_unrolled", PLAIN, "unrolled"),
)
_WARMUP = 2
UNROLLED_STEPS = 8  # about the mean of those it draws in training


def plain_unrolled(
    policy: EnergyPolicy, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
) -> Float[Tensor, "b t a"]:
    """The released recipe as one writes it first; the same loss as ``objectives.unrolled``.

    The observation is encoded anew at every step, every step builds the graph of its double
    backward, and all but the last are thrown away.
    """
    config, descent = policy.config.unrolled, policy.config.descent
    sigmas, jitter = schedule(actions, config)
    y, velocity = torch.randn_like(actions), torch.zeros_like(actions)
    for sigma in sigmas:
        y, velocity = normalise_rms(y.detach()) + sigma * torch.randn_like(y), velocity.detach()
        point = (y + descent.momentum * velocity).requires_grad_()
        value = policy.energy(point, policy.energy.remember(observation))
        (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=True)
        step = jitter * step_size(value, y[0].numel(), descent)
        velocity = descent.momentum * velocity - step * gradient
        y = y + velocity
    return (y - actions).square()


def measure_training(
    preset: str, batch_sizes: Sequence[int], rounds: int, compiled: bool
) -> dict[str, Any]:
    """Time of a whole training step of each method, each once in every round, on one thread.

    Args:
        preset: size of the network, the same for all.
        batch_sizes: of every method.
        rounds: timed steps of each.
        compiled: compile them all but the unrolled ones, as the study of the objectives does.

    Returns:
        ``rows``, with ``loading_ms`` (gathering a batch, a part of the step), ``multiply_adds``,
        ``floor_ms`` (of the matrix products alone) and ``peak_mb`` (largest resident memory of a
        process that takes two such steps); and at batch 128 ``ratios``, medians over rounds.
    """
    rows, ratios = [], dict[str, float]()
    floor = Floor(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for batch_size in batch_sizes:
        with tempfile.TemporaryDirectory() as folder:
            trainers = {name: _trainer(name, preset, batch_size, compiled, Path(folder))
                        for name in _SAMPLERS}  # fmt: skip
            held = len(trainers["basin"].windows)
            if held < batch_size:
                raise UserError(f"--batch-sizes {batch_size}: the data hold only {held} windows")
            times: dict[str, list[float]] = {name: [] for name in trainers}
            loading: dict[str, list[float]] = {name: [] for name in trainers}
            title = f"training steps, {preset}, batch {batch_size}"
            for round_ in tqdm(range(_WARMUP + rounds), desc=title):
                for name, trainer in trainers.items():
                    began = time.perf_counter()
                    trainer.windows.gather(trainer.order.indices(trainer.step))
                    gathered = time.perf_counter()
                    trainer.one_step(progress=0.5)
                    if trainer.device.type == "cuda":
                        torch.cuda.synchronize()
                    if round_ >= _WARMUP:
                        loading[name].append(1e3 * (gathered - began))
                        times[name].append(1e3 * (time.perf_counter() - gathered))
            device = trainers["basin"].device.type
            counts = {name: _step_products(trainer) for name, trainer in trainers.items()}
            peaks = {name: peak_mb(_two_steps, name, preset, batch_size, compiled, Path(folder))
                     for name in trainers}  # fmt: skip
        if batch_size == RATIO_BATCH:
            for label, one, other in _RATIOS:
                ratios[label] = round(float(np.median(np.divide(times[one], times[other]))), 3)
        for name, taken in times.items():
            p50, p95, p99 = np.percentile(taken, [50, 95, 99])
            is_energy = _SAMPLERS[name] == "descent"
            rows.append({
                "policy": "ebt" if is_energy else name, "sampler": _SAMPLERS[name],
                "objective": name if is_energy else None, "steps": None, "starts": 1,
                "batch_size": batch_size, "threads": 1, "device": device,
                "compiled": _compiles(name, compiled),
                "p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "p99_ms": round(p99, 2),
                "samples_per_second": round(1e3 * batch_size / p50, 1),
                "loading_ms": round(float(np.median(loading[name])), 3),
                "multiply_adds": multiply_adds(counts[name]),
                "floor_ms": round(floor.milliseconds(counts[name]), 3), "peak_mb": peaks[name],
            })  # fmt: skip
    return {"preset": preset, "rounds": rounds, "rows": rows, "ratios": ratios, **provenance()}


def measure_step_floors(presets: Sequence[str]) -> list[dict[str, Any]]:
    """What a training step of every method cannot be faster than: batch 128, one thread.

    Returns:
        A row for each preset and method, as those of ``measure_floors``.
    """
    rows, before = [], torch.get_num_threads()
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder:
            for name in tqdm(_SAMPLERS, desc=f"floor of a training step, {preset}"):
                trainer = _trainer(name, preset, RATIO_BATCH, False, Path(folder))
                counts = _step_products(trainer)
                took, work = Floor(trainer.device).milliseconds(counts), multiply_adds(counts)
                rows.append({
                    "preset": preset, "of": "training step", "policy": trainer.policy.config.policy,
                    "sampler": _SAMPLERS[name], "objective": name, "batch_size": RATIO_BATCH,
                    "threads": 1, "device": trainer.device.type, "multiply_adds": work,
                    "mbytes": round(traffic(counts) / 1e6, 2),
                    "gflops": round(2e-6 * work / took, 1), "floor_ms": round(took, 3),
                })  # fmt: skip
    torch.set_num_threads(before)
    return rows


def _step_products(trainer: Trainer) -> Counter[Shape]:
    batch = trainer.windows.gather(trainer.order.indices(trainer.step)).to(trainer.device)
    return products(lambda: trainer.policy(batch).backward())


def _compiles(name: str, compiled: bool) -> bool:
    return compiled and name != PLAIN and METHODS[name].compile


def _trainer(name: str, preset: str, batch_size: int, compiled: bool, folder: Path) -> Trainer:
    method = "unrolled" if name == PLAIN else name
    made = make_trainers(preset, {method: batch_size}, folder, compiled=_compiles(name, compiled))[
        method
    ]
    if method == "unrolled":
        # A fixed number of steps, so that all that are timed or counted take as many.
        fixed = replace(made.policy.config.unrolled, min_steps=UNROLLED_STEPS, extra_steps=1)
        made.policy.config = replace(made.policy.config, unrolled=fixed)
    if name == PLAIN:
        assert isinstance(made.policy, EnergyPolicy)
        made.policy.errors = partial(plain_unrolled, made.policy)  # type: ignore[method-assign]
    return made


def _two_steps(name: str, preset: str, batch_size: int, compiled: bool, folder: Path) -> None:
    trainer = _trainer(name, preset, batch_size, compiled, folder)
    for _ in range(2):
        trainer.one_step(progress=0.5)
