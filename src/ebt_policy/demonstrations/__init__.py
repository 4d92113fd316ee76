"""Demonstrations: recorded episodes in the formats that people already have."""

from __future__ import annotations

from pathlib import Path

from ebt_policy.demonstrations.base import Demonstrations, KeyInfo
from ebt_policy.demonstrations.robomimic import RobomimicDemonstrations
from ebt_policy.demonstrations.zarr_buffer import ZarrDemonstrations, store_root
from ebt_policy.errors import UserError

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNATURE = b"PK"


def open_demonstrations(path: str | Path, filter_key: str | None = None) -> Demonstrations:
    """Open demonstrations, recognising the format by content rather than by name.

    Args:
        path: robomimic HDF5 file, or zarr replay buffer as a folder or zip.
        filter_key: robomimic filter key, for instance ``train``.

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
    if store_root(path) is not None:
        return ZarrDemonstrations(path)
    raise UserError(
        f"{path}: not a known format; expected a robomimic HDF5 file, or a Diffusion Policy zarr "
        "replay buffer (folder or .zarr.zip)"
    )


__all__ = ["Demonstrations", "KeyInfo", "open_demonstrations"]
