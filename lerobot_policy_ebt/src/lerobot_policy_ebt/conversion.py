"""A policy that LeRobot trained, as one of ``ebt_policy``: to serve, to export, to measure.

Example::

    from ebt_policy import save_policy
    from lerobot_policy_ebt.conversion import to_energy_policy

    save_policy(to_energy_policy("outputs/pick/checkpoints/last/pretrained_model"), "runs/pick")
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lerobot.configs import NormalizationMode
from lerobot.policies import make_pre_post_processors
from lerobot.processor import NormalizerProcessorStep
from lerobot.utils.constants import ACTION

from ebt_policy.errors import UserError
from ebt_policy.policies import EnergyPolicy
from lerobot_policy_ebt.modeling_ebt import EBTPolicy


def to_energy_policy(folder: str | Path) -> EnergyPolicy:
    """The averaged weights, with the ranges of LeRobot's processors in the policy's normalisers.

    Args:
        folder: LeRobot's ``pretrained_model``, or a name on the hub.

    Raises:
        UserError: a feature is not normalised by its range.
    """
    trained = EBTPolicy.from_pretrained(folder)
    config, policy = trained.config, trained.ema
    preprocessor, _ = make_pre_post_processors(config, str(folder))
    step = next(step for step in preprocessor.steps if isinstance(step, NormalizerProcessorStep))
    ranges = {}
    for name, feature in {**config.input_features, **config.output_features}.items():
        mode = step.norm_map.get(feature.type, NormalizationMode.IDENTITY)
        if mode is not NormalizationMode.MIN_MAX or name not in (step.stats or {}):
            raise UserError(
                f"{folder}: {name} is normalised by {mode.value}; only MIN_MAX, with the data "
                "set's statistics, can be converted"
            )
        bounds = [np.asarray(step.stats[name][bound], np.float32) for bound in ("min", "max")]
        ranges[name] = np.stack(bounds)
    policy.fit_normalisers(ranges, ranges[ACTION], np.arange(2), str(folder))
    return policy
