"""The descent: per sample, in any context, best of several starts."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import config, generators, observations, policy
from ebt_policy.config import BasinConfig, DescentConfig
from ebt_policy.descent import Smoothness, Trace, best_of, descend, mean_of
from ebt_policy.errors import UserError
from ebt_policy.objectives.unrolled import unrolled
from ebt_policy.policies import EnergyPolicy
from ebt_policy.policies.base import moved_on

ANNEALED = DescentConfig(rule="annealed", noise=0.0, start="noise", steps=3, starts=2)
SETTINGS = {
    "basin": DescentConfig(steps=3),
    "several starts": DescentConfig(steps=3, starts=4),
    "from noise": DescentConfig(steps=3, starts=2, start="noise", noise=0.0),
    "without noise": DescentConfig(steps=3, noise=0.0),
    "energy-scaled": DescentConfig(
        steps=4, rule="energy", momentum=0.9, start="noise", normalise=True, step_size=0.2
    ),
    "stopping": DescentConfig(steps=6, tolerance=0.1, step_size=0.3),
    "annealed": ANNEALED,
    "annealed, mean": replace(ANNEALED, pick="mean"),
}


def bowl(x: Tensor) -> Tensor:
    """A quadratic around 1: one unit step lands on its minimum."""
    return 0.5 * (x - 1).square().sum((1, 2))


def test_one_unit_step_lands_in_a_bowl_of_curvature_one() -> None:
    actions, trace = descend(bowl, torch.randn(3, 4, 2), DescentConfig(steps=1, noise=0.0))
    assert torch.allclose(actions, torch.ones(3, 4, 2), atol=1e-6)
    assert torch.allclose(trace.energy[:, -1], torch.zeros(3), atol=1e-6)
    assert trace.steps.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", SETTINGS)
def test_alone_or_in_a_batch_gives_the_same_actions(name: str) -> None:
    objective = "annealed" if name.startswith("annealed") else "basin"
    made = policy(objective=objective, descent=SETTINGS[name])
    seen = observations(5)
    together = made.predict_chunk(seen, generators(5))
    for i in range(5):
        alone = made.predict_chunk({k: v[i : i + 1] for k, v in seen.items()}, [generators(5)[i]])
        # Actions are in units of about 100 here; 1e-5 is of the normalised range.
        assert abs(alone.plan[0] - together.plan[i]).max() / 250 < 1e-5
        assert alone.evaluations[0] == together.evaluations[i]


def test_best_of_n_returns_the_start_with_the_lowest_final_energy() -> None:
    made = policy(descent=DescentConfig(steps=2, starts=6))
    assert isinstance(made, EnergyPolicy)
    with torch.no_grad():
        seen = made.normalise_observation(
            {k: torch.from_numpy(v) for k, v in observations(3).items()}
        )
        memory = made.energy.remember(seen)
        start, noise, taken = made.starts(memory, generators(3), None)
        assert taken == 1
        energy = made.energy.given(memory, 6)
        every, trace = descend(energy, start, made.config.descent, noise, taken=taken)
        chosen, kept = best_of(every, trace, 6)
        energies = made.energy.given(memory, 6)(every).reshape(3, 6)
        assert torch.allclose(made.energy.given(memory)(chosen), energies.min(1).values)
        assert torch.allclose(kept.energy[:, -1], energies.min(1).values, atol=1e-6)
        assert (energies.max(1).values - energies.min(1).values > 1e-4).all()
        sampled, _, _ = made.sample(seen, generators(3), None)
        assert torch.equal(sampled, chosen)


def test_mean_of_n_returns_the_mean_and_its_own_energy() -> None:
    path = [torch.arange(4.0).reshape(4, 1, 1)]
    trace = Trace(
        torch.tensor([[1.0, 9.0], [3.0, 9.0], [0.0, 9.0], [2.0, 9.0]]),
        torch.tensor([[1.0], [2.0], [3.0], [5.0]]), torch.tensor([2, 2, 1, 2]), path,
    )  # fmt: skip
    actions, mean = mean_of(torch.tensor([0.0, 2, 4, 8]).reshape(4, 1, 1), trace, 2, bowl)
    assert actions.flatten().tolist() == [1, 6]
    assert mean.energy.tolist() == [[2.0, 0.0], [1.0, 12.5]]  # of the bowl at 1 and at 6
    assert mean.gradient_norm.tolist() == [[1.5], [4.0]]
    assert mean.steps.tolist() == [2, 2]
    assert mean.path[0].flatten().tolist() == [0.5, 2.5]
    made = policy(objective="annealed")
    many = replace(ANNEALED, starts=64, pick="mean")
    middle = made.with_sampling(many).predict_chunk(observations(2), generators(2))
    lowest = made.with_sampling(replace(many, pick="lowest"))
    one = lowest.predict_chunk(observations(2), generators(2))
    assert middle.plan.shape == one.plan.shape
    assert np.abs(middle.plan - one.plan).max() > 1e-3


def test_best_of_n_never_returns_a_start_whose_energy_is_nan() -> None:
    energies = torch.tensor([[torch.nan], [2.0], [1.0]])
    trace = Trace(energies, energies, torch.zeros(3, dtype=torch.int64))
    chosen, _ = best_of(torch.arange(3.0).reshape(3, 1, 1), trace, 3)
    assert chosen.item() == 2


def test_the_first_small_step_is_a_samples_last() -> None:
    start = torch.cat([torch.full((1, 4, 2), 1.001), torch.full((1, 4, 2), 5.0)])
    settings = DescentConfig(steps=5, step_size=0.2, tolerance=0.01, momentum=0.5, noise=0.0)
    actions, trace = descend(bowl, start, settings, keep_path=True)
    once = 1 + 0.8 * (start[0] - 1)
    assert torch.allclose(actions[0], once)
    assert trace.steps.tolist() == [1, 5]
    assert all(torch.equal(iterate[0], actions[0]) for iterate in trace.path[1:])
    assert (actions[1] - 1).abs().max() < (start[1] - 1).abs().max()


def test_descent_ends_early_when_every_sample_has_stopped() -> None:
    settings = DescentConfig(steps=50, tolerance=1e-4, noise=0.0)
    _, trace = descend(bowl, torch.randn(4, 4, 2), settings)
    assert trace.gradient_norm.shape[1] == 2  # one step lands, the second sees a zero gradient
    assert trace.steps.tolist() == [2, 2, 2, 2]


def test_every_step_walks_and_then_jumps() -> None:
    draws = torch.randn(4, 3, 4, 2)
    settings = DescentConfig(steps=4, step_size=0.5, noise=0.3)
    actions, trace = descend(bowl, torch.ones(3, 4, 2), settings, draws)
    expected = torch.ones(3, 4, 2)
    for draw in draws:
        walked = expected + 0.3 * draw
        expected = walked - 0.5 * (walked - 1)
    assert torch.allclose(actions, expected, atol=1e-6)
    assert trace.steps.tolist() == [4, 4, 4]


def test_time_limit_stops_between_steps() -> None:
    calls = 0

    def slow(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        torch.randn(600, 600) @ torch.randn(600, 600)
        return bowl(x)

    settings = DescentConfig(steps=10_000, max_ms=5.0, step_size=0.01, noise=0.0)
    _, trace = descend(slow, torch.randn(1, 4, 2), settings)
    assert 1 <= int(trace.steps[0]) < 10_000
    assert calls == int(trace.steps[0]) + 1


@pytest.mark.parametrize(
    "context", [nullcontext, torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__
)
def test_every_context_gives_the_same_actions(context: Any) -> None:
    made = policy(descent=SETTINGS["several starts"])
    seen = {k: torch.from_numpy(v) for k, v in observations(3).items()}
    plain = made.predict_chunk(seen, generators(3)).plan
    with context():
        inside = {k: v.clone() for k, v in seen.items()}  # inference tensors, where that is on
        assert (made.predict_chunk(inside, generators(3)).plan == plain).all()
        start = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
        moved, _ = descend(bowl, start, DescentConfig(steps=1, noise=0.0))
        assert torch.allclose(moved, torch.ones(2, 4, 2), atol=1e-6)


def test_langevin_noise_needs_its_draws() -> None:
    with pytest.raises(ValueError, match="noise"):
        descend(bowl, torch.zeros(1, 4, 2), DescentConfig(noise=0.1))


def test_warm_start_begins_from_what_was_planned() -> None:
    made = policy(descent=DescentConfig(steps=1, warm_start=True, step_size=1e-6, noise=0.0))
    previous = torch.arange(32.0).reshape(1, 16, 2).numpy()
    plan = made.predict_chunk(observations(1), generators(1), moved_on(previous, 8)).plan
    # A tiny step stays at the start: the last half of the previous chunk, then its last action.
    assert abs(plan[0, :8] - previous[0, 8:]).max() < 1e-2
    assert abs(plan[0, 8:] - previous[0, -1]).max() < 1e-2


def test_the_first_step_lands_on_the_proposal_without_a_gradient() -> None:
    made = policy(descent=DescentConfig(steps=1))
    assert isinstance(made, EnergyPolicy)
    raw = {k: torch.from_numpy(v) for k, v in observations(3).items()}
    seen = made.normalise_observation(raw)
    with torch.no_grad():
        proposal = made.proposal(made.energy.remember(seen), generators(3))
        chunk, evaluations, trace = made.sample(seen, generators(3), None)
    assert torch.equal(chunk, proposal)
    assert evaluations.tolist() == [1, 1, 1]
    assert trace is not None
    assert trace.energy.shape == (3, 1)
    assert trace.gradient_norm.shape == (3, 0)
    more = made.with_sampling(DescentConfig(steps=3, noise=0.0))
    assert isinstance(more, EnergyPolicy)
    with torch.no_grad():
        _, evaluations, trace = more.sample(seen, generators(3), None, keep_path=True)
    assert evaluations.tolist() == [3, 3, 3]
    assert trace is not None
    assert torch.equal(trace.path[0], proposal)
    assert trace.gradient_norm.shape == (3, 2)


@pytest.mark.parametrize(
    ("frequencies", "expected"),
    [
        ([0.5, 0.2, 0.3], [0.5, 0.2, 0.3]),
        ([0.5, 0.18, 0.32], [0.5, 0.18, 0.32]),
        ([0.5, 0.15, 0.35], [0.588, 0.0, 0.412]),  # half of a third is the least
    ],
)
def test_ways_are_taken_as_often_as_their_logits_say_or_never(
    monkeypatch: pytest.MonkeyPatch, frequencies: list[float], expected: list[float]
) -> None:
    made = policy()
    assert isinstance(made, EnergyPolicy)
    ways = torch.arange(3.0).reshape(1, 3, 1, 1).expand(4000, 3, 16, 2)
    logits = torch.tensor(frequencies).log().expand(4000, 3)
    monkeypatch.setattr(made.energy, "proposals", lambda memory, prefix: (ways, logits))
    taken = made.proposal([], generators(4000))[:, 0, 0]
    shares = [(taken == way).float().mean().item() for way in range(3)]
    assert shares == pytest.approx(expected, abs=0.03)
    assert [share == 0 for share in shares] == [share == 0 for share in expected]


def test_noise_is_smooth_over_the_chunk_and_each_start_has_its_own() -> None:
    made = policy(descent=DescentConfig(steps=3, starts=100))
    assert isinstance(made, EnergyPolicy)
    raw = {k: torch.from_numpy(v) for k, v in observations(2).items()}
    with torch.no_grad():
        memory = made.energy.remember(made.normalise_observation(raw))
        start, noise, taken = made.starts(memory, generators(2), None)
        proposal = made.proposal(memory, generators(2))
    assert torch.equal(start, proposal.repeat_interleave(100, 0))
    assert taken == 1
    assert noise is not None
    assert noise.shape == (2, 200, 16, 2)  # two steps are left after the proposal
    assert noise.square().mean().item() == pytest.approx(1, rel=0.1)
    assert (noise[:, :, 1:] - noise[:, :, :-1]).square().mean() < 0.3
    assert (
        abs(torch.corrcoef(torch.stack([noise[0, 0].flatten(), noise[0, 1].flatten()]))[0, 1]) < 0.9
    )


def test_unrolled_result_does_not_depend_on_the_batch() -> None:
    """The released code normalises over the whole batch; here every sample is its own."""
    made = policy(objective="unrolled")
    seen = observations(4)
    together = made.predict_chunk(seen, generators(4)).plan
    seen_other = {k: v.copy() for k, v in seen.items()}
    for values in seen_other.values():
        values[1:] *= 3
    other = made.predict_chunk(seen_other, generators(4)).plan
    assert abs(together[0] - other[0]).max() / 250 < 1e-5
    assert abs(together[1] - other[1]).max() > 1e-3


def test_unrolled_keeps_the_graph_of_the_last_step_only() -> None:
    settings = config(objective="unrolled")
    weight = torch.ones((), requires_grad=True)
    graphs = []

    def energy(x: Tensor) -> Tensor:
        graphs.append(x.requires_grad)
        return weight * bowl(x)

    errors = unrolled(energy, torch.zeros(4, 16, 2), settings.unrolled, settings.descent)
    errors.mean().backward()
    assert weight.grad is not None
    assert weight.grad.abs() > 0
    assert (
        settings.unrolled.min_steps
        <= len(graphs)
        < (settings.unrolled.min_steps + settings.unrolled.extra_steps)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("starts", 0),
        ("max_ms", -1.0),
        ("step_size", 0.0),
        ("momentum", -0.1),
        ("noise", -0.1),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(UserError, match=f"descent.{name} = "):
        DescentConfig(**changes)


def test_several_starts_without_spread_are_refused() -> None:
    with pytest.raises(UserError, match="would all be the same"):
        DescentConfig(starts=4, noise=0.0)
    with pytest.raises(UserError, match="would all be the same"):
        DescentConfig(starts=4, steps=1)


def test_only_basin_trains_a_proposal() -> None:
    with pytest.raises(UserError, match=r"descent.start = proposal: objective = unrolled"):
        config(objective="unrolled", descent=DescentConfig())


def test_smoothness_is_one_more_energy() -> None:
    """One step from anywhere, in a bowl of curvature one, lands where the sum is lowest."""
    smoothness = Smoothness.of(0.7, 9, 3, torch.device("cpu"))
    start = torch.randn(2, 9, 2)
    free = torch.ones(2, 9, 1)
    free[:, :3] = 0
    settings = DescentConfig(steps=1, noise=0.0)
    actions, _ = descend(bowl, start, settings, free=free, smoothness=smoothness)
    assert torch.equal(actions[:, :3], start[:, :3])
    found = actions.clone().requires_grad_()
    total = bowl(found).sum() + 0.5 * 0.7 * found.diff(n=3, dim=1).square().sum()
    (gradient,) = torch.autograd.grad(total, found)
    assert gradient[:, 3:].abs().max() < 1e-4
    centre = torch.where(free > 0, torch.ones(2, 9, 2), start)
    assert torch.allclose(smoothness.between(centre), actions, atol=1e-5)


def test_a_chunk_shorter_than_jerk_is_smooth() -> None:
    smoothness = Smoothness.of(0.7, 3, 1, torch.device("cpu"))
    chunk = torch.randn(1, 3, 2)
    assert torch.equal(smoothness.between(chunk), chunk)
    free = torch.tensor([[[0.0], [1.0], [1.0]]])
    settings = DescentConfig(steps=1, noise=0.0)
    actions, _ = descend(bowl, chunk, settings, free=free, smoothness=smoothness)
    assert torch.allclose(actions[:, 1:], torch.ones(1, 2, 2))


def _jerk(actions: np.ndarray) -> float:
    return float(abs(np.diff(actions, 3, axis=0)).mean())


@pytest.mark.parametrize("steps", [1, 2])
def test_smoothness_goes_on_from_what_was_executed(steps: int) -> None:
    plain = policy(descent=DescentConfig(steps=steps, noise=0.0))
    made = plain.with_sampling(DescentConfig(steps=steps, noise=0.0, smoothness=100.0))
    previous = np.full((1, 16, 2), 80.0, np.float32)
    loose = plain.predict_chunk(observations(1), generators(1), previous).plan[0]
    plan = made.predict_chunk(observations(1), generators(1), previous).plan[0]
    assert plan[0] == pytest.approx(previous[0, 0])
    assert _jerk(plan) < 0.1 * _jerk(np.concatenate([previous[0, :1], loose[1:]]))
    assert abs(plan[-1] - loose[-1]).max() < abs(previous[0, -1] - loose[-1]).max()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_smoothness_goes_on_from_a_prefix(share: float) -> None:
    """Also of a policy that has not learned with prefixes."""
    made = policy(basin=BasinConfig(prefix_share=share), descent=DescentConfig(smoothness=100.0))
    prefix = np.linspace(50, 90, 10, dtype=np.float32).reshape(1, 5, 2)
    plan = made.predict_chunk(observations(1), generators(1), prefix=prefix).plan[0]
    assert plan[:5] == pytest.approx(prefix[0], abs=1e-3)
    assert (
        abs(plan[5] - plan[4]).max()
        < 0.5 * abs(made.predict_chunk(observations(1), generators(1)).plan[0, 5] - plan[4]).max()
    )
