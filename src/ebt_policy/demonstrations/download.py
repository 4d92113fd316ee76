"""``data get``: published demonstrations, downloaded with resume and verified after decoding."""

from __future__ import annotations

import errno
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from ebt_policy.demonstrations.base import Digest
from ebt_policy.demonstrations.zarr_buffer import ACTION, ZarrDemonstrations
from ebt_policy.errors import UserError

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Published:
    """A data set that others published, and the hashes of what it decodes to.

    Attributes:
        url: of the archive (a zip).
        folder: the store's folder inside the archive.
        sha256: of raw decoded arrays (C order, little endian), by array name.
    """

    url: str
    folder: str
    sha256: dict[str, str]


PUBLISHED: dict[str, Published] = {
    "pusht": Published(
        url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        folder="pusht_cchi_v7_replay.zarr",
        sha256={
            "action": "6691b085749144b8db1aede97a80fb380afd08953fcd03660b441d0ffe9d6a8f",
            "state": "dcdc539bfdba9fc01cba8d2fe91cc580539ec046a88b0ffbe91be5511948d4dc",
            "episode_ends": "82db02e667c59a83fedb211ab9b84182591b75009df1385210d5235197f93d72",
        },
    )
}


def fetch(
    name: str, folder: Path, url: str | None = None, timeout: float = 20.0, attempts: int = 5
) -> Path:
    """Download, unpack and verify a published data set; nothing appears until it is right.

    Args:
        name: a key of ``PUBLISHED``.
        folder: where the store's folder is put.
        url: instead of the published address, for a mirror.
        timeout: seconds without a byte before the connection is dropped and resumed.
        attempts: connections to try in a row without any progress.

    Returns:
        The store's folder; at once if it is there already and intact.

    Raises:
        UserError: unknown name, no connection, a lying server, or content that is not the
            published one. A partial download is kept for the next attempt.
    """
    if name not in PUBLISHED:
        raise UserError(f"data get {name!r}: unknown; there are {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    target = folder / published.folder
    if target.exists():
        _verify(target, published)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / f"{name}.zip.part"
        _download(url or published.url, archive, timeout, attempts)
        unpacked = folder / f".{published.folder}.part"
        shutil.rmtree(unpacked, ignore_errors=True)
        _unpack(archive, published.folder, unpacked)
        try:
            _verify(unpacked, published)
        except UserError:
            shutil.rmtree(unpacked, ignore_errors=True)
            archive.unlink(missing_ok=True)
            raise
        unpacked.replace(target)
        archive.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return target


def _download(url: str, target: Path, timeout: float, attempts: int) -> None:
    """Download to ``target``, continuing what is there; retries while bytes keep coming."""
    failures, reason = 0, "no attempt"
    while failures < attempts:
        before = have = target.stat().st_size if target.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                if have and response.status != 206:
                    have = 0  # the server ignores ranges and sends everything again
                length = response.headers.get("Content-Length")
                total = have + int(length) if length is not None else None
                got = _receive(response, target, have, total)
            if total is None or got == total:
                return
            reason = f"the connection ended after {got} of {total} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing beyond what we have: it is complete
                return
            raise UserError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:  # refused, reset, timed out, no HTTP
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:  # an address or a header that makes no sense
            raise UserError(f"{url}: {error}") from error
        now = target.stat().st_size if target.exists() else 0
        failures = 0 if now > before else failures + 1
        time.sleep(min(0.1 * 2**failures, 5.0))
    raise UserError(
        f"{url}: download failed after {attempts} attempts ({reason}); run the command again to "
        f"continue, or put the unpacked folder in place by hand"
    )


def _receive(response: HTTPResponse, target: Path, have: int, total: int | None) -> int:
    """Append a response's body to ``target``, from byte ``have`` on; return its new size."""
    mode = "r+b" if have else "wb"
    with (
        target.open(mode) as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=target.stem) as bar,
    ):
        file.seek(have)
        while block := response.read1(_BLOCK):  # what has come, even if the rest stalls
            file.write(block)
            have += len(block)
            bar.update(len(block))
            if total is not None and have > total:
                break
    return have


def _unpack(archive: Path, folder: str, target: Path) -> None:
    """Unpack the store from the archive: only its own members, only below ``target``."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [name for name in file.namelist() if f"{folder}/" in name]
            for name in members:
                inside = name[name.index(f"{folder}/") + len(folder) + 1 :]
                if not inside or name.endswith("/"):
                    continue
                path = (target / inside).resolve()
                if not path.is_relative_to(target.resolve()):
                    raise UserError(f"{archive}: member {name!r} points outside the archive")
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(name) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise UserError(
            f"{archive}: not a complete zip ({error}); it was removed, run the command again"
        ) from error
    if not members:
        archive.unlink(missing_ok=True)
        raise UserError(f"{archive}: holds no {folder}; it was removed")


def _verify(store: Path, published: Published) -> None:
    demonstrations = ZarrDemonstrations(store)
    for array, expected in published.sha256.items():
        digest = Digest()
        if array == "episode_ends":
            digest.add(demonstrations.episode_ends)
        else:
            for _, block in demonstrations.blocks(None if array == ACTION else array):
                digest.add(block)
        if digest.hex() != expected:
            raise UserError(
                f"{store}: {array} has SHA-256 {digest.hex()}, the published data has {expected}"
            )
