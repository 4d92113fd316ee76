"""Peak memory of a computation, from a process that does only it."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def peak_mb(computation: Callable[..., Any], *arguments: Any) -> float:
    """Largest resident memory of a new process that runs ``computation``, in megabytes.

    On a GPU it is the largest memory that torch took there.

    Args:
        computation: a function of a module, with arguments that can be pickled.
        arguments: of it.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, computation, *arguments).result()


def _measured(computation: Callable[..., Any], *arguments: Any) -> float:
    computation(*arguments)
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    # Not getrusage: its maximum is inherited from the parent.
    return round(own_mb("VmHWM"), 1)


def own_mb(account: str) -> float:
    """This process's memory by one of Linux's accounts (``VmHWM``, ``RssAnon``), in megabytes."""
    return process_mb("self", account)


def process_mb(process: int | str, account: str) -> float:
    """The same of another process, by its number."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{account}:\s*(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024 / 1e6
