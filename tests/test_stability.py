"""Errors of actions on demonstrations and on visited states, nudges, and diverging descents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import NETWORK, episodes
from ebt_policy import save_policy
from ebt_policy.benchmarks import stability
from ebt_policy.benchmarks.stability import RATIO, measure_stability
from ebt_policy.config import PolicyConfig, StreamConfig
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.errors import UserError
from ebt_policy.evaluation import rollout
from ebt_policy.evaluation.action_error import action_errors, chunk_starts, unseen_windows
from ebt_policy.evaluation.rollout import EpisodeRecord, Visit
from ebt_policy.policies import Policy, make_policy
from ebt_policy.policies.files import load_policy
from ebt_policy.tasks import make_task
from ebt_policy.tasks.collection import collect
from ebt_policy.training.files import SUMMARY_FILE
from ebt_policy.windows.arrays import load_arrays

TASK = "gym:toy_gym:PointReach-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of demonstrations, and untrained policies that claim to have learned from one."""
    made = tmp_path_factory.mktemp("stability")
    for name, seed in (("learned", 0), ("unseen", 1)):
        found = episodes([20, 25, 30], seed)
        write_robomimic(made / f"{name}.hdf5", found, TASK, {"control_freq": 10})
    demonstrations = open_demonstrations(str(made / "learned.hdf5"))
    streams = {"state": StreamConfig((3,))}
    arrays = load_arrays(demonstrations, streams)
    kinds: tuple[Any, ...] = ("ebt", "diffusion", "regression")
    for kind in kinds:
        torch.manual_seed(0)
        policy = make_policy(PolicyConfig(kind, streams, 2, NETWORK))
        steps = np.arange(demonstrations.steps)
        policy.fit_normalisers(arrays.observations, arrays.actions, steps, "test")
        save_policy(policy, made / kind)
        summary = {"steps": 0, "data": {"sha256": arrays.sha256}}
        (made / kind / SUMMARY_FILE).write_text(json.dumps(summary))
    return made


def answering(policy: Policy, answer: Any) -> Policy:
    """A policy that executes what it is told to, window by window."""
    told = lambda observations, _: SimpleNamespace(actions=answer(observations))  # noqa: E731
    policy.predict_chunk = told  # type: ignore[method-assign, assignment]
    return policy


def test_action_errors_are_in_half_ranges_and_nothing_counts_beyond_the_end(folder: Path) -> None:
    policy = load_policy(folder / "ebt")
    windows = unseen_windows(folder / "ebt", policy, str(folder / "unseen.hdf5"))
    starts = chunk_starts(windows)
    first = windows.first[starts].numpy()
    assert len(np.unique(first)) == 3
    assert ((windows.steps[starts].numpy() - first) % 8 == 0).all()
    batch = windows.gather(starts)
    executed = policy.config.windows.executed
    off = 0.5 * policy.action_normaliser.half_range
    wanted = (batch.actions[:, executed] + off).numpy()
    errors = action_errors(answering(policy, lambda _: wanted), windows, starts)
    valid = batch.valid[:, executed].numpy()
    assert np.allclose(errors[valid], 0.5, atol=1e-5)
    assert not valid.all()
    assert np.isnan(errors[~valid]).all()


def test_data_that_were_learned_from_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="has learned from these; others are needed"):
        measure_stability({"a": folder / "ebt"}, str(folder / "learned.hdf5"), TASK, 2, 0)
    with pytest.raises(UserError, match="holds --policy regression; ebt or diffusion needed"):
        measure_stability({"a": folder / "regression"}, str(folder / "unseen.hdf5"), TASK, 2, 0)


def test_the_reference_on_visited_states_is_the_expert_there(folder: Path) -> None:
    task = make_task("metaworld/push")
    assert task.make_expert is not None
    assert task.expert_knows_any_state
    (episode,) = collect(task, 1, 0, progress=False)
    states = episode.observations["state"][:40:8]
    windows = [{"state": np.stack([state, state])} for state in states]
    visit = Visit(EpisodeRecord(seed=0), windows)
    policy = make_policy(PolicyConfig("ebt", {"state": StreamConfig((39,))}, 4, NETWORK))
    expert = task.make_expert(0)
    for off, error in ((0.0, 0.0), (0.25, 0.25)):
        answer = np.stack([expert({"state": state}) for state in states])[:, None] + off
        answered = answering(policy, lambda _, answer=answer: answer.astype(np.float32))
        assert stability._visited_error(answered, visit, task) == pytest.approx(error, abs=1e-6)


def test_all_three_are_measured_of_both_policies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "GROUP", 3)
    runs = {"energy policy": folder / "ebt", "Diffusion Policy": folder / "diffusion"}
    data = str(folder / "unseen.hdf5")
    measured = measure_stability(runs, data, TASK, 3, 0)
    assert json.loads(json.dumps(measured)) == measured
    for name, one in measured["policies"].items():
        assert set(one["exposure"]) == {"demonstrated"}  # there is no expert
        pairs, median, most = one["growth"]["distance"]["1"]
        assert pairs == 3
        assert 0 < median <= most
        for how, conditions in one["divergence"].items():
            assert conditions["undisturbed"]["diverged"] == 0, (name, how)
    assert list(measured["policies"]["energy policy"]["divergence"]) == [
        "2 steps", "20 steps", "20 steps from noise",
    ]  # fmt: skip
    assert list(measured["policies"]["Diffusion Policy"]["divergence"]) == ["DDIM-10"]

    # With an expert who knows any state, and nudges that are none.
    knowing = replace(
        make_task(TASK), expert_knows_any_state=True,
        make_expert=lambda _: lambda seen: (-0.2 * seen["state"][:2]).astype(np.float32),
    )  # fmt: skip
    monkeypatch.setattr(stability, "make_task", lambda _: knowing)
    monkeypatch.setattr(stability, "NUDGE", 0.0)
    monkeypatch.setattr(stability, "_divergence", lambda *_: {})
    monkeypatch.setattr(stability, "_growth", lambda _, plain, nudged: [
        np.array_equal(one.windows[-1]["state"], other.windows[-1]["state"])
        for one, other in zip(plain, nudged, strict=True)
    ])  # fmt: skip
    again = measure_stability({"a": folder / "ebt"}, data, TASK, 3, 0)["policies"]["a"]
    assert again["growth"] == [True] * 3
    visited, demonstrated = again["exposure"]["visited"], again["exposure"]["demonstrated"]
    assert again["exposure"][RATIO][0] == pytest.approx(visited[0] / demonstrated[0], rel=1e-2)


def test_a_descent_that_ends_elsewhere_or_nowhere_has_diverged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = load_policy(folder / "ebt")
    windows = unseen_windows(folder / "ebt", policy, str(folder / "unseen.hdf5"))

    def fake(observation: dict[str, torch.Tensor], scale: float, factor: float) -> torch.Tensor:
        chunk = torch.full((len(observation["state"]), 16, 2), scale)
        chunk[: len(chunk) // 2] *= 1 if factor == 1 else torch.nan
        return chunk

    monkeypatch.setattr(stability, "_samplers", lambda _: {"fake": fake})
    found = stability._divergence(policy, windows, 0)["fake"]
    shares = {name: one["diverged"] for name, one in found.items()}
    assert shares["undisturbed"] == 0
    assert shares["start × 2"] == shares["start × 3"] == 1
    assert shares["step × 0.5"] == pytest.approx(0.5, abs=0.02)
