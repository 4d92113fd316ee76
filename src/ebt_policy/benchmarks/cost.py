"""What one training step costs: every method side by side, as ratios within one run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.benchmarks.objectives import METHODS
from ebt_policy.config import (
    DESCENT_DEFAULTS,
    FORM_DEFAULTS,
    PRESETS,
    ObjectiveName,
    PolicyConfig,
    StreamConfig,
    override,
)
from ebt_policy.policies import make_policy
from ebt_policy.policies.base import Policy
from ebt_policy.provenance import provenance
from ebt_policy.windows.batch import Batch

REFERENCE = "diffusion"
_WARMUP = 3
_FEATURES, _ACTIONS = 8, 4


def _methods(preset: str) -> dict[str, Policy]:
    made = {}
    for method in METHODS.values():
        config = PolicyConfig(
            policy=method.policy, streams={"state": StreamConfig((_FEATURES,))},
            action_dim=_ACTIONS, network=PRESETS[preset].network,
        )  # fmt: skip
        if "--objective" in method.options:
            objective: ObjectiveName = method.name  # type: ignore[assignment]
            config = replace(
                config, objective=objective, form=FORM_DEFAULTS[objective],
                descent=DESCENT_DEFAULTS[objective],
            )  # fmt: skip
        options = list(method.options)
        chosen = [options[i + 1] for i, option in enumerate(options) if option == "--set"]
        made[method.name] = make_policy(override(config, chosen))
    return made


def measure_cost(preset: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Median time of a training step (loss, gradient, AdamW) of every method.

    The methods take turns within each round, so that whatever else the machine does meets all
    of them. One thread on a CPU.

    Args:
        preset: size of the network.
        batch_size: samples of a step.
        rounds: timed steps of each method.

    Returns:
        For each method milliseconds, and the ratio to a Diffusion Policy step with the
        quartiles of the ratio over rounds.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policies = {name: policy.to(device) for name, policy in _methods(preset).items()}
    random = np.random.default_rng(0)
    for policy in policies.values():
        policy.fit_normalisers(
            {"state": random.normal(size=(100, _FEATURES))},
            random.normal(size=(100, _ACTIONS)), "random",
        )  # fmt: skip
    optimizers = {n: torch.optim.AdamW(p.parameters(), 1e-4) for n, p in policies.items()}
    windows = policies[REFERENCE].config.windows
    batch = Batch(
        {"state": torch.randn(batch_size, windows.observation_steps, _FEATURES, device=device)},
        torch.randn(batch_size, windows.horizon, _ACTIONS, device=device),
        torch.ones(batch_size, windows.horizon, dtype=torch.bool, device=device),
    )
    times: dict[str, list[float]] = {name: [] for name in policies}
    for count in tqdm(range(_WARMUP + rounds), desc=f"training steps, {preset}"):
        for name, policy in policies.items():
            began = time.perf_counter()
            policy(batch).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            if count >= _WARMUP:
                times[name].append(1e3 * (time.perf_counter() - began))
    reference = np.array(times[REFERENCE])
    return {
        "preset": preset, "batch_size": batch_size, "rounds": rounds,
        "methods": {
            name: {
                "ms": round(float(np.median(taken)), 2),
                "ratio": round(float(np.median(taken / reference)), 3),
                "quartiles": np.percentile(taken / reference, [25, 75]).round(3).tolist(),
            }
            for name, taken in ((n, np.array(t)) for n, t in times.items())
        },
        **provenance(),
    }  # fmt: skip
