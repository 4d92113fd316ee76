"""The policy server and its client: openpi's protocol, episodes, safety, watchdog, reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from conftest import NETWORK, observations, policy
from ebt_policy import save_policy
from ebt_policy.benchmarks.memory import process_mb
from ebt_policy.benchmarks.serving import _Robot, _script
from ebt_policy.cli.main import main
from ebt_policy.client import PolicyClient
from ebt_policy.config import (
    DescentConfig,
    DimensionLimits,
    LimitsConfig,
    PolicyConfig,
    ServerConfig,
    StreamConfig,
)
from ebt_policy.energy.observation import ObservationEnergy
from ebt_policy.errors import UserError
from ebt_policy.evaluation.rollout import Rollout, evaluate
from ebt_policy.policies import Policy, make_policy
from ebt_policy.policies.alarm import Alarm
from ebt_policy.serving.episode import Episode
from ebt_policy.serving.limits import ActionLimits, read_limits
from ebt_policy.serving.protocol import MAX_DEPTH, MAX_ITEMS, pack, unpack
from ebt_policy.serving.server import PolicyServer, read_api_key
from ebt_policy.tasks import make_task
from ebt_policy.windows.windows import PUSHT_STATE

KEY = "0123456789abcdef"
# openpi's client calls connect() as websockets before 17.1 wanted it.
CONNECTS_DIRECTLY = pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")


@contextmanager
def listening(server: PolicyServer) -> Iterator[int]:
    """A server in a thread; the value is its port."""
    started: Any = SimpleNamespace(port=None)
    ready = threading.Event()

    async def until_stopped() -> None:
        started.loop, started.stop = asyncio.get_running_loop(), asyncio.Event()
        async with await server.listen() as found:
            started.port = found.sockets[0].getsockname()[1]
            ready.set()
            await started.stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(until_stopped()), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield started.port
    finally:
        started.loop.call_soon_threadsafe(started.stop.set)
        thread.join(60)


def served(made: Policy, api_key: str | None = None, **changes: Any) -> Any:
    """The same for a policy, on any free port."""
    settings = ServerConfig(port=0, **changes)
    return listening(PolicyServer(made, settings, ActionLimits(made), api_key))


@contextmanager
def raw(port: int, **options: Any) -> Iterator[ClientConnection]:
    """A connection that sends any bytes; the metadata have been read."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None, **options) as connection:
        connection.recv(60)
        yield connection


def one(seed: int = 0) -> dict[str, np.ndarray]:
    """One observation of the tests' policy, without batch or time."""
    return {name: values[0, 0] for name, values in observations(1, seed).items()}


def ask(connection: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    connection.send(pack(message))
    reply = connection.recv(60)
    assert isinstance(reply, bytes), reply
    return unpack(reply)


def pusht_policy(**changes: Any) -> Policy:
    """An untrained policy for PushT, whose actions lie all over the table."""
    torch.manual_seed(0)
    made = make_policy(
        PolicyConfig(**{
            "policy": "ebt", "streams": {"state": PUSHT_STATE}, "action_dim": 2,
            "network": NETWORK, "descent": DescentConfig(noise=0.3), **changes,
        })
    )  # fmt: skip
    random = np.random.default_rng(0)
    states, actions = random.uniform(0, 512, (50, 5)), random.uniform(0, 512, (50, 2))
    made.fit_normalisers({"state": states}, actions, np.arange(50), "test")
    return made.eval()


# -- protocol ------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.booleans())
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=20), st.binary(max_size=50)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_what_is_packed_is_unpacked(message: dict[str, Any]) -> None:
    assert unpack(pack(message)) == message


def test_arrays_are_packed_as_openpi_packs_them() -> None:
    message: dict[str, Any] = {
        "image": np.arange(60, dtype=np.uint8).reshape(4, 5, 3), "state": np.arange(3.0),
        "flag": np.array([True, False]), "half": np.ones(2, np.float16), "empty": np.zeros((0, 3)),
        "number": np.float32(1.5), "truth": np.bool_(True), "prompt": "push the T",
        "text": np.array("x"), "steps": [1, 2.5, None],
    }  # fmt: skip
    data = pack(message)
    assert data == msgpack_numpy.packb(message)
    for found in (unpack(data), msgpack_numpy.unpackb(data)):
        for name, value in message.items():
            assert np.array_equal(found[name], value), name
    for wrong in (np.array([None]), np.ones(1, complex), np.ones(1, "V3"), object(), 2**70):
        with pytest.raises(UserError, match="cannot be sent"):
            pack({"value": wrong})


