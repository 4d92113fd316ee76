"""Training: exact resume after a kill, budgets, and every way in which a run can go wrong."""

from __future__ import annotations

import itertools
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import NETWORK, episodes, generators
from ebt_policy import load_policy
from ebt_policy.cli.main import main
from ebt_policy.config import (
    DESCENT_DEFAULTS,
    BasinConfig,
    PolicyConfig,
    StreamConfig,
    TrainingConfig,
)
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import Episode, write_robomimic
from ebt_policy.errors import UserError
from ebt_policy.policies import Policy, make_policy
from ebt_policy.training.checkpoint import checkpoint_folders
from ebt_policy.training.files import read_metrics, read_summary
from ebt_policy.training.trainer import Trainer, train

POLICY = PolicyConfig("ebt", {"state": StreamConfig((3,))}, 2, NETWORK)
STEPS = TrainingConfig(data="demos.hdf5", steps=60, batch_size=8, warmup_steps=5)
FEW = replace(STEPS, steps=10)

CHILD = """
import sys
from pathlib import Path
from ebt_policy.config import PolicyConfig, TrainingConfig, from_json
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.training.trainer import train

data, run, policy, training = sys.argv[1:]
train(
    open_demonstrations(data), from_json(PolicyConfig, policy, "policy"),
    from_json(TrainingConfig, training, "training"), Path(run), resume=True,
)
"""

DYING = """
import os, signal
from ebt_policy.training.trainer import Trainer

plain = Trainer.one_step

def step(trainer, progress):
    if trainer.step == int(os.environ["LAST_STEP"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(trainer, progress)

Trainer.one_step = step
"""


def run_training(data: Path, run: Path, config: TrainingConfig = FEW, **options: Any) -> Policy:
    policy = options.pop("policy", POLICY)
    return train(open_demonstrations(data), policy, config, run, **options)


