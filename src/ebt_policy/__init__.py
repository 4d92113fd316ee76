"""EBT-Policy: an energy-based transformer that acts by descending its energy.

Example::

    from ebt_policy import load_policy

    policy = load_policy("runs/pusht")
    policy.reset()
    action = policy.select_action({"state": state})
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebt_policy.config import PRESETS, DescentConfig, PolicyConfig, StreamConfig, WindowConfig
    from ebt_policy.descent import Trace, descend
    from ebt_policy.errors import UserError
    from ebt_policy.policies import Batch, EnergyPolicy, Policy, Prediction, make_policy
    from ebt_policy.policies.files import load_policy, save_policy

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Batch",
    "DescentConfig",
    "EnergyPolicy",
    "Policy",
    "PolicyConfig",
    "Prediction",
    "StreamConfig",
    "Trace",
    "UserError",
    "WindowConfig",
    "__version__",
    "descend",
    "load_policy",
    "make_policy",
    "save_policy",
]

# Imported when first asked for: ebt_policy.client runs on robots that have no torch.
_MODULES = {
    "config": ("PRESETS", "DescentConfig", "PolicyConfig", "StreamConfig", "WindowConfig"),
    "descent": ("Trace", "descend"),
    "errors": ("UserError",),
    "policies": ("Batch", "EnergyPolicy", "Policy", "Prediction", "make_policy"),
    "policies.files": ("load_policy", "save_policy"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"ebt_policy.{module}"), name)
    raise AttributeError(f"module 'ebt_policy' has no attribute {name!r}")
