"""Streams that some data sets of a mixture lack: how they are learned without and acted without."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import config, episodes, generators, observations, policy
from ebt_policy import UserError, load_policy
from ebt_policy.cli.main import main
from ebt_policy.config import PolicyConfig, StreamConfig, from_json, to_json
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.mixture import MixedDemonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.evaluation.calibration import training_windows
from ebt_policy.policies import Batch, Policy, make_policy
from ebt_policy.policies.export import check_exportable
from ebt_policy.serving.episode import Episode
from ebt_policy.windows.arrays import load_arrays, map_arrays, store_arrays
from ebt_policy.windows.batch import presence
from ebt_policy.windows.normaliser import Normaliser
from ebt_policy.windows.sentences import HASHED
from ebt_policy.windows.windows import Windows, choose_streams

SIDE = 12
STREAMS = {
    "state": StreamConfig((5,), angles=(4,)),
    "extra": StreamConfig((2, 3), may_be_missing=True),
    "front": StreamConfig((SIDE, SIDE, 3), kind="image"),
    "task": StreamConfig((256,), kind="text", encoder=HASHED, may_be_missing=True),
    "wrist": StreamConfig((SIDE, SIDE, 3), kind="image", may_be_missing=True),
}
OPTIONAL = [name for name, stream in STREAMS.items() if stream.may_be_missing]
TASK = "gym:toy_gym:PointReach-v0"  # shows its state and nothing else


def sometimes_blind(**changes: Any) -> Policy:
    """An untrained policy, all but two of whose streams may be missing."""
    torch.manual_seed(0)
    made = make_policy(config(streams=STREAMS, **changes))
    random = np.random.default_rng(0)
    made.fit_normalisers(
        {"state": random.normal(size=(50, 5)), "extra": random.normal(size=(50, 2, 3))},
        random.normal(size=(50, 2)), np.arange(50), "test", {"task": random.normal(size=(9, 256))},
    )  # fmt: skip
    return made


def pruned(made: Policy, lost: list[str]) -> Policy:
    """The same weights in a network that never had some streams."""
    bare: Any = copy.deepcopy(made)
    kept = {name: stream for name, stream in STREAMS.items() if name not in lost}
    bare.config = replace(made.config, streams=kept)

    def prune(owner: Any, names: str, *lists: str) -> None:
        have = getattr(owner, names)
        setattr(owner, names, [name for name in have if name not in lost])
        for modules in lists:
            pairs = zip(have, getattr(owner, modules), strict=True)
            setattr(owner, modules, nn.ModuleList(m for name, m in pairs if name not in lost))

    encoder = bare.core.network.encoder
    prune(bare, "stream_names", "stream_normalisers")
    prune(encoder, "names", "streams")
    encoder.cameras.camera_names = encoder.camera_names
    prune(encoder.cameras, "camera_names", "backbones", "heads")
    encoder.camera_names = encoder.cameras.camera_names
    return bare


def seen(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (2, batch, 2, SIDE, SIDE, 3), dtype=np.uint8)
    told = np.array([["open the drawer"] * 2, ["close it"] * 2, ["push"] * 2])[:batch]
    return {**observations(batch, seed), "front": pictures[0], "wrist": pictures[1], "task": told}


def put(path: Path, seed: int, **streams: Any) -> str:
    """Demonstrations with some more streams, each a function of the number of steps."""
    made = episodes([20, 25, 30, 15], seed)
    for episode in made:
        episode.sentence = streams.get("task")
        for name in streams.keys() - {"task"}:
            episode.observations[name] = streams[name](len(episode.actions))
    write_robomimic(path, made, "toy", {"control_freq": 10})
    return str(path)


def numbers(steps: int) -> np.ndarray:
    return np.linspace([5.0, -7.0], [9.0, -3.0], steps, dtype=np.float32)


def pictures(steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (steps, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """The first has numbers and a camera that the second lacks, the second has sentences."""
    first = put(tmp_path / "a.hdf5", 0, force=numbers, wrist=pictures)
    return first, put(tmp_path / "b.hdf5", 1, task="go home")


# -- network -----------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [["extra"], ["task"], ["wrist"], OPTIONAL])
def test_without_a_stream_the_network_is_one_that_never_had_it(lost: list[str]) -> None:
    made = sometimes_blind()
    windows = seen(3)
    given = {name: values for name, values in windows.items() if name not in lost}
    absent = made.predict_chunk(given, generators(3)).plan
    assert np.array_equal(absent, pruned(made, lost).predict_chunk(given, generators(3)).plan)
    nothing = {presence(name): np.zeros((3, 2, 1), np.float32) for name in lost}
    masked = made.predict_chunk({**windows, **nothing}, generators(3)).plan
    assert np.array_equal(masked, absent)
    assert not np.array_equal(masked, made.predict_chunk(windows, generators(3)).plan)


@pytest.mark.parametrize("name", ["ebt", "flow", "regression"])
def test_what_stands_in_for_a_stream_has_no_influence(name: Any) -> None:
    made = sometimes_blind(policy=name).eval()
    windows, other = seen(3), seen(3, seed=1)
    there = {"extra": [1, 0, 1], "wrist": [0, 0, 1], "task": [1, 1, 0]}
    masks = {
        presence(stream): np.array(rows, np.float32)[:, None, None].repeat(2, 1)
        for stream, rows in there.items()
    }
    changed = {stream: values.copy() for stream, values in windows.items()}
    for stream, rows in there.items():
        absent = np.array(rows) == 0
        changed[stream][absent] = other[stream][absent]
        if stream == "extra":
            changed[stream][absent] = 1e38
    whole = made.predict_chunk({**windows, **masks}, generators(3)).plan
    assert np.array_equal(whole, made.predict_chunk({**changed, **masks}, generators(3)).plan)
    for row in range(3):
        own = {
            stream: values[row : row + 1]
            for stream, values in windows.items()
            if there.get(stream, [1] * 3)[row]
        }
        alone = made.predict_chunk(own, generators(3)[row : row + 1]).plan
        assert np.allclose(whole[row], alone[0], atol=1e-3 * np.abs(whole).max())

    # Nor on what is learned.
    made.train()
    gradients = []
    for values in (windows, changed):
        torch.manual_seed(0)
        batch = made.raw_windows({**values, **masks})
        made.zero_grad()
        made(Batch(batch, torch.ones(3, 16, 2), torch.ones(3, 16, dtype=torch.bool))).backward()
        gradients.append([p.grad.clone() for p in made.parameters() if p.grad is not None])
    for one, another in zip(*gradients, strict=True):
        assert torch.equal(one, another)


def test_features_of_pictures_that_are_missing_have_no_influence() -> None:
    made = sometimes_blind().eval()
    raw = made.raw_windows(seen(2) | {presence("wrist"): np.array([[[1.0]], [[0.0]]]).repeat(2, 1)})
    features = torch.randn(2, 2, 32, 2, 2).half()
    other = torch.stack([features[0], torch.randn(2, 32, 2, 2).half()])
    one, another = (
        made.core.remember(made.normalise_observation({**raw, "wrist": given}))
        for given in (features, other)
    )
    assert torch.equal(one[0][0], another[0][0])


def test_numbers_are_noisy_in_training_alone() -> None:
    made = policy(observation_noise=0.1)
    given = {name: torch.from_numpy(values) for name, values in observations(4000).items()}
    normaliser = dict(made.named_normalisers())["state"]
    assert isinstance(normaliser, Normaliser)
    normaliser.moves[0] = 0  # as of a dimension that is constant in the demonstrations
    acting = made.eval().normalise_observation(given)
    before = torch.get_rng_state()
    assert torch.equal(policy().train().normalise_observation(given)["state"], acting["state"])
    assert torch.equal(torch.get_rng_state(), before)  # without noise, no draw
    noise = made.train().normalise_observation(given)["state"] - acting["state"]
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-6)
    assert not noise[..., 0].any()
    noise = noise[:, 0, 1:]
    assert noise.std() == pytest.approx(0.1 / 3**0.5, rel=0.1)  # of sizes from 0 to 0.1
    sizes = noise.square().mean(1).sqrt()
    assert sizes.quantile(0.1) < 0.02
    assert 0.1 < sizes.quantile(0.99) < 0.3
    with pytest.raises(UserError, match=r"observation_noise = -0.1: it must be at least 0"):
        config(observation_noise=-0.1)


def test_a_stream_is_dropped_in_training_alone() -> None:
    streams = config().streams | {"extra": StreamConfig((2, 3), dropout=0.25)}
    made = policy(streams=streams)
    given = {name: torch.from_numpy(values) for name, values in observations(400).items()}
    lacking = torch.ones(400, 2, 1)
    lacking[:100] = 0
    acting = made.eval().normalise_observation(given)
    assert acting.keys() == given.keys()
    made.train()
    dropped = made.normalise_observation(given)
    assert all(torch.equal(dropped[name], values) for name, values in acting.items())
    assert dropped.keys() - acting.keys() == {presence("extra")}
    there = dropped[presence("extra")]
    assert there.shape == (400, 2, 1)
    assert torch.equal(there[:, 0], there[:, 1])
    assert 0.68 < there.mean() < 0.82
    both = made.normalise_observation(given | {presence("extra"): lacking})[presence("extra")]
    assert not both[:100].any()
    assert 0.65 < both[100:].mean() < 0.85
    with pytest.raises(UserError, match=r"dropout = 1.0: it must lie in \[0, 1\)"):
        StreamConfig((2,), dropout=1.0)
    every = {name: replace(stream, dropout=0.5) for name, stream in config().streams.items()}
    lacking_the_other = streams | {"state": StreamConfig((5,), may_be_missing=True)}
    for blind in (every, lacking_the_other):
        with pytest.raises(UserError, match="leave one that is always there without dropout"):
            config(streams=blind)
    with pytest.raises(UserError, match="dropout is for numbers"):
        StreamConfig((8, 8, 3), kind="image", dropout=0.5)


# -- acting ------------------------------------------------------------------------------


def test_a_stream_is_left_out_where_it_may_be_missing_and_nowhere_else() -> None:
    made = sometimes_blind()
    whole = {name: values[0, 0] for name, values in seen(1).items()}
    less = {name: whole[name] for name in ("state", "front", "task")}

    def first(observation: dict[str, Any]) -> np.ndarray:
        made.reset()
        return made.select_action(observation, torch.Generator().manual_seed(0))

    assert np.array_equal(first(less), first({**whole, "extra": None, "wrist": None}))
    assert not np.array_equal(first(less), first(whole))
    for refused in ({k: v for k, v in whole.items() if k != "front"}, {**whole, "front": None}):
        with pytest.raises(UserError, match=r"no stream 'front' \(it has extra, state, task, wr"):
            first(refused)
    never = policy()
    given = observations(2)
    with pytest.raises(UserError, match="no stream 'extra'"):
        never.predict_chunk({"state": given["state"]})
    with pytest.raises(UserError, match="'extra' is missing from some windows"):
        never.predict_chunk(never.stacked([{k: v[0] for k, v in given.items()},
                                           {"state": given["state"][1]}]))  # fmt: skip
    either = {name: replace(s, may_be_missing=True) for name, s in config().streams.items()}
    with pytest.raises(UserError, match="none of the streams extra, state; each of them may be"):
        policy(streams=either).select_action({"extra": None})


def test_windows_that_have_different_streams_are_one_batch() -> None:
    made = sometimes_blind()
    steps = [{name: values[row, 0] for name, values in seen(3).items()} for row in range(3)]
    # In the second the camera comes back, too late for its window.
    told = [
        [steps[0]] * 2,
        [{**steps[1], "wrist": None}, steps[1]],
        [{**steps[2], "task": None}] * 2,
    ]
    windows = [made.window(some) for some in told]
    assert [sorted(STREAMS.keys() - window.keys()) for window in windows] == [
        [],
        ["wrist"],
        ["task"],
    ]
    batch = made.stacked(windows)
    assert batch[presence("wrist")][:, :, 0].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert presence("extra") not in batch
    together = made.predict_chunk(batch, generators(3)).plan
    for row, window in enumerate(windows):
        alone = made.predict_chunk(made.stacked([window]), generators(3)[row : row + 1]).plan
        assert np.allclose(together[row], alone[0], atol=1e-3 * np.abs(together).max())


def test_a_client_may_send_less() -> None:
    made = sometimes_blind()
    whole: dict[str, Any] = {name: values[0, 0] for name, values in seen(1).items()}
    whole["task"] = str(whole["task"])
    episode = Episode(made)
    episode.observe({"state": whole["state"], "observation/front": whole["front"], "task": None})
    assert sorted(episode.window()) == ["front", "state"]
    episode.observe(whole)
    assert sorted(episode.window()) == ["front", "state"]  # the window began without
    episode.observe(whole)
    assert sorted(episode.window()) == sorted(STREAMS)
    with pytest.raises(UserError, match="observation 'front' is missing"):
        episode.observe({"state": whole["state"]})


def test_what_needs_every_stream_refuses(tmp_path: Path) -> None:
    numbers = {n: s for n, s in STREAMS.items() if s.kind != "image"}
    made = config(streams=numbers, policy="regression")
    with pytest.raises(UserError, match="extra, task may be missing, and a graph takes all"):
        check_exportable(made)
    with pytest.raises(UserError, match="may miss extra, task; the energy of observations is of"):
        training_windows(tmp_path, make_policy(made), "x.hdf5")


def test_a_policy_saved_before_streams_could_be_missing_is_one_that_has_all() -> None:
    saved = json.loads(to_json(config()))
    for stream in saved["streams"].values():
        del stream["may_be_missing"], stream["dropout"]
    assert from_json(PolicyConfig, json.dumps(saved), "config.json") == config()


# -- data --------------------------------------------------------------------------------


def test_statistics_are_of_where_a_stream_is(two: tuple[str, str], tmp_path: Path) -> None:
    parts = [open_demonstrations(path) for path in two]
    mixture = MixedDemonstrations(parts)
    assert list(choose_streams(mixture, None)) == ["state"]  # what both have
    streams = choose_streams(mixture, "state,force,wrist,task")
    made = make_policy(config(streams=streams))
    assert made.config.may_be_missing == ["force", "wrist", "task"]
    arrays = load_arrays(mixture, streams)
    store_arrays(mixture, streams, tmp_path / "arrays")
    mapped = map_arrays(tmp_path / "arrays")
    assert mapped.observations.keys() == arrays.observations.keys()
    for name, values in arrays.observations.items():
        assert np.array_equal(mapped.observations[name], values)
    assert np.array_equal(arrays.observations["force"][:90], parts[0].read("force", 0, 90))
    made.fit_normalisers(
        arrays.observations, arrays.actions, np.arange(180), "test", arrays.sentences
    )
    force: Any = made.stream_normalisers[0]
    assert force.centre.tolist() == [7, -5]
    assert force.half_range.tolist() == [2, 2]
    windows = Windows(mapped, mixture.episode_ends, np.arange(8), made.config.windows)
    batch = windows.gather(torch.tensor([0, 89, 90]))
    assert batch.observations[presence("wrist")][..., 0].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert batch.observations[presence("task")][..., 0].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert presence("state") not in batch.observations
    assert made(batch).isfinite()
    with pytest.raises(UserError, match="no episode that is learned from has observation 'force'"):
        made.fit_normalisers(
            arrays.observations, arrays.actions, np.arange(90, 180), "test", arrays.sentences
        )


def test_bad_mixtures_are_named(two: tuple[str, str], tmp_path: Path) -> None:
    first, second = (open_demonstrations(path) for path in two)
    mixture = MixedDemonstrations([first, second])
    with pytest.raises(UserError, match="no observation key 'writs'; there are force, state, wr"):
        choose_streams(mixture, "state,writs")
    with pytest.raises(UserError, match=r"b.hdf5: has none of the observations force, wrist"):
        load_arrays(mixture, choose_streams(mixture, "force,wrist"))
    throughout = {"state": StreamConfig((3,)), "force": StreamConfig((2,))}
    with pytest.raises(UserError, match=r"b.hdf5: has no observation 'force', which is not among"):
        load_arrays(mixture, throughout)
    wider = open_demonstrations(
        put(tmp_path / "wider.hdf5", 2, force=lambda steps: np.zeros((steps, 3), np.float32))
    )
    with pytest.raises(UserError, match=r"wider.hdf5: observation 'force' has shape \(3,\) per st"):
        choose_streams(MixedDemonstrations([first, wider]), "force")


# -- the whole way -----------------------------------------------------------------------


def test_data_of_other_actions_are_described_and_no_mixture(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = episodes([20, 20])
    for episode in made:
        episode.actions = np.repeat(episode.actions, 2, 1)
    write_robomimic(tmp_path / "wide.hdf5", made, "toy", {"control_freq": 10})
    assert main(["data", "info", two[0], str(tmp_path / "wide.hdf5")]) == 0
    assert "no mixture: " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("tiny")
def test_train_with_less_in_one_of_two_data_sets_and_roll_out(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", *two]) == 0
    lacking = f"{two[0]} has no task; {two[1]} has no force, no wrist"
    assert capsys.readouterr().out.endswith(f"{lacking}\n")
    both = [part for path in two for part in ("--data", path)]
    run = tmp_path / "run"
    command = ["train", *both, "--obs", "state,force,wrist,task", "--preset", "tiny"]
    command += ["--set", "training.validation_share=0.3", "--steps", "3"]
    assert main([*command, "--out", str(run)]) == 0
    assert lacking in capsys.readouterr().err
    trained = load_policy(run)
    assert trained.config.may_be_missing == ["force", "wrist", "task"]
    assert "validation_action_mse" in (run / "metrics.jsonl").read_text()
    result = tmp_path / "result.json"
    assert main(["eval", str(run), "--task", TASK, "--episodes", "2", "--json", str(result)]) == 0
    assert "2 episodes, without force, task, wrist" in capsys.readouterr().out
    assert json.loads(result.read_text())["missing"] == ["force", "task", "wrist"]
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    # One data set alone has all that is named, or it is an error.
    alone = [*command[:3], *command[5:], "--out", str(tmp_path / "no")]
    assert main(alone) == 2
    assert "no observation key 'task'" in capsys.readouterr().err
