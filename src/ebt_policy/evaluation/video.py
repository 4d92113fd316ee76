"""Rollout videos (MP4, H.264), through the ffmpeg that ``imageio-ffmpeg`` carries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment

_MAX_FPS = 20.0


class VideoWriter:
    """Collects frames of one episode; the file appears when it is closed.

    Args:
        path: of the MP4 file.
        rate: control steps per second; frames are thinned to at most 20 per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.every = max(1, math.ceil(rate / _MAX_FPS))
        self.fps = rate / self.every
        self.writer: Any = None

    def frame(self, environment: Environment, step: int) -> None:
        """Add the present scene, if this step's frame is kept."""
        if step % self.every:
            return
        image = environment.render()
        image = np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
        if self.writer is None:
            import imageio_ffmpeg

            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--video {self.path}: {error.strerror}") from error
            self.writer = imageio_ffmpeg.write_frames(
                str(self.path), (image.shape[1], image.shape[0]), fps=self.fps,
                macro_block_size=2, ffmpeg_log_level="error",
            )  # fmt: skip
            self.writer.send(None)
        self.writer.send(image)

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.close()
