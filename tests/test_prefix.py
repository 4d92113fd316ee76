"""Real-time chunking: the first actions of a chunk are decided, the rest is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import generators, observations, policy
from ebt_policy.config import BasinConfig, DescentConfig, StreamConfig, override
from ebt_policy.errors import UserError
from ebt_policy.policies import EnergyPolicy, make_policy
from ebt_policy.windows.batch import Batch

LEARNED: dict[str, Any] = {"basin": BasinConfig(prefix_share=0.5)}


def decided(batch: int, count: int, seed: int = 0) -> np.ndarray:
    return (50 * np.random.default_rng(seed).normal(size=(batch, count, 2))).astype(np.float32)


@pytest.mark.parametrize(
    "descent",
    [
        DescentConfig(steps=3),
        DescentConfig(steps=3, starts=3),
        DescentConfig(steps=3, momentum=0.9),
        DescentConfig(steps=2, warm_start=True),
        DescentConfig(steps=2, start="noise", noise=0.0),
    ],
)
def test_the_prefix_stays_and_the_rest_depends_on_it(descent: DescentConfig) -> None:
    made = policy(descent=descent, **LEARNED)
    one, other = decided(4, 5), decided(4, 5, seed=1)
    previous = decided(4, 16, seed=2)
    chunks = [
        made.predict_chunk(observations(4), generators(4), previous, prefix)
        for prefix in (one, other)
    ]
    for chunk, prefix in zip(chunks, (one, other), strict=True):
        assert np.allclose(chunk.plan[:, :5], prefix, atol=1e-3)
        assert np.array_equal(chunk.actions, chunk.plan[:, 5:13])
    assert abs(chunks[0].plan[:, 5:] - chunks[1].plan[:, 5:]).max() > 1e-3


def test_actions_end_with_the_chunk() -> None:
    chunk = policy(**LEARNED).predict_chunk(observations(2), generators(2), None, decided(2, 12))
    assert chunk.actions.shape == (2, 4, 2)
    assert chunk.plan.shape == (2, 16, 2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"policy": "diffusion"}, {"policy": "regression"}, {"objective": "equilibrium"}],
)
def test_who_has_not_learned_prefixes_plans_without_and_skips_them(changes: Any) -> None:
    made = policy(**changes)
    plain = made.predict_chunk(observations(3), generators(3))
    after = made.predict_chunk(observations(3), generators(3), None, decided(3, 5))
    assert np.array_equal(after.plan, plain.plan)
    assert np.array_equal(after.actions, plain.plan[:, 5:13])


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (np.zeros((1, 0, 2)), r"\(1, 0, 2\), expected \(batch, 1 to 15, 2\)"),
        (np.zeros((1, 16, 2)), r"\(1, 16, 2\)"),
        (np.zeros((1, 5, 3)), r"\(1, 5, 3\)"),
        (np.full((1, 5, 2), np.nan), "holds nan"),
    ],
)
def test_bad_prefixes_are_named(prefix: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy(**LEARNED).predict_chunk(observations(1), generators(1), None, prefix)


def test_a_bad_share_is_named() -> None:
    with pytest.raises(UserError, match=r"basin.prefix_share = 1.5: it must lie in \[0, 1\]"):
        override(policy().config, ["basin.prefix_share=1.5"])


@pytest.mark.parametrize("split", [False, True])
def test_nothing_is_learned_about_the_prefix_itself(split: bool) -> None:
    made = policy(basin=BasinConfig(prefix_share=1.0, near_share=1.0, split=split))
    assert isinstance(made, EnergyPolicy)
    seen = made.normalise_observation({k: torch.from_numpy(v) for k, v in observations(64).items()})
    actions = torch.rand(64, 16, 2)
    torch.manual_seed(0)
    prefix = made._draw_prefix(actions)
    assert prefix is not None
    lengths = (1 - prefix.free).sum((1, 2))
    assert set(lengths.tolist()) == set(range(10))  # To - 1 + Ta = 9 at most
    torch.manual_seed(0)
    errors = made.errors(seen, actions)
    # What remains there is the cross-entropy of the ways, the same for all elements of a chunk.
    for i, length in enumerate(lengths.int().tolist()):
        given = errors[i, :length]
        assert torch.equal(given, given[:1, :1].expand_as(given)) if length else True
        assert errors[i, length:].std() > 1e-4


def test_a_policy_goes_on_in_the_way_that_was_begun() -> None:
    """Two ways, up or down, equally often: without a prefix either, with one the one begun."""
    torch.manual_seed(0)
    given = policy().config
    config = override(
        given.__class__(
            policy="ebt", streams={"state": StreamConfig((1,))}, action_dim=1,
            network=given.network,
        ),
        ["basin.prefix_share=0.5", "basin.ways=2"],
    )  # fmt: skip
    made = make_policy(config)
    optimiser = torch.optim.AdamW(made.parameters(), 5e-3)
    for _ in range(150):
        way = torch.randint(2, (64, 1, 1)) * 2.0 - 1
        batch = Batch({"state": torch.zeros(64, 2, 1)}, (0.8 * way).expand(64, 16, 1),
                      torch.ones(64, 16))  # fmt: skip
        optimiser.zero_grad()
        made(batch).backward()
        optimiser.step()
    seen = {"state": np.zeros((40, 2, 1), np.float32)}
    begun = np.where(np.arange(40) % 2, 0.8, -0.8).astype(np.float32)
    free = made.predict_chunk(seen, generators(40)).actions.mean((1, 2))
    assert {-1, 1} == set(np.sign(free))
    for count in (1, 4, 9):
        prefix = np.broadcast_to(begun[:, None, None], (40, count, 1)).copy()
        after = made.predict_chunk(seen, generators(40), None, prefix).actions
        assert abs(after - begun[:, None, None]).max() < 0.25
