"""How long one chunk takes at batch 1: every policy on one trunk, interleaved in one run."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.benchmarks.exported import ExportedChunk
from ebt_policy.benchmarks.floor import Floor, Shape, multiply_adds, products, traffic
from ebt_policy.benchmarks.memory import peak_mb
from ebt_policy.benchmarks.variants import VARIANTS, Variant
from ebt_policy.policies.base import Policy
from ebt_policy.policies.export import check_packages
from ebt_policy.provenance import provenance
from ebt_policy.training.trainer import check_compiler

EAGER, COMPILED, EXPORTED = "torch", "torch.compile", "onnxruntime"
_WARMUP = 3


def measure_latency(
    preset: str,
    rounds: int,
    threads: Sequence[int],
    device: torch.device,
    compiled: bool,
    exported: bool,
) -> dict[str, Any]:
    """Percentiles of the time of one chunk for every variant, each called once in every round.

    Args:
        preset: size of the network, the same for all.
        rounds: timed calls of each.
        threads: numbers of CPU threads.
        device: where the policies are.
        compiled: measure compiled policies besides (compiling takes minutes).
        exported: measure exported policies besides, on the CPU (exporting takes minutes).

    Returns:
        ``rows``; a row has, beyond its variant and ``runtime`` (``compiled`` is true of all but
        ``torch``), ``runtime_threads`` (those that
        were used of the allowed ``threads``), ``encode_ms`` (the observation's share of it; none
        for an exported graph), ``multiply_adds``, ``floor_ms`` (of the matrix
        products alone) and ``peak_mb`` (largest resident memory of a process that makes one
        chunk, without PyTorch where it is exported; where it is compiled, of the policy's first
        row, the compiler included; on a GPU, the memory there).
    """
    if compiled:
        check_compiler(device, "--compile")
    if exported:
        check_packages()
    rows, before = [], torch.get_num_threads()
    runtimes = [EAGER, *([COMPILED] if compiled else []), *([EXPORTED] if exported else [])]
    chosen = [(v, r) for r in runtimes for v in VARIANTS if r == EAGER or v.is_optimised]
    counts = {variant: _products(variant, preset, device) for variant in VARIANTS}
    # Before there are policies, whose threads would disturb it.
    cpu = torch.device("cpu")
    places = {runtime: Floor(cpu if runtime == EXPORTED else device) for runtime in runtimes}
    floors = dict[tuple[Variant, str, int], float]()
    for number in threads:
        torch.set_num_threads(number)
        for variant, runtime in chosen:
            floors[variant, runtime, number] = places[runtime].milliseconds(counts[variant])
    with tempfile.TemporaryDirectory() as folder:
        made = list[Policy | ExportedChunk]()
        peaks = list[float]()
        compiled_ones: dict[str, tuple[Policy, float]] = {}
        for variant, runtime in tqdm(chosen, desc=f"policies and their memory, {preset}"):
            if runtime == EXPORTED:
                graphs = ExportedChunk(variant, preset, Path(folder))
                made.append(graphs)
                peaks.append(graphs.peak_mb())
                continue
            policy = variant.make(preset).to(device)
            if runtime == EAGER:
                peaks.append(peak_mb(_one_chunk, variant, preset, device, False))
            else:
                # One policy is compiled for all ways in which it acts.
                if variant.policy not in compiled_ones:
                    peak = peak_mb(_one_chunk, variant, preset, device, True)
                    policy.compile_acting()
                    compiled_ones[variant.policy] = policy, peak
                first, peak = compiled_ones[variant.policy]
                if policy.acting is not None:
                    policy = first.with_sampling(getattr(policy.config, policy.acting))
                peaks.append(peak)
            made.append(policy)
        for number in threads:
            torch.set_num_threads(number)
            ways = [_calls(one, number, device) for one in made]
            calls = [call for own in ways for call in own]
            times: list[list[list[float]]] = [[[] for _ in parts] for parts in calls]
            title = f"chunks, {preset}, {number} threads"
            for round_ in tqdm(range(_WARMUP + rounds), desc=title):
                for parts, taken in zip(calls, times, strict=True):
                    parts[0]()  # on warm caches
                    for part, kept in zip(parts, taken, strict=True):
                        began = time.perf_counter()
                        part()
                        if round_ >= _WARMUP:
                            kept.append(1e3 * (time.perf_counter() - began))
            left = iter(times)
            for (variant, runtime), own, peak in zip(chosen, ways, peaks, strict=True):
                measured = [next(left) for _ in own]
                best = int(np.argmin([np.median(parts[0]) for parts in measured]))
                chunk, *encode = measured[best]
                p50, p95, p99 = np.percentile(chunk, [50, 95, 99])
                rows.append({
                    **asdict(variant), "threads": number, "device": places[runtime].device.type,
                    "compiled": runtime != EAGER, "runtime": runtime,
                    "runtime_threads": best + 1 if runtime == EXPORTED else number,
                    "p50_ms": round(p50, 3), "p95_ms": round(p95, 3), "p99_ms": round(p99, 3),
                    "encode_ms": round(float(np.median(encode)), 3) if encode else None,
                    "multiply_adds": multiply_adds(counts[variant]),
                    "floor_ms": round(floors[variant, runtime, number], 3), "peak_mb": peak,
                })  # fmt: skip
    torch.set_num_threads(before)
    return {"preset": preset, "rounds": rounds, "rows": rows, **provenance()}


def measure_floors(presets: Sequence[str], threads: Sequence[int]) -> list[dict[str, Any]]:
    """What a chunk of every variant cannot be faster than, on this machine.

    Returns:
        A row for each preset, variant and number of threads ``multiply_adds``, ``mbytes``
        (operands of the products, each once), ``gflops`` (the rate measured for these shapes)
        and ``floor_ms``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    floor, rows = Floor(device), []
    before = torch.get_num_threads()
    for preset in presets:
        for variant in tqdm([v for v in VARIANTS if v.loop != "bare"], desc=f"floor, {preset}"):
            counts = _products(variant, preset, device)
            for number in threads:
                torch.set_num_threads(number)
                took, work = floor.milliseconds(counts), multiply_adds(counts)
                rows.append({
                    "preset": preset, "of": "chunk", "policy": variant.policy,
                    "sampler": variant.sampler, "steps": variant.steps, "starts": variant.starts,
                    "threads": number, "device": device.type, "multiply_adds": work,
                    "mbytes": round(traffic(counts) / 1e6, 2),
                    "gflops": round(2e-6 * work / took, 1), "floor_ms": round(took, 3),
                })  # fmt: skip
    torch.set_num_threads(before)
    return rows


