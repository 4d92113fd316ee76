"""Reading models of the package ``transformers``: silently, with one line where it fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ebt_policy.errors import UserError


@contextlib.contextmanager
def reading(asked: str, expected: str) -> Iterator[None]:
    """Turn what the package raises for a missing or damaged model into one line.

    Args:
        asked: the option and the hub name or folder that it names.
        expected: what it should have been.

    Raises:
        UserError: the model cannot be read.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        yield
    except Exception as error:  # the hub's, the file system's, the file format's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{asked}: cannot be loaded, {expected} ({reason[0]})") from error
