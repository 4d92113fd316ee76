"""What the benchmarks of training, loading and evaluation measure is what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import NETWORK, config, observations, policy
from ebt_policy.benchmarks.loading import Repeated
from ebt_policy.benchmarks.throughput import plain_unrolled
from ebt_policy.cli.main import main
from ebt_policy.config import PolicyConfig
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.policies import EnergyPolicy, make_policy
from ebt_policy.policies.files import save_policy
from ebt_policy.windows.windows import choose_streams


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


@pytest.mark.usefixtures("tiny")
def test_bench_train_writes_rows_and_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ebt_policy.benchmarks.throughput as throughput

    monkeypatch.setattr(throughput, "RATIO_BATCH", 4)
    monkeypatch.setattr(throughput, "UNROLLED_STEPS", 2)
    monkeypatch.setattr("ebt_policy.benchmarks.floor._REPEATS", 3)
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


def test_repeated_demonstrations_are_the_same_ones_again(hdf5: Path) -> None:
    once = open_demonstrations(str(hdf5))
    thrice = Repeated(once, 3)
    assert thrice.steps == 3 * once.steps == 270
    assert thrice.episode_ends.tolist() == [20, 45, 75, 90, 110, 135, 165, 180, 200, 225, 255, 270]
    for found, values in (
        (thrice.read("state", 80, 200), once.read("state", 0, 90)),
        (thrice.read_actions(80, 200), once.read_actions(0, 90)),
    ):
        assert np.array_equal(found, np.concatenate([values[80:], values, values[:20]]))


@pytest.mark.usefixtures("tiny")
def test_bench_loading_writes_rates_and_memory(tmp_path: Path, hdf5: Path) -> None:
    path = tmp_path / "loading.json"
    arguments = ["--data", str(hdf5), "--batch-size", "8", "--rounds", "3", "--json", str(path)]
    assert main(["bench", "loading", *arguments]) == 0
    found = json.loads(path.read_text())
    assert found["loading_per_second"] > found["training_per_second"] > 0
    assert found["ratio"] > 1
    small, large = found["memory"]
    assert (small["windows"], large["windows"]) == (90, 900)
    assert large["index_mb"] == pytest.approx(900 * 32 / 1e6, abs=0.01)
    assert 0 <= large["taken_mb"] < large["index_mb"] + 30
    assert main(["bench", "loading", "--data", str(tmp_path / "nothing.hdf5")]) == 2


def test_bench_evaluation_writes_rates_and_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "fork.hdf5"
    collect = ["--episodes", "2", "--seed", "0", "--out", str(data)]
    assert main(["collect", "planar/fork", *collect]) == 0
    demonstrations = open_demonstrations(str(data))
    streams = choose_streams(demonstrations, None)
    save_policy(make_policy(PolicyConfig("ebt", streams, 2, network=NETWORK)), tmp_path / "run")
    path = tmp_path / "evaluation.json"
    arguments = ["--episodes", "2", "--rounds", "2", "--json", str(path)]
    assert (
        main(["bench", "evaluation", str(tmp_path / "run"), "--task", "planar/fork", *arguments])
        == 0
    )
    found = json.loads(path.read_text())
    assert set(found["steps_per_second"]) == {"1", "2"}
    assert found["two_over_one"] > 0
    seconds = found["policy_seconds"], found["simulation_seconds"]
    assert found["policy_share"] == pytest.approx(seconds[0] / sum(seconds), abs=1e-3)
    capsys.readouterr()
    assert main(["bench", "evaluation", str(tmp_path / "no"), "--task", "planar/fork"]) == 2
    assert str(tmp_path / "no") in capsys.readouterr().err
