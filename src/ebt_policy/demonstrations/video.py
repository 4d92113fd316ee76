"""Frames of a video file by their time, through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.errors import UserError

# A frame this many seconds ahead is reached by decoding; one further away, by a jump.
_AHEAD = 1.0


class Video:
    """A video file that stays open; frames asked for in order are decoded once.

    Args:
        path: an MP4 file, or whatever FFmpeg reads.

    Attributes:
        size: height and width in pixels.

    Raises:
        UserError: there is no such file, or it holds no video.
    """

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such video")
        try:
            self._container: Any = av.open(str(path))
            self._stream: Any = self._container.streams.video[0]
            self.size = (int(self._stream.height), int(self._stream.width))
        except (av.error.FFmpegError, IndexError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: cannot be opened as a video, truncated? ({error})") from error
        self._frames: Iterator[Any] | None = None
        self._frame: Any = None

    @property
    def seconds(self) -> float:
        """Length, as the file states it."""
        duration = self._stream.duration
        return math.nan if duration is None else float(duration * self._stream.time_base)

    def frame(self, seconds: float, tolerance: float) -> np.ndarray:
        """The frame shown at a time: (H, W, 3) uint8, RGB.

        Args:
            seconds: from the beginning of the file.
            tolerance: how far the frame's own time may be off, in seconds.

        Raises:
            UserError: there is no frame at that time, or it cannot be decoded.
        """
        import av

        try:
            if self._frames is None or not -tolerance < seconds - self._frame.time < _AHEAD:
                self._container.seek(int(seconds / self._stream.time_base), stream=self._stream)
                self._frames = self._container.decode(self._stream)
                self._frame = next(self._frames)
            while self._frame.time <= seconds - tolerance:
                self._frame = next(self._frames)
            if self._frame.time < seconds + tolerance:
                return np.asarray(self._frame.to_ndarray(format="rgb24"))
        except StopIteration:
            self._frames = None
        except (av.error.FFmpegError, ArithmeticError, TypeError, ValueError) as error:
            # A damaged file has times that are missing, or beyond all numbers.
            self._frames = None
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UserError(f"{self.path}: a frame cannot be decoded ({reason})") from error
        # The same words for every frame: whoever reads all of it says them once.
        raise UserError(
            f"{self.path}: lasts {self.seconds:.3f} s and lacks frames for some of its steps"
        )

    def close(self) -> None:
        """Release the file."""
        self._container.close()
