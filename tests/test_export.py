"""Export: the file computes what the policy computes, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import ebt_policy
from conftest import NETWORK, observations, policy
from ebt_policy.cli.main import main
from ebt_policy.config import DESCENT_DEFAULTS, BasinConfig, DescentConfig
from ebt_policy.policies.base import Draws
from ebt_policy.policies.files import save_policy

EXAMPLE = Path(ebt_policy.__file__).parents[2] / "examples" / "act_with_onnxruntime.py"
# The exporter's time grows with every operation of every step.
SMALL = replace(NETWORK, action_blocks=1)
EQUILIBRIUM = replace(DESCENT_DEFAULTS["equilibrium"], steps=2)
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = ["example", sys.argv[2]]
runpy.run_path({example!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("settings", "assignments", "outputs"),
    [
        ({}, ["descent.steps=2", "descent.starts=3"], ["actions", "plan", "energy"]),
        (
            {"objective": "equilibrium", "form": "scalar", "descent": EQUILIBRIUM},
            [],
            ["actions", "plan", "energy"],
        ),
        (
            {"basin": BasinConfig(split=True)},
            ["descent.starts=3", "descent.pick=mean"],
            ["actions", "plan", "energy"],
        ),
        (
            {"objective": "annealed"},
            ["descent.starts=3", "descent.pick=mean"],
            ["actions", "plan", "energy"],
        ),
        ({"policy": "flow"}, ["flow.steps=2"], ["actions", "plan"]),
    ],
)
def test_exported_policy_gives_the_same_chunk(
    tmp_path: Path, settings: Any, assignments: list[str], outputs: list[str]
) -> None:
    made, path = policy(network=SMALL, **settings), tmp_path / "policy.onnx"
    for weight in made.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    save_policy(made, tmp_path / "run")
    chosen = [part for assignment in assignments for part in ("--set", assignment)]
    assert main(["export", str(tmp_path / "run"), "--out", str(path), *chosen]) == 0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["ebt_policy"])
    assert about["outputs"] == outputs
    assert about["streams"] == {"extra": [1, 2, 2, 3], "state": [1, 2, 5]}
    if made.acting is not None:
        from ebt_policy.config import override

        made = made.with_sampling(getattr(override(made.config, assignments), made.acting))
    seen = observations(1)
    draws = [torch.randn(shape) for shape in about["draws"].values()]
    expected = made.predict_chunk(seen, Draws(draws))
    given = dict(zip(about["draws"], (draw.numpy() for draw in draws), strict=True))
    found = session.run(None, {**seen, **given})
    # The action's unit is a hundred times the normalised one.
    assert np.abs(found[0] - expected.actions).max() < 1e-2
    assert np.abs(found[1] - expected.plan).max() < 1e-2
    assert np.abs(expected.plan).max() > 10
    if expected.trace is not None:
        assert np.allclose(found[2], expected.trace.energy[:, -1], rtol=1e-4, atol=1e-4)
    code = WITHOUT_TORCH.format(example=str(EXAMPLE))
    ran = subprocess.run(
        [sys.executable, "-c", code, "-", str(path)], capture_output=True, text=True, check=True
    )
    assert "ms a chunk" in ran.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"descent": DescentConfig(tolerance=0.1)}, "descent.tolerance = 0.1"),
        ({"descent": DescentConfig(max_ms=5.0)}, "descent.max_ms = 5.0"),
        ({"descent": DescentConfig(warm_start=True)}, "descent.warm_start = True"),
        ({"policy": "diffusion"}, "--policy diffusion is not exported"),
    ],
)
def test_what_cannot_be_exported_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: Any, message: str
) -> None:
    save_policy(policy(**settings), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.onnx")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_missing_package_and_missing_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(policy(), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.onnx")]) == 2
    assert "ebt-policy[onnx]" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a draw of shape"):
        policy().predict_chunk(observations(1), Draws([]))
