"""Many clients of one server at once: how fast, and does each get what belongs to its episode."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
from tqdm import tqdm
from websockets.sync.client import connect

from ebt_policy.benchmarks.memory import process_mb
from ebt_policy.benchmarks.variants import Variant
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Policy
from ebt_policy.policies.files import save_policy
from ebt_policy.provenance import provenance
from ebt_policy.serving.episode import Episode
from ebt_policy.serving.protocol import pack, unpack

_EPISODES, _CHUNKS = 4, 8  # of each client, again and again
_TOLERANCE = 1e-4  # chunks of different episodes differ by far more


def measure_serving(preset: str, clients: int, seconds: float) -> dict[str, Any]:
    """Latency and throughput of ``ebt-policy serve`` when all clients ask without a pause.

    Each client sends single observations of its own seeded episodes, so that the server has to
    keep its window and its draws apart from the others'; each reply is compared with the chunk
    that the policy gives in this process for the same episode.

    Args:
        preset: size of the network, an untrained energy policy with two descent steps.
        clients: connections, each in a thread.
        seconds: how long.

    Returns:
        ``replies``, ``per_second``, ``mixed_up`` (replies that were not their episode's),
        ``p50_ms``, ``p95_ms`` and ``p99_ms`` from sending an observation to having its actions,
        ``infer_p50_ms`` of the chunk alone, ``server_mb`` (largest resident memory).
    """
    policy = Variant("ebt", "descent", 2).make(preset)
    scripts = [
        [_script(policy, seed=1000 * number + episode) for episode in range(_EPISODES)]
        for number in tqdm(range(clients), desc=f"expected chunks, {preset}")
    ]
    robots = [_Robot(script) for script in scripts]
    with tempfile.TemporaryDirectory() as folder:
        save_policy(policy, folder)
        with serving(Path(folder)) as (process, port), ThreadPoolExecutor(clients) as pool:
            together = Barrier(clients)
            began = time.perf_counter()
            runs = [pool.submit(robot.drive, port, together, seconds) for robot in robots]
            for run in runs:
                run.result()
            took = time.perf_counter() - began
            memory = process_mb(process.pid, "VmHWM")
    latencies = np.concatenate([robot.latencies for robot in robots])
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return {
        "preset": preset, "clients": clients, "seconds": round(took, 1),
        "replies": len(latencies), "per_second": round(len(latencies) / took, 1),
        "mixed_up": sum(robot.mixed_up for robot in robots),
        "p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "p99_ms": round(p99, 2),
        "infer_p50_ms": round(float(np.median([t for r in robots for t in r.infer])), 2),
        "server_mb": round(memory, 1), **provenance(),
    }  # fmt: skip


@dataclass
class _Script:
    """An episode: what is sent, and the chunk that is right for each message."""

    messages: list[bytes]
    chunks: list[np.ndarray]


def _script(policy: Policy, seed: int) -> _Script:
    random, episode, script = np.random.default_rng(seed), Episode(policy), _Script([], [])
    for step in range(_CHUNKS):
        message: dict[str, Any] = {
            name: random.normal(size=stream.shape).astype(np.float32)
            for name, stream in policy.config.streams.items()
        }
        if step == 0:
            message |= {"reset": True, "seed": seed}
        episode.observe(message)
        chunk = policy.predict_chunk(*episode.asked())
        episode.answer(chunk, chunk.actions[0])
        script.messages.append(pack(message))
        script.chunks.append(chunk.actions[0])
    return script


@dataclass
class _Robot:
    """One client and what it has measured, in milliseconds."""

    scripts: list[_Script]
    latencies: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)
    mixed_up: int = 0

    def drive(self, port: int, together: Barrier, seconds: float) -> None:
        """Run the episodes in turn until the time is over."""
        with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
            connection.recv()
            together.wait()
            end = time.perf_counter() + seconds
            while True:
                for script in self.scripts:
                    for message, chunk in zip(script.messages, script.chunks, strict=True):
                        sent = time.perf_counter()
                        if sent > end:
                            return
                        connection.send(message)
                        answer = connection.recv()
                        self.latencies.append(1e3 * (time.perf_counter() - sent))
                        assert isinstance(answer, bytes), answer
                        reply = unpack(answer)
                        self.infer.append(reply["server_timing"]["infer_ms"])
                        self.mixed_up += bool(np.abs(reply["actions"] - chunk).max() > _TOLERANCE)


@contextmanager
def serving(run: Path, settings: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command ``ebt-policy serve`` on any free port.

    Raises:
        UserError: it ends at once, having said why.
    """
    chosen = [part for setting in settings for part in ("--set", setting)]
    with subprocess.Popen(
        [sys.executable, "-m", "ebt_policy.cli.main", "serve", str(run), "--port", "0", *chosen],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise UserError(f"ebt-policy serve {run}: ended with exit code {process.wait()}")
            yield process, int(line.split(" port ")[1].split(",")[0])
        finally:
            process.terminate()
