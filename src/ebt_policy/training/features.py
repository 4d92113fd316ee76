"""Features of pictures, computed once and read at every step of every training beside them.

A frozen backbone makes the same features of a picture each time, where training shows it whole and
in its own colours (``vision.crop = 1`` and ``vision.jitter = 0``). They are kept in ``features/``,
beside the runs that use them, one file for each camera. A file's name is the SHA-256 of all that
decides what is in it: the backbone's weights and architecture, the size and colours that it is
shown, and the pictures. It is written under another name and renamed, so it is whole or absent.
Validation and acting show the backbone pictures.

They are float16, half as large as float32; that rounds them by 2^-11 of their values, eight times
finer than bfloat16 would.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.config import VisionConfig
from ebt_policy.energy.encoder import ObservationEncoder
from ebt_policy.energy.pretrained import PretrainedBackbone
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy
from ebt_policy.shapes import Float, UInt8
from ebt_policy.windows.arrays import Arrays
from ebt_policy.windows.images import ImageNormaliser

_BATCH = 64  # pictures


def keep_features(
    policy: Policy, arrays: Arrays, folder: Path
) -> dict[str, Float[np.ndarray, "n c p p"]]:
    """The features of every camera's pictures, mapped; those that are not there yet are computed.

    Of several processes that ask for them at once, one computes and the others wait.

    Args:
        policy: with the weights of its backbones, on the device to compute on.
        arrays: the pictures.
        folder: of the files, for any number of policies and data sets.

    Raises:
        UserError: the files cannot be written, or a feature is no number of float16.
    """
    encoder = next(part for part in policy.modules() if isinstance(part, ObservationEncoder))
    assert encoder.cameras is not None
    cameras = []
    for number, name in enumerate(encoder.camera_names):
        backbone = encoder.cameras.backbone(number)
        assert isinstance(backbone, PretrainedBackbone)
        key = _key(backbone, policy.config.vision, arrays, name)
        path = folder / f"{key}.float16"
        cameras.append(_Camera(name, backbone, arrays.observations[name], path))
    missing = cameras
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            missing = [camera for camera in cameras if not camera.path.exists()]
            if _size(missing) > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for camera in missing:
                _write(camera, policy.config.vision)
    except OSError as error:
        gigabytes = _size(missing) / 1e9
        raise UserError(
            f"{folder}: the features of the pictures, {gigabytes:.3g} GB, cannot be written "
            f"({error.strerror or error}); free some space, put the run elsewhere, or train "
            "without them: --set vision.jitter=0.1"
        ) from error
    return {c.name: np.memmap(c.path, np.float16, "c", shape=c.shape) for c in cameras}


@dataclass(frozen=True)
class _Camera:
    """A camera's pictures, what encodes them, and the file of their features."""

    name: str
    backbone: PretrainedBackbone
    pictures: UInt8[np.ndarray, "n H W 3"]
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the features: steps, channels, rows and columns of patches."""
        patches = self.backbone.patches
        return (len(self.pictures), self.backbone.channels, patches, patches)


def _size(cameras: Sequence[_Camera]) -> int:
    """Bytes of the files of some cameras."""
    return sum(math.prod(camera.shape) * np.dtype(np.float16).itemsize for camera in cameras)


def _key(backbone: PretrainedBackbone, vision: VisionConfig, arrays: Arrays, camera: str) -> str:
    shape = arrays.observations[camera].shape
    decisive = [vision.architecture, vision.pixels, shape, arrays.sha256[camera]]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """What is inside is done by one process at a time, which clears what a killed one left."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process computes features; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob("*.part"):
            stale.unlink()
        yield


def _write(camera: _Camera, vision: VisionConfig) -> None:
    partial = camera.path.with_suffix(".part")
    normaliser = ImageNormaliser(camera.pictures.shape[1:], vision)
    device, count = camera.backbone.mean.device, len(camera.pictures)
    try:
        with (
            partial.open("wb") as file,
            tqdm(total=count, desc=f"features of {camera.name}", unit="picture") as bar,
        ):
            for start in range(0, count, _BATCH):
                pictures = torch.from_numpy(camera.pictures[start : start + _BATCH]).to(device)
                shown = normaliser.normalise(pictures[:, None])[:, 0]
                features = camera.backbone(shown).half()
                if not features.isfinite().all():
                    raise UserError(
                        f"{camera.backbone.source}: a feature of {camera.name!r} is beyond "
                        "float16's 65504, as which features are kept; train without keeping them: "
                        "--set vision.jitter=0.1"
                    )
                file.write(features.cpu().contiguous().numpy().data)
                bar.update(len(pictures))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(camera.path)
    finally:
        partial.unlink(missing_ok=True)
