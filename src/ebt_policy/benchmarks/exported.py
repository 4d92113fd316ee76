"""The same chunks in onnxruntime: exported graphs, run without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebt_policy.benchmarks.variants import ACTION_DIM, STREAMS, BareDiffusionPolicy, Variant
from ebt_policy.energy.transformer import Network
from ebt_policy.policies.base import Policy
from ebt_policy.policies.export import export_onnx, to_onnx

_ALONE = """
import re, sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, 1
for file in sys.argv[1:]:
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    session.run(None, {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()})
    assert "torch" not in sys.modules
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


class ExportedChunk:
    """A chunk of a variant in onnxruntime.

    An energy's descent, flow, MIP and regression are one graph, as ``ebt-policy export`` writes
    it. Of a diffusion policy the observation's keys and values are one graph and one evaluation
    of the network another, called in a loop with tables made beforehand.

    Args:
        variant: which.
        preset: size of the network.
        folder: for the graphs.
    """

    def __init__(self, variant: Variant, preset: str, folder: Path) -> None:
        self.policy = variant.make(preset)
        if variant.policy == "diffusion":
            self.files = _diffusion_graphs(self.policy, folder)
        else:
            self.files = [folder / f"{variant.policy}-{variant.steps}-{variant.starts}.onnx"]
            export_onnx(self.policy, self.files[0])

    def open(self, threads: int, seed: int = 0) -> Callable[[], np.ndarray]:
        """What makes a chunk (1, T, A) of an observation of zeros."""
        sessions = [_session(file, threads) for file in self.files]
        random = np.random.default_rng(seed)
        seen = {name: np.zeros((1, 2, *s.shape), np.float32) for name, s in STREAMS.items()}
        if isinstance(self.policy, BareDiffusionPolicy):
            return lambda: self._denoise(sessions, seen, random)
        draws = {i.name: i.shape for i in sessions[0].get_inputs() if i.name not in seen}

        def chunk() -> np.ndarray:
            drawn = {n: random.standard_normal(s, dtype=np.float32) for n, s in draws.items()}
            return sessions[0].run(["plan"], seen | drawn)[0]

        return chunk

    def peak_mb(self) -> float:
        """Largest resident memory of a process that has onnxruntime and no PyTorch."""
        files = [str(file) for file in self.files]
        ran = subprocess.run(
            [sys.executable, "-c", _ALONE, *files], capture_output=True, text=True, check=True
        )
        return round(int(ran.stdout) * 1024 / 1e6, 1)

    def _denoise(
        self, sessions: list[Any], seen: dict[str, np.ndarray], random: np.random.Generator
    ) -> np.ndarray:
        assert isinstance(self.policy, BareDiffusionPolicy)
        remember, evaluate = sessions
        memory = remember.run(None, seen)
        given = dict(zip((i.name for i in evaluate.get_inputs()[2:]), memory, strict=True))
        shape = (1, self.policy.config.windows.horizon, ACTION_DIM)
        training_steps = self.policy.config.diffusion.training_steps
        levels = np.array(self.policy.times, np.float32)[:, None] / training_steps

        def evaluated(x: np.ndarray, step: int) -> np.ndarray:
            return evaluate.run(None, {"chunk": x, "level": levels[step], **given})[0]

        return self.policy.denoise(
            evaluated, lambda: random.standard_normal(shape, dtype=np.float32)
        )


class _Remember(nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        named = dict(zip(self.policy.stream_names, streams, strict=True))
        memory = self.policy.core.remember(self.policy.normalise_observation(named))
        return [tensor for pair in memory for tensor in pair]


class _Evaluate(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, chunk: Tensor, level: Tensor, memory: list[Tensor]) -> Tensor:
        pairs = list(zip(memory[::2], memory[1::2], strict=True))
        return self.network(chunk, pairs, level)


def _diffusion_graphs(policy: Policy, folder: Path) -> list[Path]:
    files = [folder / "diffusion-remember.onnx", folder / "diffusion-evaluate.onnx"]
    if files[0].exists():  # the same for every sampler
        return files
    assert isinstance(policy, BareDiffusionPolicy)
    streams = [torch.zeros(1, 2, *stream.shape) for stream in STREAMS.values()]
    remember = _Remember(policy)
    with torch.no_grad():
        memory = remember(streams)
    names = [f"memory_{i}" for i in range(len(memory))]
    chunk = torch.zeros(1, policy.config.windows.horizon, ACTION_DIM)
    graphs = (
        to_onnx(remember, (streams,), list(STREAMS), names),
        to_onnx(
            _Evaluate(policy.network), (chunk, torch.zeros(1), memory),
            ["chunk", "level", *names], ["noise"],
        ),
    )  # fmt: skip
    for file, graph in zip(files, graphs, strict=True):
        file.write_bytes(graph.SerializeToString())
    return files


def _session(file: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Between chunks its threads leave the processor to what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
