"""Energy policies of ``ebt_policy`` in LeRobot: ``lerobot-train --policy.type=ebt``.

LeRobot imports this package wherever it is installed, which registers the policy.
"""

from lerobot_policy_ebt.configuration_ebt import EBTConfig
from lerobot_policy_ebt.modeling_ebt import EBTPolicy
from lerobot_policy_ebt.processor_ebt import make_ebt_pre_post_processors

__all__ = ["EBTConfig", "EBTPolicy", "make_ebt_pre_post_processors"]
