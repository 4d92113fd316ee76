"""A policy behind a WebSocket, in the protocol that openpi's clients speak.

    client connects                     -> metadata
    observation (binary message)        -> {"actions": (Ta, A) float32, "server_timing": ...}
                                           or a text: what was wrong with the message
    GET /healthz                        -> 200 OK

Messages are those of :mod:`ebt_policy.serving.protocol`, an observation's keys those of
:class:`ebt_policy.serving.episode.Episode`. One thread computes the chunks of all clients, in the
order in which they were asked for; the event loop stays free for the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ebt_policy.config import ServerConfig
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy, Prediction
from ebt_policy.serving.episode import Episode
from ebt_policy.serving.limits import ActionLimits
from ebt_policy.serving.protocol import pack, unpack

MAX_CLIENTS = 64


class PolicyServer:
    """Serves one policy to many clients, each with an episode of its own.

    Example::

        server = PolicyServer(policy, ServerConfig(), ActionLimits(policy))
        async with await server.listen():
            await asyncio.Future()  # for ever

    Args:
        policy: acts with the settings it has.
        config: address, sizes, budget.
        limits: applied to every action that is sent.
        api_key: asked of every client, if there is one.

    Raises:
        UserError: the address can be reached from other machines and there is no API key.
    """

    def __init__(
        self,
        policy: Policy,
        config: ServerConfig,
        limits: ActionLimits,
        api_key: str | None = None,
    ) -> None:
        if api_key is None and not is_loopback(config.host):
            raise UserError(
                f"--host {config.host}: whoever reaches it could move the robot; give an "
                "--api-key-file, or serve on 127.0.0.1"
            )
        self.policy, self.config, self._limits, self._api_key = policy, config, limits, api_key
        windows = policy.config.windows
        still = policy.check_observation(
            {name: np.zeros(stream.shape) for name, stream in policy.config.streams.items()}
        )
        self.metadata = {
            "policy": policy.config.policy,
            "observation": {
                name: {"shape": list(value.shape), "dtype": str(value.dtype)}
                | ({"may_be_missing": True} if name in policy.config.may_be_missing else {})
                for name, value in still.items()
            },
            "action": {
                "shape": [windows.action_steps, policy.config.action_dim],
                "dtype": "float32",
                "is_delta": limits.is_delta.tolist(),
            },
            "observation_steps": windows.observation_steps,
            "horizon": windows.horizon,
        }
        self._worker = ThreadPoolExecutor(1, "policy")
        # The first chunk of a process is far slower than all others.
        episode = Episode(policy)
        episode.observe(still)
        self._worker.submit(self._predict, episode.asked()).result()

    async def listen(self) -> Server:
        """Begin to accept clients; the server is a context, which ends it.

        Raises:
            OSError: the port is taken.
        """
        return await serve(
            self._serve_client,
            self.config.host,
            self.config.port,
            # A web page in the robot user's browser sends its origin; robots have none.
            origins=[None],
            process_request=self._admit,
            # Compressed messages could unfold to any size; queued ones would add up.
            compression=None,
            max_size=int(1e6 * self.config.max_mb),
            max_queue=1,
        )

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a health check, or refuse a client, before it is a client."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._api_key is not None:
            given = ",".join(request.headers.get_all("Authorization"))
            expected = f"Api-Key {self._api_key}"
            if not hmac.compare_digest(given.encode(errors="replace"), expected.encode()):
                return connection.respond(
                    HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key ...\n"
                )
        if len(connection.server.connections) >= MAX_CLIENTS:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CLIENTS} clients are connected\n"
            )
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        client, clock = _Client(Episode(self.policy)), asyncio.get_running_loop().time
        with contextlib.suppress(ConnectionClosed):
            await connection.send(pack(self.metadata))
            async for message in connection:
                arrived = clock()
                try:
                    if isinstance(message, str):
                        raise UserError("text message: observations are binary (msgpack)")
                    client.episode.observe(unpack(message))
                    reply: bytes | str = pack(await self._reply(client, arrived))
                except UserError as error:
                    reply = str(error)
                await connection.send(reply)

    async def _reply(self, client: _Client, arrived: float) -> dict[str, Any]:
        """Actions for what the client has observed, or a hold command if they would be late.

        Late is later than the budget. The first reply of an episode waits for its chunk all the
        same, because there is nothing to hold yet. A late chunk is computed to its end and
        dropped; until then the client gets no other one, so that late ones do not pile up.

        Raises:
            UserError: the policy's actions are not finite, and there is nothing to hold.
        """
        episode, loop = client.episode, asyncio.get_running_loop()
        hold = self._limits.hold(episode.last_action)
        due = None
        if self.config.budget_ms is not None:
            due = arrived + 1e-3 * self.config.budget_ms
        chunk = None
        try:
            async with asyncio.timeout_at(None if hold is None else due):
                if client.running is not None:
                    await asyncio.wait({client.running})
                client.running = loop.run_in_executor(self._worker, self._predict, episode.asked())
                chunk, infer_ms = await asyncio.shield(client.running)
        except TimeoutError:
            infer_ms = 1e3 * (loop.time() - arrived)
        timing = {"server_timing": {"infer_ms": infer_ms}}
        if chunk is None or not np.isfinite(chunk.actions).all():
            if hold is None:
                raise UserError("the policy's actions are not finite: its weights are damaged")
            episode.hold()
            steps = self.policy.config.windows.action_steps
            return {"actions": np.tile(hold, (steps, 1)), "num_steps": 0, "alarm": True, **timing}
        actions = self._limits.limit(chunk.actions[0], episode.last_action)
        episode.answer(chunk, actions)
        reply = {"actions": actions, "num_steps": int(chunk.evaluations[0]), **timing}
        if chunk.trace is not None:
            reply["energy"] = float(chunk.trace.energy[0, -1])
        if chunk.score is not None and chunk.alarm is not None:
            reply["observation_energy"] = float(chunk.score[0])
            reply["alarm"] = bool(chunk.alarm[0])
        if due is not None and loop.time() > due:
            reply["alarm"] = True
        return reply

    def _predict(self, asked: tuple[Any, ...]) -> tuple[Prediction, float]:
        """A chunk and the milliseconds that it took."""
        began = time.perf_counter()
        chunk = self.policy.predict_chunk(*asked)
        return chunk, 1e3 * (time.perf_counter() - began)


@dataclass
class _Client:
    """One connection: its episode, and the chunk that is being computed for it, if it is late."""

    episode: Episode
    running: asyncio.Future[tuple[Prediction, float]] | None = None


def is_loopback(host: str) -> bool:
    """Whether an address is the machine's own, out of reach for any other.

    Raises:
        UserError: there is no such address.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"--host {host}: no such address ({error.strerror})") from error
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def read_api_key(path: Path) -> str:
    """The API key that stands in a file, alone.

    Raises:
        UserError: the file cannot be read, or its content is not a key.
    """
    try:
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {path}: cannot be read ({error})") from error
    if len(key) < 16 or not key.isprintable():
        raise UserError(
            f"--api-key-file {path}: give at least 16 printable characters on one line, for "
            "instance from: openssl rand -hex 32"
        )
    return key


def run_server(server: PolicyServer, started: Callable[[int], None]) -> None:
    """Serve until the process is interrupted or terminated.

    Args:
        server: not listening yet.
        started: called with the port once clients can connect.

    Raises:
        UserError: the port is taken.
    """

    async def until_stopped() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            listening = await server.listen()
        except OSError as error:
            raise UserError(
                f"--port {server.config.port}: cannot listen there ({error.strerror})"
            ) from error
        async with listening:
            started(listening.sockets[0].getsockname()[1])
            await stop.wait()

    asyncio.run(until_stopped())
