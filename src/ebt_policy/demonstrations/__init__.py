"""Demonstrations: recorded episodes in the formats that people already have."""

from __future__ import annotations

from pathlib import Path

from ebt_policy.demonstrations.base import Demonstrations, KeyInfo
from ebt_policy.demonstrations.lerobot import LeRobotDemonstrations, is_lerobot
from ebt_policy.demonstrations.robomimic import RobomimicDemonstrations
from ebt_policy.demonstrations.zarr_buffer import ZarrDemonstrations, store_root
from ebt_policy.errors import UserError

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNATURE = b"PK"


def open_demonstrations(
    path: str | Path, filter_key: str | None = None, with_faults: bool = False
) -> Demonstrations:
    """Open demonstrations, recognising the format by content rather than by name.

    Args:
        path: robomimic HDF5 file, zarr replay buffer as a folder or zip, or LeRobotDataset folder.
        filter_key: robomimic filter key, for instance ``train``.
        with_faults: open even what contradicts itself, to look at it.

    Raises:
        UserError: the path does not exist, is of no known format, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
        if head == _HDF5_SIGNATURE:
            return RobomimicDemonstrations(path, filter_key)
        if head[:2] == _ZIP_SIGNATURE and store_root(path) is None:
            raise UserError(f"{path}: the zip file is truncated or holds no zarr replay buffer")
    if filter_key is not None:
        raise UserError(f"{path}: filter keys ({filter_key!r}) exist in robomimic HDF5 only")
    if is_lerobot(path):
        lerobot = LeRobotDemonstrations(path)
        if lerobot.faults and not with_faults:
            more = len(lerobot.faults) - 1
            raise UserError(
                f"{path}: {lerobot.faults[0]}"
                + (f"; and {more} more faults (ebt-policy data info shows all)" if more else "")
            )
        return lerobot
    if store_root(path) is not None:
        return ZarrDemonstrations(path)
    raise UserError(
        f"{path}: not a known format; expected a robomimic HDF5 file, a Diffusion Policy zarr "
        "replay buffer (folder or .zarr.zip), or a LeRobotDataset's folder"
    )


__all__ = ["Demonstrations", "KeyInfo", "open_demonstrations"]
