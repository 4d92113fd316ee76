"""Policies, by the name that ``--policy`` and ``config.json`` use."""

from __future__ import annotations

from ebt_policy.config import PolicyConfig, PolicyName
from ebt_policy.policies.base import Policy, Prediction
from ebt_policy.policies.diffusion import DiffusionPolicy
from ebt_policy.policies.ebt import EnergyPolicy
from ebt_policy.policies.flow import FlowPolicy
from ebt_policy.policies.ibc import IBCPolicy
from ebt_policy.policies.mip import MIPPolicy
from ebt_policy.policies.regression import RegressionPolicy
from ebt_policy.windows.batch import Batch

POLICIES: dict[PolicyName, type[Policy]] = {
    "ebt": EnergyPolicy,
    "diffusion": DiffusionPolicy,
    "flow": FlowPolicy,
    "mip": MIPPolicy,
    "regression": RegressionPolicy,
    "ibc": IBCPolicy,
}


def make_policy(config: PolicyConfig) -> Policy:
    """Build an untrained policy from its configuration."""
    return POLICIES[config.policy](config)


__all__ = [
    "POLICIES",
    "Batch",
    "DiffusionPolicy",
    "EnergyPolicy",
    "FlowPolicy",
    "IBCPolicy",
    "MIPPolicy",
    "Policy",
    "Prediction",
    "RegressionPolicy",
    "make_policy",
]
