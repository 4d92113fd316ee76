"""Training steps that are timed against each other: the plain recipe is the same recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import config, observations, policy
from ebt_policy.benchmarks.throughput import plain_unrolled
from ebt_policy.cli.main import main
from ebt_policy.policies import EnergyPolicy


def unrolled_policy(steps: int) -> EnergyPolicy:
    settings = replace(config().unrolled, min_steps=steps, extra_steps=1)
    made = policy(objective="unrolled", unrolled=settings).double()
    assert isinstance(made, EnergyPolicy)
    return made.train()


def normalised(made: EnergyPolicy) -> dict[str, torch.Tensor]:
    raw = {name: torch.from_numpy(values).double() for name, values in observations(4).items()}
    return made.normalise_observation(raw)


def test_plain_unrolled_has_the_same_gradients() -> None:
    made = unrolled_policy(steps=4)
    for weight in made.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    seen, actions = normalised(made), torch.randn(4, 16, 2, dtype=torch.float64)
    gradients = []
    for plain in (False, True):
        torch.manual_seed(3)
        errors = plain_unrolled(made, seen, actions) if plain else made.errors(seen, actions)
        made.zero_grad()
        errors.mean().backward()
        gradients.append([p.grad for p in made.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 40
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


def test_memory_of_unrolled_does_not_grow_with_its_steps() -> None:
    kept = []
    for steps in (2, 12):
        made, total = unrolled_policy(steps), 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        seen = normalised(made)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.errors(seen, torch.randn(4, 16, 2, dtype=torch.float64)).mean().backward()
        kept.append(total)
    assert kept[0] == kept[1] > 0


def test_bench_train_writes_rows_and_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ebt_policy.benchmarks.throughput as throughput

    monkeypatch.setattr(throughput, "RATIO_BATCH", 4)
    monkeypatch.setattr(throughput, "peak_mb", lambda *_: 100.0)
    path = tmp_path / "train.json"
    arguments = ["--batch-sizes", "2", "4", "--rounds", "1", "--json", str(path)]
    assert main(["bench", "train", "--preset", "tiny", *arguments]) == 0
    found = json.loads(path.read_text())
    assert set(found["ratios"]) == {"default_over_diffusion", "plain_unrolled_over_unrolled"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    rows = found["rows"]
    assert [row["batch_size"] for row in rows] == [2] * 8 + [4] * 8
    assert {row["policy"] for row in rows} == {"ebt", "diffusion", "flow", "mip", "regression"}
    assert {row["sampler"] for row in rows} <= {"descent", "ddpm", "ddim", "euler", "none"}
    for row in rows:
        assert 0 < row["loading_ms"] < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert not row["compiled"]
        assert 0 < row["floor_ms"] < row["p50_ms"]
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "train", "--batch-sizes", "0"])
    assert main(["bench", "train", "--batch-sizes", "1000000", "--rounds", "1"]) == 2
