"""The alarm: is the robot somewhere that the demonstrations did not show?

Its score is the energy of the observation (:mod:`ebt_policy.energy.observation`). Its threshold is
conformal (Vovk et al. 2005; for robots' failures arXiv 2503.08558): with the highest score of each
of n successful episodes, sorted, the k-th with k = ceil((n + 1)(1 - rate)) is exceeded by at most
``rate`` of all further successful episodes of the same kind.

It can do more than tell. Above the threshold, the energy may be descended over the streams that
the robot may *imagine* otherwise (its own state, never the world's): of the values that were
demonstrated for such a stream the one of the lowest energy is taken, if with it the observation
is as the demonstrations are. A hand that has closed on nothing is then planned for as the open
hand that was demonstrated there, and the plan opens it and grasps again, which no demonstration
shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebt_policy.energy.observation import ObservationEnergy
from ebt_policy.errors import UserError
from ebt_policy.shapes import Float

ALARM_FILE, ALARM_WEIGHTS = "alarm.json", "alarm.safetensors"


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
        with torch.no_grad():
            scores: np.ndarray = self.energy(flat(observation)).cpu().numpy()
        return scores

    def imagine(self, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """The observations to plan for: as they are, or with one stream imagined otherwise.

        Args:
            observation: normalised streams (b, To, features).
        """
        if not self.imagined:
            return observation
        changed = {name: values.clone() for name, values in observation.items()}
        for row in np.flatnonzero(self.score(observation) > self.threshold):
            one = {name: values[row : row + 1] for name, values in observation.items()}
            best = self.threshold
            for name, values in self.imagined.items():
                shape = (len(values), *one[name].shape[1:])
                every = {key: part.expand(len(values), -1, -1) for key, part in one.items()}
                every[name] = values.to(one[name].device).reshape(shape)
                scores = self.score(every)
                if scores.min() < best:
                    best = float(scores.min())
                    for key in self.imagined:
                        changed[key][row] = observation[key][row]
                    changed[name][row] = every[name][int(scores.argmin())]
        return changed

    def save(self, folder: Path) -> None:
        """Write it into a policy's folder.

        Raises:
            UserError: the folder cannot be written.
        """
        from safetensors.torch import save

        from ebt_policy.policies.files import replace_file

        described: dict[str, Any] = {
            "rate": self.rate, "threshold": self.threshold, "source": self.source,
            "episodes": self.episodes, "imagined": sorted(self.imagined),
        }  # fmt: skip
        weights = {f"energy.{name}": value for name, value in self.energy.state_dict().items()}
        values = {f"imagined.{name}": value for name, value in self.imagined.items()}
        replace_file(folder / ALARM_WEIGHTS, save(weights | values))
        replace_file(folder / ALARM_FILE, (json.dumps(described, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path, features: int) -> Alarm | None:
        """Read it from a policy's folder; None if there is none.

        Args:
            folder: of the policy.
            features: of the policy's observation window.

        Raises:
            UserError: a file is missing or damaged, or of another policy.
        """
        if not (folder / ALARM_FILE).exists():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load

        energy = ObservationEnergy(features)
        try:
            found = json.loads((folder / ALARM_FILE).read_text())
            tensors = load((folder / ALARM_WEIGHTS).read_bytes())
            imagined = {name: tensors.pop(f"imagined.{name}") for name in found["imagined"]}
            energy.load_state_dict({k.removeprefix("energy."): v for k, v in tensors.items()})
            alarm = cls(energy, found["episodes"], found["rate"], found["source"], imagined)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{folder / ALARM_FILE}: damaged, or of another policy ({error}); calibrate again, "
                f"or remove {ALARM_FILE}"
            ) from error
        energy.requires_grad_(False)
        return alarm


def conformal_threshold(scores: Sequence[float], rate: float) -> float:
    """The score that at most ``rate`` of further successful episodes exceed.

    Args:
        scores: highest score of each successful episode, sorted.
        rate: between 0 and 1.

    Raises:
        UserError: the rate is out of range, or so small that no score of these is high enough.
    """
    if not 0 < rate < 1:
        raise UserError(f"a rate of {rate} false alarms: it must lie between 0 and 1")
    place = math.ceil((len(scores) + 1) * (1 - rate))
    if place > len(scores):
        raise UserError(
            f"{len(scores)} successful episodes are too few for a rate of {rate} false alarms; it "
            f"takes {math.ceil(1 / rate) - 1} or more"
        )
    return float(scores[place - 1])
