"""Policies: one interface, saved and loaded exactly, strict about what they are given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import NETWORK, config, generators, observations, policy
from ebt_policy import Batch, EnergyPolicy, UserError, load_policy, save_policy
from ebt_policy.config import (
    DescentConfig,
    DiffusionConfig,
    FlowConfig,
    IBCConfig,
    PolicyConfig,
    from_json,
    override,
    to_json,
)
from ebt_policy.policies import POLICIES, IBCPolicy
from ebt_policy.windows.normaliser import Normaliser

ALL: list[Any] = list(POLICIES)


@pytest.mark.parametrize("name", ALL)
def test_save_and_load_give_bit_identical_actions(tmp_path: Path, name: Any) -> None:
    made = policy(policy=name)
    save_policy(made, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["policy"] == name
    seen = observations(3)
    before = made.predict_chunk(seen, generators(3)).plan
    assert (load_policy(tmp_path).predict_chunk(seen, generators(3)).plan == before).all()
    with torch.inference_mode():  # a policy that is loaded inside can still descend
        loaded = load_policy(tmp_path)
    assert (loaded.predict_chunk(seen, generators(3)).plan == before).all()


@pytest.mark.parametrize("name", ALL)
def test_alone_or_in_a_batch_gives_the_same_actions(name: Any) -> None:
    made = policy(policy=name)
    seen = observations(4)
    together = made.predict_chunk(seen, generators(4)).plan
    alone = made.predict_chunk({k: v[2:3] for k, v in seen.items()}, [generators(4)[2]]).plan
    assert abs(alone[0] - together[2]).max() / 250 < 1e-5


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in ALL),
     ("diffusion", {"diffusion": DiffusionConfig(prediction="sample")})],
)  # fmt: skip
def test_every_policy_learns_a_chunk_and_predicts_it(name: Any, settings: Any) -> None:
    made = policy(policy=name, **settings)
    seen = observations(16)
    target = 80 * torch.sin(torch.arange(32.0)).reshape(1, 16, 2).expand(16, 16, 2)
    batch = Batch(
        {k: torch.from_numpy(v) for k, v in seen.items()},
        target, torch.ones(16, 16, dtype=torch.bool),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)

    def error() -> float:
        plan = made.predict_chunk(seen, generators(16)).plan
        return float(np.sqrt(np.mean((plan - target.numpy()) ** 2)))

    before = error()
    # The search of IBC wanders around its minimum, and its training is slow.
    for _ in range(25 if name == "ibc" else 100):
        optimizer.zero_grad()
        made(batch).backward()
        optimizer.step()
    assert error() < (0.7 if name == "ibc" else 0.4) * before


def test_masked_actions_do_not_count_in_the_loss() -> None:
    made = policy(policy="regression")
    seen = {k: torch.from_numpy(v) for k, v in observations(4).items()}
    actions, valid = torch.zeros(4, 16, 2), torch.ones(4, 16, dtype=torch.bool)
    valid[:, 10:] = False
    changed = actions.clone()
    changed[:, 10:] = 1e3
    assert made(Batch(seen, actions, valid)) == made(Batch(seen, changed, valid))


def test_policies_share_network_and_size() -> None:
    sizes = {name: sum(p.numel() for p in policy(policy=name).parameters()) for name in ALL}
    levels = 2 * (NETWORK.width * NETWORK.width + NETWORK.width)
    # The energy has one more output per action, 16 learned tokens for "no chunk yet", and the
    # head of 8 ways of 2 action dimensions.
    width = NETWORK.width
    ways = width + width * width + width + (width + 1) * (8 * 2 + 8)
    offset = width + 1
    assert sizes["ebt"] == sizes["regression"] + offset + 16 * width + ways
    assert sizes["ibc"] == sizes["regression"] + offset
    assert sizes["diffusion"] == sizes["flow"] == sizes["mip"] == sizes["regression"] + levels


def test_select_action_follows_the_time_line() -> None:
    made = policy(policy="regression")  # without chance
    calls = []
    original = made.predict_chunk

    def recorded(seen: Any, *others: Any) -> Any:
        calls.append(seen["state"][0, :, 0].tolist())
        return original(seen, *others)

    made.predict_chunk = recorded  # type: ignore[method-assign, assignment]
    one = observations(1)
    actions = []
    for step in range(17):
        state = one["state"][0, 0].copy()
        state[0] = step
        actions.append(made.select_action({"state": state, "extra": one["extra"][0, 0]}))
    assert calls == [[0, 0], [7, 8], [15, 16]]
    first = original(
        {
            "state": np.repeat(np.r_[0, one["state"][0, 0, 1:]][None, None], 2, 1),
            "extra": one["extra"][:, :1].repeat(2, 1),
        }
    )
    assert np.allclose(actions[:8], first.actions[0], atol=1e-3)
    made.reset()
    made.select_action({"state": state, "extra": one["extra"][0, 0]})
    assert calls[-1] == [16, 16]


def test_samplers_of_the_diffusion_policy() -> None:
    made = policy(policy="diffusion")
    seen = observations(2)
    steps = {}
    choices: list[Any] = [("ddpm", 100), ("ddim", 10), ("ddim", 2)]
    for sampler, count in choices:
        settings = DiffusionConfig(sampler=sampler, ddim_steps=count)
        other = made.with_sampling(settings)
        prediction = other.predict_chunk(seen, generators(2))
        steps[sampler, count] = prediction.evaluations.tolist()
        again = other.predict_chunk(seen, generators(2))
        assert (again.plan == prediction.plan).all()  # the generators are all of its randomness
    assert steps == {("ddpm", 100): [100] * 2, ("ddim", 10): [10] * 2, ("ddim", 2): [2] * 2}


def test_diffusion_learns_the_actions_where_it_is_to_predict_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions, seen = torch.full((4, 16, 2), 0.5), observations(4)
    losses, plans = {}, {}
    for prediction in ("sample", "epsilon"):
        settings = DiffusionConfig(prediction=cast(Any, prediction))
        made = policy(policy="diffusion", diffusion=settings)
        # A network that answers nought errs by what it should have answered.
        monkeypatch.setattr(made.core, "forward", lambda chunks, *_: torch.zeros_like(chunks))
        given = {name: torch.from_numpy(value).float() for name, value in seen.items()}
        losses[prediction] = made.errors(made.normalise_observation(given), actions)
        plans[prediction] = made.predict_chunk(seen, generators(4)).plan
    assert losses["sample"].unique().tolist() == [0.25]
    assert losses["epsilon"].mean().item() == pytest.approx(1, 0.5)
    # Nothing is the middle of what was demonstrated; noise that is nought was none.
    middle = made.action_normaliser.unnormalise(torch.zeros(2)).numpy()
    assert np.abs(plans["sample"] - middle).max() < 1e-3
    assert np.abs(plans["epsilon"] - middle).max() > 1


def test_what_diffusion_was_trained_to_predict_stays() -> None:
    made = policy(policy="diffusion", diffusion=DiffusionConfig(prediction="sample"))
    other = made.with_sampling(replace(made.config.diffusion, ddim_steps=2))
    assert other.config.diffusion == replace(made.config.diffusion, ddim_steps=2)
    with pytest.raises(UserError, match=r"diffusion.prediction = epsilon: .* trained for sample"):
        made.with_sampling(DiffusionConfig())
    with pytest.raises(UserError, match=r"diffusion.training_steps = 50: .* trained for 100"):
        made.with_sampling(replace(made.config.diffusion, training_steps=50))


def test_mean_of_samples_of_the_diffusion_policy() -> None:
    made = policy(policy="diffusion")
    seen = observations(2)
    settings = DiffusionConfig(ddim_steps=3)
    found = made.with_sampling(replace(settings, samples=4)).predict_chunk(seen, generators(2))
    assert found.evaluations.tolist() == [3, 3]
    one, draws = made.with_sampling(settings), generators(2)
    plans = [one.predict_chunk(seen, draws).plan for _ in range(4)]  # from the same draws
    assert np.ptp(plans, 0).max() > 1
    assert np.allclose(found.plan, np.mean(plans, 0), atol=1e-3)


def test_flow_takes_as_many_euler_steps_as_it_is_told() -> None:
    made = policy(policy="flow")
    seen = observations(2)
    plans = {}
    for count in (1, 2, 10):
        prediction = made.with_sampling(FlowConfig(steps=count)).predict_chunk(seen, generators(2))
        assert prediction.evaluations.tolist() == [count] * 2
        plans[count] = prediction.plan
    assert abs(plans[1] - plans[2]).max() > 1e-3
    assert abs(plans[2] - plans[10]).max() < abs(plans[1] - plans[10]).max()


@pytest.mark.parametrize("search", ["derivative-free", "langevin"])
def test_ibc_searches_the_lowest_energy(search: Any) -> None:
    made = policy(policy="ibc", ibc=IBCConfig(search=search))
    assert isinstance(made, IBCPolicy)
    seen = observations(2)
    observed = made.normalise_observation({k: torch.from_numpy(v) for k, v in seen.items()})
    energy = made.energy.given(made.energy.remember(observed))
    found = {}
    for samples, iterations in ((1, 1), (64, 8)):
        settings = IBCConfig(search=search, samples=samples, iterations=iterations)
        chunk, evaluations, _ = made.with_sampling(settings).sample(observed, generators(2), None)
        assert abs(chunk).max() <= 1
        assert evaluations.tolist() == [iterations + 1] * 2
        found[samples] = energy(chunk)
    assert (found[64] < found[1]).all()


def test_actions_stay_in_the_demonstrated_range_and_constants_are_kept() -> None:
    torch.manual_seed(0)
    made = policy(policy="regression")
    values = np.random.default_rng(0).uniform(-2, 3, (50, 2)).astype(np.float32)
    values[:, 1] = 0.25
    made.action_normaliser.fit([values], "test")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(10)
    plan = made.predict_chunk(observations(5)).plan
    assert plan[..., 0].min() >= values[:, 0].min() - 1e-5
    assert plan[..., 0].max() <= values[:, 0].max() + 1e-5
    assert np.allclose(plan[..., 1], 0.25)


def wrong(change: str) -> dict[str, np.ndarray]:
    seen = observations(2)
    if change == "missing":
        del seen["extra"]
    elif change == "shape":
        seen["state"] = seen["state"][..., :4]
    elif change == "window":
        seen["state"] = seen["state"][:, :1]
    elif change == "nan":
        seen["state"][1, 0, 2] = np.nan
    else:
        seen["state"] = seen["state"][:1]
    return seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"no stream 'extra' \(it has state\)"),
        ("shape", r"'state' has shape \(2, 2, 4\), expected \('batch', 2, 5\)"),
        ("window", r"'state' has shape \(2, 1, 5\), expected"),
        ("nan", "'state' holds nan"),
        ("batch", r"differ in batch size \(extra: 2, state: 1\)"),
    ],
)
def test_bad_observations_are_named(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy().predict_chunk(wrong(change))


def test_numbers_far_beyond_the_demonstrations_are_seen_at_the_limit() -> None:
    made = policy(policy="regression", observation_limit=1.5)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    normaliser = dict(made.named_normalisers())["extra"]
    assert isinstance(normaliser, Normaliser)

    def plan(far: float) -> np.ndarray:
        """With a number so far from the middle of the demonstrations, in half their range."""
        seen = observations(3)
        for name, values in seen.items():
            values[:] = np.clip(values, -0.5, 0.5) if name == "state" else 0
        value = normaliser.centre[1] + far * normaliser.half_range[1]
        seen["extra"].reshape(3, 2, 6)[..., 1] = value
        return made.predict_chunk(seen).plan

    assert not np.allclose(plan(1.2), plan(1.5))
    assert np.allclose(plan(1.5), plan(20), rtol=1e-4, atol=1e-4)
    assert not np.allclose(plan(-1.5), plan(1.5))


def test_text_for_numbers_is_named() -> None:
    seen = {"state": "left", "extra": np.zeros((2, 3))}
    with pytest.raises(UserError, match="observation 'state' is no array of numbers"):
        policy().select_action(seen)


def test_loading_is_strict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_policy(tmp_path)
    save_policy(policy(), tmp_path)
    weights, text = tmp_path / "model.safetensors", (tmp_path / "config.json").read_text()
    tensors = load_file(weights)

    other = replace(config(), network=replace(NETWORK, width=32))
    (tmp_path / "config.json").write_text(to_json(other))
    with pytest.raises(UserError, match="the weights are of another architecture"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text(text)

    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_policy(tmp_path)
    save_file(tensors | {"surplus": torch.zeros(2)}, weights)
    with pytest.raises(UserError, match="surplus"):
        load_policy(tmp_path)
    save_file(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_policy(tmp_path)


def test_configuration_round_trip_and_overrides() -> None:
    made = config(policy="diffusion")
    assert from_json(PolicyConfig, to_json(made), "here") == made
    changed = override(
        made, ["descent.steps=5", "form=scalar", "basin.noise=1", "descent.max_ms=3"]
    )
    assert (changed.descent.steps, changed.form) == (5, "scalar")
    assert (changed.basin.noise, changed.descent.max_ms) == (1.0, 3.0)
    assert override(changed, ["descent.max_ms=null"]).descent.max_ms is None
    both = ["windows.horizon=4", "windows.action_steps=2"]
    assert override(made, both) == override(made, both[::-1])  # whatever the order


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("descent.step=3", "no setting 'step'; there are max_ms, momentum"),
        ("descent.steps", "write it as name=value"),
        ("descent.steps=two", "'two' is not of type int"),
        ("descent.steps=true", "True is not of type int"),
        ("form=cubic", "'cubic' is not one of residual, scalar"),
        ("descent.steps=0", "descent.steps = 0: it must be at least 1"),
        ("action_dim.x=0", "no setting 'x'"),
        ("windows.action_steps=16", "exceeds horizon = 16"),
        ("network.heads=3", "even multiple of heads = 3"),
        ("network.attention_dropout=2", "attention_dropout = 2.0"),
        ("diffusion.ddim_steps=200", "ddim_steps = 200: at most"),
        ("mip.level=1", "mip.level = 1.0"),
        ("observation_limit=0.9", "observation_limit = 0.9: it must be at least 1"),
        ("unrolled.extra_steps=0", "extra_steps = 0: it must be at least 1"),
    ],
)
def test_wrong_settings_are_named(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(config(), [assignment])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(surplus=1), "unknown setting 'surplus'"),
        (lambda c: c.pop("action_dim"), "setting 'action_dim' is missing"),
        (lambda c: c["windows"].update(horizon="16"), "horizon: '16' is not of type int"),
        (lambda c: c.update(streams={}), "streams is empty"),
    ],
)
def test_damaged_configuration_is_named(change: Any, message: str) -> None:
    content = json.loads(to_json(config()))
    change(content)
    with pytest.raises(UserError, match=message):
        from_json(PolicyConfig, json.dumps(content), "run/config.json")
    with pytest.raises(UserError, match=r"run/config\.json: not valid JSON"):
        from_json(PolicyConfig, "{", "run/config.json")


def test_other_sampling_leaves_the_policy_as_it_was() -> None:
    made = policy()
    other = made.with_sampling(DescentConfig(steps=9))
    assert (made.config.descent.steps, other.config.descent.steps) == (2, 9)
    assert next(made.parameters()) is next(other.parameters())
    assert other.predict_chunk(observations(1)).evaluations.tolist() == [9]
    assert made.predict_chunk(observations(1)).evaluations.tolist() == [2]


def test_energy_head_and_descent_stay_in_float32_under_autocast() -> None:
    made = policy()
    assert isinstance(made, EnergyPolicy)
    seen = observations(2)
    plain = made.predict_chunk(seen, generators(2))
    kinds = []
    made.energy.network.transformer.head.register_forward_hook(lambda *a: kinds.append(a[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made.predict_chunk({k: torch.from_numpy(v).bfloat16() for k, v in seen.items()})
        same = made.predict_chunk(seen, generators(2))
        batch = Batch(
            {k: torch.from_numpy(v) for k, v in seen.items()},
            torch.zeros(2, 16, 2), torch.ones(2, 16, dtype=torch.bool),
        )  # fmt: skip
        made(batch)
    assert set(kinds) == {torch.float32}
    assert (same.plan == plain.plan).all()
    assert inside.plan.shape == plain.plan.shape


def test_empty_batch_is_named() -> None:
    with pytest.raises(UserError, match="the batch of observations is empty"):
        policy().predict_chunk({k: v[:0] for k, v in observations(1).items()})


def test_fewer_actions_of_a_chunk_may_be_executed_than_in_training() -> None:
    made = policy(policy="regression")
    fewer = made.with_sampling(action_steps=3)
    whole, some = (p.predict_chunk(observations(2), generators(2)) for p in (made, fewer))
    assert np.array_equal(some.actions, whole.actions[:, :3])
    assert np.array_equal(some.plan, whole.plan)
    with pytest.raises(UserError, match="17 exceeds horizon = 16"):
        made.with_sampling(action_steps=16)
