"""Signals of failure and of shifted observations."""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ebt_policy.benchmarks import uncertainty
from ebt_policy.cli.main import main
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.energy.observation import ObservationEnergy, minimise


def test_off_the_demonstrations_signals_tell_failure_and_shift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demonstrated episodes, of which every second leaves the demonstrations, and so 'fails'."""
    data, found = str(tmp_path / "fork.hdf5"), tmp_path / "found.json"
    assert main(["collect", "planar/fork", "--episodes", "24", "--out", data]) == 0
    runs = [str(tmp_path / name) for name in ("ebt", "diffusion")]
    for run in runs:
        train = ["train", "--data", data, "--policy", Path(run).name, "--preset", "tiny"]
        assert main([*train, "--steps", "20", "--out", run]) == 0

    def visits(*_: Any) -> Generator[SimpleNamespace, None, None]:
        demonstrations = open_demonstrations(data)
        ends = demonstrations.episode_ends
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            states = demonstrations.read("state", int(start), int(end)).astype(np.float32)
            windows = [states[i : i + 2] + 0.5 * (number % 2) for i in range(0, end - start - 1, 8)]
            record = SimpleNamespace(success=number % 2 == 0)
            yield SimpleNamespace(record=record, windows=[{"state": w} for w in windows])

    fit = partialmethod(ObservationEnergy.fit, steps=500)
    monkeypatch.setattr(ObservationEnergy, "fit", fit)
    monkeypatch.setattr(uncertainty, "minimise", lambda p, loss: minimise(p, loss, 500))
    monkeypatch.setattr(uncertainty, "visits", visits)
    bench = ["bench", "uncertainty", runs[0], "--diffusion", runs[1], "--data", data]
    bench += ["--task", "planar/fork", "--episodes", "24", "--json", str(found)]
    assert main(bench) == 0
    measured = json.loads(found.read_text())
    assert (measured["failures"], measured["successes"]) == (12, 12)
    of_observation = measured["signals"][uncertainty.OBSERVED]
    assert of_observation["failure"][0] == of_observation["failure_mean"][0] == 1
    sizes = [area[0] for area in of_observation["shift"].values()]
    assert min(sizes) > 0.9
    assert measured["signals"]["random network distillation"]["shift"]["0.02"][0] > 0.8
    for signal in measured["signals"].values():
        areas = [signal["failure"], signal["failure_mean"], *signal["shift"].values()]
        assert all(0 <= low <= area <= high <= 1 for area, low, high in areas)
        for how, others in signal["minus"].items():
            for other, (gap, low, high) in others.items():
                theirs = measured["signals"][other][how][0]
                assert gap == pytest.approx(signal[how][0] - theirs, abs=2e-4)
                assert low <= gap <= high


def test_a_plan_that_is_kept_to_does_not_change_and_an_episode_begins_anew() -> None:
    route = np.arange(30, dtype=np.float32)[:, None]
    plans = np.stack([route[start : start + 6] for start in (0, 4, 8, 0, 4)])
    plans[2] += 3
    goes_on = np.array([False, True, True, False, True])
    found = uncertainty.change_of_plan(plans, goes_on, executed=4)
    assert np.isnan(found[[0, 3]]).all()
    assert found[[1, 2, 4]].tolist() == [0, 9, 0]


def test_the_interval_of_an_area_is_over_whole_episodes() -> None:
    random = np.random.default_rng(0)
    of_episode = np.repeat(np.arange(10), 20)
    below = np.repeat(random.normal(size=10), 20)
    above = below + 0.5 + 1e-3 * random.normal(size=200)
    above[0] = np.nan
    area, low, high = uncertainty.auroc_of_episodes(above, below, of_episode)
    naive = uncertainty.auroc_of_episodes(above, below, np.arange(200))
    assert area == naive[0]
    assert high - low > 1.5 * (naive[2] - naive[1])


def test_episodes_are_compared_after_as_many_chunks() -> None:
    """A failure that is only longer is not told from a success, and one that stands out is."""
    rising = np.arange(10.0)
    longer = [rising[:4], rising[:4], rising, rising]
    failed = np.array([False, False, True, True])
    assert (uncertainty.areas_in_time(longer, failed) == 0.5).all()
    other = [rising[:4], rising[:6], rising + 1, rising - 1]
    area, low, high = uncertainty.with_interval(uncertainty.areas_in_time(other, failed))
    assert (area, low, high) == (0.5, 0, 1)
    other[3] = rising + 0.5
    assert (uncertainty.areas_in_time(other, failed) == 1).all()