def array(**changes: Any) -> bytes:
    """A message with one array, of which something is changed."""
    whole = {"data": b"\0" * 4, "dtype": "<f4", "shape": [1], "__ndarray__": True} | changes
    return msgpack.packb({"state": {name.encode(): value for name, value in whole.items()}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early"),
        (pack({"a": 1}) + b"\xc0", "has a tail"),
        (b"\xdd\x01\xff\xff\xff" * 100, f"more than {MAX_ITEMS} items"),
        (b"\x91" * 100_000, f"more than {MAX_DEPTH} levels"),
        (b"\xdc\x27\x0f" + b"\x81\xa1a\xc0" * 9999, f"more than {MAX_ITEMS} items"),
        (b"\xc1", "type 0xc1"),
        (b"\xd4\x01\x02", "type 0xd4"),
        (msgpack.packb({1: 2}), "not valid msgpack"),
        (msgpack.packb([1]), "not a map with text keys"),
        (msgpack.packb({b"a": 1}), "not a map with text keys"),
        (b"\x81\xa1\xff\x01", "not valid msgpack"),
        (array(dtype="|O"), "dtype '|O' is not allowed"),
        (array(dtype="V1000000000"), "is not allowed"),
        (array(dtype="<c8"), "is not allowed"),
        (array(dtype="<M8[s]"), "is not allowed"),
        (array(dtype="f4,f4"), "is not allowed"),
        (array(dtype=4), "is not allowed"),
        (array(shape=[2**40]), "the shape"),
        (array(shape=[-1]), "the shape"),
        (array(shape=[True]), "the shape"),
        (array(shape=[1] * 9), "shape or data is missing"),
        (array(shape=1), "shape or data is missing"),
        (array(data="text"), "shape or data is missing"),
        (array(shape=[2]), "comes with 4 bytes"),
        (array(dtype="<U0", shape=[2**31 - 1], data=b""), "comes with 0 bytes"),
        (array(shape=[0, *[2**31 - 1] * 7], data=b""), "not valid msgpack"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "<f4", b"data": "1"}}), "a scalar"),
    ],
)
def test_messages_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        unpack(data)


