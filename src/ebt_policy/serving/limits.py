"""The last word on what leaves the server: range, velocity, and what holds the robot still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ebt_policy.config import DimensionLimits, LimitsConfig, from_json
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy
from ebt_policy.shapes import Float


class ActionLimits:
    """Limits of each dimension of a policy's actions.

    Args:
        policy: the demonstrations' range is in its action normaliser.
        config: narrower ranges, velocities, and which dimensions are targets; by default all
            are targets, within the range of the demonstrations.
        source: where the configuration is from, for messages.

    Raises:
        UserError: ``config`` is for another number of dimensions, or leaves no range.
    """

    def __init__(
        self, policy: Policy, config: LimitsConfig | None = None, source: str = "limits"
    ) -> None:
        dimension = policy.config.action_dim
        given = (DimensionLimits(),) * dimension if config is None else config.dimensions
        if len(given) != dimension:
            raise UserError(
                f"{source}: {len(given)} dimensions, the policy's actions have {dimension}"
            )
        ends = torch.tensor([[-1.0], [1.0]], device=policy.action_normaliser.centre.device)
        shown = policy.action_normaliser.unnormalise(ends.expand(2, dimension)).cpu().numpy()
        low, high = zip(
            *(
                (least if own.low is None else own.low, most if own.high is None else own.high)
                for least, most, own in zip(*shown, given, strict=True)
            ),
            strict=True,
        )
        self.is_delta = np.array([d.kind == "delta" for d in given])
        self.step = np.array([np.inf if d.step is None else d.step for d in given], np.float32)
        reach = np.where(self.is_delta, self.step, np.float32(np.inf))
        self.low = np.maximum(np.array(low, np.float32), -reach)
        self.high = np.minimum(np.array(high, np.float32), reach)
        if (self.low > self.high).any():
            i = int(np.argmax(self.low > self.high))
            raise UserError(
                f"{source}: dimension {i} is left no range: from {self.low[i]:g} to "
                f"{self.high[i]:g} (demonstrated: {shown[0][i]:g} to {shown[1][i]:g})"
            )

    def limit(
        self, actions: Float[np.ndarray, "t a"], last: Float[np.ndarray, a] | None
    ) -> Float[np.ndarray, "t a"]:
        """Actions within all limits; a target outside its range comes back at the step's pace.

        Args:
            actions: to be executed one after the other.
            last: the action in force before them; without it the first one may be anywhere.
        """
        limited = np.clip(actions, self.low, self.high)
        pace = np.where(self.is_delta, np.float32(np.inf), self.step)
        for t in range(len(limited)):
            if last is not None:
                limited[t] = np.clip(limited[t], last - pace, last + pace)
            last = limited[t]
        return limited

    def hold(self, last: Float[np.ndarray, a] | None) -> Float[np.ndarray, a] | None:
        """The action that keeps the robot where it is; none if that needs an unknown target."""
        if last is None and not self.is_delta.all():
            return None
        still = np.zeros(len(self.is_delta), np.float32)
        return still if last is None else np.where(self.is_delta, still, last)


def read_limits(path: Path, policy: Policy) -> ActionLimits:
    """The limits of a JSON file.

    Example, a joint that goes to targets and a wheel that is given its speed::

        {"dimensions": [{"low": -1.5, "high": 1.5, "step": 0.05},
                        {"kind": "delta", "step": 0.2}]}

    Raises:
        UserError: the file cannot be read, or does not fit the policy's actions.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--limits {path}: cannot be read ({error})") from error
    return ActionLimits(policy, from_json(LimitsConfig, text, str(path)), str(path))