def test_resume_after_kill_is_bit_identical(tmp_path: Path, hdf5: Path) -> None:
    """With dropout, whose random numbers are of the run's state, too; killed twice."""
    from ebt_policy.config import to_json

    policy = replace(POLICY, network=replace(NETWORK, attention_dropout=0.2))
    # A checkpoint after every second step or so; the first line of metrics is of step 50.
    config = replace(STEPS, steps=100, checkpoint_seconds=0.03)
    at_once = replace(config, checkpoint_seconds=1000.0)
    run_training(hdf5, tmp_path / "whole", at_once, policy=policy)
    killed = tmp_path / "killed"
    settings = [str(hdf5), str(killed), to_json(policy), to_json(config)]
    for last in (30, 70):
        command = [sys.executable, "-c", DYING + CHILD, *settings]
        child = subprocess.run(command, env=os.environ | {"LAST_STEP": str(last)}, timeout=120)
        assert child.returncode == -signal.SIGKILL
        assert 0 < int(checkpoint_folders(killed)[-1].name) <= last
    run_training(hdf5, killed, config, policy=policy, resume=True)
    for part in ("model.safetensors", "checkpoints/000000100/state.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / part), load_file(killed / part)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), part
    steps = [record["step"] for record in read_metrics(killed) if "loss" in record]
    assert steps == [
        record["step"] for record in read_metrics(tmp_path / "whole") if "loss" in record
    ]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """As in a terminal; a shell's job in the background is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("tiny", "heeds_ctrl_c")
def test_ctrl_c_saves_the_step_and_a_second_one_ends_at_once(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ebt_policy.training.trainer import Trainer

    plain = Trainer.one_step
    signals = 1

    def interrupted(trainer: Trainer, progress: float) -> tuple[float, float, float]:
        if trainer.step == 3:
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
        return plain(trainer, progress)

    def command(run: Path) -> list[str]:
        start = ["train", "--data", str(hdf5), "--preset", "tiny", "--batch-size", "8"]
        return [*start, "--steps", "6", "--out", str(run)]

    once, twice, whole = tmp_path / "once", tmp_path / "twice", tmp_path / "whole"
    assert main(command(whole)) == 0
    monkeypatch.setattr(Trainer, "one_step", interrupted)
    capsys.readouterr()
    assert main(command(once)) == 1
    said = "interrupted at step 4; continue with the same command and --resume"
    assert capsys.readouterr().err.endswith(f"{said}\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signals = 2
    assert main(command(twice)) == 1
    assert capsys.readouterr().err.endswith("ebt-policy: interrupted\n")
    assert not checkpoint_folders(twice)
    monkeypatch.setattr(Trainer, "one_step", plain)
    assert main([*command(once), "--resume"]) == 0
    made, expected = (load_file(run / "model.safetensors") for run in (once, whole))
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_a_run_leaves_what_a_user_needs(tmp_path: Path, hdf5: Path) -> None:
    run = tmp_path / "run"
    made = run_training(hdf5, run, STEPS)
    assert {p.name for p in run.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "summary.json",
        "tensorboard", "training.json",
    }  # fmt: skip
    assert list((run / "tensorboard").iterdir())
    assert [int(p.name) for p in checkpoint_folders(run)] == [60]
    summary = read_summary(run)
    assert summary is not None
    assert (summary["steps"], summary["samples"]) == (60, 480)
    assert summary["data"]["episodes"] == 4
    validations = [r for r in read_metrics(run) if "validation_action_mse" in r]
    assert len(validations) == 10
    assert validations[-1]["validation_action_mse"] < validations[0]["validation_action_mse"]
    seen = {"state": np.zeros((1, 2, 3), np.float32)}
    again = load_policy(run).predict_chunk(seen, generators(1)).plan
    assert (again == made.predict_chunk(seen, generators(1)).plan).all()
    assert not list(run.rglob("*.pkl"))
    assert not list(run.rglob("*.pt"))


def test_saved_weights_are_the_moving_average(tmp_path: Path, hdf5: Path) -> None:
    run_training(hdf5, tmp_path / "run")
    state = load_file(checkpoint_folders(tmp_path / "run")[-1] / "state.safetensors")
    saved = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(saved[name], state[f"ema.{name}"]) for name in saved)
    assert any(not torch.equal(saved[name], state[f"raw.{name}"]) for name in saved)


def test_budget_is_kept_over_a_resume(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of its own, a hundredth of a second each time it is read, once a step."""
    ticks = itertools.count()
    monkeypatch.setattr(Trainer, "clock", lambda self: next(ticks) / 100)
    run = tmp_path / "run"
    config = replace(STEPS, steps=None, budget_seconds=2.0)
    regression = replace(POLICY, policy="regression")
    run_training(hdf5, run, config, policy=regression)
    summary = read_summary(run)
    assert summary is not None
    assert summary["seconds"] == pytest.approx(2.0, abs=0.05)
    records = [r for r in read_metrics(run) if "learning_rate" in r]
    assert [record["step"] for record in records] == [50, 100, 150]
    for record in records:  # the schedule follows the budget, not a number of steps
        expected = 0.5 * config.learning_rate * (1 + math.cos(math.pi * record["seconds"] / 2))
        assert record["learning_rate"] == pytest.approx(expected, abs=2e-5)
    steps = summary["steps"]
    run_training(hdf5, run, config, resume=True, policy=regression)  # nothing is left to do
    again = read_summary(run)
    assert again is not None
    assert again["steps"] == steps


def test_budget_on_a_cpu_is_cpu_time_and_leaves_out_what_is_not_training(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Trainer) -> None:
        validated.append(self.step)
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass

    def asleep(self: Trainer, progress: float) -> Any:
        time.sleep(0.02)
        return one_step(self, progress)

    validated: list[int] = []
    one_step = Trainer.one_step
    monkeypatch.setattr(Trainer, "_validate", busy)
    monkeypatch.setattr(Trainer, "one_step", asleep)
    config = replace(STEPS, steps=None, budget_seconds=0.5, checkpoint_seconds=0.05)
    began, cpu_began = time.perf_counter(), time.process_time()
    run_training(hdf5, tmp_path / "run", config, policy=replace(POLICY, policy="regression"))
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    # As many steps as the budget holds, each asleep beside it; validations come on top.
    assert time.perf_counter() - began > summary["seconds"] + 0.02 * summary["steps"]
    assert time.process_time() - cpu_began > summary["seconds"] + 0.5 * len(validated)
    assert summary["seconds"] >= 0.5
    assert validated


def test_existing_run_is_not_overwritten_and_settings_do_not_change(
    tmp_path: Path, hdf5: Path
) -> None:
    run = tmp_path / "run"
    run_training(hdf5, run)
    with pytest.raises(UserError, match="holds a run already"):
        run_training(hdf5, run)
    with pytest.raises(UserError, match="batch_size is 16 now, but 8 in"):
        run_training(hdf5, run, replace(FEW, batch_size=16), resume=True)
    with pytest.raises(UserError, match="form is 'scalar' now, but 'residual' in"):
        run_training(hdf5, run, policy=replace(POLICY, form="scalar"), resume=True)
    shorter = replace(POLICY, windows=replace(POLICY.windows, horizon=12))
    with pytest.raises(UserError, match=r"windows\.horizon is 12 now, but 16 in"):
        run_training(hdf5, run, policy=shorter, resume=True)
    angled = replace(POLICY, streams={"state": StreamConfig((3,), angles=(2,))})
    with pytest.raises(UserError, match=r"streams\.state\.angles is \(2,\) now, but \(\) in"):
        run_training(hdf5, run, policy=angled, resume=True)
    more = replace(POLICY, streams={**POLICY.streams, "more": StreamConfig((3,))})
    with pytest.raises(UserError, match=r"streams are state, more now, but state in"):
        run_training(hdf5, run, policy=more, resume=True)
    other = tmp_path / "other.hdf5"
    write_robomimic(other, episodes([20, 25, 30, 15], seed=1), "toy", {})
    with pytest.raises(UserError, match="was trained on other data"):
        run_training(other, run, resume=True)
    changed = episodes([20, 25, 30, 15])
    for episode in changed:
        episode.observations["state"] *= 7  # the same actions from other observations
    write_robomimic(tmp_path / "changed.hdf5", changed, "toy", {})
    with pytest.raises(UserError, match="was trained on other data"):
        run_training(tmp_path / "changed.hdf5", run, resume=True)
    (run / "training.json").unlink()
    with pytest.raises(UserError, match=r"training\.json is missing"):
        run_training(hdf5, run, resume=True)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    forward, calls = Policy.forward, 0

    def failing(self: Policy, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = forward(self, batch)
        return loss * float("nan") if calls == 7 else loss

    monkeypatch.setattr(Policy, "forward", failing)
    with pytest.raises(UserError, match=r"the loss is nan .* at step 7; the last good checkpoint"):
        run_training(hdf5, run, replace(FEW, checkpoint_seconds=0.0))
    assert int(checkpoint_folders(run)[-1].name) == 6
    state = load_file(checkpoint_folders(run)[-1] / "state.safetensors")
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_full_disk_during_a_checkpoint_loses_nothing(tmp_path: Path, hdf5: Path) -> None:
    """The system itself refuses to write beyond a limit, as a full disk does."""
    run = tmp_path / "run"
    run_training(hdf5, run, replace(FEW, checkpoint_seconds=0.0))
    kept = checkpoint_folders(run)
    good = {p.name: p.read_bytes() for p in kept[-1].iterdir()}
    from ebt_policy.training.checkpoint import Progress, write_checkpoint

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(.*the last good checkpoint is"):
            write_checkpoint(run, Progress(11, 1.0, "x"), {"big": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint_folders(run) == kept
    assert {p.name: p.read_bytes() for p in kept[-1].iterdir()} == good
    assert not list((run / "checkpoints").glob(".*"))


def test_checkpoint_of_another_architecture(tmp_path: Path, hdf5: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    run_training(hdf5, small)
    run_training(hdf5, large, policy=replace(POLICY, network=replace(NETWORK, width=32)))
    target = checkpoint_folders(small)[-1]
    source = checkpoint_folders(large)[-1] / "state.safetensors"
    (target / "state.safetensors").write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="of another architecture"):
        run_training(hdf5, small, resume=True)


def test_damaged_checkpoint_is_named(tmp_path: Path, hdf5: Path) -> None:
    run_training(hdf5, tmp_path / "run")
    state = checkpoint_folders(tmp_path / "run")[-1] / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        run_training(hdf5, tmp_path / "run", resume=True)


def test_unwritable_run_folder(tmp_path: Path, hdf5: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        run_training(hdf5, tmp_path / "file/run")


def test_a_chunk_longer_than_every_episode_is_refused(tmp_path: Path, hdf5: Path) -> None:
    longer = replace(POLICY, windows=replace(POLICY.windows, horizon=31))
    with pytest.raises(UserError, match=r"windows\.horizon = 31: the longest .* has 30 steps"):
        run_training(hdf5, tmp_path / "run", policy=longer)
    assert not (tmp_path / "run").exists()


def test_one_step_episodes_and_a_constant_action_train(tmp_path: Path) -> None:
    made = episodes([1, 1, 1, 6])
    for episode in made:
        episode.actions[:, 1] = 0.5
    path = tmp_path / "odd.hdf5"
    write_robomimic(path, made, "toy", {})
    policy = run_training(path, tmp_path / "run", replace(STEPS, steps=20))
    plan = policy.predict_chunk({"state": np.zeros((1, 2, 3), np.float32)}).plan
    assert np.isfinite(plan).all()
    assert np.allclose(plan[..., 1], 0.5)


def test_a_checkpoint_is_never_taken_apart_to_be_written_again(tmp_path: Path, hdf5: Path) -> None:
    run = tmp_path / "run"
    run_training(hdf5, run)
    last = checkpoint_folders(run)[-1]
    before = {p.name: p.stat().st_mtime_ns for p in last.iterdir()}
    stale = run / "checkpoints/.000000042.part"  # of a process that was killed
    stale.mkdir()
    run_training(hdf5, run, resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in last.iterdir()} == before
    assert not stale.exists()


ANONYMOUS = """
import re, sys
from pathlib import Path
from ebt_policy.config import PolicyConfig, StreamConfig, TrainingConfig
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.training.trainer import Trainer
config = PolicyConfig.of_preset("tiny", "ebt", {"state": StreamConfig((128,))}, 2)
for name in sys.argv[1:]:
    run = Path(name).with_suffix("")
    trainer = Trainer(open_demonstrations(name), config, TrainingConfig(name, steps=3), run)
    trainer.one_step(0.0)
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"RssAnon:\\s*(\\d+) kB", status)[1]), len(trainer.windows))
    del trainer
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_a_larger_data_set_takes_no_more_memory_than_its_index(tmp_path: Path) -> None:
    """Ten times the data: 56 MB more of it, of which memory holds the windows' index."""
    random = np.random.default_rng(0)

    def written(name: str, count: int) -> str:
        made = (
            Episode(
                {"state": random.normal(size=(3000, 128)).astype(np.float32)},
                random.normal(size=(3000, 2)).astype(np.float32), np.zeros(3000), True, i,
            )
            for i in range(count)
        )  # fmt: skip
        write_robomimic(tmp_path / name, made, "toy", {})
        return str(tmp_path / name)

    names = [written("small.hdf5", 4), written("large.hdf5", 40)]
    found = subprocess.run(
        [sys.executable, "-c", ANONYMOUS, names[0], *names], check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    rows = [line.split() for line in found.stdout.splitlines()]
    (_, _), (small, few), (large, many) = ((int(a), int(b)) for a, b in rows)
    assert many > 9 * few
    assert large - small < 40 * (many - few) / 1024 + 15_000  # 40 bytes a window


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_on_the_same_global_batch(tmp_path: Path, hdf5: Path) -> None:
    """Regression has no noise, so two processes must give one process's curve."""
    from ebt_policy.config import to_json

    policy = replace(POLICY, policy="regression")
    config = replace(STEPS, steps=100)
    run_training(hdf5, tmp_path / "one", config, policy=policy)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29519",
         str(script), str(hdf5), str(tmp_path / "two"), to_json(policy), to_json(config)],
        check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # The scalar energy's last bias has no gradient, which processes must agree on, too.
    scalar = replace(
        POLICY, objective="equilibrium", form="scalar", descent=DESCENT_DEFAULTS["equilibrium"]
    )
    split = replace(POLICY, basin=BasinConfig(split=True))  # its far transformer's stem neither
    for name, energy in (("scalar", scalar), ("basin", POLICY), ("split", split)):
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
             "--master-port=29520", str(script), str(hdf5), str(tmp_path / name), to_json(energy),
             to_json(replace(config, steps=10))],
            check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        ends = [r["validation_action_mse"] for r in read_metrics(tmp_path / name) if len(r) == 3]
        assert len(ends) > 0
        assert all(math.isfinite(end) for end in ends)
    # In parts, each with its own shard of the optimiser, and going on from a checkpoint.
    shared = replace(config, accumulation=2, shard_optimizer=True, checkpoint_seconds=0.2)
    for is_last in (False, True):
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
             "--master-port=29521", str(script), str(hdf5), str(tmp_path / "shards"),
             to_json(policy), to_json(shared)],
            check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        first, last = checkpoint_folders(tmp_path / "shards")
        assert 0 < int(first.name) < int(last.name) == 100
        if not is_last:
            shutil.rmtree(last)
    one, *others = (
        load_file(tmp_path / run / "model.safetensors") for run in ("one", "two", "shards")
    )
    for other in others:
        assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)
    # Resuming has lost nothing of the optimiser, whose parts two processes held.
    whole, resumed = (
        load_file(checkpoint_folders(tmp_path / run)[-1] / "state.safetensors")
        for run in ("one", "shards")
    )
    squares = [name for name in whole if name.endswith(".exp_avg_sq")]
    assert len(squares) > 20
    for name in squares:  # over a thousand steps each: a lost one would be a quarter
        assert whole[name].sum().item() == pytest.approx(resumed[name].sum().item(), rel=0.05)
        count = name.replace("exp_avg_sq", "step")
        assert whole[count].item() == resumed[count].item() == 100
    with pytest.raises(UserError, match="was written by 2 processes; use as many again"):
        run_training(hdf5, tmp_path / "two", config, policy=policy, resume=True)
    curves = [
        [r["loss"] for r in read_metrics(tmp_path / run) if "loss" in r]
        for run in ("one", "two", "shards")
    ]
    assert len(curves[0]) == 2
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_training_takes_the_same_steps(tmp_path: Path, hdf5: Path) -> None:
    """With torch's own random numbers, so that the noise of both is the same."""
    from ebt_policy.config import to_json

    same_noise = "import torch._inductor.config as c; c.fallback_random = True\n" + CHILD
    split = replace(POLICY, basin=BasinConfig(split=True, noise=1.0, least_noise=0.25))
    for name, policy in (
        ("basin", POLICY), ("split", split), ("diffusion", replace(POLICY, policy="diffusion"))
    ):  # fmt: skip
        weights = []
        for compiled in (False, True):
            run = tmp_path / f"{name}-{compiled}"
            config = replace(STEPS, steps=5, compile=compiled)
            command = [sys.executable, "-c", same_noise, str(hdf5), str(run)]
            subprocess.run([*command, to_json(policy), to_json(config)], check=True)
            weights.append(load_file(run / "model.safetensors"))
        for key, value in weights[0].items():
            assert torch.allclose(weights[1][key], value, atol=1e-4), (name, key)


def test_compiling_without_a_compiler_says_so(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        run_training(hdf5, tmp_path / "run", replace(STEPS, compile=True))
    assert not (tmp_path / "run").exists()


def test_settings_that_make_no_sense() -> None:
    for changes, message in [
        ({"steps": None}, "exactly one of --steps and --budget"),
        ({"budget_seconds": 3.0}, "exactly one of"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"validation_share": 1.0}, "validation_share"),
    ]:
        with pytest.raises(UserError, match=message):
            replace(STEPS, **changes)  # type: ignore[arg-type]


def test_mixed_precision_trains_with_the_energy_in_float32(tmp_path: Path, hdf5: Path) -> None:
    """In a process of its own: accelerate fixes the precision for the life of a process."""
    from ebt_policy.config import to_json

    config = replace(STEPS, bf16=True)
    command = [sys.executable, "-c", CHILD, str(hdf5), str(tmp_path / "run")]
    subprocess.run([*command, to_json(POLICY), to_json(config)], check=True, capture_output=True)
    errors = [r["validation_action_mse"] for r in read_metrics(tmp_path / "run") if len(r) == 3]
    assert errors[-1] < errors[0]
    saved = load_file(tmp_path / "run/model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}


def test_processes_that_know_nothing_of_each_other_are_refused(
    tmp_path: Path, hdf5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="set ACCELERATE_USE_CPU=true"):
        run_training(hdf5, tmp_path / "run", STEPS)


def test_parts_of_a_batch_give_the_step_of_the_whole(tmp_path: Path, hdf5: Path) -> None:
    """Regression has no noise: only the order of summing differs."""
    policy = replace(POLICY, policy="regression")
    weights = []
    for parts in (1, 4):
        run_training(hdf5, tmp_path / str(parts), replace(STEPS, accumulation=parts), policy=policy)
        weights.append(load_file(tmp_path / str(parts) / "model.safetensors"))
    torch.manual_seed(STEPS.seed)
    untrained = dict(make_policy(policy).named_parameters())
    for name, whole in weights[0].items():
        assert torch.allclose(whole, weights[1][name], atol=1e-4), name
    moved = [(weights[0][name] - value).abs().max() for name, value in untrained.items()]
    assert max(moved) > 0.01
    with pytest.raises(UserError, match=r"batch_size = 8 cannot be shared by 1 processes in 3"):
        run_training(hdf5, tmp_path / "3", replace(STEPS, accumulation=3), policy=policy)
    with pytest.raises(UserError, match=r"shard_optimizer = true: there is one process"):
        run_training(hdf5, tmp_path / "s", replace(STEPS, shard_optimizer=True), policy=policy)
    many = replace(STEPS, batch_size=256, accumulation=128)
    with pytest.raises(UserError, match=r"training windows cannot be shared by 1 processes in 128"):
        run_training(hdf5, tmp_path / "m", many, policy=policy)
