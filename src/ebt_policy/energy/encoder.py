"""Observation encoder: named streams to one token per observation step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebt_policy.config import PolicyConfig
from ebt_policy.energy.layers import EncoderBlock
from ebt_policy.energy.vision import CameraEncoders
from ebt_policy.shapes import Float
from ebt_policy.windows.batch import presence
from ebt_policy.windows.normaliser import held


class ObservationEncoder(nn.Module):
    """Per-step features, learned positions, causal self-attention (``method`` as released).

    A token is the sum of one linear map per stream of numbers and per sentence, which is the linear
    map of their concatenation, and of one term per camera. A stream that is missing has no term:
    tokens are what a network without that stream would make of the others.

    Args:
        config: of the policy.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        network, observation_steps = config.network, config.windows.observation_steps
        # ModuleDict keys may not hold dots; the index keeps any stream name legal.
        self.names = sorted(config.streams.keys() - config.cameras.keys())
        self.numbers = {name for name, of in config.streams.items() if of.kind == "numbers"}
        self.limit = config.observation_limit
        self.camera_names = sorted(config.cameras)
        self.streams = nn.ModuleList(
            nn.Linear(config.streams[name].features, network.width) for name in self.names
        )
        self.cameras = (
            CameraEncoders(len(self.camera_names), network.width, config.vision)
            if self.camera_names
            else None
        )
        self.positions = nn.Parameter(torch.randn(observation_steps, network.width) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock(network) for _ in range(network.encoder_blocks))
        steps = torch.arange(observation_steps)
        self.register_buffer("visible", steps[:, None] >= steps[None, :], persistent=False)
        self.visible: Tensor

    def forward(self, observation: dict[str, Float[Tensor, "b s ..."]]) -> Float[Tensor, "b s w"]:
        """Encode normalised streams, as ``Policy.normalise_observation`` returns them.

        Numbers beyond ``observation_limit`` are held there. A stream may be missing altogether; or
        in some windows, with its presence beside it.
        """

        def where_present(name: str, term: Tensor) -> Tensor:
            present = observation.get(presence(name))
            return term if present is None else torch.where(present > 0, term, 0)

        def seen_as(name: str) -> Tensor:
            values = observation[name]
            return held(values, self.limit) if name in self.numbers else values

        tokens = self.positions + sum(
            where_present(name, layer(seen_as(name)))
            for name, layer in zip(self.names, self.streams, strict=True)
            if name in observation
        )
        if self.cameras is not None:
            seen = [
                where_present(name, self.cameras(camera, observation[name]))
                for camera, name in enumerate(self.camera_names)
                if name in observation
            ]
            if seen:
                tokens = tokens + torch.stack(seen).sum(0)
        for block in self.blocks:
            tokens = block(tokens, self.visible)
        return tokens
