"""How long one chunk takes at batch 1: every policy on one trunk, interleaved in one run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ebt_policy.benchmarks.floor import Floor, Shape, multiply_adds, products, traffic
from ebt_policy.benchmarks.memory import peak_mb
from ebt_policy.config import PolicyConfig, PolicyName, StreamConfig, override
from ebt_policy.descent import Trace
from ebt_policy.policies import DiffusionPolicy, make_policy
from ebt_policy.policies.base import Draws, Policy, draw
from ebt_policy.provenance import provenance
from ebt_policy.shapes import Float
from ebt_policy.training.trainer import check_compiler

_WARMUP = 3
# The low-dimensional observation and the actions of robomimic's one-armed tasks.
_STREAMS = {"state": StreamConfig((23,))}
_ACTION_DIM = 7


@dataclass(frozen=True)
class Variant:
    """One way to make a chunk.

    Attributes:
        policy, sampler, steps, starts: as in the rows of the result.
        loop: of a diffusion policy: ``diffusers``, or ``bare`` (:class:`BareDiffusionPolicy`).
    """

    policy: PolicyName
    sampler: str
    steps: int
    starts: int = 1
    loop: str = ""

    def make(self, preset: str) -> Policy:
        """The policy, untrained: its weights do not matter to its speed."""
        settings = {
            "descent": [f"descent.steps={self.steps}", f"descent.starts={self.starts}"],
            "ddpm": ["diffusion.sampler=ddpm"],
            "ddim": ["diffusion.sampler=ddim", f"diffusion.ddim_steps={self.steps}"],
            "euler": [f"flow.steps={self.steps}"],
        }.get(self.sampler, [])
        config = PolicyConfig.of_preset(preset, self.policy, _STREAMS, _ACTION_DIM)
        config = override(config, settings)
        torch.manual_seed(0)
        made = BareDiffusionPolicy(config) if self.loop == "bare" else make_policy(config)
        return made.eval()


VARIANTS = (
    *(Variant("ebt", "descent", steps) for steps in (1, 2, 4, 10, 20)),
    *(Variant("ebt", "descent", steps, 8) for steps in (2, 4, 10, 20)),
    *(
        Variant("diffusion", sampler, steps, loop=loop)
        for sampler, steps in (("ddpm", 100), ("ddim", 10), ("ddim", 2))
        for loop in ("diffusers", "bare")
    ),
    Variant("flow", "euler", 2),
    Variant("mip", "none", 2),
    Variant("regression", "none", 1),
)


class BareDiffusionPolicy(DiffusionPolicy):
    """The same sampling as through ``diffusers``, without its scheduler around every step.

    Coefficients are tables made beforehand, so that a latency is the network's and not a
    scheduler's. In the notation of Ho et al. 2020 (DDPM, equations 6, 7) and Song et al. 2021
    (DDIM, equation 12 with sigma 0), x_0 clipped to [-1, 1]::

        x_0  = (x - sqrt(1 - abar_t) e) / sqrt(abar_t)
        DDPM: x <- sqrt(abar_s) beta_t / (1 - abar_t) x_0
                   + sqrt(alpha_t) (1 - abar_s) / (1 - abar_t) x
                   + sqrt((1 - abar_s) / (1 - abar_t) beta_t) n,    s = t - 1
        DDIM: x <- sqrt(abar_s) x_0 + sqrt(1 - abar_s) e
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        settings = config.diffusion
        steps = settings.training_steps if settings.sampler == "ddpm" else settings.ddim_steps
        schedule = self._schedule(settings.sampler)
        schedule.set_timesteps(steps)
        self.times = [int(time) for time in schedule.timesteps]
        abar = [float(value) for value in schedule.alphas_cumprod]
        gap = settings.training_steps // steps
        self.table = []
        for time_ in self.times:
            now, before = abar[time_], abar[time_ - gap] if time_ >= gap else 1.0
            if settings.sampler == "ddpm":
                alpha = now / before
                to_clean = before**0.5 * (1 - alpha) / (1 - now)
                to_here = alpha**0.5 * (1 - before) / (1 - now)
                spread = ((1 - before) / (1 - now) * (1 - alpha)) ** 0.5
                self.table.append((now, to_clean, to_here, 0.0, spread))
            else:
                self.table.append((now, before**0.5, 0.0, (1 - before) ** 0.5, 0.0))

    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        memory = self.network.remember(observation)
        batch, device = len(memory[0][0]), memory[0][0].device
        shape = (self.config.windows.horizon, self.config.action_dim)
        x = draw(shape, batch, generators, device)
        levels = self._level(torch.tensor(self.times, device=device))
        for level, (now, to_clean, to_here, to_noise, spread) in zip(
            levels, self.table, strict=True
        ):
            noise = self.network(x, memory, level.expand(batch))
            clean = ((x - (1 - now) ** 0.5 * noise) * now**-0.5).clamp(-1, 1)
            x = to_clean * clean + (to_noise * noise if to_noise else to_here * x)
            if spread:
                x = x + spread * draw(shape, batch, generators, device)
        return x, torch.full((batch,), len(self.times)), None


