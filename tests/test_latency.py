"""What a chunk is counted to cost, and the policies that are timed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import generators
from ebt_policy.benchmarks.exported import ExportedChunk
from ebt_policy.benchmarks.floor import Floor, multiply_adds, products, traffic
from ebt_policy.benchmarks.memory import peak_mb
from ebt_policy.benchmarks.variants import VARIANTS, Variant
from ebt_policy.cli.main import main
from ebt_policy.policies.base import Draws

ROW = {
    "policy", "sampler", "steps", "starts", "threads", "device", "compiled", "p50_ms", "p95_ms",
    "p99_ms", "peak_mb",
}  # fmt: skip


def test_products_are_counted_through_autograd_and_fused_attention() -> None:
    linear = torch.nn.Linear(3, 5)
    counts = products(lambda: linear(torch.randn(7, 3, requires_grad=True)).sum().backward())
    assert counts == Counter({(1, 7, 3, 5): 1, (1, 7, 5, 3): 1, (1, 5, 7, 3): 1})
    assert multiply_adds(counts) == 3 * 7 * 3 * 5
    assert traffic(Counter({(2, 3, 4, 5): 10})) == 10 * 4 * 2 * (12 + 20 + 15)
    query, key = torch.randn(2, 4, 16, 8), torch.randn(2, 4, 3, 8)
    with torch.no_grad():
        counts = products(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    assert counts == Counter({(8, 16, 8, 3): 1, (8, 16, 3, 8): 1})


def test_a_gradient_step_costs_two_passes_and_no_parameter_gradients() -> None:
    def work(steps: int, starts: int = 1) -> int:
        made = Variant("ebt", "descent", steps, starts).make("tiny")
        seen = {"state": np.zeros((1, 2, 23), np.float32)}
        return multiply_adds(products(lambda: made.predict_chunk(seen)))

    def denoising(steps: int) -> int:
        made = Variant("diffusion", "ddim", steps).make("tiny")
        seen = {"state": np.zeros((1, 2, 23), np.float32)}
        return multiply_adds(products(lambda: made.predict_chunk(seen)))

    forward, step = denoising(2) - denoising(1), work(3) - work(2)
    assert step == pytest.approx(2 * forward, rel=0.1)
    assert work(3, starts=8) - work(2, starts=8) == 8 * step


def test_floor_is_the_sum_over_shapes() -> None:
    floor = Floor(torch.device("cpu"))
    small, large = (1, 16, 64, 64), (8, 64, 64, 64)
    one, other = (floor.milliseconds(Counter({shape: 1})) for shape in (small, large))
    assert 0 < one < other
    assert floor.milliseconds(Counter({small: 3, large: 2})) == pytest.approx(3 * one + 2 * other)


def test_peak_memory_is_that_of_the_computation_and_not_of_its_parent() -> None:
    held = np.ones(100_000_000)  # 800 MB
    alone = peak_mb(np.ones, 1)
    assert 50 < alone < held.nbytes / 1e6
    assert peak_mb(np.ones, 40_000_000) == pytest.approx(alone + 320, abs=30)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 100), ("ddim", 10), ("ddim", 2)])
def test_bare_loop_gives_what_diffusers_gives(sampler: str, steps: int, prediction: Any) -> None:
    bare, other = (
        Variant("diffusion", sampler, steps, loop=loop).make("tiny")
        for loop in ("bare", "diffusers")
    )
    for made in (bare, other):
        diffusion = replace(made.config.diffusion, prediction=prediction)
        made.config = replace(made.config, diffusion=diffusion)
    seen = {"state": np.random.default_rng(0).normal(size=(2, 2, 23)).astype(np.float32)}
    found, expected = (made.predict_chunk(seen, generators(2)).plan for made in (bare, other))
    assert np.abs(found - expected).max() < 1e-4
    first = Variant("diffusion", "ddim", 5, loop="bare").make("tiny")
    first.config = replace(first.config, diffusion=bare.config.diffusion)
    shared = first.with_sampling(bare.config.diffusion)
    assert np.abs(shared.predict_chunk(seen, generators(2)).plan - found).max() < 1e-6


@pytest.mark.usefixtures("tiny")
def test_exported_diffusion_gives_what_its_policy_gives(tmp_path: Path) -> None:
    exported = ExportedChunk(Variant("diffusion", "ddpm", 100, loop="bare"), "tiny", tmp_path)
    random = np.random.default_rng(3)
    draws = [random.standard_normal((1, 16, 7), dtype=np.float32) for _ in range(100)]
    policy, seen = exported.policy, {"state": torch.zeros(1, 2, 23)}
    with torch.no_grad():
        expected, *_ = policy.sample(
            policy.normalise_observation(seen), Draws([torch.from_numpy(d) for d in draws]), None
        )
    assert np.abs(exported.open(threads=1, seed=3)() - expected.numpy()).max() < 1e-4
    shared = ExportedChunk(Variant("diffusion", "ddim", 2, loop="bare"), "tiny", tmp_path)
    assert shared.files == exported.files


@pytest.mark.usefixtures("tiny")
def test_bench_latency_and_floor_write_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ebt_policy.benchmarks.latency as latency

    monkeypatch.setattr(latency, "VARIANTS", VARIANTS[:1] + VARIANTS[-1:])
    monkeypatch.setattr("ebt_policy.benchmarks.throughput.RATIO_BATCH", 4)
    monkeypatch.setattr("ebt_policy.benchmarks.throughput.UNROLLED_STEPS", 2)
    monkeypatch.setattr("ebt_policy.benchmarks.floor._REPEATS", 3)
    arguments = ["--preset", "tiny", "--threads", "1", "--json"]
    measured = ["bench", "latency", "--rounds", "2", "--onnx", *arguments]
    assert main([*measured, str(tmp_path / "l.json")]) == 0
    rows = json.loads((tmp_path / "l.json").read_text())["rows"]
    assert [(row["policy"], row["runtime"], row["compiled"]) for row in rows] == [
        ("ebt", "torch", False), ("regression", "torch", False),
        ("ebt", "onnxruntime", True), ("regression", "onnxruntime", True),
    ]  # fmt: skip
    for row in rows:
        assert set(row) >= ROW
        assert 0 < (row["encode_ms"] or 0.001) < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert (row["encode_ms"] is None) == (row["runtime"] == "onnxruntime")
        assert 20 < row["peak_mb"] < 5000
    assert rows[2]["peak_mb"] < rows[0]["peak_mb"]
    rows = rows[:2]
    assert main(["bench", "floor", *arguments, str(tmp_path / "f.json")]) == 0
    floors = json.loads((tmp_path / "f.json").read_text())["rows"]
    chunks = [row["multiply_adds"] for row in floors if row["of"] == "chunk"]
    assert chunks == [row["multiply_adds"] for row in rows]
    steps = {row["objective"]: row for row in floors if row["of"] == "training step"}
    assert steps["plain unrolled"]["multiply_adds"] > steps["unrolled"]["multiply_adds"]
    assert steps["basin"]["multiply_adds"] > steps["regression"]["multiply_adds"]
    assert all(0 < row["floor_ms"] < 1e4 for row in floors)
    assert "GFLOP/s" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "latency", "--rounds", "0"])
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "floor", "--threads", "0"])


COMPILED = """
import numpy as np, torch
from ebt_policy.benchmarks.variants import Variant
for variant in (Variant("ebt", "descent", 2, 3), Variant("diffusion", "ddim", 3)):
    made = variant.make("tiny")
    seen = {"state": np.random.default_rng(0).normal(size=(2, 2, 23)).astype(np.float32)}
    chunks = []
    for compiled in (False, True):
        if compiled:
            made.compile_acting()
        own = [torch.Generator().manual_seed(i) for i in range(2)]
        chunks.append(made.predict_chunk(seen, own).plan)
    assert np.abs(chunks[0] - chunks[1]).max() < 1e-4, variant
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_policies_act_as_before() -> None:
    """Apart from the run-time type checks of the tests, which a compiler cannot see through."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)