def test_nothing_is_unpickled() -> None:
    """The data of an array of objects would be pointers, and pickles are refused as any bytes."""
    source = Path(str(sys.modules["ebt_policy.serving.protocol"].__file__)).parent
    text = "".join(path.read_text() for path in [*source.glob("*.py"), source.parent / "client.py"])
    assert "pickle" not in text
    assert "allow_pickle" not in text
    with pytest.raises(UserError):
        unpack(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.")


def malformed(random: np.random.Generator) -> bytes | str:
    """A message that is wrong in one of many ways, now and then by nothing but its values."""
    value: Any
    way = int(random.integers(10))
    good = pack({**one(), "reset": bool(random.integers(2)), "seed": int(random.integers(99))})
    place = int(random.integers(len(good)))
    if way == 0:  # truncated
        return good[:place]
    if way == 1:  # some bytes changed
        changed = bytearray(good)
        for at in random.integers(len(good), size=random.integers(1, 9)):
            changed[at] = random.integers(256)
        return bytes(changed)
    if way == 2:  # a piece cut out, or put in
        return good[:place] + random.bytes(random.integers(9)) + good[place + random.integers(9) :]
    if way == 3:
        return random.bytes(random.integers(200))
    if way == 4:
        return "text \u2713" * int(random.integers(9))
    if way == 5:  # bombs
        bombs = (b"\x91", b"\x81\xa1a", b"\xdd\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff\xa1a")
        return bombs[random.integers(4)] * int(random.integers(2000))
    if way == 6:  # absurd arrays
        extents = [int(2 ** random.integers(63)) for _ in range(random.integers(12))]
        kinds = ("<f4", "O", "V99999999", "<U999999", "<c16", "f4,O", "<f2", "junk", "<U0")
        return array(shape=extents, dtype=kinds[random.integers(len(kinds))])
    values = (
        None, True, -1, 2**64 - 1, 1e300, float("nan"), "x", b"x", [1, [2]], {"a": 1},
        np.zeros(0), np.full(5, np.nan), np.full(5, 1e300), np.zeros((2, 5), bool),
        np.zeros((3, 5)), np.zeros((2, 2, 3)), np.array(["a"] * 5), np.int64(3), np.zeros((1,) * 8),
    )  # fmt: skip
    keys = ("state", "extra", "reset", "seed", "last_action", "prefix", "observation/state")
    if way in (7, 8):  # types confused
        value = values[random.integers(len(values))]
        return pack({**one(), keys[random.integers(len(keys))]: value})
    kept = {name: value for name, value in one().items() if random.integers(2)}
    return pack({**kept, "a" * int(random.integers(99)): [0] * int(random.integers(99))})


def test_ten_thousand_malformed_messages_in_the_process() -> None:
    random, made = np.random.default_rng(0), policy()
    episode, refused, longest = Episode(made), 0, 0
    for _ in range(10_000):
        message = malformed(random)
        if isinstance(message, str):
            continue
        try:
            episode.observe(unpack(message))
        except UserError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        else:
            window = episode.window()
            assert {n: v.shape for n, v in window.items()} == {
                "state": (1, 2, 5), "extra": (1, 2, 2, 3),
            }  # fmt: skip
            assert all(np.isfinite(values).all() for values in window.values())
    assert refused > 6000
    assert longest < 500


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
@example(pack({"a": 1})[:-1])
def test_any_bytes_are_a_message_or_a_mistake(data: bytes) -> None:
    try:
        message = unpack(data)
    except UserError:
        return
    assert isinstance(message, dict)


@settings(max_examples=100, deadline=None)
@given(message=st.dictionaries(
    st.sampled_from(["state", "extra", "reset", "seed", "last_action", "prefix"]),
    st.one_of(VALUES, st.integers(0, 6).map(lambda n: np.zeros((2,) * n)), st.just(np.zeros(5))),
))  # fmt: skip
def test_any_values_are_an_observation_or_a_mistake(message: dict[str, Any]) -> None:
    episode = Episode(SMALL)
    episode.observe({**one(), "seed": 3})
    before, draws = episode.window(), episode.generator.get_state()
    try:
        episode.observe(message)
    except UserError:
        # All of a message is taken, or nothing.
        after = episode.window()
        assert all(np.array_equal(before[name], after[name]) for name in before)
        assert torch.equal(episode.generator.get_state(), draws)


SMALL = policy()


# -- episodes ------------------------------------------------------------------------------


def test_the_window_repeats_the_first_and_then_moves() -> None:
    episode, first, second, third = Episode(SMALL), one(1), one(2), one(3)

    def seen() -> list[np.ndarray]:
        return list(episode.window()["state"][0])

    episode.observe(first)
    assert np.array_equal(seen(), [first["state"]] * 2)
    episode.observe({f"observation/{name}": value for name, value in second.items()})
    assert np.array_equal(seen(), [first["state"], second["state"]])
    episode.observe({n: np.stack([second[n], third[n]]) for n in first})
    assert np.array_equal(seen(), [second["state"], third["state"]])
    episode.observe({**first, "reset": True})
    assert np.array_equal(seen(), [first["state"]] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.zeros(4)}, "expected 'state' (5,), or (2, 5)"),
        ({"state": np.zeros((2, 5))}, "where all are windows"),
        ({"state": np.zeros((3, 5))}, "expected 'state'"),
        ({"state": np.array(["1"] * 5)}, "'state' is a <U1: it must be an array of numbers"),
        ({"state": [1.0] * 5}, "'state' is a list"),
        ({"state": np.full(5, np.inf)}, "holds inf"),
        ({"state": np.full(5, 1e300)}, "holds inf"),
        ({"reset": 1}, "reset is '1'"),
        ({"seed": -1}, "seed is '-1'"),
        ({"seed": 5}, "add reset: true"),
        ({"last_action": np.zeros(3)}, "last_action has shape (3,)"),
    ],
)
def test_wrong_observations_are_named(changes: dict[str, Any], message: str) -> None:
    episode = Episode(SMALL)
    episode.observe(one())
    with pytest.raises(UserError) as raised:
        episode.observe({**one(), **changes})
    assert message in str(raised.value)
    with pytest.raises(UserError, match="observation 'extra' is missing; the policy observes"):
        episode.observe({"state": np.zeros(5)})


def test_a_seed_makes_an_episode_again() -> None:
    made = policy(descent=DescentConfig(noise=0.3))
    with served(made) as port, raw(port) as connection:

        def episode(seed: int | None) -> np.ndarray:
            begin = {"reset": True} if seed is None else {"reset": True, "seed": seed}
            replies = [ask(connection, {**one(0), **begin}), ask(connection, one(1))]
            return np.stack([reply["actions"] for reply in replies])

        assert np.array_equal(episode(7), episode(7))
        assert not np.array_equal(episode(7), episode(8))
        assert not np.array_equal(episode(None), episode(None))
        reply = ask(connection, one())
        assert set(reply) == {"actions", "server_timing", "energy", "num_steps"}
        assert (reply["actions"].dtype, reply["actions"].shape) == (np.float32, (8, 2))
        assert reply["num_steps"] == 2
        assert reply["server_timing"]["infer_ms"] > 0


# -- openpi's client, PushT ----------------------------------------------------------------


