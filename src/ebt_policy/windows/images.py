"""Pictures from the file to the network: uint8 all the way, [-1, 1] on the device.

In training every window is cropped at a random place and its colours are changed a little, the
same for all its steps: what moves between two pictures is what the policy shall see.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ebt_policy.config import VisionConfig
from ebt_policy.shapes import Float, Shaped, UInt8


def to_uint8(
    values: Shaped[np.ndarray, "*n"],
) -> tuple[UInt8[np.ndarray, "*n"], tuple[int, ...] | None]:
    """Pictures as uint8, and the index of the first value that is no whole number from 0 to 255.

    Pictures are often stored as floats; they are taken where nothing is lost by it.
    """
    if values.dtype == np.uint8:
        return values, None
    with np.errstate(invalid="ignore"):
        converted = values.astype(np.uint8)
    lost = converted != values
    return converted, tuple(int(i) for i in np.argwhere(lost)[0]) if lost.any() else None


class ImageNormaliser(nn.Module):
    """Crops pictures and brings them to [-1, 1].

    Args:
        shape: (H, W, 3) of the stream.
        vision: settings of the crop and of the colours.
    """

    def __init__(self, shape: tuple[int, ...], vision: VisionConfig) -> None:
        super().__init__()
        self.height, self.width = (max(1, round(vision.crop * extent)) for extent in shape[:2])
        self.jitter, self.is_still = vision.jitter, vision.is_still

    def normalise(self, images: UInt8[Tensor, "b s H W 3"]) -> Float[Tensor, "b s 3 h w"]:
        """Random parts in random colours in training mode, the middle as it is otherwise.

        Where neither is random, no random number is drawn: a training that reads features instead
        of pictures draws the same.
        """
        if self.is_still or not self.training:
            top = (images.shape[2] - self.height) // 2
            left = (images.shape[3] - self.width) // 2
            seen = images[:, :, top : top + self.height, left : left + self.width]
            return self._to_unit(seen).movedim(-1, 2)
        unit = self._to_unit(self._random_part(images))
        gain, offset = self.jitter * (2 * torch.rand(2, len(unit), 1, 3, device=unit.device) - 1)
        # A row of pixels at a time: a colour alone is too short a stretch of memory.
        rows = unit.flatten(3).flatten(1, 2)
        rows = torch.addcmul(
            offset.repeat(1, 1, self.width), rows, (1 + gain).repeat(1, 1, self.width)
        )
        return rows.view_as(unit).movedim(-1, 2)

    def _random_part(self, images: UInt8[Tensor, "b s H W 3"]) -> UInt8[Tensor, "b s h w 3"]:
        # Drawn on the CPU, so that an accelerator is not waited for.
        tops = torch.randint(images.shape[2] - self.height + 1, (len(images),))
        lefts = torch.randint(images.shape[3] - self.width + 1, (len(images),))
        if torch.compiler.is_compiling():
            # The form of it that torch.compile can see through; slower without.
            rows = tops[:, None] + torch.arange(self.height)
            columns = lefts[:, None] + torch.arange(self.width)
            windows = torch.arange(len(images))[:, None, None, None]
            steps = torch.arange(images.shape[1])[:, None, None]
            places = (windows, steps, rows[:, None, :, None], columns[:, None, None, :])
            return images[tuple(place.to(images.device) for place in places)]
        return torch.stack(
            [
                window[:, top : top + self.height, left : left + self.width]
                for window, top, left in zip(images, tops.tolist(), lefts.tolist(), strict=True)
            ]
        )

    @staticmethod
    def _to_unit(images: UInt8[Tensor, "b s h w 3"]) -> Float[Tensor, "b s h w 3"]:
        return images.float() / 127.5 - 1
