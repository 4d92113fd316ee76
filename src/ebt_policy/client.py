"""The robot's side of the policy server: NumPy, websockets and msgpack, no PyTorch.

Example::

    from ebt_policy.client import PolicyClient

    client = PolicyClient("127.0.0.1", 8000)
    client.reset(seed=0)  # once per episode
    while True:
        action = client.select_action({"state": robot.observe()})  # (A,), once per control step
        robot.move(action)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
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
        patience: seconds that a call may take, all tries to connect included.

    Attributes:
        metadata: what the server says of its policy: the shape of each observation and of the
            actions, ``observation_steps`` (To).
        reply: the server's newest reply: ``energy``, ``num_steps``, ``alarm`` where there is one.

    Raises:
        ConnectionError: there is no server, for as long as patience lasts.
        UserError: the server refuses the API key.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        patience: float = 30.0,
    ) -> None:
        self._address = f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._patience = patience
        self.metadata: dict[str, Any] = {}
        self.reply: dict[str, Any] = {}
        self._connection = self._connect(time.monotonic() + patience)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            seed: of the policy's draws; the same one gives the same actions again.
        """
        self._seed = {} if seed is None else {"seed": seed}
        self._begins = True
        self._window: deque[dict[str, np.ndarray]] = deque(
            maxlen=self.metadata["observation_steps"]
        )
        self._queue: deque[np.ndarray] = deque()
        self._last_action: np.ndarray | None = None

    def select_action(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next action (A,); call once per control step. The server is asked every Ta steps.

        Args:
            observation: each stream of the policy, without batch or time. With ``last_action``
                besides, the first action of an episode is limited as one that follows it.

        Raises:
            ConnectionError: no server answers, for as long as patience lasts.
            UserError: the server refuses the observation, and says why.
        """
        if self._queue:
            self.observe(observation)
        else:
            last = {} if self._last_action is None else {"last_action": self._last_action}
            actions = self.infer({**observation, **last})["actions"]
            # A hold command, which took no step of the policy, is for one step: then ask again.
            self._queue.extend(actions if self.reply["num_steps"] else actions[:1])
        self._last_action = self._queue.popleft().copy()
        return self._last_action

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
        streams = self.metadata["observation"]
        fill = [self._window[0]] * (self.metadata["observation_steps"] - len(self._window))
        steps = [*fill, *self._window]
        message = {name: value for name, value in observation.items() if name not in streams}
        message |= {name: np.stack([step[name] for step in steps]) for name in streams}
        answer = self._ask(message)
        if isinstance(answer, str):
            raise UserError(f"{self._address}: {answer}")
        self.reply, self._begins = unpack(answer), False
        return self.reply

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Remember the observation of a control step at which nothing is asked.

        Raises:
            UserError: a stream of the policy is missing.
        """
        missing = sorted(self.metadata["observation"].keys() - observation.keys())
        if missing:
            raise UserError(f"observation {missing[0]!r} is missing")
        self._window.append({n: np.array(observation[n]) for n in self.metadata["observation"]})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> bytes | str:
        """Send a message until it is answered."""
        deadline = time.monotonic() + self._patience
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
                self.close()
                raise ConnectionError(f"{self._address}: no reply in {self._patience} s") from error
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
