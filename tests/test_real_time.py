"""Chunks asked for ahead: they go on from what is decided, and the robot never waits for them."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import config, policy
from ebt_policy import save_policy
from ebt_policy.benchmarks.claims import render_claims
from ebt_policy.benchmarks.delay import Link
from ebt_policy.cli.main import main
from ebt_policy.client import PolicyClient
from ebt_policy.config import (
    BasinConfig,
    DescentConfig,
    DimensionLimits,
    LimitsConfig,
    StreamConfig,
)
from ebt_policy.errors import UserError
from ebt_policy.evaluation.rollout import Rollout, evaluate
from ebt_policy.policies import Policy, make_policy
from ebt_policy.policies.base import moved_on
from ebt_policy.serving.limits import ActionLimits
from ebt_policy.serving.protocol import pack
from test_serving import SlowServer, ask, listening, one, process, raw, served

AHEAD = 3


def act(client: PolicyClient, step: int) -> np.ndarray:
    """One control step, long enough for a reply to come."""
    action = client.select_action(one(step))
    if client._asked is not None:
        wait([client._asked], 60)
    return action


def expected(made: Policy, steps: int, seed: int | None = None) -> list[np.ndarray]:
    """What a robot does that asks AHEAD steps before its chunk ends, in this process."""
    generators = None if seed is None else [torch.Generator().manual_seed(seed)]
    windows = {n: np.stack([one(0)[n], one(0)[n]])[None] for n in one()}
    chunk = made.predict_chunk(windows, generators)
    executed: list[np.ndarray] = []
    queue, plan, sent = [*chunk.actions[0]], chunk.plan, 9
    for step in range(steps):
        if step and len(queue) == AHEAD:
            windows = {n: np.stack([one(step - 1)[n], one(step)[n]])[None] for n in one()}
            prefix = np.stack([executed[-1], *queue])[None]
            previous = moved_on(plan, sent - prefix.shape[1])
            chunk = made.predict_chunk(windows, generators, previous, prefix)
            queue += [*chunk.actions[0]]
            plan, sent = chunk.plan, prefix.shape[1] + 8
        executed.append(queue.pop(0))
    return executed


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "regression"},
        {"basin": BasinConfig(prefix_share=0.5), "descent": DescentConfig(noise=0.3)},
        {"descent": DescentConfig(steps=1, warm_start=True)},
    ],
)
def test_chunks_go_on_where_the_one_in_hand_ends(changes: dict[str, Any]) -> None:
    made = policy(**changes)
    with served(made) as port, PolicyClient(port=port, ahead=AHEAD) as client:
        for seed in (4, 5):
            client.reset(seed)
            found = [act(client, step) for step in range(30)]
            assert np.allclose(found, expected(made, 30, seed), atol=1e-4)


def test_a_late_chunk_is_held_for_and_its_old_actions_are_left_out() -> None:
    made = policy(policy="regression")
    limits = ActionLimits(made, LimitsConfig((DimensionLimits(), DimensionLimits("delta"))))
    server = SlowServer(made, limits)
    with listening(server) as port, PolicyClient(port=port, ahead=AHEAD) as client:
        usual = expected(made, 16)
        assert np.allclose([act(client, step) for step in range(5)], usual[:5])
        server.open.clear()
        assert np.allclose([client.select_action(one(step)) for step in (5, 6, 7)], usual[5:8])
        for step in (8, 9):  # nothing is left: the target again, and no change
            assert np.allclose(client.select_action(one(step)), [usual[7][0], 0])
        server.open.set()
        assert client._asked is not None
        wait([client._asked], 60)
        assert np.allclose([act(client, step) for step in range(10, 13)], usual[10:13])


def test_a_lost_chunk_is_asked_for_again() -> None:
    made = policy(policy="regression")
    server = SlowServer(made)
    with (
        listening(server) as port,
        PolicyClient(port=port, ahead=AHEAD, lost_after=0.1) as client,
    ):
        for step in range(5):
            act(client, step)
        server.open.clear()
        act(client, 5)  # asks, and waits until that is given up
        asked = client._asked
        act(client, 6)  # asks again
        assert client._asked is not asked
        server.open.set()
        for step in range(7, 30):
            found = act(client, step)
            time.sleep(0.01)
        assert client._asked is None or client._asked.done()
        assert len(client._queue) > 0
        assert np.isfinite(found).all()


def test_patience_ends_with_no_reply() -> None:
    server = SlowServer(policy(policy="regression"))
    with (
        listening(server) as port,
        PolicyClient(port=port, ahead=AHEAD, lost_after=0.05, patience=0.3) as client,
    ):
        for step in range(5):
            act(client, step)
        server.open.clear()
        with pytest.raises(ConnectionError, match=r"no reply in 0\.05 s"):  # noqa: PT012
            for step in range(5, 50):
                act(client, step)
        server.open.set()


def test_server_killed_and_restarted_while_a_chunk_is_asked_for(tmp_path: Path) -> None:
    # One way: nothing is drawn, so a server that begins anew goes on as the old one would have.
    made = policy(basin=BasinConfig(prefix_share=0.5, ways=1), descent=DescentConfig(noise=0.0))
    save_policy(made, tmp_path)
    usual = expected(made, 30)
    with (
        process(tmp_path) as (server, port),
        PolicyClient(port=port, ahead=AHEAD, lost_after=30.0) as client,
    ):
        found = [act(client, step) for step in range(13)]
        server.send_signal(signal.SIGKILL)
        server.wait(60)
        found.append(client.select_action(one(13)))  # asks nobody
        with process(tmp_path, port=port):
            assert client._asked is not None
            wait([client._asked], 60)
            found += [act(client, step) for step in range(14, 30)]
    assert np.allclose(found, usual, atol=1e-4)


@pytest.mark.parametrize("ahead", [-1, 15])
def test_a_chunk_is_too_short_to_be_asked_for_so_far_ahead(ahead: int) -> None:
    with (
        served(policy(policy="regression")) as port,
        pytest.raises(UserError, match=f"ahead = {ahead}: with this .* it is 0 to 7"),
    ):
        PolicyClient(port=port, ahead=ahead)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (np.zeros((16, 2)), r"prefix has shape \(1, 16, 2\)"),
        (np.zeros(2), r"prefix has shape \(2,\)"),
        (np.full((3, 2), np.inf), "prefix holds inf"),
        ("abc", "'prefix' is a str"),
    ],
)
def test_bad_prefixes_are_refused_and_change_nothing(prefix: Any, message: str) -> None:
    made = policy(policy="regression")
    with served(made) as port, raw(port) as connection:
        ask(connection, one(0))
        connection.send(pack({**one(1), "prefix": prefix}))
        refused = connection.recv(60)
        assert isinstance(refused, str)
        assert re.search(message, refused)
        window = {n: np.stack([one(0)[n], one(1)[n]])[None] for n in one()}
        reply = ask(connection, one(1))
        assert np.allclose(reply["actions"], made.predict_chunk(window).actions[0])


def test_velocity_limits_begin_at_the_end_of_the_prefix() -> None:
    made = policy(policy="regression")
    limits = ActionLimits(made, LimitsConfig((DimensionLimits(step=0.5),) * 2))
    server = SlowServer(made, limits)
    with listening(server) as port, raw(port) as connection:
        prefix = np.array([[0.0, 0.0], [9.0, -9.0]], np.float32)
        actions = ask(connection, {**one(), "prefix": prefix})["actions"]
    assert np.abs(actions[0] - prefix[-1]).max() <= 0.5 + 1e-6


def planar_policy() -> Policy:
    """An untrained policy for the fork, which moves about its start."""
    torch.manual_seed(0)
    made = make_policy(
        replace(config(), streams={"state": StreamConfig((6,))}, descent=DescentConfig(noise=0.3))
    )
    random = np.random.default_rng(0)
    states = random.uniform(-1, 1, (50, 6))
    actions = random.uniform(-0.1, 0.1, (50, 2)) - [0.9, 0]  # where episodes begin
    made.fit_normalisers({"state": states}, actions, np.arange(50), "test")
    return made.eval()


def test_robots_at_a_fixed_rate_behind_a_slow_link(tmp_path: Path) -> None:
    made = planar_policy()
    save_policy(made, tmp_path / "run")
    path = tmp_path / "delay.json"
    command = [
        "bench", "delay", str(tmp_path / "run"), "--task", "planar/fork", "--episodes", "2",
        "--robots", "2", "--delays", "0", "150", "--jitter", "40", "--lost", "0.1",
        "--json", str(path),
    ]  # fmt: skip
    assert main(command) == 0
    undelayed, delayed = json.loads(path.read_text())["rows"]
    inside = evaluate(Rollout(str(tmp_path / "run"), "planar/fork"), 2, 100_000)
    assert undelayed["scores"] == [round(r["score"], 4) for r in inside["records"]]
    assert undelayed["held"] == 0
    assert delayed["delay_ms"] == 150
    assert 0 <= delayed["held"] < 1
    assert delayed["seam_jerk"] > 0


def test_how_far_ahead_a_link_needs() -> None:
    delays = (0.0, 50.0, 99.0, 150.0, 400.0)
    assert [Link(ms, 0.0, 0.0).steps(10.0) for ms in delays] == [0, 2, 2, 3, 5]
    assert Link(190.0, 20.0, 0.0).steps(10.0) == 4


def test_claims_of_delay_come_from_the_files(tmp_path: Path) -> None:
    def measured(
        share: float, settings: list[str], scores: list[float], jerk: float, seed: int = 0
    ) -> str:
        rows = [
            {
                "delay_ms": ms, "jitter_ms": 0.1 * ms, "success": 1.0, "success_ci95": [0.9, 1.0],
                "score": score,
                "score_ci95": [0.0, 1.0], "seam_jerk": jerk, "inner_jerk": 0.1, "held": 0.0,
                "scores": [score] * 9, "successes": [1] * 9,
            }
            for ms, score in zip((0.0, 200.0), scores, strict=True)
        ]  # fmt: skip
        return json.dumps(
            {
                "task": "a/b",
                "prefix_share": share,
                "settings": settings,
                "rows": rows,
                "first_seed": 7,
                "training": {"training": {"seed": seed}},
                "windows": {"action_steps": 8},
            }
        )

    (tmp_path / "delay-1.json").write_text(measured(0.0, [], [1.0, 0.7], 3.0))
    (tmp_path / "delay-other-seed.json").write_text(measured(0.0, [], [1.0, 0.5], 1.0, 1))
    (tmp_path / "delay-2.json").write_text(
        measured(0.5, ["descent.smoothness=2"], [0.9, 0.88], 1.0)
    )
    page = tmp_path / "page.md"
    page.write_text("<!-- table: delay -->\n<!-- end -->\n<!-- table: claims -->\n<!-- end -->\n")
    render_claims(page, tmp_path)
    text = page.read_text()
    row = next(
        line for line in text.splitlines() if line.startswith("| a/b | plain | 8 | 200 ± 20")
    )
    assert "| 0.600 [0.500, 0.700] | 2 | 0.1 | 0.0 % | 2 × 9 | 7 |" in row
    kept, jerk = [
        line
        for line in text.splitlines()
        if "frozen prefix, smoothness 2, 8 actions at a time, 200 ± 20 ms" in line
    ]
    assert "0.978 against 0.700 of plain chunking, 1 × 9 | holds, of one training seed" in kept
    assert "1 against 3 | holds, of one training seed" in jerk
