"""``data get`` against a server that stalls, truncates, refuses ranges and lies."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import zarr

from ebt_policy.demonstrations import download, open_demonstrations
from ebt_policy.demonstrations.download import PUBLISHED, Published, fetch
from ebt_policy.errors import UserError

Behaviour = Callable[["Handler", bytes, int], None]


class Handler(BaseHTTPRequestHandler):
    content = b""
    behaviours: list[Behaviour] = []  # noqa: RUF012, set for each test
    ranges: list[int] = []  # noqa: RUF012

    def do_GET(self) -> None:
        header = self.headers.get("Range")
        start = int(header.removeprefix("bytes=").rstrip("-")) if header else 0
        self.ranges.append(start)
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        behaviour(self, self.content, start)

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def honest(handler: Handler, content: bytes, start: int) -> None:
    handler.head(206 if start else 200, len(content) - start)
    handler.wfile.write(content[start:])


def cut(handler: Handler, content: bytes, start: int) -> None:
    """Announce everything, send a third."""
    handler.head(206 if start else 200, len(content) - start)
    handler.wfile.write(content[start : start + len(content) // 3])


def stall(handler: Handler, content: bytes, start: int) -> None:
    """Send a third, then nothing for longer than the client waits."""
    cut(handler, content, start)
    handler.wfile.flush()
    time.sleep(1.5)


def no_ranges(handler: Handler, content: bytes, _: int) -> None:
    handler.head(200, len(content))
    handler.wfile.write(content)


def too_long(handler: Handler, content: bytes, start: int) -> None:
    """Announce 100 bytes more than there are, always."""
    handler.head(206 if start else 200, len(content) - start + 100)
    handler.wfile.write(content[start:])


def too_short(handler: Handler, content: bytes, start: int) -> None:
    """Announce half of what there is."""
    half = len(content) // 2
    handler.head(206 if start else 200, half)
    handler.wfile.write(content[start : start + half])


def cut_without_ranges(handler: Handler, content: bytes, _: int) -> None:
    """Always from the beginning, never to the end."""
    handler.head(200, len(content))
    handler.wfile.write(content[: len(content) // 2])


def no_http(handler: Handler, _: bytes, __: int) -> None:
    handler.wfile.write(b"this is not HTTP\r\n\r\n")


def absent(handler: Handler, _: bytes, __: int) -> None:
    handler.send_error(404)


@contextmanager
def server(content: bytes, *behaviours: Behaviour) -> Iterator[str]:
    Handler.content, Handler.behaviours, Handler.ranges = content, list(behaviours), []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/pusht.zip"
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive of the published layout, whose hashes take the published ones' place."""
    action = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    ends = np.array([1000, 3000])
    folder = tmp_path / "source"
    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    group.create_array("data/action", shape=action.shape, dtype=action.dtype, compressors=None)[
        :
    ] = action
    group.create_array("meta/episode_ends", shape=ends.shape, dtype=ends.dtype)[:] = ends
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for file in folder.rglob("*"):
            if file.is_file():
                written.write(
                    file, Path("pusht/pusht_cchi_v7_replay.zarr") / file.relative_to(folder)
                )
    arrays = {"action": action, "episode_ends": ends}
    hashes = {name: sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    published = Published("unused", "pusht_cchi_v7_replay.zarr", hashes)
    monkeypatch.setitem(PUBLISHED, "pusht", published)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "behaviours",
    [(honest,), (cut, honest), (cut, cut, honest), (cut, no_ranges)],
    ids=["honest", "cut once", "cut twice", "cut, then no ranges"],
)
def test_download_arrives_whole(
    tmp_path: Path, archive: bytes, behaviours: tuple[Behaviour, ...]
) -> None:
    with server(archive, *behaviours) as url:
        path = fetch("pusht", tmp_path / "data", url)
        assert open_demonstrations(path).episode_ends.tolist() == [1000, 3000]
        assert len(Handler.ranges) == len(behaviours)
        assert Handler.ranges[1:] == sorted(Handler.ranges[1:])  # every retry goes on further
        assert all(start > 0 for start in Handler.ranges[1:])
        assert [p.name for p in (tmp_path / "data").iterdir()] == ["pusht_cchi_v7_replay.zarr"]
        assert fetch("pusht", tmp_path / "data", url) == path  # at once: nothing is asked again
        assert len(Handler.ranges) == len(behaviours)


def test_stalled_connection_is_dropped_and_resumed(
    tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the server has to be able to sleep; hashes are checked below
    with server(archive, stall, honest) as url:
        target = tmp_path / "file"
        download._download(url, target, timeout=0.3, attempts=3)
    assert target.read_bytes() == archive
    assert Handler.ranges[1] > 0


def test_partial_download_is_continued_by_the_next_command(tmp_path: Path, archive: bytes) -> None:
    with server(archive, cut, absent) as url, pytest.raises(UserError, match="404"):
        fetch("pusht", tmp_path, url)
    assert (tmp_path / "pusht.zip.part").stat().st_size == len(archive) // 3
    with server(archive, honest) as url:
        fetch("pusht", tmp_path, url)
    assert Handler.ranges == [len(archive) // 3]


@pytest.mark.parametrize("lie", [too_long, too_short])
def test_wrong_length_is_noticed(tmp_path: Path, archive: bytes, lie: Behaviour) -> None:
    with server(archive, lie) as url, pytest.raises(UserError, match=r"bytes|not a complete zip"):
        fetch("pusht", tmp_path, url, timeout=0.5, attempts=3)
    assert not (tmp_path / "pusht_cchi_v7_replay.zarr").exists()


@pytest.mark.parametrize("behaviour", [cut_without_ranges, no_http])
def test_a_server_that_never_gets_further_is_given_up(
    tmp_path: Path, archive: bytes, behaviour: Behaviour
) -> None:
    with server(archive, behaviour) as url, pytest.raises(UserError, match="after 3 attempts"):
        fetch("pusht", tmp_path, url, timeout=1.0, attempts=3)
    assert len(Handler.ranges) <= 5


def test_other_content_is_refused_by_its_hash(
    tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Published("unused", PUBLISHED["pusht"].folder, {"action": "0" * 64})
    monkeypatch.setitem(PUBLISHED, "pusht", changed)
    with server(archive, honest) as url, pytest.raises(UserError, match="SHA-256"):
        fetch("pusht", tmp_path / "data", url)
    assert list((tmp_path / "data").iterdir()) == []


def test_no_server_and_unknown_name(tmp_path: Path, archive: bytes) -> None:
    assert archive
    with pytest.raises(UserError, match="download failed after 2 attempts"):
        fetch("pusht", tmp_path, "http://127.0.0.1:9/pusht.zip", timeout=1.0, attempts=2)
    with pytest.raises(UserError, match="unknown; there are pusht"):
        fetch("pushy", tmp_path)


def test_published_hashes_are_those_of_the_real_data() -> None:
    """Where the real demonstrations lie beside the project."""
    real = Path(__file__).parents[2] / "shared/data/pusht_cchi_v7_replay.zarr"
    if not real.exists():
        pytest.skip("the real PushT demonstrations are not beside this checkout")
    download._verify(real, PUBLISHED["pusht"])
