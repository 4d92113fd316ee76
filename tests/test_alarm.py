"""The energy of observations, its conformal threshold, and the alarm of a policy."""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import episodes, observations, policy
from ebt_policy import load_policy, save_policy
from ebt_policy.cli.main import main
from ebt_policy.config import PolicyConfig, StreamConfig, TrainingConfig
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.energy.observation import ObservationEnergy
from ebt_policy.errors import UserError
from ebt_policy.evaluation import calibration
from ebt_policy.evaluation.calibration import calibrate
from ebt_policy.evaluation.rollout import EpisodeRecord, Visit
from ebt_policy.policies.alarm import ALARM_FILE, Alarm, conformal_threshold
from ebt_policy.training.trainer import train


def test_the_threshold_is_exceeded_as_rarely_as_promised() -> None:
    random = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        threshold = conformal_threshold(sorted(random.exponential(size=59)), 0.1)
        rates.append(np.mean(random.exponential(size=500) > threshold))
    assert 0.08 < np.mean(rates) <= 0.103  # (59 + 1) * 0.9 = 54 of 60 places: 0.1 at most
    assert conformal_threshold([1.0, 2.0, 3.0], 0.25) == 3
    with pytest.raises(UserError, match=r"3 successful episodes are too few .* it takes 19"):
        conformal_threshold([1.0, 2.0, 3.0], 0.05)
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        conformal_threshold([1.0], 1.0)


def test_the_energy_of_observations_is_low_on_a_curve_and_high_off_it() -> None:
    random = np.random.default_rng(0)
    angle = random.uniform(0, 2 * np.pi, 2000)
    curve = torch.tensor(np.stack([np.cos(angle), np.sin(angle), np.sin(2 * angle)], 1)).float()
    torch.manual_seed(0)
    energy = ObservationEnergy(3, 1.3)
    energy.fit(curve[:1000], [3], seed=0, steps=1000)
    on, off = energy(curve[1000:]), energy(curve[1000:] + 0.3 * torch.randn(1000, 3))
    assert (off[None] > on[:, None]).float().mean() > 0.95
    assert not any(p.requires_grad for p in energy.parameters())


def test_what_breaks_a_bond_between_numbers_shows_although_it_is_small() -> None:
    """A third number that is always the difference of the others, which go anywhere."""
    torch.manual_seed(0)
    free = 2 * torch.rand(2000, 2) - 1
    rows = torch.cat([free, (free[:, :1] - free[:, 1:]) / 2], 1)
    energy = ObservationEnergy(3, 1.3)
    energy.fit(rows[:1000], [3], seed=0, steps=1000)
    along = rows[1000:] + torch.tensor([0.05, 0.05, 0])
    across = rows[1000:] + torch.tensor([0, 0, 0.05])
    assert energy(across).median() > 300 * energy(along).median()  # 27 where P is 1


def test_a_number_far_out_that_nothing_else_tells_of_shows_too() -> None:
    torch.manual_seed(0)
    rows = 2 * torch.rand(1000, 20) - 1
    energy = ObservationEnergy(20, 1.3)
    energy.fit(rows, [20], seed=0, steps=500)
    usual = energy(rows).quantile(0.99)
    far = rows.clone()
    far[:, 3] = 15
    assert (energy(far) > usual).all()
    assert (energy(far.clamp(-1.3, 1.3)) < usual).float().mean() > 0.6  # at the limit itself


def alarmed(scores: list[float], rate: float = 0.5) -> Any:
    made = policy()
    torch.manual_seed(1)
    made.alarm = Alarm(ObservationEnergy(made.window_features, 1.3), scores, rate, "a test")
    return made


def test_a_prediction_carries_score_and_alarm_in_any_context_and_batch() -> None:
    plain = policy().predict_chunk(observations(4))
    assert plain.score is None
    assert plain.alarm is None
    made = alarmed([0.0])
    with torch.inference_mode():
        found = made.predict_chunk(observations(4))
    assert found.score.shape == (4,)
    assert found.alarm.tolist() == [True] * 4
    one = made.predict_chunk({k: v[1:2] for k, v in observations(4).items()})
    assert one.score == pytest.approx(found.score[1:2], rel=1e-5)
    middle = float(np.median(found.score))
    made.alarm = Alarm(made.alarm.energy, [middle], 0.5, "a test")
    assert made.with_sampling(made.config.descent).predict_chunk(observations(4)).alarm.sum() == 2


