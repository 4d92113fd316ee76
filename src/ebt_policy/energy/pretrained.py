"""Vision transformers of the package ``transformers`` as backbones: DINOv2, DINOv3, SigLIP.

Their patch tokens, laid out as the picture is, are the feature map. The architecture is part of
the policy's configuration and the weights are part of the policy's file, frozen or not: a trained
policy is loaded without the hub.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ebt_policy.config import VisionConfig
from ebt_policy.errors import UserError
from ebt_policy.hub import reading
from ebt_policy.shapes import Float


def read_architecture(source: str) -> dict[str, Any]:
    """The configuration of a vision transformer, without its weights.

    Args:
        source: hub name, or a folder with its ``config.json``.

    Raises:
        UserError: it cannot be read, or is no vision transformer.
    """
    from transformers import AutoConfig

    with _reading(source):
        config: Any = AutoConfig.from_pretrained(source)
    config = getattr(config, "vision_config", config)  # SigLIP: without its half for words
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # the summary of the picture, which is not used
    if not isinstance(getattr(config, "patch_size", None), int):
        raise UserError(
            f"--encoder {source}: a {config.model_type} is no vision transformer; expected one "
            "such as DINOv2, DINOv3 or SigLIP"
        )
    # As JSON has it: what a run's config.json gives back is the same.
    architecture: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return architecture


def _reading(source: str) -> AbstractContextManager[None]:
    return reading(f"--encoder {source}", "neither conv, resnet18 nor a model of transformers")


class PretrainedBackbone(nn.Module):
    """A vision transformer of some architecture, with random weights until :meth:`load`.

    Args:
        vision: settings, with the architecture.

    Raises:
        UserError: its pictures would be smaller than a patch.
    """

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        assert vision.pretrained is not None
        assert vision.architecture is not None
        self.source, self.frozen = vision.pretrained, vision.frozen
        settings: Any = AutoConfig.for_model(**vision.architecture)
        self.model: Any = AutoModel.from_config(settings)
        self.model.requires_grad_(not vision.frozen)
        self.channels = int(settings.hidden_size)
        self.patch_size = int(settings.patch_size)
        self.patches = vision.pixels // self.patch_size
        if self.patches < 1:
            raise UserError(
                f"vision.pixels = {vision.pixels}: a patch of {self.source} alone has "
                f"{self.patch_size}"
            )
        # What the backbone was trained to see, of pictures in [0, 1].
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("deviation", torch.full((3, 1, 1), 0.5))
        self.mean: Tensor
        self.deviation: Tensor
        # Positions were learnt for one size of picture: DINOv2 always fits them to the size that
        # it is given, DINOv3 computes them, SigLIP has to be asked.
        option = "interpolate_pos_encoding"
        takes_option = option in inspect.signature(self.model.forward).parameters
        self.options = {option: True} if takes_option else {}

    def load(self) -> None:
        """Take the pretrained weights from the hub or the folder.

        Raises:
            UserError: they cannot be read, or weights are missing.
        """
        from transformers.image_processing_base import ImageProcessingMixin

        with _reading(self.source):
            loaded, found = type(self.model).from_pretrained(
                self.source, config=self.model.config, output_loading_info=True
            )
            shown, _ = ImageProcessingMixin.get_image_processor_dict(self.source)
        if found["missing_keys"] or found["mismatched_keys"]:
            lost = sorted([*found["missing_keys"], *found["mismatched_keys"]])
            raise UserError(f"--encoder {self.source}: it has no weights {lost[0]} of that shape")
        self.model.load_state_dict(loaded.state_dict())
        for buffer, name in ((self.mean, "image_mean"), (self.deviation, "image_std")):
            buffer.copy_(torch.tensor(shown[name]).view(3, 1, 1))

    def train(self, mode: bool = True) -> PretrainedBackbone:
        """Frozen, it does as it was trained to in every mode: without dropout."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c p p"]:
        """The patch tokens of pictures in [-1, 1], brought to the backbone's size and colours."""
        side = self.patches * self.patch_size
        shown = functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        shown = ((shown + 1) / 2 - self.mean) / self.deviation
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            tokens = self.model(pixel_values=shown, **self.options).last_hidden_state
        # Whatever stands for the whole picture comes first.
        patches = tokens[:, -(self.patches**2) :].transpose(1, 2)
        return patches.unflatten(-1, (self.patches, self.patches))
