"""Plain regression: the control that every generative policy has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Trace
from ebt_policy.energy.transformer import Network
from ebt_policy.policies.base import Draws, Policy
from ebt_policy.shapes import Float


class RegressionPolicy(Policy):
    """L = ||f(o, 0) - a||^2 on the same encoder and trunk as the energy policy."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.network = Network(config, levels=False)

    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        return (self._predict(observation) - actions).square()

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        actions = self._predict(observation)
        return actions, torch.ones(len(actions), dtype=torch.int64), None

    def _predict(self, observation: dict[str, Tensor]) -> Float[Tensor, "b t a"]:
        memory = self.network.remember(observation)
        return self.network(self.zero_chunk(memory), memory)