def measure_latency(
    preset: str, rounds: int, threads: Sequence[int], device: torch.device, compiled: bool
) -> dict[str, Any]:
    """Percentiles of the time of one chunk for every variant, each called once in every round.

    Args:
        preset: size of the network, the same for all.
        rounds: timed calls of each.
        threads: numbers of CPU threads.
        device: where the policies are.
        compiled: measure compiled policies besides (compiling takes minutes).

    Returns:
        ``rows``; a row has, beyond its variant, ``encode_ms`` (the observation's share of it),
        ``multiply_adds``, ``floor_ms`` (of the matrix products alone) and ``peak_mb`` (largest
        resident memory of a process that makes one chunk, its compiler included where it is
        compiled; on a GPU, the memory there).
    """
    if compiled:
        check_compiler(device, "--compile")
    floor, rows = Floor(device), []
    kinds = [False, True] if compiled else [False]
    chosen = [(variant, kind) for kind in kinds for variant in VARIANTS]
    policies = [_prepare(variant, preset, device, kind) for variant, kind in chosen]
    counts = [_products(variant, preset, device) for variant, _ in chosen]
    peaks = [peak_mb(_one_chunk, variant, preset, device, kind) for variant, kind in chosen]
    before = torch.get_num_threads()
    for number in threads:
        torch.set_num_threads(number)
        times: list[list[float]] = [[] for _ in chosen]
        encode: list[list[float]] = [[] for _ in chosen]
        for round_ in tqdm(range(_WARMUP + rounds), desc=f"chunks, {preset}, {number} threads"):
            for k, policy in enumerate(policies):
                taken, first = _timed(policy, device)
                if round_ >= _WARMUP:
                    times[k].append(taken)
                    encode[k].append(first)
        for k, (variant, kind) in enumerate(chosen):
            p50, p95, p99 = np.percentile(times[k], [50, 95, 99])
            rows.append({
                **asdict(variant), "threads": number, "device": device.type, "compiled": kind,
                "p50_ms": round(p50, 3), "p95_ms": round(p95, 3), "p99_ms": round(p99, 3),
                "encode_ms": round(float(np.median(encode[k])), 3),
                "multiply_adds": multiply_adds(counts[k]),
                "floor_ms": round(floor.milliseconds(counts[k]), 3), "peak_mb": peaks[k],
            })  # fmt: skip
    torch.set_num_threads(before)
    return {"preset": preset, "rounds": rounds, "rows": rows, **provenance()}


def measure_floors(presets: Sequence[str], threads: Sequence[int]) -> list[dict[str, Any]]:
    """What a chunk of every variant cannot be faster than, on this machine.

    Returns:
        A row for each preset, variant and number of threads ``multiply_adds``, ``mbytes``
        (operands of the products, each once), ``gflops`` (the rate measured for these shapes)
        and ``floor_ms``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    floor, rows = Floor(device), []
    before = torch.get_num_threads()
    for preset in presets:
        for variant in tqdm([v for v in VARIANTS if v.loop != "bare"], desc=f"floor, {preset}"):
            counts = _products(variant, preset, device)
            for number in threads:
                torch.set_num_threads(number)
                took, work = floor.milliseconds(counts), multiply_adds(counts)
                rows.append({
                    "preset": preset, "of": "chunk", "policy": variant.policy,
                    "sampler": variant.sampler, "steps": variant.steps, "starts": variant.starts,
                    "threads": number, "device": device.type, "multiply_adds": work,
                    "mbytes": round(traffic(counts) / 1e6, 2),
                    "gflops": round(2e-6 * work / took, 1), "floor_ms": round(took, 3),
                })  # fmt: skip
    torch.set_num_threads(before)
    return rows


def _prepare(variant: Variant, preset: str, device: torch.device, compiled: bool) -> Policy:
    policy = variant.make(preset).to(device)
    if compiled:
        policy.compile_acting()
    return policy


def _products(variant: Variant, preset: str, device: torch.device) -> Counter[Shape]:
    policy = variant.make(preset).to(device)
    return products(lambda: _call(policy))


def _call(policy: Policy) -> None:
    observation = {name: np.zeros((1, 2, *s.shape)) for name, s in policy.config.streams.items()}
    policy.predict_chunk(observation, [torch.Generator().manual_seed(0)])


def _timed(policy: Policy, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a chunk, and of encoding its observation alone, both on warm caches."""
    _call(policy)
    taken = []
    streams = policy.config.streams.items()
    zeros = {name: torch.zeros(1, 2, s.features, device=device) for name, s in streams}

    def encode() -> None:
        with torch.no_grad():
            policy.core.remember(zeros)

    for call in (lambda: _call(policy), encode):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1e3 * (time.perf_counter() - began))
    return taken[0], taken[1]


def _one_chunk(variant: Variant, preset: str, device: torch.device, compiled: bool) -> None:
    _call(_prepare(variant, preset, device, compiled))