def test_a_stream_that_does_not_belong_is_imagined_as_it_was_demonstrated() -> None:
    """Two streams that are always alike: the second is taken for what the first is."""
    torch.manual_seed(0)
    one = torch.where(torch.rand(1000, 1) < 0.5, -1.0, 1.0) + 0.05 * torch.randn(1000, 1)
    both = one.repeat(1, 4)  # (n, To * 1) twice
    energy = ObservationEnergy(4, 1.3)
    energy.fit(both, [2, 2], seed=0, steps=500)
    on = float(energy(both).quantile(0.99))
    alarm = Alarm(energy, [on], 0.5, "a test", {"hand": both[:64, 2:]})
    seen = {"arm": torch.tensor([[[1.0], [1.0]], [[-1.0], [-1.0]], [[1.0], [1.0]]])}
    seen["hand"] = torch.tensor([[[1.0], [1.0]], [[1.0], [1.0]], [[5.0], [9.0]]])
    assert (alarm.score(seen) > alarm.threshold).tolist() == [False, True, True]
    found = alarm.imagine(seen)
    assert torch.equal(found["arm"], seen["arm"])
    assert torch.equal(found["hand"][0], seen["hand"][0])
    assert torch.allclose(found["hand"][1:].mean((1, 2)), torch.tensor([-1.0, 1.0]), atol=0.15)
    assert torch.equal(Alarm(energy, [on], 0.5, "").imagine(seen)["hand"], seen["hand"])
    assert (alarm.score(found) < alarm.score(seen))[1:].all()


def test_an_alarm_is_kept_with_its_policy_and_no_other(tmp_path: Path) -> None:
    made = alarmed([1.0, 2.0, 3.0])
    made.alarm.energy.root.normal_()
    made.alarm.imagined = {"state": torch.randn(7, 12)}
    save_policy(made, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.alarm is not None
    assert loaded.alarm.threshold == 2
    assert torch.equal(loaded.alarm.imagined["state"], made.alarm.imagined["state"])
    before = made.predict_chunk(observations(3)).score
    assert before.tolist() == loaded.predict_chunk(observations(3)).score.tolist()  # type: ignore[union-attr]
    assert load_policy(tmp_path, with_alarm=False).alarm is None

    content = (tmp_path / ALARM_FILE).read_bytes()
    for damaged in (content[:100], b"", content.replace(b"energy.layers.0", b"energy.layers.9")):
        (tmp_path / ALARM_FILE).write_bytes(damaged)
        with pytest.raises(UserError, match=r"alarm\.safetensors: damaged"):
            load_policy(tmp_path)
    (tmp_path / ALARM_FILE).write_bytes(content.replace(b"limit", b"lemon"))
    with pytest.raises(UserError, match="was calibrated by an earlier version"):
        load_policy(tmp_path)
    (tmp_path / ALARM_FILE).write_bytes(content)
    config = tmp_path / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace('"observation_limit": 1.3', '"observation_limit": 2.0'))
    with pytest.raises(UserError, match="or for another observation_limit; calibrate again"):
        load_policy(tmp_path)
    config.write_text(kept)
    save_policy(policy(seed=5), tmp_path)  # other weights in its place
    with pytest.raises(UserError, match="was calibrated for other weights"):
        load_policy(tmp_path)


