"""Runs on the Hub: pushed with a card and pulled again, from a stand-in on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import close_session, constants

from conftest import observations, policy
from ebt_policy import load_policy, save_policy
from ebt_policy.cli.main import main
from ebt_policy.errors import UserError
from ebt_policy.report.card import model_card

TOKEN = "hf_standin"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a repository of small files needs; it keeps them in ``files``."""

    files: dict[str, dict[str, bytes]]  # by repository
    protocol_version = "HTTP/1.1"

    server: ThreadingHTTPServer

    @property
    def own(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def log_message(self, *ignored: Any) -> None: ...

    def reply(self, value: Any = None, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        self.send_response(status)
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "who are you?"}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.files.setdefault(name, {})
            return self.reply({"url": f"{self.own}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            assert "library_name: ebt-policy" in json.loads(body)["content"]
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.reply(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                           for f in files]}
            )  # fmt: skip
        if "/commit/" in self.path:
            kept = self.files["/".join(self.path.split("/")[3:5])]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    kept[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.reply(
                {"commitUrl": f"{self.own}/me/pushes/commit/{40 * '0'}", "commitOid": "0" * 40}
            )
        return self.reply({"error": self.path}, 404)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.files:
                return self.reply({"error": "Repository not found"}, 404,
                                  X_Error_Code="RepoNotFound")  # fmt: skip
            if parts[4:5] == ["tree"]:
                return self.reply([
                    {"type": "file", "path": f, "size": len(data),
                     "oid": hashlib.sha1(data).hexdigest()}
                    for f, data in self.files[name].items()
                ])  # fmt: skip
            return self.reply({
                "id": name, "sha": "0" * 40,
                "siblings": [{"rfilename": f} for f in self.files[name]],
            })  # fmt: skip
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        data = self.files.get(name, {}).get(file)
        if data is None:
            return self.reply({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        return self.reply(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit="0" * 40)

    def do_HEAD(self) -> None:
        self.do_GET()


def be_the_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What setting HF_ENDPOINT does, which is read when huggingface_hub is imported."""
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    """What the stand-in keeps, while it is the Hub."""
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    be_the_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub.files
    close_session()
    server.shutdown()
    server.server_close()


def run(folder: Path) -> Path:
    """A run with an evaluation, and with what should stay at home."""
    save_policy(policy(), folder)
    data = {"name": "pushes.hdf5", "episodes": 12, "steps": 345, "sha256": {}}
    summary = {
        "policy": "ebt", "steps": 10, "seconds": 3.2, "samples": 640, "parameters": 1, "data": data,
        "training": {"seed": 7}, "commit": "abc", "hardware": "a CPU", "date": "2026-01-01",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "training.json").write_text("{}")
    result = {
        "task": "planar/fork", "sampler": "descent", "descent_steps_mean": 2.0, "episodes": 20,
        "seeds": [100000, 100019], "success_rate": 0.85, "success_ci95": [0.64, 0.948],
        "score_mean": 0.9,
    }  # fmt: skip
    (folder / "results").mkdir()
    (folder / "results" / "one.json").write_text(json.dumps(result))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimiser.bin").write_bytes(b"at home")
    return folder


def test_a_run_goes_to_the_hub_and_back(
    tmp_path: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    there = run(tmp_path / "run")
    assert main(["push", str(there), "me/pushes"]) == 0
    assert set(hub["me/pushes"]) == {
        "README.md", "config.json", "model.safetensors", "training.json", "summary.json",
        "results/one.json",
    }  # fmt: skip
    back = tmp_path / "deep" / "back"
    assert main(["pull", "me/pushes", "--out", str(back)]) == 0
    assert sorted(p.name for p in back.parent.iterdir()) == ["back"]
    assert (back / "results" / "one.json").exists()
    generator = [torch.Generator().manual_seed(0)]
    chunks = [
        load_policy(folder).predict_chunk(observations(1), [g.manual_seed(0) for g in generator])
        for folder in (there, back)
    ]
    assert np.array_equal(chunks[0].plan, chunks[1].plan)
    assert main(["pull", "me/pushes", "--out", str(back)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, out = run(tmp_path / "run"), tmp_path / "out"
    hub["me/other"] = {"README.md": b"a cat", "model.safetensors": b""}

    def refused(message: str, *arguments: str) -> None:
        capsys.readouterr()
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert message in told, arguments
        assert "Traceback" not in told
        assert not out.exists()
        assert [p.name for p in tmp_path.iterdir()] == ["run"]

    refused("me/none", "pull", "me/none", "--out", str(out))
    refused("me/other", "pull", "me/other", "--out", str(out))
    refused("a b/c", "push", str(there), "a b/c")
    refused("config.json", "push", str(tmp_path), "me/pushes")
    with monkeypatch.context() as patched:
        patched.setenv("HF_TOKEN", "hf_wrong")
        refused("401", "push", str(there), "me/pushes")
    be_the_hub(monkeypatch, "http://127.0.0.1:9")
    unreached = "me/pushes: the Hub, http://127.0.0.1:9, cannot be reached ("
    refused(unreached, "pull", "me/pushes", "--out", str(out))
    refused(unreached, "push", str(there), "me/pushes")
    assert "me/pushes" not in hub


def test_the_card_tells_data_results_and_limits(tmp_path: Path) -> None:
    card = model_card(run(tmp_path), "me/pushes")
    for part in [
        "library_name: ebt-policy", "`pushes.hdf5`: 12 episodes, 345 steps", "with seed 7",
        "| planar/fork | descent | 2.0 | 20 | 100000 | 0.850 [0.640, 0.948] | 0.900 |",
        "| `extra` | (2, 3) | numbers |", "has no alarm", '"objective": "basin"',
    ]:  # fmt: skip
        assert part in card, part
    bare = policy(policy="diffusion")
    save_policy(bare, tmp_path / "bare")
    card = model_card(tmp_path / "bare", "me/bare")
    assert "It has not been evaluated." in card
    assert "Nothing is recorded of its training." in card
    with pytest.raises(UserError, match=r"config\.json"):
        model_card(tmp_path / "nothing", "me/nothing")