@CONNECTS_DIRECTLY
def test_openpi_client_drives_pusht_as_in_process_evaluation(tmp_path: Path) -> None:
    made = pusht_policy(network=replace(NETWORK, action_blocks=1))
    task = make_task("pusht")
    save_policy(made, tmp_path)
    environment = task.make()
    with served(made) as port:
        client = WebsocketClientPolicy("127.0.0.1", port)
        assert client.get_server_metadata() == {
            "policy": "ebt", "observation": {"state": {"shape": [5], "dtype": "float32"}},
            "action": {"shape": [8, 2], "dtype": "float32", "is_delta": [False, False]},
            "observation_steps": 2, "horizon": 16,
        }  # fmt: skip
        for seed in (100_000, 100_001):
            expected = evaluate(Rollout(str(tmp_path), "pusht"), 1, seed, progress=False)
            made.reset()
            generator = torch.Generator().manual_seed(seed)
            seen = [environment.reset(seed)] * 2
            begin: dict[str, Any] = {"reset": True, "seed": seed}
            score, steps, success = 0.0, 0, False
            while not success and steps < task.horizon:
                window = np.stack([step["state"] for step in seen[-2:]])
                reply, begin = client.infer({"observation/state": window, **begin}), {}
                for action in reply["actions"]:
                    assert np.array_equal(action, made.select_action(seen[-1], generator))
                    outcome = environment.step(action)
                    seen.append(outcome.observation)
                    score, steps = max(score, outcome.score), steps + 1
                    success = outcome.success
                    if success or steps == task.horizon:
                        break
            record = expected["records"][0]
            assert (record["score"], record["steps"], record["success"]) == (score, steps, success)
        client._ws.close()
    environment.close()


@CONNECTS_DIRECTLY
def test_openpi_client_that_asks_at_every_step_has_its_window_kept() -> None:
    made, environment = pusht_policy(policy="regression"), make_task("pusht").make()
    made.reset()
    with served(made) as port:
        client = WebsocketClientPolicy("127.0.0.1", port)
        observation = environment.reset(3)
        for step in range(40):
            reply = client.infer({"state": observation["state"]})
            if step % 8 == 0:
                chunk = reply["actions"]
            assert "energy" not in reply
            expected = made.select_action(observation)
            assert np.array_equal(chunk[step % 8], expected)
            observation = environment.step(expected).observation
        client._ws.close()
    environment.close()


# -- safety --------------------------------------------------------------------------------


@CONNECTS_DIRECTLY
def test_health_key_origin_and_size(tmp_path: Path) -> None:
    with served(SMALL, api_key=KEY, max_mb=0.01) as port:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = plain.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert answer.endswith(b"\r\n\r\nOK\n")
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Bearer {KEY}"}):
            with pytest.raises(InvalidStatus, match="401"), raw(port, additional_headers=headers):
                pass
        with pytest.raises(UserError, match="asks for its API key"):
            PolicyClient(port=port)
        right = {"Authorization": f"Api-Key {KEY}"}
        with (
            pytest.raises(InvalidStatus, match="403"),
            raw(port, additional_headers=right, origin="http://evil.example"),
        ):
            pass
        WebsocketClientPolicy("127.0.0.1", port, api_key=KEY)._ws.close()
        with raw(port, additional_headers=right) as connection:
            connection.send(b"\0" * 20_000)
            with pytest.raises(ConnectionClosed, match="1009"):
                connection.recv()
        with PolicyClient(port=port, api_key=KEY) as client:
            assert client.select_action(one()).shape == (2,)
            with pytest.raises(UserError, match="too much for this server"):
                client.infer({**one(), "prompt": "x" * 20_000})
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UserError, match="--api-key-file"):
            PolicyServer(SMALL, ServerConfig(host=host), ActionLimits(SMALL))
    with pytest.raises(UserError, match="no such address"):
        PolicyServer(SMALL, ServerConfig(host=""), ActionLimits(SMALL))
    key = tmp_path / "key"
    key.write_text("short\n")
    with pytest.raises(UserError, match="at least 16"):
        read_api_key(key)
    key.write_text(KEY + "\n")
    assert read_api_key(key) == KEY
    with pytest.raises(UserError, match="cannot be read"):
        read_api_key(tmp_path / "absent")


def test_there_is_room_for_so_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebt_policy.serving.server.MAX_CLIENTS", 1)
    with served(SMALL) as port:
        with raw(port), pytest.raises(InvalidStatus, match="503"), raw(port):
            pass
        with raw(port) as after:
            assert "actions" in ask(after, one())


def test_client_refuses_another_policy_in_its_place() -> None:
    with served(SMALL) as port, PolicyClient(port=port) as client:
        client.metadata = {**client.metadata, "policy": "diffusion"}
        client._connection.close()
        with pytest.raises(UserError, match="another policy"):
            client.infer(one())


