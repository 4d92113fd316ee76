"""Camera encoders: a picture to a term of its observation token.

    picture -> backbone -> feature map (C, h, w) -> K maps m_k (1 x 1 convolution)
            -> places (E[x], E[y]) under softmax(m_k) -> linear map to the token's width

The places are the spatial softmax of Levine et al. 2016 (arXiv 1504.00702), which Diffusion
Policy puts on a ResNet-18 with GroupNorm.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ebt_policy.config import ImageEncoderName, VisionConfig
from ebt_policy.energy.pretrained import PretrainedBackbone, read_architecture
from ebt_policy.shapes import Float


def _normed(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    """A convolution and its GroupNorm: unlike BatchNorm, no picture depends on another."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.GroupNorm(groups, outputs)]


class SmallConv(nn.Sequential):
    """Three convolutions for a CPU; pictures shrink fourfold.

    A fine map of 32 channels locates better than a coarser one of 64, for the same time.
    """

    channels = 32

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 4, bias=False), nn.GroupNorm(4, 32)]
        for _ in range(2):
            layers += [nn.ReLU(), *_normed(32, 32, 3, 1, groups=4)]
        super().__init__(*layers, nn.ReLU())


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        groups = outputs // 16
        self.body = nn.Sequential(
            *_normed(inputs, outputs, 3, stride, groups), nn.ReLU(),
            *_normed(outputs, outputs, 3, 1, groups),
        )  # fmt: skip
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*_normed(inputs, outputs, 1, stride, groups))
        )

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Tensor:
        return torch.relu(self.body(maps) + self.shortcut(maps))


class ResNet18(nn.Sequential):
    """ResNet-18 with GroupNorm, up to its last feature map; pictures shrink 32-fold."""

    channels = 512

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        before = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [ResidualBlock(before, width, stride), ResidualBlock(width, width, 1)]
            before = width
        super().__init__(*_normed(3, 64, 7, 2, groups=4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks)


class SpatialSoftmax(nn.Module):
    """Where in the picture each of K maps is high: a picture's ``2 * keypoints`` coordinates.

    Untrained maps are nearly flat and all their places the middle: sharpened, they differ from
    the start, and a place is learnt several times sooner.
    """

    sharpness = 10.0

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, 1)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        maps = self.maps(features)
        # Places are compared: bfloat16 would round them to more than a pixel.
        with torch.autocast(maps.device.type, enabled=False):
            maps = self.sharpness * maps.float()
            y, x = (torch.linspace(-1, 1, extent, device=maps.device) for extent in maps.shape[2:])
            weights = maps.flatten(2).softmax(-1).view_as(maps)
            return torch.cat([weights.sum(2) @ x, weights.sum(3) @ y], -1)


def make_vision(encoder: str) -> VisionConfig:
    """The settings of an image encoder: ``conv``, ``resnet18``, or a backbone's hub name or folder.

    Raises:
        UserError: there is no such backbone, or it is no vision transformer.
    """
    if encoder in ("conv", "resnet18"):
        return VisionConfig(cast(ImageEncoderName, encoder))
    return VisionConfig("pretrained", pretrained=encoder, architecture=read_architecture(encoder))


def make_backbone(vision: VisionConfig) -> nn.Module:
    """An untrained backbone, ``(n, 3, H, W)`` in [-1, 1] to a map of its ``channels``."""
    if vision.encoder == "pretrained":
        return PretrainedBackbone(vision)
    return SmallConv() if vision.encoder == "conv" else ResNet18()


class CameraEncoders(nn.Module):
    """One encoder per camera, or one backbone for all of them.

    Args:
        cameras: how many.
        width: of an observation token.
        vision: settings.
    """

    def __init__(self, cameras: int, width: int, vision: VisionConfig) -> None:
        super().__init__()
        count = 1 if vision.shared else cameras
        self.backbones = nn.ModuleList(make_backbone(vision) for _ in range(count))
        channels: int = self.backbones[0].channels  # type: ignore[assignment]
        self.heads = nn.ModuleList(
            nn.Sequential(
                SpatialSoftmax(channels, vision.keypoints), nn.Linear(2 * vision.keypoints, width)
            )
            for _ in range(cameras)
        )

    def backbone(self, camera: int) -> nn.Module:
        """What encodes a camera's pictures."""
        return self.backbones[camera % len(self.backbones)]

    def forward(self, camera: int, given: Float[Tensor, "b s _ _ _"]) -> Float[Tensor, "b s w"]:
        """One camera's terms; pictures may differ in size from camera to camera.

        Args:
            camera: its number.
            given: its pictures, or the features that its backbone made of them.
        """
        features = given.flatten(0, 1)
        if features.shape[1] == 3:  # pictures: they have colours
            features = self.backbone(camera)(features)
        return self.heads[camera](features).unflatten(0, given.shape[:2])
