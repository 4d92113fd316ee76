"""The network and the energy: sizes, masks, independence, equations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from conftest import config, generators, observations, policy
from ebt_policy.config import PRESETS, BasinConfig, DescentConfig, PolicyConfig, StreamConfig
from ebt_policy.descent import descend
from ebt_policy.energy.layers import Attention
from ebt_policy.energy.model import EnergyModel, GivenEnergy, energy_and_gradient, is_alive
from ebt_policy.errors import UserError
from ebt_policy.objectives.annealed import annealed
from ebt_policy.objectives.basin import basin, far
from ebt_policy.objectives.equilibrium import equilibrium
from ebt_policy.objectives.noise import smooth
from ebt_policy.policies import EnergyPolicy, make_policy


def prepared(form: Any) -> tuple[EnergyModel, Any]:
    made = policy(form=form)
    assert isinstance(made, EnergyPolicy)
    raw = {k: torch.from_numpy(v) for k, v in observations(4).items()}
    return made.energy, made.energy.remember(made.normalise_observation(raw))


def test_paper_preset_has_the_published_size() -> None:
    streams = {"a": StreamConfig((44,)), "b": StreamConfig((9,))}
    made = make_policy(PolicyConfig("ebt", streams, 7, PRESETS["paper"].network))
    assert isinstance(made, EnergyPolicy)
    network = made.energy.network
    encoder = sum(p.numel() for p in network.encoder.parameters()) / 1e6
    transformer = sum(p.numel() for p in network.transformer.parameters()) / 1e6
    assert encoder == pytest.approx(3.17, abs=0.02)
    assert transformer == pytest.approx(5.41, abs=0.02)


@pytest.mark.parametrize("form", ["residual", "scalar"])
def test_energy_of_a_sample_depends_on_that_sample_alone(form: str) -> None:
    energy, memory = prepared(form)
    actions = torch.randn(4, 16, 2)
    together = energy(actions, memory)
    alone = energy(actions[2:3], [(k[2:3], v[2:3]) for k, v in memory])
    assert torch.allclose(together[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("form", ["residual", "scalar"])
def test_gradient_agrees_with_finite_differences(form: str) -> None:
    energy, memory = prepared(form)
    energy, memory = energy.double(), [(k.double(), v.double()) for k, v in memory]
    # The head is float32 by design; compare with that precision.
    actions = torch.randn(4, 16, 2, dtype=torch.float64)
    direction = torch.randn_like(actions)
    _, gradient = energy_and_gradient(energy.given(memory), actions)
    slope = (gradient * direction).sum((1, 2))
    step = 1e-2
    up, down = (
        energy(actions + step * direction, memory),
        energy(actions - step * direction, memory),
    )
    assert torch.allclose((up - down).double() / (2 * step), slope, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("objective", "form", "split"),
    [
        ("basin", "residual", False), ("basin", "scalar", False), ("basin", "residual", True),
        ("annealed", "residual", False),
    ],
)  # fmt: skip
def test_pullback_is_the_gradient_of_autograd(objective: Any, form: Any, split: bool) -> None:
    made = policy(objective=objective, form=form, basin=BasinConfig(split=split)).double()
    assert isinstance(made, EnergyPolicy)
    for weight in made.parameters():  # gains and biases of an untrained network are 1 and 0
        weight.data += 0.3 * torch.randn_like(weight)
    raw = {k: torch.from_numpy(v).double() for k, v in observations(3).items()}
    memory = made.energy.remember(made.normalise_observation(raw))
    given = made.energy.given(memory, starts=2)
    if objective == "annealed":
        given = given.at(torch.tensor([0.0, 0.1, 0.4, 0.7, 0.9, 1.0], dtype=torch.float64))
    actions = torch.randn(6, 16, 2, dtype=torch.float64)
    expected = energy_and_gradient(given, actions)
    with torch.no_grad():
        found = energy_and_gradient(given, actions)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)
    assert not found[1].requires_grad
    assert expected[1].requires_grad
    # What a compiled training step differentiates once is what an eager one differentiates twice.
    taught = made.energy.value_and_gradient(actions, given.memory, given.level)[1]
    lessons = [
        torch.autograd.grad(
            gradient.square().sum(), list(made.energy.parameters()), retain_graph=True,
            allow_unused=True, materialize_grads=True,
        )
        for gradient in (taught, expected[1])
    ]  # fmt: skip
    assert sum(int(lesson.abs().sum() > 0) for lesson in lessons[1]) > 20
    for one, other in zip(*lessons, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)


def test_dropout_and_autocast_leave_the_gradient_to_autograd() -> None:
    dropping = policy(network=replace(config().network, attention_dropout=0.5)).train()
    assert isinstance(dropping, EnergyPolicy)
    raw = {k: torch.from_numpy(v) for k, v in observations(3).items()}
    given = dropping.energy.given(dropping.energy.remember(dropping.normalise_observation(raw)))
    actions = torch.randn(3, 16, 2)
    with torch.no_grad():
        assert not given.has_pullback
        one, other = (energy_and_gradient(given, actions)[1] for _ in range(2))
        assert not torch.allclose(one, other)
        dropping.eval()
        assert given.has_pullback
        with torch.autocast("cpu"):
            assert not given.has_pullback


def test_fused_attention_gives_what_the_differentiable_one_gives() -> None:
    energy, memory = prepared("residual")
    actions = torch.randn(4, 16, 2)
    with torch.no_grad():
        fused = energy(actions, memory)
    assert torch.allclose(fused, energy(actions, memory), atol=1e-5)


def test_residual_energy_is_half_the_squared_distance_to_the_landing_plus_an_offset() -> None:
    energy, memory = prepared("residual")
    actions = torch.randn(4, 16, 2)
    output = energy.network(actions, memory)
    assert output.shape == (4, 16, 3)
    expected = 0.5 * (actions - output[..., :2]).square().sum((1, 2)) + output[..., 2].sum(1)
    assert torch.allclose(energy(actions, memory), expected, atol=1e-5)


def test_annealed_energy_is_the_residual_one_at_its_last_level_and_another_at_each_other() -> None:
    made = policy(objective="annealed")
    assert isinstance(made, EnergyPolicy)
    raw = {k: torch.from_numpy(v) for k, v in observations(4).items()}
    memory = made.energy.remember(made.normalise_observation(raw))
    actions, last = torch.randn(4, 16, 2), torch.ones(4)
    output = made.energy.network(actions, memory, last)
    expected = 0.5 * (actions - output[..., :2]).square().sum((1, 2)) + output[..., 2].sum(1)
    given = made.energy.given(memory)
    assert torch.allclose(given(actions), expected, atol=1e-5)  # a demonstration's own level
    assert torch.equal(given.at(last)(actions), given(actions))
    # Where nothing of the chunk is left, f alone says where to go: E_0 = 1/2 ||x||^2 - <x, f>.
    output = made.energy.network(actions, memory, 0 * last)
    expected = (actions * (0.5 * actions - output[..., :2])).sum((1, 2))
    assert torch.allclose(given.at(0 * last)(actions), expected, atol=1e-5)


def test_proposals_are_ways_of_the_observation_alone() -> None:
    energy, memory = prepared("residual")
    chunks, logits = energy.proposals(memory)
    assert chunks.shape == (4, 8, 16, 2)
    assert logits.shape == (4, 8)
    assert not torch.allclose(chunks[0], chunks[1], atol=1e-4)
    assert not torch.allclose(chunks[:, 0], chunks[:, 1], atol=1e-4)
    other = policy(objective="equilibrium")
    assert isinstance(other, EnergyPolicy)
    assert other.energy.ways is None


def test_split_landscapes_learn_in_transformers_of_their_own_from_one_encoding() -> None:
    made = policy(basin=BasinConfig(split=True))
    assert isinstance(made, EnergyPolicy)
    model = made.energy
    assert model.far is not None
    assert model.network.transformer.empty is None  # "no chunk yet" is the far one's alone
    raw = {k: torch.from_numpy(v) for k, v in observations(4).items()}
    memory = model.remember(made.normalise_observation(raw))
    far_loss = sum(part.square().sum() for part in model.proposals(memory))
    near_loss = model(torch.randn(4, 16, 2), memory).sum()

    def taught(loss: Any, part: torch.nn.Module) -> bool:
        slopes = torch.autograd.grad(
            loss, list(part.parameters()), retain_graph=True, allow_unused=True
        )
        return any(slope is not None for slope in slopes)

    near = model.network.transformer
    assert len(model.given(memory, starts=3).memory) == len(near.blocks)
    assert [taught(far_loss, part) for part in (model.far, near)] == [True, False]
    assert [taught(near_loss, part) for part in (model.far, near)] == [False, True]
    assert taught(far_loss, model.network.encoder)
    assert taught(near_loss, model.network.encoder)


def test_ways_share_out_two_modes_and_their_frequencies() -> None:
    """Free chunks and logits trained on two modes, 3 to 1: each mode gets a way, and its share."""
    torch.manual_seed(0)
    settings = config().basin
    chunks = torch.nn.Parameter(0.1 * torch.randn(1, 4, 4, 2))
    logits = torch.nn.Parameter(torch.zeros(1, 4))
    optimizer = torch.optim.Adam([chunks, logits], 0.02)
    target = torch.where(torch.arange(64) % 4 == 0, -1.0, 1.0)[:, None, None].expand(64, 4, 2)
    for _ in range(600):
        loss = far(chunks.expand(64, -1, -1, -1), logits.expand(64, -1), target, settings).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = logits.softmax(1)[0]
    centres = chunks.detach()[0].mean((1, 2))
    for mode, share in ((-1.0, 0.25), (1.0, 0.75)):  # the rarer one is not drawn to the mean
        assert shares[(centres - mode).abs() < 0.02].sum().item() == pytest.approx(share, abs=0.05)
    dead = centres[~is_alive(logits)[0]]
    assert len(dead) > 0
    assert (dead - 0.5).abs().max() < 0.1  # but those that fit no demonstration are


def test_action_t_sees_observation_s_only_if_t_is_not_before_s() -> None:
    energy, _ = prepared("scalar")
    transformer = energy.network.transformer
    assert transformer.visible.tolist()[0] == [True, False]
    assert all(row == [True, True] for row in transformer.visible.tolist()[1:])
    # One block of cross-attention alone: a change of the second observation leaves action 0.
    attention = transformer.blocks[0].cross_attention
    assert isinstance(attention, Attention)
    seen = torch.randn(1, 2, 16)
    changed = seen.clone()
    changed[:, 1] += 1
    tokens = torch.randn(1, 16, 16)
    one = attention(tokens, *attention.keys_values(seen), transformer.visible)
    other = attention(tokens, *attention.keys_values(changed), transformer.visible)
    assert torch.allclose(one[:, 0], other[:, 0], atol=1e-6)
    assert not torch.allclose(one[:, 1], other[:, 1], atol=1e-3)


@pytest.mark.parametrize("split", [False, True])
def test_observation_is_encoded_once_however_many_descent_steps(split: bool) -> None:
    made = policy(basin=BasinConfig(split=split))
    assert isinstance(made, EnergyPolicy)
    counts = {"encoder": 0, "keys": 0}
    network, far = made.energy.network, made.energy.far
    network.encoder.register_forward_hook(lambda *_: counts.update(encoder=counts["encoder"] + 1))
    blocks: Any = [*network.transformer.blocks, *(far.blocks if far is not None else [])]
    assert len(blocks) == (4 if split else 2)
    for block in blocks:
        block.cross_attention.key_value.register_forward_hook(
            lambda *_: counts.update(keys=counts["keys"] + 1)
        )
    made.with_sampling(DescentConfig(steps=7, starts=3)).predict_chunk(observations(2))
    assert counts == {"encoder": 1, "keys": len(blocks)}


def test_basin_is_zero_where_both_landscapes_land_on_the_demonstration() -> None:
    target = torch.randn(8, 16, 2)
    settings = replace(config().basin, ways=1)
    errors = basin(
        lambda x: 0.5 * (x - target[:2]).square().sum((1, 2)),
        target[:, None], torch.zeros(8, 1), target, settings,
    )  # fmt: skip
    assert errors.shape == target.shape
    assert errors.abs().max() < 1e-10


def test_basin_trains_the_proposals_on_all_and_the_energy_near_the_stated_share() -> None:
    points = []
    target = torch.full((8, 16, 2), 5.0)

    def energy(x: torch.Tensor) -> torch.Tensor:
        points.append(x.detach())
        return 0.5 * (x - 4).square().sum((1, 2))

    settings = replace(config().basin, ways=1)
    errors = basin(energy, target[:, None] + 2, torch.zeros(8, 1), target, settings)
    # The proposal is 2 away; a step lands on 4, so 1 away; a quarter stands for all of the batch.
    assert errors[:, 0, 0].tolist() == pytest.approx([4 + 4 * 1] * 2 + [4] * 6)
    assert points[0].shape == (2, 16, 2)
    assert 0 < (points[0] - 5).abs().max() < 0.5 * 6  # noise of standard deviation up to 0.5


def test_basin_weighs_a_wide_noise_by_its_inverse_square_down_to_the_least() -> None:
    """A landing 1 beside the demonstration counts (noise / max(s, least))^2 times."""
    torch.manual_seed(0)
    target = torch.zeros(20_000, 16, 2)
    settings = BasinConfig(near_share=1.0, ways=1, noise=1.0, least_noise=0.5)
    errors = basin(
        lambda x: 0.5 * (x - 1).square().sum((1, 2)),
        target[:, None], torch.zeros(20_000, 1), target, settings,
    )  # fmt: skip
    weights = errors[:, 0, 0]
    # s is uniform in [0, 1]: half of it is below the least; above it 1 / s^2 falls from 4 to 1.
    assert weights.min().item() == pytest.approx(1, abs=0.01)
    assert weights.max().item() == pytest.approx(4, abs=0.01)
    assert (weights > 3.999).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert weights.mean().item() == pytest.approx(0.5 * 4 + 1, abs=0.05)  # 1/s^2: 2 - 1 beyond
    # Of noise that is nowhere wider than the least, all errors count once.
    errors = basin(
        lambda x: 0.5 * (x - 1).square().sum((1, 2)),
        target[:, None], torch.zeros(20_000, 1), target, replace(settings, noise=0.25),
    )  # fmt: skip
    assert torch.allclose(errors, torch.ones_like(errors), atol=1e-4)


@pytest.mark.parametrize("changes", [{"policy": "ibc"}, {"objective": "annealed"}])
def test_one_landscape_is_not_split(changes: Any) -> None:
    with pytest.raises(UserError, match=r"basin.split = true: policy = .* has one landscape"):
        config(basin=BasinConfig(split=True), **changes)


def test_smooth_noise_has_mean_square_one_and_is_smooth() -> None:
    noise = smooth(torch.randn(20_000, 16, 1, generator=torch.Generator().manual_seed(0)))
    assert noise.square().mean().item() == pytest.approx(1, rel=0.05)
    assert (noise[:, 1:] - noise[:, :-1]).square().mean() < 0.2
    assert smooth(torch.randn(3, 2, 4)).shape == (3, 2, 4)  # a chunk shorter than the waves


def test_equilibrium_target_vanishes_at_the_data_and_points_to_the_noise() -> None:
    """With a flat energy the errors are the squared targets: (e - a)^2 c^2."""
    torch.manual_seed(0)
    target = torch.zeros(4000, 1, 1)
    errors = equilibrium(lambda x: (0 * x).sum((1, 2)), target, config().equilibrium)
    # c is 4 for g < 0.8 and falls to 0 at 1: E[c^2] = 16 * (0.8 + 0.2 / 3); E[e^2] = 1.
    assert errors.mean().item() == pytest.approx(16 * (0.8 + 0.2 / 3), rel=0.1)


class Bowls(EnergyModel):
    """Bowls around a chunk at every level, which note where and at which level they were asked."""

    def __init__(self, centre: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.centre, self.dropout = centre, 1.0  # no pullback
        self.asked: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def forward(
        self,
        actions: torch.Tensor,
        memory: Any,
        level: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert len(memory[0][0]) == len(actions)
        self.asked.append((actions.detach(), level))
        return 0.5 * (actions - self.centre).square().sum((1, 2))

    def on_nothing(self) -> GivenEnergy:
        return GivenEnergy(self, [(self.centre, self.centre)])


def test_annealed_is_the_error_of_the_velocity_from_every_level() -> None:
    """A step that lands 1 beside the demonstration is 1 / (1 - t) too fast, up to the limit."""
    torch.manual_seed(0)
    target = torch.full((40_000, 1, 1), 5.0)
    assert annealed(Bowls(target).on_nothing(), target, config().annealed).abs().max() < 1e-6
    beside = Bowls(target + 1)
    errors = annealed(beside.on_nothing(), target, config().annealed)[:, 0, 0]
    ((x, level),) = beside.asked
    assert level is not None
    point = x[:, 0, 0]
    expected = 1 / (1 - level).clamp(min=0.05).square()
    assert torch.allclose(errors, expected, rtol=1e-3)
    noise = (point - 5 * level) / (1 - level)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert np.histogram(level, 4, (0, 1))[0] / 40_000 == pytest.approx([0.25] * 4, abs=0.02)


def test_annealed_descent_goes_through_its_levels_in_steps_that_add_up() -> None:
    start = torch.randn(3, 4, 2)
    bowls = Bowls(torch.ones(3, 4, 2))
    settings = replace(config(objective="annealed").descent, steps=4)
    actions, trace = descend(bowls.on_nothing(), start, settings, keep_path=True)
    levels = [level.tolist() for _, level in bowls.asked if level is not None]
    assert levels == [[k / 4] * 3 for k in range(4)]
    assert bowls.asked[-1][1] is None  # the last chunk's energy is that at a demonstration's level
    for k, iterate in enumerate(trace.path):  # of the straight line to the bowl's bottom
        assert torch.allclose(iterate, start + k / 4 * (1 - start), atol=1e-6)
    assert torch.allclose(actions, torch.ones(3, 4, 2), atol=1e-6)
    assert trace.steps.tolist() == [4] * 3
    with pytest.raises(ValueError, match="annealed needs the energy of a model"):
        descend(lambda x: x.sum((1, 2)), start, settings)


def test_annealed_energy_draws_one_of_two_ways_in_ten_steps_and_their_middle_in_one() -> None:
    """Two ways to act under one observation."""
    from ebt_policy.policies import Batch

    made = policy(objective="annealed")
    alike = {k: v.repeat(64, 0) for k, v in observations(1).items()}
    seen = {k: torch.from_numpy(v) for k, v in alike.items()}
    signs = torch.where(torch.arange(64) % 2 == 0, -1.0, 1.0)
    chunk = made.action_normaliser.unnormalise(0.5 * signs[:, None, None].expand(-1, 16, 2))
    batch = Batch(seen, chunk, torch.ones(64, 16, dtype=torch.bool))
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    for _ in range(400):
        loss = made(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    middles = {}
    for steps in (1, 10):
        acting = made.with_sampling(replace(made.config.descent, steps=steps))
        plan = acting.predict_chunk(alike, generators(64)).plan
        middles[steps] = made.action_normaliser.normalise(torch.as_tensor(plan)).mean((1, 2))
    assert middles[1].abs().median() < 0.2
    assert (middles[10].abs() - 0.5).abs().median() < 0.1
    assert 0.25 < (middles[10] > 0).float().mean() < 0.75


@pytest.mark.parametrize(
    ("objective", "form", "split"),
    [
        ("basin", "residual", False), ("basin", "scalar", False), ("basin", "residual", True),
        ("annealed", "residual", False),
        ("equilibrium", "residual", False), ("equilibrium", "scalar", False),
        ("unrolled", "scalar", False),
    ],
)  # fmt: skip
def test_every_objective_learns_one_chunk(objective: Any, form: Any, split: bool) -> None:
    from ebt_policy.policies import Batch

    made = policy(objective=objective, form=form, basin=BasinConfig(split=split))
    seen = {k: torch.from_numpy(v) for k, v in observations(16).items()}
    chunk = 80 * torch.sin(torch.arange(32.0)).reshape(1, 16, 2).expand(16, 16, 2)
    batch = Batch(seen, chunk, torch.ones(16, 16, dtype=torch.bool))
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = made(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_annealed_has_its_own_form_and_descent() -> None:
    with pytest.raises(UserError, match="form = scalar: objective = annealed has none but"):
        config(objective="annealed", form="scalar")
    with pytest.raises(UserError, match=r"descent.rule = fixed: .* objective = annealed"):
        config(objective="annealed", descent=DescentConfig())
    with pytest.raises(UserError, match=r"descent.rule = annealed: .* objective = basin"):
        config(descent=config(objective="annealed").descent)
    for name, value in [
        ("tolerance", 0.04), ("noise", 0.05), ("warm_start", True), ("max_ms", 5.0),
        ("momentum", 0.5), ("smoothness", 1.0), ("normalise", True), ("start", "proposal"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=f"descent.{name} = {value}: rule = annealed"):
            replace(config(objective="annealed").descent, **cast(Any, {name: value}))


def test_unrolled_refuses_the_form_under_which_it_diverges() -> None:
    with pytest.raises(UserError, match="form=scalar"):
        config(objective="unrolled", form="residual")