def _products(variant: Variant, preset: str, device: torch.device) -> Counter[Shape]:
    policy = variant.make(preset).to(device)
    return products(lambda: _call(policy))


def _calls(
    made: Policy | ExportedChunk, threads: int, device: torch.device
) -> list[list[Callable[[], object]]]:
    """Ways to make a chunk, of which the fastest counts; beside it what encodes its observation.

    Small products may be faster with one thread than with two, and onnxruntime does not choose:
    it is measured with each number of threads up to the one allowed.
    """
    if isinstance(made, ExportedChunk):
        return [[made.open(number)] for number in range(1, threads + 1)]
    policy, streams = made, made.config.streams.items()
    zeros = {name: torch.zeros(1, 2, s.features, device=device) for name, s in streams}

    def encode() -> None:
        with torch.no_grad():
            policy.core.remember(zeros)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return [[lambda: _call(policy), encode]]


def _call(policy: Policy) -> None:
    """A chunk, whose actions are NumPy's: nothing is left to wait for."""
    observation = {name: np.zeros((1, 2, *s.shape)) for name, s in policy.config.streams.items()}
    policy.predict_chunk(observation, [torch.Generator().manual_seed(0)])


def _one_chunk(variant: Variant, preset: str, device: torch.device, compiled: bool) -> None:
    policy = variant.make(preset).to(device)
    if compiled:
        policy.compile_acting()
    _call(policy)
