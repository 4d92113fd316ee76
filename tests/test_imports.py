"""The layout: imports point one way, and the core needs torch and NumPy only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ebt_policy

ROOT = Path(ebt_policy.__file__).parent
# The data's path; a layer may import from those before it.
LAYERS = [
    {"errors", "shapes", "config", "provenance", "hub"},
    {"demonstrations"},
    {"windows"},
    {"energy"},
    {"objectives", "descent"},
    {"policies"},
    {"training"},
    {"tasks"},
    {"evaluation"},
    {"serving"},
    {"client"},
    {"report"},
    {"sharing"},
    {"benchmarks"},
    {"cli"},
]
# descent and objectives share a layer: the unrolled objective is the descent, trained.


def layer_of(module: str) -> int:
    name = module.split(".")[1]
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_imports_point_along_the_data_path() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("__init__",):
            continue
        own = layer_of(".".join(("ebt_policy", *parts)))
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("ebt_policy.")
                and layer_of(node.module) > own
            ):
                wrong.append(f"{'/'.join(parts)} imports {node.module}")
    assert not wrong


def test_core_acts_with_torch_and_numpy_only() -> None:
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        allowed = {"torch", "numpy", "ebt_policy"} | set(sys.stdlib_module_names)
        top = name.split(".")[0]
        if not top.startswith("_") and top in {
            "accelerate", "av", "beartype", "diffusers", "gymnasium", "h5py", "imageio_ffmpeg",
            "jaxtyping", "matplotlib", "metaworld", "msgpack", "mujoco", "pyarrow",
            "safetensors", "tensorboard", "tqdm", "transformers", "websockets", "zarr",
        }:
            raise ImportError(f"{top} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from ebt_policy import PRESETS, Batch, PolicyConfig, StreamConfig, make_policy

policy = make_policy(PolicyConfig(
    policy="ebt", action_dim=2, network=PRESETS["tiny"].network,
    streams={
        "state": StreamConfig((3,)), "camera": StreamConfig((16, 20, 3), kind="image"),
        "task": StreamConfig((256,), kind="text", encoder="hashed"),
    },
))
seen = {
    "state": torch.zeros(4, 2, 3), "camera": torch.zeros(4, 2, 16, 20, 3, dtype=torch.uint8),
    "task": torch.zeros(4, 2, 256),
}
policy(Batch(seen, torch.zeros(4, 16, 2), torch.ones(4, 16) > 0)).backward()
told = seen | {"task": [["open the drawer"] * 2] * 4}
assert policy.predict_chunk(told).actions.shape == (4, 8, 2)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
