"""The alarm: is the robot somewhere that the demonstrations did not show?

Its score is the energy of the observation (:mod:`ebt_policy.energy.observation`). Its threshold is
conformal (Vovk et al. 2005; for robots' failures arXiv 2503.08558): with the highest score of each
of n successful episodes, sorted, the k-th with k = ceil((n + 1)(1 - rate)) is exceeded by at most
``rate`` of all further successful episodes of the same kind.

It can do more than tell. Above the threshold, the energy may be descended over the streams that
the robot may *imagine* otherwise (its own state, never the world's): of the values that were
demonstrated for such a stream the one of the lowest energy is taken. A hand that has closed on
nothing is then planned for as the open hand that was demonstrated there, and the plan opens it and
grasps again, which no demonstration shows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ebt_policy.energy.observation import ObservationEnergy
from ebt_policy.errors import UserError
from ebt_policy.shapes import Float

ALARM_FILE = "alarm.safetensors"


def flat(observation: dict[str, Tensor]) -> Float[Tensor, "b d"]:
    """Normalised streams (b, To, features) as one row for each window."""
    return torch.cat([observation[name].flatten(1) for name in sorted(observation)], 1)


class Alarm:
    """Scores observation windows, and says which are beyond a threshold.

    Args:
        energy: of observations, learned from the demonstrations.
        episodes: highest score of each successful episode that it is calibrated on.
        rate: of false alarms, per successful episode.
        source: what the episodes were, in words.
        imagined: of each stream that may be imagined, demonstrated values (n, To * features).

    Raises:
        UserError: there are too few episodes for this rate.
    """

    def __init__(
        self,
        energy: ObservationEnergy,
        episodes: Sequence[float],
        rate: float,
        source: str,
        imagined: Mapping[str, Float[Tensor, "n _"]] | None = None,
    ) -> None:
        self.energy, self.rate, self.source = energy, rate, source
        self.imagined = dict(imagined or {})
        self.episodes = sorted(float(score) for score in episodes)
        self.threshold = conformal_threshold(self.episodes, rate)

    def score(self, observation: dict[str, Tensor]) -> Float[np.ndarray, b]:
        """Energy of each window; normalised streams (b, To, features)."""
        rows = flat(observation)
        with torch.no_grad():
            scores: np.ndarray = self.energy.to(rows)(rows).cpu().numpy()
        return scores

    def imagine(self, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """The observations to plan for: as they are, or with one stream imagined otherwise.

        Args:
            observation: normalised streams (b, To, features).
        """
        if not self.imagined:
            return observation
        changed = {name: values.clone() for name, values in observation.items()}
        before = self.score(observation)
        for row in np.flatnonzero(before > self.threshold):
            one = {name: values[row : row + 1] for name, values in observation.items()}
            lowest = float(before[row])
            for name, values in self.imagined.items():
                every = {key: part.expand(len(values), -1, -1) for key, part in one.items()}
                every[name] = values.to(one[name]).reshape(len(values), *one[name].shape[1:])
                scores = self.score(every)
                if scores.min() < lowest:
                    lowest = float(scores.min())
                    for key in self.imagined:
                        changed[key][row] = one[key][0]
                    changed[name][row] = every[name][int(scores.argmin())]
        return changed

    def to_bytes(self, policy: bytes) -> bytes:
        """What :meth:`of_bytes` reads.

        Args:
            policy: the weights of the policy that it is for, as they are saved.
        """
        from safetensors.torch import save

        described = {
            "rate": self.rate, "threshold": self.threshold, "source": self.source,
            "episodes": self.episodes, "imagined": sorted(self.imagined),
            "policy": hashlib.sha256(policy).hexdigest(), "limit": self.energy.limit,
        }  # fmt: skip
        weights = {f"energy.{name}": value for name, value in self.energy.state_dict().items()}
        values = {f"imagined.{name}": value for name, value in self.imagined.items()}
        tensors = {name: value.cpu().contiguous() for name, value in (weights | values).items()}
        return save(tensors, {"alarm": json.dumps(described)})

    @classmethod
    def of_bytes(
        cls, content: bytes, policy: bytes, features: int, limit: float | None, source: str
    ) -> Alarm:
        """An alarm as it was saved.

        Args:
            content: of :meth:`to_bytes`.
            policy: the weights of the policy that it is asked for, as they are saved.
            features: of that policy's observation window.
            limit: where its network sees numbers that lie beyond.
            source: where the content is from, for messages.

        Raises:
            UserError: it is damaged, or of other weights, another limit or an earlier version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        energy = ObservationEnergy(features, limit)
        try:
            tensors = load(content)
            size = int.from_bytes(content[:8], "little")  # of the header, in JSON
            found = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["alarm"])
            is_current = "limit" in found
            is_its = (
                found["policy"] == hashlib.sha256(policy).hexdigest()
                and found.get("limit") == limit
            )
            imagined = {name: tensors.pop(f"imagined.{name}") for name in found["imagined"]}
            if is_current and is_its:
                energy.load_state_dict({k.removeprefix("energy."): v for k, v in tensors.items()})
            alarm = cls(energy, found["episodes"], found["rate"], found["source"], imagined)
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{source}: damaged ({error}); calibrate again, or remove it"
            ) from error
        if not is_current:
            raise UserError(
                f"{source}: was calibrated by an earlier version; calibrate again, or remove it"
            )
        if not is_its:
            raise UserError(
                f"{source}: was calibrated for other weights than this policy's, or for another "
                "observation_limit; calibrate again, or remove it"
            )
        energy.requires_grad_(False)
        return alarm


def least_episodes(rate: float) -> int:
    """How many successful episodes a rate of false alarms takes at least.

    Raises:
        UserError: the rate is out of range.
    """
    if not 0 < rate < 1:
        raise UserError(f"a rate of {rate} false alarms: it must lie between 0 and 1")
    return math.ceil(1 / rate) - 1


def conformal_threshold(scores: Sequence[float], rate: float) -> float:
    """The score that at most ``rate`` of further successful episodes exceed.

    Args:
        scores: highest score of each successful episode, sorted.
        rate: between 0 and 1.

    Raises:
        UserError: the rate is out of range, or so small that no score of these is high enough.
    """
    least = least_episodes(rate)
    place = math.ceil((len(scores) + 1) * (1 - rate))
    if place > len(scores):
        raise UserError(
            f"{len(scores)} successful episodes are too few for a rate of {rate} false alarms; it "
            f"takes {least} or more"
        )
    return float(scores[place - 1])