def abuse(port: int, count: int, check_every: int, seed: int) -> None:
    """Malformed messages through the socket; between them a well-formed client is served."""
    random, sent = np.random.default_rng(seed), 0
    while sent < count:
        with contextlib.suppress(ConnectionClosed), raw(port) as connection:
            while sent < count:
                sent += 1
                message = malformed(random)
                if sent % check_every == 0:
                    with raw(port) as good:
                        assert ask(good, one())["actions"].shape == (8, 2)
                if sent % 50 == 0:  # oversized, and beside it no WebSocket at all
                    message = b"\0" * 300_000
                    with socket.create_connection(("127.0.0.1", port)) as plain:
                        plain.sendall(random.bytes(200))
                connection.send(message)
                reply = connection.recv(timeout=30)
                if isinstance(reply, bytes):
                    assert unpack(reply)["actions"].shape == (8, 2)
                else:
                    assert reply
    with raw(port) as good:
        assert ask(good, one())["actions"].shape == (8, 2)


def test_malformed_messages_through_the_socket() -> None:
    with served(SMALL, max_mb=0.2) as port:
        abuse(port, 300, check_every=25, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_malformed_messages_through_the_socket(tmp_path: Path) -> None:
    with process(tmp_path, "--max-mb", "0.2") as (server, port):
        abuse(port, 1000, check_every=100, seed=2)
        before = process_mb(server.pid, "VmHWM")
        abuse(port, 9000, check_every=100, seed=3)
        assert process_mb(server.pid, "VmHWM") < before + 20
        assert server.poll() is None


# -- limits and watchdog -------------------------------------------------------------------


def test_limits_of_range_and_velocity(tmp_path: Path) -> None:
    demonstrated = ActionLimits(SMALL)
    actions = SMALL.predict_chunk(observations(1)).actions[0]
    assert np.array_equal(demonstrated.limit(actions, None), actions)
    wild = np.array([[-1e6, 1e6], [np.inf, -np.inf]], np.float32)
    limited = demonstrated.limit(wild, None)
    assert np.array_equal(limited[0], [demonstrated.low[0], demonstrated.high[1]])
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"dimensions": [
        {"low": -1, "high": 1, "step": 0.25}, {"kind": "delta", "step": 0.5},
    ]}))  # fmt: skip
    limits = read_limits(path, SMALL)
    there = np.tile(np.array([[5, 5]], np.float32), (3, 1))
    assert limits.limit(there, np.zeros(2, np.float32)).tolist() == [
        [0.25, 0.5], [0.5, 0.5], [0.75, 0.5],
    ]  # fmt: skip
    # From outside the range the target comes back at its pace, without a jump.
    back = limits.limit(there, np.array([2, 0], np.float32))
    assert back[:, 0].tolist() == [1.75, 1.5, 1.25]
    held = limits.hold(np.array([0.3, 0.4], np.float32))
    assert held is not None
    assert held.tolist() == [np.float32(0.3), 0]
    assert limits.hold(None) is None
    deltas = LimitsConfig((DimensionLimits("delta"), DimensionLimits("delta")))
    assert np.array_equal(ActionLimits(SMALL, deltas).hold(None), [0, 0])  # type: ignore[arg-type]
    for text, message in (
        ('{"dimensions": [{}]}', "1 dimensions, the policy's actions have 2"),
        ('{"dimensions": [{"low": 1e9}, {}]}', "dimension 0 is left no range"),
        ('{"dimensions": [{"low": 2, "high": 1}, {}]}', "low = 2.0 is above high"),
        ('{"dimensions": [{"step": 0}, {}]}', "step = 0.0: it must be above 0"),
        ('{"dimensions": [{"step": NaN}, {}]}', "step = nan: it must be finite"),
        ('{"dimensions": [{"kind": "relative"}, {}]}', "not one of absolute, delta"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_limits(path, SMALL)
    with pytest.raises(UserError, match="cannot be read"):
        read_limits(tmp_path / "absent", SMALL)


class SlowServer(PolicyServer):
    """A server whose chunks take for ever, too long for its budget, whenever it is held up."""

    def __init__(self, made: Policy, limits: ActionLimits | None = None) -> None:
        self.calls, self.open = 0, threading.Event()
        self.open.set()
        super().__init__(made, ServerConfig(port=0), limits or ActionLimits(made))

    def hold_up(self) -> None:
        self.open.clear()
        self.config = replace(self.config, budget_ms=20.0)

    def go_on(self) -> None:
        self.open.set()
        self.config = replace(self.config, budget_ms=None)

    def _predict(self, *arguments: Any) -> Any:
        self.calls += 1
        assert self.open.wait(60)
        return super()._predict(*arguments)


def test_a_late_chunk_is_a_hold_command_with_an_alarm() -> None:
    made = policy(policy="regression")
    limits = ActionLimits(made, LimitsConfig((DimensionLimits(), DimensionLimits("delta"))))
    server = SlowServer(made, limits)
    with listening(server) as port, raw(port) as connection:
        first = ask(connection, one())
        assert "alarm" not in first
        calls = server.calls
        server.hold_up()
        held = ask(connection, one(1))
        assert held["alarm"] is True
        assert held["num_steps"] == 0
        last = first["actions"][-1]
        assert np.array_equal(held["actions"], np.tile([last[0], 0], (8, 1)))
        # Late chunks do not pile up: one is on its way, and the next one waits for it.
        again = ask(connection, {**one(2), "last_action": np.array([3.0, 4.0])})
        assert again["actions"][0].tolist() == [3, 0]
        assert server.calls == calls + 1
        server.go_on()
        after = ask(connection, one(3))
        assert "alarm" not in after
        assert server.calls == calls + 2
        # What was observed meanwhile is in the window all the same.
        window = {n: np.stack([one(2)[n], one(3)[n]])[None] for n in one()}
        assert np.array_equal(after["actions"], made.predict_chunk(window).actions[0])


def test_the_first_reply_waits_for_its_chunk() -> None:
    server = SlowServer(policy())
    with listening(server) as port, raw(port) as connection:
        server.hold_up()
        threading.Timer(0.1, server.open.set).start()
        reply = ask(connection, one())
        assert reply["alarm"] is True
        assert reply["num_steps"] == 2


def test_actions_that_are_not_numbers_are_never_sent() -> None:
    made = policy(policy="regression")
    with served(made) as port, raw(port) as connection:
        first = ask(connection, one())
        with torch.no_grad():
            next(made.parameters()).fill_(torch.nan)
        held = ask(connection, one())
        assert held["alarm"] is True
        assert np.array_equal(held["actions"], np.tile(first["actions"][-1], (8, 1)))
        connection.send(pack({**one(), "reset": True}))
        assert "not finite" in connection.recv(60)


def test_an_observation_off_the_demonstrations_is_told_and_acted_on() -> None:
    made = policy(policy="regression")
    made.alarm = Alarm(ObservationEnergy(made.window_features, 1.3), [0.0], 0.5, "a test")
    with served(made) as port, raw(port) as connection:
        reply = ask(connection, one())
        assert reply["alarm"] is True
        assert reply["num_steps"] == 1
        assert reply["observation_energy"] > 0
        with PolicyClient(port=port) as client:
            actions = [client.select_action(one()) for _ in range(3)]
        assert np.array_equal(actions, reply["actions"][:3])  # the chunk, not one action of it


# -- our client ----------------------------------------------------------------------------


def test_the_client_needs_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import ebt_policy
from ebt_policy.client import PolicyClient
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"safetensors", "tqdm", "scipy", "jaxtyping"}, loaded
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_client_is_told_what_may_be_missing() -> None:
    streams = dict(SMALL.config.streams)
    streams["extra"] = replace(streams["extra"], may_be_missing=True)
    made = policy(streams=streams)
    less = {"state": one()["state"], "extra": None}
    with served(made) as port, PolicyClient(port=port) as client:
        assert client.metadata["observation"]["extra"]["may_be_missing"]
        client.reset(3)
        action = client.select_action(less)
        with pytest.raises(UserError, match="observation 'state' is missing"):
            client.select_action({"extra": one()["extra"]})
    expected = made.select_action(less, torch.Generator().manual_seed(3))
    assert np.allclose(action, expected, atol=1e-4)


def test_client_acts_as_the_policy_does() -> None:
    made = policy(descent=DescentConfig(noise=0.3))
    with served(made) as port, PolicyClient(port=port) as client:
        assert client.metadata["observation"]["extra"] == {"shape": [2, 3], "dtype": "float32"}
        for seed in (4, 5):
            client.reset(seed)
            made.reset()
            generator = torch.Generator().manual_seed(seed)
            for step in range(20):
                expected = made.select_action(one(step), generator)
                assert np.array_equal(client.select_action(one(step)), expected)
            assert client.reply["num_steps"] == 2
        with pytest.raises(UserError, match="observation 'extra' is missing"):
            client.select_action({"state": np.zeros(5)})
        client.reset()
        with pytest.raises(UserError, match="expected 'state'"):
            client.select_action({**one(), "state": np.zeros(6)})


def test_client_asks_again_after_a_hold() -> None:
    made = policy(policy="regression")
    server = SlowServer(made)
    with listening(server) as port, PolicyClient(port=port) as client:
        for step in range(8):
            last = client.select_action(one(step))
        server.hold_up()
        assert np.array_equal(client.select_action(one(8)), last)
        assert client.reply["alarm"] is True
        server.go_on()
        window = {n: np.stack([one(8)[n], one(9)[n]])[None] for n in one()}
        expected = made.predict_chunk(window).actions[0]
        assert np.array_equal(client.select_action(one(9)), expected[0])
        assert np.array_equal(client.select_action(one(10)), expected[1])


def test_client_is_never_sent_a_faster_move_than_allowed() -> None:
    limits = ActionLimits(SMALL, LimitsConfig((DimensionLimits(step=0.5),) * 2))
    server = PolicyServer(SMALL, ServerConfig(port=0), limits)
    with listening(server) as port, PolicyClient(port=port) as client:
        pose = np.array([3.0, -3.0], np.float32)
        moves = [client.select_action({**one(step), "last_action": pose}) for step in range(20)]
    changes = np.abs(np.diff([pose, *moves], axis=0))
    assert 0.4 < changes.max() <= 0.5 + 1e-6


def test_client_says_when_there_is_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match="no policy server"):
        PolicyClient(port=port, patience=0.2)


