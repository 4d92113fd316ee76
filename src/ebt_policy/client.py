"""The robot's side of the policy server: NumPy, websockets and msgpack, no PyTorch.

Example::

    from ebt_policy.client import PolicyClient

    client = PolicyClient("127.0.0.1", 8000)
    client.reset(seed=0)  # once per episode
    while True:
        action = client.select_action({"state": robot.observe()})  # (A,), once per control step
        robot.move(action)

A robot that cannot stand still while a chunk is on its way asks ahead: with
``PolicyClient(ahead=4)`` the next chunk is asked for four control steps before the one in hand
ends, and begins where that one ends. Those four actions go with the question: a policy that was
trained with ``basin.prefix_share`` goes on from them. ``ahead`` is the delay times the control
rate, rounded up, and one more where the delay varies.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from ebt_policy.errors import UserError
from ebt_policy.serving.protocol import pack, unpack

_BETWEEN_TRIES = 0.1  # seconds


class PolicyClient:
    """One robot's connection to a policy server; a lost one is made again.

    It keeps the observation window itself and sends it whole, so that a server which was
    restarted goes on with the episode where it is.

    Args:
        host, port: of the server.
        api_key: if the server asks for one.
        patience: seconds that a call may take, all tries to connect included; with ``ahead``,
            that the robot may be without a reply.
        ahead: control steps before the end of a chunk at which the next one is asked for, at most
            as many as are executed of a chunk, and half of what it plans; 0 waits for the end.
        lost_after: seconds after which a chunk that was asked for ahead is asked for again.

    Attributes:
        metadata: what the server says of its policy: the shape of each observation and of the
            actions, ``observation_steps`` (To), ``horizon`` (T).
        reply: the server's newest reply: ``energy``, ``num_steps``, ``alarm`` where there is one.
        is_holding: whether the newest action holds the robot because no other was there.

    Raises:
        ConnectionError: there is no server, for as long as patience lasts.
        UserError: the server refuses the API key, or its chunks are too short for ``ahead``.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        patience: float = 30.0,
        ahead: int = 0,
        lost_after: float = 1.0,
    ) -> None:
        self._address = f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._patience = patience
        self.metadata: dict[str, Any] = {}
        self.reply: dict[str, Any] = {}
        self._connection = self._connect(time.monotonic() + patience)
        executed, horizon = self.metadata["action"]["shape"][0], self.metadata["horizon"]
        # After a prefix a chunk must hold as many actions as pass until the one after it is here.
        most = min(executed, (horizon - self.metadata["observation_steps"] + 1) // 2)
        if not 0 <= ahead <= most:
            self._connection.close()
            raise UserError(
                f"ahead = {ahead}: with this policy's chunks, {horizon} actions of which "
                f"{executed} are executed, it is 0 to {most}"
            )
        self._ahead, self._lost_after = ahead, lost_after
        self._worker = ThreadPoolExecutor(1, "chunks ahead")
        self._asked: Future[bytes | str] | None = None
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            seed: of the policy's draws; the same one gives the same actions again.
        """
        if self._asked is not None:
            wait([self._asked])  # a chunk of the last episode
        self._asked = None
        self._seed = {} if seed is None else {"seed": seed}
        self._begins = True
        self._window: deque[dict[str, np.ndarray]] = deque(
            maxlen=self.metadata["observation_steps"]
        )
        self._queue: deque[np.ndarray] = deque()
        self._executed: deque[np.ndarray] = deque(
            maxlen=max(1, self.metadata["observation_steps"] - 1)
        )
        self._step = self._due = 0
        self.is_holding = False
        self._answered = time.monotonic()

    def select_action(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next action (A,); call once per control step. The server is asked every Ta steps.

        With ``ahead`` it returns at once but for the first action of an episode. While no action is
        left, because a chunk is late, it holds the robot: the last action again, or 0 where an
        action is a change.

        Args:
            observation: each stream of the policy, without batch or time; one that may be missing
                is absent or None where it is. With ``last_action`` besides, the first action of an
                episode is limited as one that follows it.

        Raises:
            ConnectionError: no server answers, for as long as patience lasts.
            UserError: the server refuses the observation, and says why.
        """
        if self._ahead and self._executed:
            self.observe(observation)
            self._take_chunk()
            if self._asked is None and len(self._queue) <= self._ahead:
                self._ask_ahead(observation)
        elif self._queue:
            self.observe(observation)
        else:
            last = {"last_action": self._executed[-1]} if self._executed else {}
            actions = self.infer({**observation, **last})["actions"]
            # A hold command, which took no step of the policy, is for one step: then ask again.
            self._queue.extend(actions if self.reply["num_steps"] else actions[:1])
        self.is_holding = not self._queue
        action = self._hold() if self.is_holding else self._queue.popleft().copy()
        self._executed.append(action)
        self._step += 1
        return action

    def _ask_ahead(self, observation: Mapping[str, Any]) -> None:
        """Ask for the chunk that goes on where the one in hand ends."""
        before = self.metadata["observation_steps"] - 1
        executed = [self._executed[0]] * before + [*self._executed]
        decided = [*executed[len(executed) - before :], *self._queue]
        prefix = np.array(decided, np.float32).reshape(-1, self.metadata["action"]["shape"][1])
        message = self._message({**observation, "prefix": prefix})
        self._due = self._step + len(self._queue)
        self._asked = self._worker.submit(self._ask, message, self._lost_after)

    def _take_chunk(self) -> None:
        """Put the chunk that was asked for into the queue, if it is here.

        Raises:
            ConnectionError: there was no reply for as long as patience lasts.
            UserError: the server refuses the observation, and says why.
        """
        if self._asked is None or not self._asked.done():
            return
        asked, self._asked = self._asked, None
        try:
            actions = self._reply(asked.result())["actions"]
        except ConnectionError:
            if time.monotonic() - self._answered > self._patience:
                raise
            return
        if self.reply["num_steps"]:  # else a hold command
            self._queue.extend(actions[max(0, self._step - self._due) :])

    def _hold(self) -> np.ndarray:
        """The action that keeps the robot where it is."""
        return np.where(self.metadata["action"]["is_delta"], 0, self._executed[-1])

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's reply to an observation, as it is: ``actions`` (Ta, A) and more.

        Args:
            observation: as :meth:`select_action` takes it; further keys are sent as they are. Who
                executes less than the whole chunk adds ``last_action``, the last one executed.

        Raises:
            ConnectionError: no server answers, for as long as patience lasts.
            UserError: the server refuses the observation, and says why.
        """
        self.observe(observation)
        return self._reply(self._ask(self._message(observation), self._patience))

    def _message(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """What is sent: the window, and what else is in the newest observation."""
        streams = self.metadata["observation"]
        fill = [self._window[0]] * (self.metadata["observation_steps"] - len(self._window))
        steps = [*fill, *self._window]
        message = {name: value for name, value in observation.items() if name not in streams}
        whole = [name for name in streams if all(name in step for step in steps)]
        return message | {name: np.stack([step[name] for step in steps]) for name in whole}

    def _reply(self, answer: bytes | str) -> dict[str, Any]:
        """What was answered.

        Raises:
            UserError: that something is wrong.
        """
        if isinstance(answer, str):
            raise UserError(f"{self._address}: {answer}")
        self.reply, self._begins, self._answered = unpack(answer), False, time.monotonic()
        return self.reply

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Remember the observation of a control step at which nothing is asked.

        Raises:
            UserError: a stream of the policy is missing that may not be.
        """
        streams = self.metadata["observation"]
        given = {n: np.array(observation[n]) for n in streams if observation.get(n) is not None}
        for name in sorted(streams.keys() - given.keys()):
            if not streams[name].get("may_be_missing"):
                raise UserError(f"observation {name!r} is missing")
        self._window.append(given)

    def close(self) -> None:
        """Close the connection."""
        if self._asked is not None:
            wait([self._asked])
        self._worker.shutdown()
        self._connection.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, message: dict[str, Any], patience: float) -> bytes | str:
        """Send a message until it is answered, for so many seconds.

        Raises:
            ConnectionError: it is not.
        """
        deadline = time.monotonic() + patience
        while True:
            begin = {"reset": True, **self._seed} if self._begins else {}
            data = pack({**message, **begin})
            try:
                self._connection.send(data)
                return self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
            except ConnectionClosed as error:
                if error.rcvd is not None and error.rcvd.code == CloseCode.MESSAGE_TOO_BIG:
                    raise UserError(
                        f"{self._address}: {len(data) / 1e6:.1f} MB are too much for this server "
                        "(see ebt-policy serve --max-mb)"
                    ) from error
            except TimeoutError as error:
                self._connection.close()
                raise ConnectionError(f"{self._address}: no reply in {patience} s") from error
            self._connection, self._begins = self._connect(deadline), True

    def _connect(self, deadline: float) -> ClientConnection:
        """A connection to the server, and its metadata.

        Raises:
            ConnectionError: there is none before the deadline.
            UserError: the API key is wrong, or it is another policy than before.
        """
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                # A context from websockets 17.1 on; close ends it.
                connection: ClientConnection = connect(
                    self._address, additional_headers=self._headers, compression=None, proxy=None,
                    open_timeout=left, close_timeout=1,
                ).__enter__()  # fmt: skip
                first = connection.recv(timeout=left)
                break
            except InvalidStatus as error:
                if error.response.status_code == HTTPStatus.UNAUTHORIZED:
                    raise UserError(f"{self._address}: the server asks for its API key") from error
                reason: Exception = error
            except (OSError, WebSocketException) as error:
                reason = error
            if time.monotonic() > deadline:
                raise ConnectionError(f"{self._address}: no policy server ({reason})") from reason
            time.sleep(_BETWEEN_TRIES)
        metadata = unpack(first) if isinstance(first, bytes) else {}
        if "observation_steps" not in metadata or self.metadata not in ({}, metadata):
            connection.close()
            what = (
                "another policy is served there now"
                if self.metadata
                else "that is not ebt-policy serve"
            )
            raise UserError(f"{self._address}: {what}")
        self.metadata = metadata
        return connection
