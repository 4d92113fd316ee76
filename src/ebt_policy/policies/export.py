"""A trained policy as one ONNX file: a robot computer then needs no PyTorch.

The gradient of an energy is in the graph as the layers' written-out pullbacks, the steps of the
descent one after the other. What is random comes in as inputs (standard normal), so the file
gives the same chunk as the policy for the same draws. Its metadata say how to call it.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebt_policy.config import PolicyConfig
from ebt_policy.errors import UserError
from ebt_policy.policies.base import Draws, Policy
from ebt_policy.policies.files import replace_file
from ebt_policy.windows.images import ImageNormaliser
from ebt_policy.windows.normaliser import Normaliser

METADATA_KEY = "ebt_policy"
_TOLERANCE = 1e-4


class _Chunk(nn.Module):
    """Raw observation windows and draws to a chunk, at batch 1."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, streams: list[Tensor], draws: list[Tensor]) -> tuple[Tensor, ...]:
        policy = self.policy
        observation = policy.normalise_observation(
            dict(zip(policy.stream_names, streams, strict=True))
        )
        chunk, _, trace = policy.sample(observation, Draws(draws), None)
        plan = policy.action_normaliser.unnormalise(chunk.clamp(-1, 1))
        executed = plan[:, policy.config.windows.executed]
        return (executed, plan) if trace is None else (executed, plan, trace.energy[:, -1])


class _Asked(Draws):
    """Notes the shapes of the draws that a policy asks for."""

    def __init__(self) -> None:
        super().__init__(())
        self.shapes: list[tuple[int, ...]] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        self.shapes.append(shape)
        return torch.zeros(shape)


def export_onnx(policy: Policy, path: Path) -> dict[str, Any]:
    """Write a policy as ONNX and check the file against the policy in onnxruntime.

    Inputs are the observation windows (1, To, *shape) under the streams' names, uint8 of images
    and float32 of numbers and of sentences' vectors (:func:`windows.sentences.embed`), and
    ``draw_0`` …;
    outputs ``actions`` (1, Ta, A), ``plan`` (1, T, A) and, for an energy policy, ``energy`` (1,).

    Args:
        policy: on the CPU.
        path: of the file.

    Returns:
        The metadata, and the largest ``difference`` from the policy.

    Raises:
        UserError: the policy does not act in a fixed number of steps, the packages of the extra
            ``onnx`` are missing, the file cannot be written, or it computes something else.
    """
    check_exportable(policy.config)
    check_packages()
    import onnx
    import onnxruntime

    policy = policy.eval()
    windows = policy.config.windows
    random = torch.Generator().manual_seed(0)
    shapes = {n: (1, windows.observation_steps, *s.shape) for n, s in policy.config.streams.items()}

    def drawn(name: str, normaliser: Normaliser | ImageNormaliser) -> Tensor:
        if isinstance(normaliser, ImageNormaliser):
            return torch.randint(256, shapes[name], generator=random, dtype=torch.uint8)
        values, stream = torch.randn(shapes[name], generator=random), policy.config.streams[name]
        if stream.angles or stream.elements is not None:
            return values
        # About where demonstrations are: what is far beyond is seen as if it were at the limit.
        return normaliser.unnormalise(values.flatten(2)).reshape(values.shape)

    def observed() -> list[Tensor]:
        return [drawn(name, normaliser) for name, normaliser in policy.named_normalisers()]

    streams = observed()
    with torch.no_grad():
        asked = _Asked()
        policy.sample(
            policy.normalise_observation(dict(zip(policy.stream_names, streams, strict=True))),
            asked, None,
        )  # fmt: skip
        draws = [torch.randn(shape, generator=random) for shape in asked.shapes]
        names = [*policy.stream_names, *(f"draw_{i}" for i in range(len(draws)))]
        module = _Chunk(policy)
        outputs = ["actions", "plan", "energy"][: len(module(streams, draws))]
    proto = to_onnx(module, (streams, draws), names, outputs)
    metadata = {
        "streams": {name: list(shapes[name]) for name in policy.stream_names},
        "draws": {f"draw_{i}": list(shape) for i, shape in enumerate(asked.shapes)},
        "outputs": outputs, "policy": policy.config.policy,
        "observation_steps": windows.observation_steps, "action_steps": windows.action_steps,
    }  # fmt: skip
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(metadata)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for _ in range(3):
        streams = observed()
        draws = [torch.randn(values.shape, generator=random) for values in draws]
        with torch.no_grad():
            expected = module(streams, draws)
        given = dict(zip(names, (t.numpy() for t in [*streams, *draws]), strict=True))
        for found, wanted in zip(session.run(None, given), expected, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            worst = max(worst, float(np.abs(found - wanted.numpy()).max()) / scale)
    if not worst <= _TOLERANCE:
        raise UserError(
            f"{path}: not written; onnxruntime's output differs from the policy's by {worst:g} "
            f"of its size, at most {_TOLERANCE:g} is allowed"
        )
    replace_file(path, content)
    return metadata | {"difference": worst}


def to_onnx(
    module: nn.Module, arguments: tuple[Any, ...], inputs: list[str], outputs: list[str]
) -> Any:
    """The graph of a module with fixed shapes, as an ``onnx.ModelProto``.

    Constants are folded here: of the many rewriting rules that the exporter would try besides,
    none makes these graphs faster in onnxruntime, and they take most of the time.

    Args:
        module: what is exported.
        arguments: an example of what it is called with.
        inputs: names of the tensors in it, those of a list one after the other.
        outputs: names of the tensors that the module returns.
    """
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    for logger in ("torch.onnx", "onnxscript"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, arguments, dynamo=True, optimize=False, input_names=inputs,
            output_names=outputs, verbose=False,
        )  # fmt: skip
    assert program is not None
    fold_constants(program.model)
    remove_unused_nodes(program.model)
    return program.model_proto


def check_packages() -> None:
    """Check that the packages of the extra ``onnx`` are there.

    Raises:
        UserError: names the first that is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export: {error.name} is missing; install it with: pip install 'ebt-policy[onnx]'"
        ) from error


def check_exportable(config: PolicyConfig) -> None:
    """Check that a policy acts in a fixed number of steps of its own, from fixed inputs.

    Raises:
        UserError: names the setting that prevents it.
    """
    if config.cameras and config.vision.encoder == "pretrained":
        raise UserError("export: pretrained image encoders are not exported; conv and resnet18 are")
    if config.policy in ("diffusion", "ibc"):
        raise UserError(
            f"export: --policy {config.policy} is not exported; ebt, flow, mip and regression are"
        )
    if config.may_be_missing:
        raise UserError(
            f"export: {', '.join(config.may_be_missing)} may be missing, and a graph takes all of "
            "its inputs; a policy is exported whose data sets all have what it observes"
        )
    descent = config.descent
    if config.policy == "ebt":
        for name, value, fixed in (
            ("tolerance", descent.tolerance, 0.0),
            ("max_ms", descent.max_ms, None),
            ("warm_start", descent.warm_start, False),
            ("smoothness", descent.smoothness, 0.0),
        ):
            if value != fixed:
                raise UserError(
                    f"export: descent.{name} = {value}: an exported descent takes a fixed number "
                    f"of steps from its own start; --set descent.{name}={json.dumps(fixed)}"
                )