@contextmanager
def process(
    folder: Path, *options: str, port: int = 0
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``ebt-policy serve`` as a process, killed in the end."""
    if not (folder / "config.json").exists():
        save_policy(policy(policy="regression"), folder)
    command = ["serve", str(folder), "--port", str(port), *options]
    server = subprocess.Popen(
        [sys.executable, "-m", "ebt_policy.cli.main", *command], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        yield server, int(line.split(" port ")[1].split(",")[0])
    finally:
        server.kill()
        server.wait(60)
        server.stdout.close()


def test_a_taken_port_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(SMALL, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there" in capsys.readouterr().err


def test_server_killed_in_an_episode_and_restarted(tmp_path: Path) -> None:
    made = policy(policy="regression")
    made.reset()
    expected = [made.select_action(one(step)) for step in range(40)]
    with process(tmp_path) as (server, port), PolicyClient(port=port) as client:
        found = [client.select_action(one(step)) for step in range(20)]
        server.send_signal(signal.SIGKILL)
        server.wait(60)
        # The rest of the chunk needs no server; the next one waits for it.
        found += [client.select_action(one(step)) for step in range(20, 24)]
        with process(tmp_path, port=port) as (again, _):
            found += [client.select_action(one(step)) for step in range(24, 40)]
            again.send_signal(signal.SIGTERM)
            assert again.wait(30) == 0
    assert np.array_equal(found, expected)


def test_eight_clients_at_once_have_episodes_of_their_own() -> None:
    made = policy(descent=DescentConfig(noise=0.3))
    seeds, errors = range(8), list[str]()

    def in_process(seed: int) -> list[np.ndarray]:
        episode = Episode(made)
        chunks = []
        for step in range(6):
            begin = {"seed": seed} if step == 0 else {}
            episode.observe({**one(100 * seed + step), **begin})
            chunks.append(made.predict_chunk(episode.window(), [episode.generator]).actions[0])
        return chunks

    expected = {seed: in_process(seed) for seed in seeds}
    together = threading.Barrier(8, timeout=60)

    def robot(port: int, seed: int) -> None:
        with raw(port) as connection:
            together.wait()
            for _ in range(2):
                for step, chunk in enumerate(expected[seed]):
                    begin = {"reset": True, "seed": seed} if step == 0 else {}
                    reply = ask(connection, {**one(100 * seed + step), **begin})
                    if not np.array_equal(reply["actions"], chunk):
                        errors.append(f"episode {seed}, step {step}")

    with served(made) as port:
        robots = [threading.Thread(target=robot, args=(port, seed)) for seed in seeds]
        for thread in robots:
            thread.start()
        for thread in robots:
            thread.join()
    assert not errors


@pytest.mark.usefixtures("tiny")
def test_bench_serve_finds_no_mixed_up_replies(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    options = ["--preset", "tiny", "--clients", "3", "--seconds", "1", "--json", str(path)]
    assert main(["bench", "serve", *options]) == 0
    found = json.loads(path.read_text())
    assert found["mixed_up"] == 0
    assert found["replies"] >= 3
    assert 0 < found["infer_p50_ms"] < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert 50 < found["server_mb"] < 5000
    # A reply that is not its episode's is noticed.
    mixed = [replace(script, chunks=script.chunks[::-1]) for script in [_script(SMALL, 0)]]
    robot = _Robot(mixed)
    with served(SMALL) as port:
        robot.drive(port, threading.Barrier(1), 0.5)
    assert robot.mixed_up == len(robot.latencies) > 0


def test_ros2_node_drives_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, with a stand-in for rclpy that calls its callbacks."""
    made: dict[str, Any] = {}
    logged: list[str] = []
    parameters = {"joints": ["a", "b"], "port": 0, "cameras": ["front=/camera"]}

    class Node:
        def __init__(self, name: str) -> None:
            made["name"] = name

        def declare_parameter(self, name: str, default: Any) -> Any:
            return SimpleNamespace(value=parameters.get(name, default))

        def get_parameter(self, name: str) -> Any:
            return SimpleNamespace(value=parameters[name])

        def create_subscription(self, kind: Any, topic: str, call: Any, depth: int) -> None:
            made[topic] = call

        def create_publisher(self, kind: Any, topic: str, depth: int) -> Any:
            made["sent"] = []
            return SimpleNamespace(publish=lambda message: made["sent"].append(message.data))

        def create_service(self, kind: Any, name: str, call: Any) -> None:
            made[name] = call

        def create_timer(self, period: float, call: Any) -> None:
            made["tick"] = call

        def get_logger(self) -> Any:
            def log(text: str, throttle_duration_sec: float) -> None:
                logged.append(text)

            return SimpleNamespace(warning=log, error=log)

    kinds = SimpleNamespace(Type=SimpleNamespace(STRING_ARRAY=None))
    for name, names in (
        ("rclpy", {"Parameter": kinds}), ("rclpy.node", {"Node": Node}),
        ("sensor_msgs.msg", {"Image": None, "JointState": None}),
        ("std_msgs.msg", {"Float64MultiArray": SimpleNamespace}),
        ("std_srvs.srv", {"Trigger": None}),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**names))
    source = Path(__file__).parents[1] / "examples" / "ros2_node.py"
    node = runpy.run_path(str(source))
    torch.manual_seed(0)
    streams = {"observation.state": StreamConfig((2,)), "front": StreamConfig((2, 3, 3))}
    arm = make_policy(PolicyConfig("regression", streams, 2, NETWORK)).eval()
    image = SimpleNamespace(
        height=2,
        width=3,
        step=12,
        data=bytes(range(9)) + b"\0\0\0" + bytes(range(9, 18)) + b"\0" * 3,
    )
    with served(arm) as port:
        parameters["port"] = port
        running = node["PolicyNode"]()
        made["tick"]()
        assert made["sent"] == []
        assert "no news of" in logged[-1]
        made["joint_states"](SimpleNamespace(name=["c", "b", "a"], position=[9.0, 0.2, 0.1]))
        made["/camera"](image)
        made["tick"]()
        seen = {
            "observation.state": np.array([0.1, 0.2], np.float32),
            "front": np.arange(18, dtype=np.float32).reshape(2, 3, 3),
        }
        assert made["sent"] == [arm.select_action(seen).tolist()]
        answer = made["~/reset"](None, SimpleNamespace(success=False))
        assert answer.success
        running.client.close()