def test_calibrate_by_command_then_eval_reports_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A threshold from demonstrations; what noise on the observations then does."""
    short = partialmethod(ObservationEnergy.fit, steps=500)
    monkeypatch.setattr(ObservationEnergy, "fit", short)
    data, trained = str(tmp_path / "fork.hdf5"), tmp_path / "run"
    assert main(["collect", "planar/fork", "--episodes", "40", "--out", data]) == 0
    train = ["train", "--data", data, "--policy", "regression", "--preset", "tiny", "--steps", "20"]
    halves = ["--set", "training.validation_share=0.5"]
    assert main([*train, "--out", str(trained), *halves]) == 0
    calibrate = ["calibrate", str(trained), "--data", data]
    capsys.readouterr()
    assert main([*calibrate, "--imagine", "state"]) == 2
    refused = capsys.readouterr().err
    assert "--imagine state: the policy observes state; it can imagine one of" in refused
    assert main([*calibrate, "--false-alarms", "0.01"]) == 2
    refused = capsys.readouterr().err
    assert "20 held-out episodes are too few for a rate of 0.01" in refused
    assert "; give --task, or --false-alarms 0.05 or more\n" in refused
    assert not (trained / ALARM_FILE).exists()
    assert main(calibrate) == 0
    assert "from 20 held-out demonstrations of fork.hdf5" in capsys.readouterr().out
    evaluate = ["eval", str(trained), "--task", "planar/fork+noise=0.2", "--episodes", "4"]
    assert main([*evaluate, "--workers", "1", "--json", str(tmp_path / "r.json")]) == 0
    assert "alarm in 1.000" in capsys.readouterr().out
    alarms = json.loads((tmp_path / "r.json").read_text())["alarms"]
    assert alarms["of_failures"]["episodes"] == 4
    assert alarms["of_failures"]["rate"] == 1


def test_calibrate_gives_up_on_a_policy_that_hardly_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows = [
        {name: values[0] for name, values in observations(1, seed=i).items()} for i in (0, 1)
    ]

    def made_up(share: float) -> Any:
        return lambda *_: (
            Visit(EpisodeRecord(i, success=i % 100 < 100 * share), windows) for i in range(10**6)
        )

    monkeypatch.setattr(calibration, "visits", made_up(0.1))
    with pytest.raises(UserError, match=r"succeeded in 10 of 100 episodes of a task"):
        calibration._of_task(Path(), policy(), alarmed([0.0]).alarm, "a task", 50, 0)
    monkeypatch.setattr(calibration, "visits", made_up(0.5))
    found = calibration._of_task(Path(), policy(), alarmed([0.0]).alarm, "a task", 60, 0)
    assert len(found) == 60
    both = alarmed([0.0]).predict_chunk(observations(1, seed=0)).score.tolist()
    assert found[0] >= both[0]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("share", "options", "message"),
    [
        (
            "0.2", [],
            "10 held-out episodes are too few for a rate of 0.05 false alarms; it takes 19 or "
            "more; give --task, or --false-alarms 0.1 or more, or train with "
            "--set training.validation_share=0.38",
        ),
        ("0", ["--false-alarms", "0.03"], "takes 33 or more; give --task"),
        (
            "0", ["--task", "planar/fork", "--episodes", "18"],
            "--episodes 18: a rate of 0.05 false alarms takes 19 or more",
        ),
    ],
)  # fmt: skip
def test_calibrate_tells_what_would_be_enough_before_it_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    share: str, options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(calibration, "learn_observations", None)
    data, trained = str(tmp_path / "data.hdf5"), str(tmp_path / "run")
    write_robomimic(Path(data), episodes([8] * 50), "point", {})
    train = ["train", "--data", data, "--policy", "regression", "--preset", "tiny", "--steps", "1"]
    assert main([*train, "--set", f"training.validation_share={share}", "--out", trained]) == 0
    assert main(["calibrate", trained, "--data", data, *options]) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_calibrate_needs_the_demonstrations_of_the_policy(tmp_path: Path) -> None:
    save_policy(policy(), tmp_path / "saved")
    data, other = str(tmp_path / "data.hdf5"), str(tmp_path / "other.hdf5")
    write_robomimic(Path(data), episodes([30, 30, 30]), "point", {})
    write_robomimic(Path(other), episodes([30, 30, 30], seed=1), "point", {})
    with pytest.raises(UserError, match=r"training\.json: no such file"):
        calibrate(tmp_path / "saved", data, 0.05, None, 10, 0)
    opened = open_demonstrations(data)
    config = PolicyConfig.of_preset("tiny", "regression", {"state": StreamConfig((3,))}, 2)
    training = TrainingConfig(data="data.hdf5", steps=1, batch_size=4, learning_rate=1e-3)
    train(opened, config, training, tmp_path / "run", resume=False)
    with pytest.raises(UserError, match=r"other\.hdf5: .* was trained on data\.hdf5 with other"):
        calibrate(tmp_path / "run", other, 0.05, None, 10, 0)
