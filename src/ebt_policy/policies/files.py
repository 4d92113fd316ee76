"""A policy as a folder: ``config.json`` and ``model.safetensors``. Nothing is pickled."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from ebt_policy.config import PolicyConfig, from_json, to_json
from ebt_policy.errors import UserError
from ebt_policy.policies import make_policy
from ebt_policy.policies.alarm import ALARM_FILE, Alarm
from ebt_policy.policies.base import Policy

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is always whole: the old content or the new, never half.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file stays.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Save a policy: its configuration, weights and normaliser, and its alarm if it has one.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()
    }
    replace_file(folder / CONFIG_FILE, to_json(policy.config).encode())
    weights = save(tensors)
    replace_file(folder / WEIGHTS_FILE, weights)
    if policy.alarm is not None:
        replace_file(folder / ALARM_FILE, policy.alarm.to_bytes(weights))


def load_policy(
    folder: str | Path, device: str | torch.device = "cpu", with_alarm: bool = True
) -> Policy:
    """Load a policy, strictly: every tensor present, none left over, every shape equal.

    Args:
        folder: of :func:`save_policy`, or a training run's; its alarm comes with it.
        device: where to put it.
        with_alarm: whether its alarm is wanted, if it has one.

    Raises:
        UserError: a file is missing, damaged, or of another architecture; or the alarm is of
            other weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(f"{path}: no such file; is {folder} the folder of a trained policy?")
    try:
        config = from_json(PolicyConfig, config_path.read_text(), str(config_path))
    except UnicodeDecodeError as error:
        raise UserError(f"{config_path}: not a text file ({error})") from error
    try:
        weights = weights_path.read_bytes()
        tensors = load(weights)
    except SafetensorError as error:
        raise UserError(f"{weights_path}: damaged ({error})") from error
    # Parameters made under inference mode could never be differentiated.
    with torch.inference_mode(False):
        policy = make_policy(config)
        check_state(policy, tensors, str(weights_path))
        policy.load_state_dict(tensors)
        if with_alarm and (folder / ALARM_FILE).is_file():
            content = (folder / ALARM_FILE).read_bytes()
            policy.alarm = Alarm.of_bytes(
                content, weights, policy.window_features, policy.config.observation_limit,
                str(folder / ALARM_FILE),
            )  # fmt: skip
        return policy.to(device).eval()


def check_state(policy: Policy, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Check that saved tensors fit a policy.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{source}: {name} is {found.get(name, 'missing')}, config.json asks for "
                f"{expected.get(name, 'no such tensor')}: the weights are of another architecture"
            )
