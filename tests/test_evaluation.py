"""Evaluation: the same result for any number of workers, and honest intervals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from conftest import NETWORK, policy
from ebt_policy import save_policy
from ebt_policy.cli.main import main
from ebt_policy.config import DescentConfig, PolicyConfig, StreamConfig, TrainingConfig
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.errors import UserError
from ebt_policy.evaluation.results import merge_results, read_results, store_result
from ebt_policy.evaluation.rollout import Rollout, evaluate
from ebt_policy.evaluation.statistics import bootstrap_mean, score_interval, wilson
from ebt_policy.policies import POLICIES, make_policy
from ebt_policy.report import figures
from ebt_policy.report.html import write_report
from ebt_policy.training.trainer import train

TASK = "gym:toy_gym:PointReach-v0"
MEASURED = {
    "latency_ms", "evaluation_seconds", "policy_seconds", "simulation_seconds", "workers",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An energy policy that reaches the origin, and a diffusion policy that learned a moment."""
    from conftest import episodes

    folder = tmp_path_factory.mktemp("runs")
    write_robomimic(folder / "demos.hdf5", episodes([25] * 40), "toy", {"control_freq": 10})
    made = {}
    learned: list[tuple[Any, int]] = [("ebt", 150), ("diffusion", 10)]
    for name, steps in learned:
        made[name] = folder / name
        config = PolicyConfig(name, {"state": StreamConfig((3,))}, 2, NETWORK)
        training = TrainingConfig(
            "demos", steps=steps, batch_size=32, learning_rate=5e-3, warmup_steps=5
        )
        train(open_demonstrations(folder / "demos.hdf5"), config, training, made[name])
    return made


def without_timing(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in MEASURED}


def test_result_does_not_depend_on_the_number_of_workers(runs: dict[str, Path]) -> None:
    noisy = DescentConfig(steps=3, starts=3)
    rollout = Rollout(str(runs["ebt"]), TASK, noisy)
    one = evaluate(rollout, 23, 500, workers=1, progress=False)
    two = evaluate(rollout, 23, 500, workers=2, progress=False)
    assert without_timing(one) == without_timing(two)
    assert [record["seed"] for record in one["records"]] == list(range(500, 523))
    for result in (one, two):
        spent = result["policy_seconds"] + result["simulation_seconds"]
        assert 0 < spent < result["workers"] * result["evaluation_seconds"]


def test_parts_of_an_evaluation_merge_into_the_whole(runs: dict[str, Path], tmp_path: Path) -> None:
    def evaluated(count: int, seed: int, task: str = TASK) -> Path:
        path = tmp_path / f"{seed}-{count}.json"
        result = evaluate(Rollout(str(runs["ebt"]), task), count, seed, progress=False)
        store_result(result, tmp_path / "nowhere", path)
        return path

    whole, late, early = evaluated(7, 500), evaluated(4, 503), evaluated(3, 500)
    out = tmp_path / "all.json"
    assert main(["merge", str(late), str(early), "--out", str(out)]) == 0
    expected, found = json.loads(whole.read_text()), json.loads(out.read_text())
    for record in [*expected["records"], *found["records"]]:
        record["energy"] = np.round(record["energy"], 3).tolist()  # batches differ by rounding
    for key in ("records", "success_ci95", "score_mean", "descent_steps_mean", "seeds", "training"):
        assert found[key] == expected[key], key
    assert found["policy_seconds"] == pytest.approx(
        sum(json.loads(p.read_text())["policy_seconds"] for p in (late, early)), abs=0.011
    )
    assert [moment["step"] for moment in found["moments"]]
    with pytest.raises(UserError, match="start 503 is in two of"):
        merge_results([late, whole])
    other = json.loads(early.read_text())
    early.write_text(json.dumps(other | {"settings": {}}))
    with pytest.raises(UserError, match="its settings is"):
        merge_results([late, early])
    early.write_text("{}")
    with pytest.raises(UserError, match="not a result of ebt-policy eval"):
        merge_results([late, early])
    with pytest.raises(UserError, match=r"gone\.json: cannot be read"):
        merge_results([tmp_path / "gone.json"])


def test_result_has_the_fields_that_others_rely_on(runs: dict[str, Path], tmp_path: Path) -> None:
    result = evaluate(Rollout(str(runs["ebt"]), TASK), 12, 500, progress=False)
    store_result(result, runs["ebt"], tmp_path / "copy.json")
    stored = json.loads((tmp_path / "copy.json").read_text())
    assert read_results(runs["ebt"])[0] == stored
    assert stored["success_rate"] >= 0.9
    assert stored["success_ci95"] == pytest.approx(
        wilson(round(12 * stored["success_rate"]), 12), abs=1e-9
    )
    expected = {
        "task": TASK, "policy": "ebt", "episodes": 12, "starts": 1, "sampler": "descent",
        "descent_steps_mean": 2.0, "seeds": list(range(500, 512)),
    }  # fmt: skip
    assert {key: stored[key] for key in expected} == expected
    assert stored["latency_ms"]["p50"] <= stored["latency_ms"]["p95"]
    assert stored["training"]["samples"] == 150 * 32
    for record in stored["records"]:
        assert set(record) == {
            "seed", "success", "score", "steps", "descent_steps", "energy", "novelty", "alarm",
            "doing", "facts"
        }  # fmt: skip
        assert record["score"] == float(record["success"])
        assert len(record["descent_steps"]) == len(record["energy"])
    for key in ("commit", "hardware", "date", "torch"):
        assert stored[key]


