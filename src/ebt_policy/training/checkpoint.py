"""Checkpoints: all that an interrupted run needs to go on as if nothing had happened.

``checkpoints/<step>/`` holds ``state.safetensors`` (raw weights, EMA weights, optimiser, random
state of every process) and ``progress.json``. A folder is written under another name and
renamed, so a checkpoint is whole or absent.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ebt_policy.errors import UserError

FOLDER = "checkpoints"
KEEP = 2
_STATE, _PROGRESS = "state.safetensors", "progress.json"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: training steps done.
        seconds: training time spent, as the budget counts it.
        data_sha256: of everything the run reads, so that it never continues on other data.
    """

    step: int
    seconds: float
    data_sha256: str


def write_checkpoint(run: Path, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write one checkpoint and forget all but the newest two.

    Raises:
        UserError: the disk is full or the folder cannot be written; older ones stay.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = run / FOLDER / f"{progress.step:09d}"
    partial = run / FOLDER / f".{progress.step:09d}.part"
    try:
        for stale in (run / FOLDER).glob(".*.part"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        if folder.exists():  # saved a moment ago, or by the run that is resumed
            return
        partial.mkdir(parents=True)
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial / _STATE)
        (partial / _PROGRESS).write_text(json.dumps(asdict(progress)))
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoint_folders(run)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise UserError(
            f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error}); {last}; "
            "free some space and continue with --resume"
        ) from error
    for old in checkpoint_folders(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.isdigit())


def read_checkpoint(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Read one checkpoint.

    Raises:
        UserError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        progress = Progress(**json.loads((folder / _PROGRESS).read_text()))
        return progress, load_file(folder / _STATE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint is damaged ({error}); remove this folder to continue from "
            "the one before"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, by parameter index."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    groups = [g | {"params": list(range(len(g["params"])))} for g in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
