"""From what LeRobot reads to what the policy sees, and from its actions to the robot's units."""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_pre_post_processors,
)

from ebt_policy.demonstrations.base import constant_dimensions
from lerobot_policy_ebt.configuration_ebt import EBTConfig


def make_ebt_pre_post_processors(
    config: EBTConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """LeRobot's own pipelines: rename, batch, device, normalise; unnormalise, to the CPU.

    An observation that is constant in the data set is only centred. LeRobot divides by 1e-8 there,
    which makes anything that a sensor measures beside the constant huge.

    Args:
        config: with its features.
        dataset_stats: ``min`` and ``max`` of each feature.
    """
    stats = dict(dataset_stats or {})
    for name in stats.keys() & (config.input_features or {}).keys():
        low, high = (np.asarray(stats[name][bound]) for bound in ("min", "max"))
        still = constant_dimensions(low, high)
        room = {"min": np.where(still, low - 1, low), "max": np.where(still, high + 1, high)}
        stats[name] = {**stats[name], **room}
    return make_default_pre_post_processors(config, stats)