def test_every_episode_has_its_own_randomness(runs: dict[str, Path]) -> None:
    """An episode's record does not change with the seeds evaluated beside it."""
    noisy = DescentConfig(steps=2)
    rollout = Rollout(str(runs["ebt"]), TASK, noisy)
    many = evaluate(rollout, 8, 500, progress=False)["records"][7]
    alone = evaluate(rollout, 1, 507, progress=False)["records"][0]
    assert (many["seed"], many["success"], many["steps"]) == (507, alone["success"], alone["steps"])
    assert many["energy"] == pytest.approx(alone["energy"], abs=1e-4)


def test_video_and_report(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, run in runs.items():
        video = run / "results/rollout.mp4"
        result = evaluate(
            Rollout(str(run), TASK, video=str(video), film_seed=500), 10, 500, progress=False
        )
        store_result(result, run, None)
        assert video.read_bytes()[4:8] == b"ftyp", name
    out = tmp_path / "report.html"
    write_report(list(runs.values()), out, note="short & sweet")
    page = out.read_text()
    assert "short &amp; sweet" in page
    assert page.count("<video") == 2
    assert page.count("<img") == 5  # success, learning, and three of the energy
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched: self-contained
    with pytest.raises(UserError, match="has no results"):
        write_report([tmp_path], out)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is a place that takes no files")
def test_video_that_cannot_be_written_is_reported(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = imageio_ffmpeg.write_frames

    def truncated(path: str, *options: Any, **more: Any) -> Generator[None, np.ndarray, None]:
        """As with a full disk: ffmpeg takes every frame, and the file ends early."""
        writer = write(path, *options, **more)
        image = yield writer.send(None)
        try:
            while True:
                image = yield writer.send(image)
        finally:
            writer.close()
            os.truncate(path, Path(path).stat().st_size // 2)

    def films(target: Path) -> None:
        rollout = Rollout(str(runs["ebt"]), TASK, video=str(target), film_seed=500)
        evaluate(rollout, 1, 500, progress=False)

    with pytest.raises(UserError, match=r"^--video /proc/a\.mp4: cannot be written: "):
        films(Path("/proc/a.mp4"))
    kept = tmp_path / "a.mp4"
    kept.write_bytes(b"an older video")
    monkeypatch.setattr(imageio_ffmpeg, "write_frames", truncated)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be written: is the disk full"):
        films(kept)
    assert kept.read_bytes() == b"an older video"
    assert list(tmp_path.iterdir()) == [kept]


def test_a_result_says_how_its_energy_was_trained(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["ebt"], tmp_path / "noisy")
    config = tmp_path / "noisy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"observation_noise": 0.05}))
    plain, noisy = (
        evaluate(Rollout(str(run), TASK), 1, 500, progress=False)["settings"]
        for run in (runs["ebt"], tmp_path / "noisy")
    )
    assert noisy == plain | {"observation_noise": 0.05}
    assert "observation_noise" not in plain
    assert plain["objective"] == "basin"
    assert plain["basin"] == json.loads(config.read_text())["basin"]


def test_report_tells_runs_of_one_policy_apart(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    bars = figures.success_bars

    def success_bars(results: list[dict[str, Any]], measure: str) -> Any:
        figure = bars(results, measure)
        drawn.extend(label.get_text() for label in figure.axes[0].get_yticklabels())
        return figure

    monkeypatch.setattr(figures, "success_bars", success_bars)
    result = evaluate(Rollout(str(runs["ebt"]), TASK, DescentConfig(steps=1)), 2, 5, progress=False)
    copies = [tmp_path / name for name in ("first", "second")]
    for copy in copies:
        shutil.copytree(runs["ebt"], copy, ignore=shutil.ignore_patterns("results"))
        store_result(result, copy, None)
    monkeypatch.chdir(copies[0])
    write_report([Path(), copies[1]], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for name in ("first", "second"):
        assert f"<td>{name}</td><td>{TASK}</td><td>EBT-Policy, 1 step</td>" in page
        assert f"<h2>The energy of {name}: {TASK}</h2>" in page
    assert drawn == [f"{TASK}, {name}: EBT-Policy, 1 step" for name in ("first", "second")]


def test_a_policy_that_does_not_fit_the_task_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="its actions have 4 dimensions, the policy was trained on"):
        evaluate(Rollout(str(runs["ebt"]), "metaworld/reach"), 1, 0, progress=False)
    for episodes, workers in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="at least one is needed"):
            evaluate(Rollout(str(runs["ebt"]), TASK), episodes, 0, workers, progress=False)


def test_what_learned_from_lerobot_data_acts_in_a_task_with_plain_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers, actions = random.normal(size=(2, 9, 5)).astype(np.float32)
    images = random.integers(256, size=(9, 24, 24, 3), dtype=np.uint8)
    results = []
    for state, image in (("state", "img"), ("observation.state", "observation.images.img")):
        torch.manual_seed(0)
        streams = {image: StreamConfig((24, 24, 3), kind="image"), state: StreamConfig((5,))}
        made = make_policy(PolicyConfig("regression", streams, 2, NETWORK))
        made.fit_normalisers({image: images, state: numbers}, actions[:, :2], np.arange(9), "test")
        save_policy(made, tmp_path / state)
        rollout = Rollout(str(tmp_path / state), "pusht")
        results.append(evaluate(rollout, 1, 500, progress=False)["records"])
    assert results[0] == results[1]


def test_streams_that_a_task_lacks_are_named(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--task pusht: observation 'state' has shape \(5,\)"):
        evaluate(Rollout(str(runs["ebt"]), "pusht"), 1, 0, progress=False)
    save_policy(policy(), tmp_path)
    with pytest.raises(UserError, match=r"--task pusht: observation has no stream 'extra'"):
        evaluate(Rollout(str(tmp_path), "pusht"), 1, 0, progress=False)


def test_other_settings_do_not_overwrite_a_result(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["ebt"], run, ignore=shutil.ignore_patterns("results"))
    for settings in (DescentConfig(steps=1), DescentConfig(steps=2), DescentConfig(steps=2)):
        store_result(evaluate(Rollout(str(run), TASK, settings), 2, 5, progress=False), run, None)
    assert sorted(r["descent_steps_mean"] for r in read_results(run)) == [1, 2]


def test_worker_that_dies_is_reported_in_one_line(runs: dict[str, Path]) -> None:
    rollout = Rollout(str(runs["ebt"]), "gym:toy_gym:PointCrash-v0")
    with pytest.raises(UserError, match="a worker process died"):
        evaluate(rollout, 20, 0, workers=2, progress=False)


def test_negative_scores_are_kept(runs: dict[str, Path]) -> None:
    rollout = Rollout(str(runs["ebt"]), "gym:toy_gym:PointScore-v0")
    assert evaluate(rollout, 2, 0, progress=False)["score_mean"] == -5


def test_environment_that_tells_no_success_is_refused(runs: dict[str, Path]) -> None:
    rollout = Rollout(str(runs["ebt"]), "gym:toy_gym:PointUnjudged-v0")
    message = "episode with seed 7: no step's info had any of is_success, success, score; "
    with pytest.raises(UserError, match=message):
        evaluate(rollout, 1, 7, progress=False)


def test_error_of_an_environment_names_the_episode(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    task = "gym:toy_gym:PointHot-v0"
    command = ["eval", str(runs["ebt"]), "--task", task, "--episodes", "1", "--seed", "100003"]
    assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "episode with seed 100003: RuntimeError: motor 3 overheated (toy_gym.py:" in last
    with pytest.raises(UserError) as raised:
        evaluate(Rollout(str(runs["ebt"]), task), 1, 0, progress=False)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_wilson_interval_against_known_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_bootstrap_interval_is_reproducible_and_covers_the_mean() -> None:
    low, high = bootstrap_mean([0.0, 0.5, 1.0] * 20)
    assert low < 0.5 < high
    assert (low, high) == bootstrap_mean([0.0, 0.5, 1.0] * 20)
    assert high - low == pytest.approx(2 * 1.96 * 0.408 / 60**0.5, rel=0.1)


def test_interval_of_a_score_that_is_success_is_that_of_the_proportion() -> None:
    assert score_interval([1.0, 1.0], [True, True]) == wilson(2, 2)
    assert score_interval([0.0, 1.0] * 5, [False, True] * 5) == wilson(5, 10)
    scores = [0.0, 0.5, 1.0] * 20
    assert score_interval(scores, [s == 1 for s in scores]) == bootstrap_mean(scores)


def test_every_policy_has_a_name_and_a_colour_in_reports() -> None:
    assert set(figures.NAMES) == set(figures.COLOURS) == set(POLICIES)
    result = {
        "sampler": "ddim", "descent_steps_mean": 2.0,
        "settings": {"descent": {"starts": 8, "steps": 2}, "diffusion": {"samples": 16}},
    }  # fmt: skip
    labels = {name: figures.label(result | {"policy": name}) for name in POLICIES}
    assert labels["ebt"] == "EBT-Policy, 2 steps, 8 starts"
    assert labels["flow"] == "Flow matching, Euler-2"
    assert labels["diffusion"] == "Diffusion Policy, DDIM-2, mean of 16"
    predicting = {"samples": 1, "prediction": "sample"}
    other = result | {"policy": "diffusion", "settings": {"diffusion": predicting}}
    assert figures.label(other) == "Diffusion Policy of predicted actions, DDIM-2"
    assert len(set(labels.values())) == len(POLICIES)