@pytest.mark.parametrize("key", ["task", "prompt", "observation/task"])
def test_only_sentences_are_read_as_sentences(key: str) -> None:
    streams = {
        "state": StreamConfig((5,)),
        "task": StreamConfig((256,), kind="text", encoder="hashed"),
    }
    made = make_policy(PolicyConfig("ebt", streams, 2, NETWORK)).eval()
    episode = Episode(made)
    wrong: list[Any] = [
        None, True, -1, 2**64 - 1, 1e300, b"x", [1, [2]], ["a", "b"], {"a": 1}, [], "", " ?! ",
        "a" * 10**6, "a " * 500, np.zeros(0), np.zeros(256), np.array(["a"] * 3),
        np.array([b"abc"]), np.array([], "U1"), np.array([["a"]]),
    ]  # fmt: skip
    for value in wrong:
        with pytest.raises(UserError):
            episode.observe(unpack(pack({"state": np.zeros(5), key: value})))
    episode.observe(unpack(pack({"state": np.zeros(5), key: "push the block"})))
    windows = {"state": np.zeros((2, 5)), key: np.array(["push the block"] * 2)}
    episode.observe(unpack(pack(windows)))
    assert episode.window()["task"].shape == (1, 2, 256)


def test_a_plan_goes_on_from_what_was_sent_and_is_forgotten_where_it_was_not_executed() -> None:
    episode = Episode(policy(descent=DescentConfig(smoothness=0.1)))
    seen = {n: np.zeros(s.shape) for n, s in episode._policy.config.streams.items()}
    episode.observe(seen)
    chunk = episode._policy.predict_chunk(*episode.asked())
    sent = chunk.actions[0] + 3.0  # as limits would change it
    episode.answer(chunk, sent)
    episode.observe({**seen, "last_action": sent[-1]})
    previous = episode.asked()[2]
    assert np.array_equal(previous[0, 0], sent[-1])
    episode.observe({**seen, "last_action": sent[3]})
    assert episode.asked()[2] is None
