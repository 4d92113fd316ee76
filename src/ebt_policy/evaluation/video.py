"""Rollout videos (MP4, H.264), through the ffmpeg that ``imageio-ffmpeg`` carries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment

_MAX_FPS = 20.0


def check_target(path: Path) -> None:
    """Check that a video can be put there, and make its folder.

    Raises:
        UserError: the name does not end in .mp4, or the folder cannot be made.
    """
    if path.suffix != ".mp4" or path.is_dir():
        raise UserError(f"--video {path}: give the name of an .mp4 file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--video {path}: {error.strerror}") from error


class VideoWriter:
    """Collects frames of one episode; the file appears when it is closed.

    Args:
        path: of the MP4 file.
        rate: control steps per second; frames are thinned to at most 20 per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        check_target(path)
        self.path = path
        self.partial = path.with_name(f".{path.name}.part")
        self.every = max(1, math.ceil(rate / _MAX_FPS))
        self.fps = rate / self.every
        self.frames = 0
        self.writer: Any = None

    def frame(self, environment: Environment, step: int) -> None:
        """Add the present scene, if this step's frame is kept."""
        if step % self.every:
            return
        try:
            image = environment.render()
        except Exception as error:  # each graphics stack has its own
            raise UserError(
                f"--video {self.path}: the scene cannot be drawn on this machine "
                f"({type(error).__name__}: {error}); leave --video out"
            ) from error
        image = np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
        if self.writer is None:
            import imageio_ffmpeg

            try:
                self.partial.open("wb").close()
            except OSError as error:
                raise self._unwritable(str(error.strerror)) from error
            self.writer = imageio_ffmpeg.write_frames(
                str(self.partial), (image.shape[1], image.shape[0]), fps=self.fps,
                macro_block_size=2, ffmpeg_log_level="quiet", output_params=["-f", "mp4"],
            )  # fmt: skip
            self.writer.send(None)
        try:
            self.writer.send(image)
        except OSError as error:  # ffmpeg could not write
            self.discard()
            raise self._unwritable("is the disk full?") from error
        self.frames += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            UserError: ffmpeg could not write all of it, which it does not tell: the frames of a
                short episode fit into the pipe. So they are counted.
        """
        if self.writer is None:
            return
        import imageio_ffmpeg

        self.writer.close()
        try:
            written, _ = imageio_ffmpeg.count_frames_and_secs(str(self.partial))
        except RuntimeError:  # no video at all
            written = 0
        if written < self.frames:
            self.discard()
            raise self._unwritable("is the disk full?")
        self.partial.replace(self.path)

    def discard(self) -> None:
        """Leave nothing of an unfinished video."""
        if self.writer is not None:
            self.writer.close()
        self.partial.unlink(missing_ok=True)

    def _unwritable(self, reason: str) -> UserError:
        return UserError(f"--video {self.path}: cannot be written: {reason}")
