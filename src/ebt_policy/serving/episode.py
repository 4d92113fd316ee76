"""What the server remembers of one client: its window, its draws, its last chunk."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy, Prediction, moved_on
from ebt_policy.shapes import Shaped
from ebt_policy.windows.sentences import embed_all

PREFIX, PROMPT = "observation/", "prompt"


class Episode:
    """One client's episode, begun with its connection and again by each ``reset: true``.

    Args:
        policy: what is observed, and how far back.

    Attributes:
        generator: of the draws of this episode.
        last_action: (A,), the one in force when the next chunk begins: the last one sent, or what
            the client says.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._begin(None)

    def _begin(self, seed: int | None) -> None:
        self._window = deque[dict[str, np.ndarray]](
            maxlen=self._policy.config.windows.observation_steps
        )
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._prefix: np.ndarray | None = None
        self._plan: np.ndarray | None = None
        self._sent = 0  # actions of the plan up to the last one sent
        self.last_action: np.ndarray | None = None

    def observe(self, message: dict[str, Any]) -> None:
        """Take in one message: all of it, or nothing if any of it is wrong.

        Keys: each stream of the policy, alone or with the prefix ``observation/`` (a sentence also
        as ``prompt``, openpi's name for it), one observation or a whole window (To, ...), oldest
        first; one that may be missing is absent or nil where it is. And if wanted ``reset``,
        ``seed`` (with the first message of an episode), ``last_action`` (A,), and ``prefix``
        (n, A), the first actions of the chunk where they are decided. Others are ignored.

        Raises:
            UserError: a key is missing, or a value has the wrong type, shape or size.
        """
        reset, seed = message.get("reset", False), message.get("seed")
        if not isinstance(reset, bool):
            raise UserError(f"reset is {str(reset)[:40]!r}: it must be true or false")
        if seed is not None:
            if type(seed) is not int or not 0 <= seed < 2**63:
                raise UserError(f"seed is {str(seed)[:40]!r}: it must be an integer in [0, 2^63)")
            if self._window and not reset:
                raise UserError("seed comes with the first message of an episode: add reset: true")
        steps = self._steps(message)
        prefix = _actions(message, "prefix")
        if prefix is not None:
            if prefix.ndim != 2:
                raise UserError(f"prefix has shape {prefix.shape}, expected (n, A)")
            self._policy.check_prefix(prefix[None])
        last = _actions(message, "last_action")
        expected = (self._policy.config.action_dim,)
        if last is not None and (last.shape != expected or not np.isfinite(last).all()):
            raise UserError(f"last_action has shape {last.shape}, it must be {expected} and finite")
        if reset or not self._window:
            self._begin(seed)
        if not self._window:
            self._window.extend([steps[0]] * (self._policy.config.windows.observation_steps - 1))
        self._window.extend(steps)
        self._prefix = None if prefix is None else prefix[None]
        if prefix is not None and len(prefix):
            self.last_action = prefix[-1]
        elif last is not None:
            if self.last_action is not None and not np.allclose(last, self.last_action, atol=1e-6):
                self._plan = None  # it was not executed to where it was sent
            self.last_action = last

    def window(self) -> dict[str, Shaped[np.ndarray, "1 to ..."]]:
        """The policy's streams as a batch of one."""
        return self._policy.stacked([self._policy.window(self._window)])

    def asked(self) -> tuple[Any, ...]:
        """The arguments of ``Policy.predict_chunk`` for what was observed, as a batch of one."""
        previous = None
        if self._plan is not None:
            previous = moved_on(self._plan, self._sent - self._first)
        return self.window(), [self.generator], previous, self._prefix

    def answer(self, chunk: Prediction, actions: Shaped[np.ndarray, "n a"]) -> None:
        """Remember what was planned and sent."""
        self._plan, self._sent = chunk.plan.copy(), self._first + len(actions)
        self._plan[:, self._first : self._sent] = actions  # as limits left them
        self.last_action = actions[-1]

    def hold(self) -> None:
        """Forget the plan: after a hold command it is out of step."""
        self._plan = None

    @property
    def _first(self) -> int:
        """Place in the chunk of the first action to send."""
        decided = self._policy.config.windows.executed.start
        return decided if self._prefix is None else self._prefix.shape[1]

    def _steps(self, message: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """One checked observation, or the To of a window."""
        streams, extent = self._policy.config.streams, self._policy.config.windows.observation_steps
        values = {}
        for name in self._policy.stream_names:
            encoder = streams[name].encoder
            names = (name, PREFIX + name, *(() if encoder is None else (PROMPT,)))
            key = next((known for known in names if message.get(known) is not None), None)
            if key is None:
                if name in self._policy.config.may_be_missing:
                    continue
                raise UserError(
                    f"observation {name!r} is missing; the policy observes "
                    f"{', '.join(self._policy.stream_names)}"
                )
            if encoder is None:
                values[name] = _numbers(key, message[key])
            else:
                values[name] = embed_all(_sentences(key, message[key], extent), encoder)
        streams = {name: stream for name, stream in streams.items() if name in values}
        axes = {values[name].ndim - len(stream.shape) for name, stream in streams.items()}
        for name, stream in streams.items():
            shape, window = stream.shape, (extent, *stream.shape)
            if values[name].shape not in (shape, window) or len(axes) != 1:
                found = ", ".join(f"{name!r} {value.shape}" for name, value in values.items())
                raise UserError(
                    f"observations have shapes {found}; expected {name!r} {shape}, or {window} "
                    "where all are windows"
                )
        whole = axes == {1}
        steps = [{n: v[t] for n, v in values.items()} for t in range(extent)] if whole else [values]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named
            return [self._policy.check_observation(step) for step in steps]


def _sentences(name: str, value: Any, extent: int) -> np.ndarray:
    """A message's sentence, or the To of a window, as an array of text.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "U"):
        array = np.asarray(value)
        if array.shape in ((), (extent,)):
            return array
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    raise UserError(f"{name!r} is a {type(value).__name__}{shape}: it must be a sentence")


def _actions(message: dict[str, Any], name: str) -> np.ndarray | None:
    """A message's actions in float32, if it has them.

    Raises:
        UserError: they are no numbers.
    """
    if message.get(name) is None:
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named
        return _numbers(name, message[name]).astype(np.float32)


def _numbers(name: str, value: Any) -> np.ndarray:
    """A message's value as an array of numbers.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, np.ndarray | float | int):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
    kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
    raise UserError(f"{name!r} is a {kind}: it must be an array of numbers")
