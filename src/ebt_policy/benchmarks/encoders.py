"""What cameras cost: the share of a chunk's time that goes into encoding pictures."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ebt_policy.benchmarks.variants import ACTION_DIM, STREAMS, Variant
from ebt_policy.config import PolicyConfig, StreamConfig, VisionConfig
from ebt_policy.energy.vision import make_vision
from ebt_policy.policies import Policy, make_policy
from ebt_policy.provenance import provenance

ENCODERS = ("conv", "resnet18")
_VARIANTS = (
    *(Variant("ebt", "descent", steps) for steps in (1, 2, 4, 10)),
    Variant("diffusion", "ddim", 10),
    Variant("regression", "none", 1),
)
_CAMERAS, _PIXELS = 2, 84  # robomimic's
_WARMUP = 3


def measure_encoders(preset: str, rounds: int, threads: int) -> dict[str, Any]:
    """Time of one chunk from two cameras at batch 1, and of its encoding alone, interleaved.

    Args:
        preset: size of the network.
        rounds: timed calls of each.
        threads: CPU threads.

    Returns:
        ``rows``: for each image encoder and way of acting ``p50_ms`` of the chunk, ``encode_ms`` of
        its observation (checked, normalised, encoded) and ``share``, the latter of the former.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    made = [
        (encoder, variant, _policy(variant, preset, make_vision(encoder)))
        for encoder in ENCODERS
        for variant in _VARIANTS
    ]
    times: list[list[tuple[float, float]]] = [[] for _ in made]
    for round_ in tqdm(range(_WARMUP + rounds), desc=f"chunks from cameras, {preset}"):
        for (_, _, policy), kept in zip(made, times, strict=True):
            measured = _timed(policy)
            if round_ >= _WARMUP:
                kept.append(measured)
    torch.set_num_threads(before)
    rows = []
    for (encoder, variant, policy), kept in zip(made, times, strict=True):
        chunk, encode = np.median(kept, 0)
        rows.append({
            "encoder": encoder, "policy": variant.policy, "sampler": variant.sampler,
            "steps": variant.steps, "threads": threads, "cameras": _CAMERAS, "pixels": _PIXELS,
            "parameters": sum(p.numel() for p in policy.parameters()),
            "p50_ms": round(float(chunk), 3), "encode_ms": round(float(encode), 3),
            "share": round(float(encode / chunk), 3),
        })  # fmt: skip
    return {"preset": preset, "rounds": rounds, "rows": rows, **provenance()}


def _policy(variant: Variant, preset: str, vision: VisionConfig) -> Policy:
    """The variant with cameras, untrained."""
    cameras = {
        f"camera_{i}": StreamConfig((_PIXELS, _PIXELS, 3), kind="image") for i in range(_CAMERAS)
    }
    config = PolicyConfig.of_preset(preset, variant.policy, STREAMS | cameras, ACTION_DIM)
    acting = variant.make(preset).config
    torch.manual_seed(0)
    return make_policy(
        dataclasses.replace(
            config, vision=vision, descent=acting.descent, diffusion=acting.diffusion
        )
    ).eval()


def _timed(policy: Policy) -> tuple[float, float]:
    """Milliseconds of a chunk, and of the encoding of its observation."""
    window = {
        name: np.zeros((1, 2, *stream.shape), np.uint8 if stream.kind == "image" else np.float32)
        for name, stream in policy.config.streams.items()
    }
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    policy.predict_chunk(window, [generator])
    middle = time.perf_counter()
    with torch.no_grad():
        policy.core.remember(policy.normalise_observation(policy.raw_windows(window)))
    return 1e3 * (middle - began), 1e3 * (time.perf_counter() - middle)
