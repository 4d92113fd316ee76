"""What the server remembers of one client: its window, its draws, its last chunk."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy
from ebt_policy.shapes import Shaped
from ebt_policy.windows.sentences import embed_all

PREFIX, PROMPT = "observation/", "prompt"


class Episode:
    """One client's episode, begun with its connection and again by each ``reset: true``.

    Args:
        policy: what is observed, and how far back.

    Attributes:
        generator: of the draws of this episode.
        previous: the plan (1, T, A) of the last reply, for a warm start.
        last_action: (A,), the one in force: the last one sent, or what the client says.
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
        self.previous: np.ndarray | None = None
        self.last_action: np.ndarray | None = None

    def observe(self, message: dict[str, Any]) -> None:
        """Take in one message: all of it, or nothing if any of it is wrong.

        Keys: each stream of the policy, alone or with the prefix ``observation/`` (a sentence also
        as ``prompt``, openpi's name for it), one observation or a whole window (To, ...), oldest
        first; and if wanted ``reset``, ``seed`` (with the first message of an episode) and
        ``last_action``. Others are ignored.

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
        last = message.get("last_action")
        if last is not None:
            with np.errstate(over="ignore"):
                last = _numbers("last_action", last).astype(np.float32)
            if last.shape != (self._policy.config.action_dim,) or not np.isfinite(last).all():
                raise UserError(
                    f"last_action has shape {last.shape}, it must be "
                    f"({self._policy.config.action_dim},) and finite"
                )
        if reset or not self._window:
            self._begin(seed)
        if not self._window:
            self._window.extend([steps[0]] * (self._policy.config.windows.observation_steps - 1))
        self._window.extend(steps)
        if last is not None:
            self.last_action = last

    def window(self) -> dict[str, Shaped[np.ndarray, "1 to ..."]]:
        """The policy's streams as a batch of one."""
        return {
            name: np.stack([step[name] for step in self._window])[None]
            for name in self._policy.stream_names
        }

    def _steps(self, message: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """One checked observation, or the To of a window."""
        streams, extent = self._policy.config.streams, self._policy.config.windows.observation_steps
        values = {}
        for name in self._policy.stream_names:
            encoder = streams[name].encoder
            names = (name, PREFIX + name, *(() if encoder is None else (PROMPT,)))
            key = next((known for known in names if known in message), None)
            if key is None:
                raise UserError(
                    f"observation {name!r} is missing; the policy observes "
                    f"{', '.join(self._policy.stream_names)}"
                )
            if encoder is None:
                values[name] = _numbers(key, message[key])
            else:
                values[name] = embed_all(np.asarray(message[key]), encoder)
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
