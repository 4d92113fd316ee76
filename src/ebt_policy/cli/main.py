"""The command ``ebt-policy``. Exit codes: 0 done, 2 the user's mistake, 1 anything else."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ebt_policy import config as settings
from ebt_policy.config import PRESETS, PolicyConfig, ServerConfig, TrainingConfig
from ebt_policy.errors import UserError

if TYPE_CHECKING:
    from ebt_policy.demonstrations import Demonstrations
    from ebt_policy.policies import Policy

# The extra that brings a library which a command needs.
EXTRAS = {
    "accelerate": "train", "av": "lerobot", "diffusers": "baselines", "h5py": "data",
    "imageio_ffmpeg": "report", "matplotlib": "report", "msgpack": "serve", "PIL": "lerobot",
    "pyarrow": "lerobot", "tensorboard": "train", "transformers": "vision", "websockets": "serve",
    "zarr": "data",
}  # fmt: skip
# What another option decides, together with the settings that belong to it.
_OWN_OPTION = {"policy": "--policy", "objective": "--objective", "streams": "--obs"}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and shows an example in every ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
    except UserError as error:
        print(f"ebt-policy: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(
            f"ebt-policy: error: {error.name} is not installed; it comes with: "
            f"pip install 'ebt-policy[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("ebt-policy: interrupted", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="ebt-policy",
        description="Energy-based transformer policies: learn from demonstrations, act by descent.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    data = commands.add_parser("data", help="look at, download or convert demonstrations")
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    info = _command(
        actions, "info", _data_info, "show what a file of demonstrations holds, and its problems",
        "ebt-policy data info data/pusht_cchi_v7_replay.zarr",
    )  # fmt: skip
    info.add_argument(
        "paths", metavar="PATH", nargs="+",
        help="robomimic HDF5, zarr folder or .zarr.zip, or LeRobot folder; of several also which "
        "lacks what others have",
    )  # fmt: skip
    info.add_argument("--filter", metavar="KEY", help="robomimic filter key, e.g. train")
    get = _command(
        actions, "get", _data_get, "download a published data set and verify it",
        "ebt-policy data get pusht --out data",
    )  # fmt: skip
    get.add_argument("name", metavar="NAME", help="pusht")
    get.add_argument("--out", metavar="DIR", default="data", help="folder (default: data)")
    get.add_argument("--url", help="download from here instead of the published address")

    convert = _command(
        actions, "convert", _data_convert,
        "write demonstrations in another format: zarr, robomimic HDF5, LeRobot v3",
        "ebt-policy data convert data/pusht_cchi_v7_replay.zarr data/pusht-lerobot",
    )  # fmt: skip
    convert.add_argument("source", metavar="SRC", help="demonstrations, as train reads them")
    convert.add_argument(
        "target", metavar="DST", help="to write: NAME.zarr, NAME.hdf5, or a folder for LeRobot"
    )
    convert.add_argument(
        "--to",
        choices=["zarr", "robomimic", "lerobot"],
        help="the format, if DST's name is another",
    )
    convert.add_argument("--obs", metavar="KEYS", help="observation keys (default: all)")
    convert.add_argument(
        "--task", metavar="TEXT", help="LeRobot's sentence for what is done (default: SRC's name)"
    )
    convert.add_argument("--filter", metavar="KEY", help="robomimic filter key, e.g. train")
    convert.add_argument(
        "--rate", metavar="HZ", type=float, help="steps per second (default: what SRC says)"
    )

    collect = _command(
        commands, "collect", _collect, "record a scripted expert's successes as robomimic HDF5",
        "ebt-policy collect metaworld/pick-place --episodes 60 --out data/pick-place.hdf5 --seed 0",
    )  # fmt: skip
    collect.add_argument(
        "task", metavar="TASK", help="planar/fork, metaworld/<task>, robosuite/<task>"
    )
    collect.add_argument("--episodes", metavar="N", type=int, required=True)
    collect.add_argument("--out", metavar="FILE", required=True, help="HDF5 file to write")
    collect.add_argument("--seed", metavar="S", type=int, default=0, help="of the first start")
    collect.add_argument(
        "--cameras", metavar="NAMES",
        help="images to record, comma-separated, e.g. agentview_image,robot0_eye_in_hand_image",
    )  # fmt: skip
    collect.add_argument(
        "--size", metavar="N", type=_count, default=84, help="their height and width (default: 84)"
    )

    train = _command(
        commands, "train", _train, "train a policy on demonstrations",
        "ebt-policy train --data data/pick-place.hdf5 --policy ebt --preset tiny --budget 3m "
        "--out runs/pick-place",
    )  # fmt: skip
    train.add_argument(
        "--data", metavar="PATH", action="append", required=True,
        help="demonstrations; given again, one policy learns from all of them",
    )  # fmt: skip
    train.add_argument(
        "--weights", metavar="W,W", type=_weights,
        help="share of every --data in what is learned from (default: by their numbers of steps)",
    )  # fmt: skip
    train.add_argument("--filter", metavar="KEY", help="robomimic filter key, e.g. train")
    train.add_argument(
        "--policy", choices=list(typing.get_args(settings.PolicyName)), default="ebt",
        help="ebt is the energy policy (default), the others are baselines on the same network",
    )  # fmt: skip
    train.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    train.add_argument(
        "--objective", choices=["basin", "equilibrium", "unrolled"],
        help="how the energy is trained (default: basin)",
    )  # fmt: skip
    train.add_argument(
        "--obs", metavar="KEYS",
        help="observation keys, comma-separated, images among them; KEY:angles=I+J marks angles in "
        "radians, KEY:elements=I+J leaves out all others; task is the sentence of what is done, "
        "hashed, task:encoder=NAME read by a text encoder of transformers (hub name or folder); of "
        "several --data some may lack a key that is named",
    )  # fmt: skip
    train.add_argument(
        "--encoder", metavar="NAME",
        help="of images: conv (default), resnet18, or a vision transformer of the package "
        "transformers by hub name or folder, e.g. facebook/dinov2-small; with --set vision.crop=1 "
        "--set vision.jitter=0 that is run once a picture, and its features are kept beside RUN",
    )  # fmt: skip
    train.add_argument("--seed", metavar="S", type=int, default=0)
    length = train.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", metavar="N", type=int, help="training steps")
    length.add_argument("--budget", metavar="T", help="training time, e.g. 90s, 30m, 2h")
    train.add_argument("--out", metavar="RUN", required=True, help="folder of the run")
    train.add_argument(
        "--resume", action="store_true",
        help="continue the run in --out from its newest checkpoint (begin if there is none)",
    )  # fmt: skip
    train.add_argument("--batch-size", metavar="N", type=int, default=TrainingConfig.batch_size)
    train.add_argument("--learning-rate", metavar="X", type=float, help="(default: the preset's)")
    train.add_argument(
        "--threads", metavar="N", type=int, default=1, help="CPU threads (default: 1)"
    )
    train.add_argument("--bf16", action="store_true", help="mixed precision")
    train.add_argument(
        "--compile", action="store_true",
        help="fuse the training step; pays for trainings of ten minutes and more",
    )  # fmt: skip
    train.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="any other setting, e.g. basin.noise=0.3, form=scalar, training.weight_decay=1e-4",
    )  # fmt: skip

    evaluation = _command(
        commands, "eval", _eval, "roll a trained policy out on unseen starts",
        "ebt-policy eval runs/pick-place --task metaworld/pick-place --episodes 50 --seed 100000 "
        "--workers 2 --video runs/pick-place/results/rollout.mp4",
    )  # fmt: skip
    evaluation.add_argument("run", metavar="RUN", help="folder of the run")
    evaluation.add_argument(
        "--task",
        metavar="TASK",
        required=True,
        help="planar/fork, pusht, metaworld/<task>, robosuite/<task>, gym:<id>",
    )
    evaluation.add_argument("--episodes", metavar="N", type=int, default=50)
    evaluation.add_argument(
        "--seed", metavar="S", type=int, default=100_000, help="starts S … S+N-1"
    )
    evaluation.add_argument(
        "--descent-steps", metavar="K", type=int, help="steps per chunk, the proposal included"
    )
    evaluation.add_argument(
        "--starts", metavar="N", type=int, help="descend from N starts, keep the lowest energy"
    )
    evaluation.add_argument(
        "--max-ms", metavar="MS", type=float, help="stop a descent after this long"
    )
    evaluation.add_argument("--sampler", choices=["ddpm", "ddim"], help="of a diffusion policy")
    evaluation.add_argument(
        "--workers", metavar="W", type=int, default=len(os.sched_getaffinity(0))
    )
    evaluation.add_argument("--video", metavar="FILE", help="MP4 of the first episode")
    evaluation.add_argument("--json", metavar="FILE", help="write the result here too")
    evaluation.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="any other setting of acting, e.g. descent.tolerance=0.01",
    )  # fmt: skip

    calibrate = _command(
        commands, "calibrate", _calibrate,
        "an alarm for a policy: is the robot where no demonstration was?",
        "ebt-policy calibrate runs/pick-place --data data/pick-place.hdf5 "
        "--task metaworld/pick-place",
    )  # fmt: skip
    calibrate.add_argument("run", metavar="RUN", help="folder of the run")
    calibrate.add_argument(
        "--data", metavar="PATH", required=True, help="the demonstrations it was trained on"
    )
    calibrate.add_argument(
        "--task", metavar="TASK",
        help="take the threshold from successful episodes here (default: from held-out "
        "demonstrations)",
    )  # fmt: skip
    calibrate.add_argument(
        "--false-alarms", metavar="RATE", type=float, default=0.05,
        help="share of successful episodes with an alarm (default: 0.05)",
    )  # fmt: skip
    calibrate.add_argument(
        "--episodes", metavar="N", type=_count, default=400,
        help="successful ones of the task (default: 400)",
    )  # fmt: skip
    calibrate.add_argument("--seed", metavar="S", type=int, default=500_000, help="first start")
    calibrate.add_argument(
        "--imagine", metavar="STREAM", action="append", default=[],
        help="where the alarm goes off, plan as if this stream of the robot's own state were as "
        "demonstrated, e.g. robot0_gripper_qpos (may be given again)",
    )  # fmt: skip

    merge = _command(
        commands, "merge", _merge, "join evaluations of one policy on different starts",
        "ebt-policy merge machine-1.json machine-2.json --out all.json",
    )  # fmt: skip
    merge.add_argument("parts", metavar="FILE", nargs="+", help="results of ebt-policy eval --json")
    merge.add_argument("--out", metavar="FILE", required=True, help="JSON file to write")

    export = _command(
        commands, "export", _export, "a trained policy as one ONNX file",
        "ebt-policy export runs/ebt --out policy.onnx",
    )  # fmt: skip
    export.add_argument("run", metavar="RUN", help="folder of the policy")
    export.add_argument("--out", metavar="FILE", required=True, help="ONNX file to write")
    export.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="a setting of acting, e.g. descent.steps=3",
    )  # fmt: skip

    server = _command(
        commands, "serve", _serve, "serve a policy to robots, as openpi's clients expect it",
        "ebt-policy serve runs/ebt --port 8000 --budget-ms 80",
    )  # fmt: skip
    server.add_argument("run", metavar="RUN", help="folder of the policy")
    server.add_argument(
        "--port", metavar="N", type=int, default=ServerConfig.port, help="default: 8000; 0: any"
    )
    server.add_argument(
        "--host", metavar="ADDRESS", default=ServerConfig.host,
        help="address to listen on (default: 127.0.0.1; any other needs --api-key-file)",
    )  # fmt: skip
    server.add_argument("--api-key-file", metavar="FILE", help="holds the key asked of clients")
    server.add_argument(
        "--max-mb", metavar="X", type=float, default=ServerConfig.max_mb,
        help="largest message, in megabytes (default: 16)",
    )  # fmt: skip
    server.add_argument(
        "--limits", metavar="FILE", help="JSON: range, velocity and kind of each action dimension"
    )
    server.add_argument(
        "--budget-ms", metavar="MS", type=float,
        help="answer with a hold command and an alarm when a chunk takes longer",
    )  # fmt: skip
    server.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="a setting of acting, e.g. descent.max_ms=50",
    )  # fmt: skip

    report = _command(
        commands, "report", _report, "one HTML file that compares runs",
        "ebt-policy report runs/ebt runs/diffusion --out runs/report.html",
    )  # fmt: skip
    report.add_argument("runs", metavar="RUN", nargs="+", help="runs that have been evaluated")
    report.add_argument("--out", metavar="FILE", required=True, help="HTML file to write")

    push = _command(
        commands, "push", _push, "put a run and its card on the Hugging Face Hub",
        "ebt-policy push runs/pick me/pick",
    )  # fmt: skip
    push.add_argument("run", metavar="RUN", help="folder of the policy; its checkpoints stay here")
    push.add_argument("repository", metavar="USER/NAME")
    push.add_argument("--private", action="store_true", help="for its owner alone, if it is new")

    pull = _command(
        commands, "pull", _pull, "bring a run from the Hugging Face Hub",
        "ebt-policy pull me/pick --out runs/pick",
    )  # fmt: skip
    pull.add_argument("repository", metavar="USER/NAME")
    pull.add_argument("--out", metavar="DIR", required=True, help="the new run's folder")
    pull.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: newest)")

    bench = commands.add_parser("bench", help="reproduce the comparisons of docs/")
    studies = bench.add_subparsers(required=True, metavar="STUDY", parser_class=_Parser)
    _study(
        studies, "objectives", "objectives, descents and baselines compared",
        "ebt-policy bench objectives --only 'planar-fork/*' --jobs 2",
    )  # fmt: skip
    _study(
        studies, "tasks", "success on the paper's tasks, and over training compute",
        "ebt-policy bench tasks --only 'robosuite-Lift/200/*/0'",
    )  # fmt: skip
    _study(
        studies, "recovery", "success after the object was dropped, moved or let go",
        "ebt-policy bench recovery --only 'robosuite-Lift/200/basin/*'",
    )  # fmt: skip
    _study(
        studies, "shift", "success where the task differs from the demonstrations, by how much",
        "ebt-policy bench shift --only 'robosuite-Lift/200/*/0'",
    )  # fmt: skip
    _study(
        studies, "compute", "steps and energy by what the robot does, success by steps allowed",
        "ebt-policy bench compute --only 'robosuite-Lift/200/basin/0'",
    )  # fmt: skip
    _study(
        studies, "scale", "sizes of the network and numbers of demonstrations",
        "ebt-policy bench scale --only 'metaworld-pick-place/*'",
    )  # fmt: skip
    _study(
        studies, "embodiments", "the same task with other arms",
        "ebt-policy bench embodiments --only 'robosuite-Lift-UR5e/*'",
    )  # fmt: skip

    _study(
        studies, "language", "many tasks by one policy that is told what to do, and by what words",
        "ebt-policy bench language --only 'metaworld-mt10/*/basin/0'",
    )  # fmt: skip

    doubt = _command(
        studies, "uncertainty", _bench_uncertainty,
        "do energies tell failures and shifted observations, beside other signals?",
        "ebt-policy bench uncertainty runs/push --diffusion runs/push-dp --data data/push.hdf5 "
        "--task metaworld/push",
    )  # fmt: skip
    doubt.add_argument("run", metavar="RUN", help="folder of an energy policy")
    doubt.add_argument(
        "--diffusion", metavar="RUN", required=True, help="a Diffusion Policy of the same data"
    )
    doubt.add_argument("--data", metavar="PATH", required=True, help="the demonstrations")
    doubt.add_argument("--task", metavar="TASK", required=True)
    doubt.add_argument("--episodes", metavar="N", type=_count, default=200)
    doubt.add_argument("--seed", metavar="S", type=int, default=200_000, help="first start")

    steady = _command(
        studies, "stability", _bench_stability,
        "errors on a policy's own states, growth of a nudge, descents from wrong starts",
        "ebt-policy bench stability runs/push --diffusion runs/push-dp --data data/unseen.hdf5 "
        "--task metaworld/push",
    )  # fmt: skip
    steady.add_argument("run", metavar="RUN", help="folder of an energy policy")
    steady.add_argument("--diffusion", metavar="RUN", help="a Diffusion Policy of the same data")
    steady.add_argument(
        "--data", metavar="PATH", required=True,
        help="demonstrations that they have not learned from (collect … --seed 50000)",
    )  # fmt: skip
    steady.add_argument("--task", metavar="TASK", required=True)
    steady.add_argument("--episodes", metavar="N", type=_count, default=50)
    steady.add_argument("--seed", metavar="S", type=int, default=100_000, help="first start")

    cost = _command(
        studies, "cost", _bench_cost,
        "time of one training step of every method, side by side",
        "ebt-policy bench cost --preset small",
    )  # fmt: skip
    cost.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    cost.add_argument(
        "--batch-size", metavar="N", type=_count,
        help="of every method; by default the one each is trained with in the study",
    )  # fmt: skip
    cost.add_argument("--rounds", metavar="N", type=_count, default=20, help="timed steps")
    cost.add_argument("--results", metavar="DIR", default="results/objectives")

    floor = _command(
        studies, "floor", _bench_floor,
        "multiply-adds of a chunk and a training step, and the time that these alone take here",
        "ebt-policy bench floor --preset paper",
    )  # fmt: skip
    floor.add_argument("--preset", choices=list(PRESETS), action="append", help="default: all")

    latency = _command(
        studies, "latency", _bench_latency,
        "time of one chunk at batch 1: every policy on the same trunk, in turns",
        "ebt-policy bench latency --preset paper --json results/latency.json",
    )  # fmt: skip
    latency.add_argument("--preset", choices=list(PRESETS), default="paper", help="network size")
    latency.add_argument("--rounds", metavar="N", type=_count, default=30, help="timed calls")
    latency.add_argument(
        "--compile", action="store_true", help="compiled policies besides (takes many minutes)"
    )
    latency.add_argument(
        "--onnx", action="store_true", help="exported policies in onnxruntime besides (minutes)"
    )
    training = _command(
        studies, "train", _bench_train,
        "samples per second and memory of the objectives and baselines, in turns",
        "ebt-policy bench train --preset small --batch-sizes 32 128 512",
    )  # fmt: skip
    training.add_argument("--preset", choices=list(PRESETS), default="tiny", help="network size")
    training.add_argument(
        "--batch-sizes", metavar="N", type=_count, nargs="+", default=[128], help="default: 128"
    )
    training.add_argument("--rounds", metavar="N", type=_count, default=9, help="timed steps")
    training.add_argument(
        "--compile", action="store_true", help="compiled steps instead (takes many minutes)"
    )
    loading = _command(
        studies, "loading", _bench_loading,
        "windows gathered in a second against windows learned from, and the memory for it",
        "ebt-policy bench loading --data data/pusht_cchi_v7_replay.zarr",
    )  # fmt: skip
    loading.add_argument("--data", metavar="PATH", required=True, help="the demonstrations")
    loading.add_argument("--obs", metavar="KEYS", help="as train takes it")
    loading.add_argument("--preset", choices=list(PRESETS), default="tiny", help="network size")
    loading.add_argument("--batch-size", metavar="N", type=_count, default=64)
    loading.add_argument("--rounds", metavar="N", type=_count, default=100, help="timed batches")
    loading.add_argument("--compile", action="store_true", help="compile the training step")

    simulation = _command(
        studies, "evaluation", _bench_evaluation,
        "simulation with one worker and two, and the policy's share of an evaluation",
        "ebt-policy bench evaluation runs/pusht --task pusht",
    )  # fmt: skip
    simulation.add_argument("run", metavar="RUN", help="folder of the policy")
    simulation.add_argument("--task", metavar="TASK", required=True)
    simulation.add_argument("--episodes", metavar="N", type=_count, default=50)
    simulation.add_argument("--rounds", metavar="N", type=_count, default=7)

    serving = _command(
        studies, "serve", _bench_serve,
        "many clients of one server at once: latency, throughput, mixed-up replies",
        "ebt-policy bench serve --clients 8 --seconds 120 --json results/serve.json",
    )  # fmt: skip
    serving.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    serving.add_argument("--clients", metavar="N", type=_count, default=8)
    serving.add_argument("--seconds", metavar="N", type=_count, default=120)

    eyes = _command(
        studies, "encoders", _bench_encoders,
        "what cameras cost: encoding and descent apart",
        "ebt-policy bench encoders --preset tiny --json results/encoders-tiny.json",
    )  # fmt: skip
    eyes.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    eyes.add_argument("--rounds", metavar="N", type=_count, default=15)
    eyes.add_argument("--threads", metavar="N", type=_count, default=1)

    slow = _command(
        studies, "delay", _bench_delay,
        "robots at a fixed control rate, driven through the server over a slow link",
        "ebt-policy bench delay runs/pusht --task pusht --delays 0 200 --json results/delay.json",
    )  # fmt: skip
    slow.add_argument("run", metavar="RUN", help="folder of a policy")
    slow.add_argument("--task", metavar="TASK", required=True)
    slow.add_argument(
        "--delays", metavar="MS", type=_not_negative, nargs="+",
        default=[0.0, 50.0, 100.0, 200.0, 400.0],
        help="from a question to its answer (default: 0 50 100 200 400)",
    )  # fmt: skip
    slow.add_argument(
        "--jitter", metavar="MS", type=_not_negative, default=20.0, help="(default: 20)"
    )
    slow.add_argument(
        "--lost", metavar="SHARE", type=_not_negative, default=0.0,
        help="of the questions, never answered",
    )  # fmt: skip
    slow.add_argument("--episodes", metavar="N", type=_count, default=50)
    slow.add_argument("--seed", metavar="S", type=int, default=100_000, help="first start")
    slow.add_argument("--robots", metavar="N", type=_count, default=8, help="at once (default: 8)")
    slow.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="how it acts, e.g. descent.warm_start=true",
    )  # fmt: skip

    for study in (floor, latency):
        study.add_argument(
            "--threads", metavar="N", type=_count, nargs="+", default=[1, 2], help="default: 1 2"
        )
    own = (floor, latency, training, loading, simulation, doubt, steady, serving, eyes, slow)
    for study in own:
        study.add_argument("--json", metavar="FILE", help="write the rows here too")

    demo = _command(
        commands, "demo", _demo, "two Meta-World tasks from nothing to a report, in minutes",
        "ebt-policy demo --out runs/demo",
    )  # fmt: skip
    demo.add_argument("--out", metavar="DIR", default="runs/demo")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], what: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".",
        epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(command=run)
    return parser


def _study(studies: Any, name: str, what: str, example: str) -> None:
    """The command of a study of cells."""
    parser = _command(
        studies, name, _bench_study, f"{what}: what has no result yet is run", example
    )
    parser.set_defaults(study=name)
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", default=[],
        help="cells to run, e.g. '*/basin/0' (default: all; may be given again)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the cells and what is missing")
    parser.add_argument(
        "--render", metavar="PAGE", help="write the tables and plots of this page, run nothing"
    )
    parser.add_argument("--jobs", metavar="N", type=_count, default=1, help="cells at once")
    parser.add_argument(
        "--work", metavar="DIR", help="folder of the training runs (default: under runs/)"
    )
    parser.add_argument(
        "--results", metavar="DIR", help=f"folder of the results (default: results/{name})"
    )
    parser.add_argument(
        "--pusht", metavar="PATH", default="data/pusht_cchi_v7_replay.zarr",
        help="the PushT demonstrations",
    )  # fmt: skip
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)


def _count(text: str) -> int:
    """The type of an option that is a number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be a whole number, at least 1")
    return int(text)


def _weights(text: str) -> tuple[float, ...]:
    """The type of an option that is a list of shares."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: write numbers, e.g. 2,1") from error


def _not_negative(text: str) -> float:
    """The type of an option that is a finite number, at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: it must be a number, at least 0")
    return value


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``30m``, ``1.5h``.

    Raises:
        UserError: the text is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--budget {text}: write a time above 0 such as 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


# Each command imports what it needs when it runs, so that --help is instant and a missing
# extra matters only to those who use it.


def _data_info(options: argparse.Namespace) -> None:
    from ebt_policy.demonstrations import open_demonstrations
    from ebt_policy.demonstrations.base import TASK
    from ebt_policy.demonstrations.inspection import inspect, missing
    from ebt_policy.demonstrations.mixture import MixedDemonstrations

    parts = [open_demonstrations(path, options.filter, with_faults=True) for path in options.paths]
    for part in parts:
        print(inspect(part).text())
    if len(parts) > 1:
        mixture = MixedDemonstrations(parts)
        keys = dict.fromkeys([*mixture.observations, TASK])
        print(missing(mixture, keys) or "all observe the same")


def _data_convert(options: argparse.Namespace) -> None:
    from ebt_policy.demonstrations import open_demonstrations
    from ebt_policy.demonstrations.conversion import convert, format_of

    target = Path(options.target)
    to = format_of(target, options.to)
    keys = None if options.obs is None else [key.strip() for key in options.obs.split(",")]
    source = open_demonstrations(options.source, options.filter)
    made = convert(source, target, to, keys, options.rate, options.task)
    for column in made.columns:
        sha256 = made.sha256[column.name]
        print(f"  {column.source or 'actions':<28} -> {column.name:<36} SHA-256 {sha256[:12]}…")
    for note in made.notes:
        print(f"  {note}")
    print(f"{target}: {source.episodes} episodes, {source.steps} steps, read back the same")


def _data_get(options: argparse.Namespace) -> None:
    from ebt_policy.demonstrations.download import fetch

    print(fetch(options.name, Path(options.out), options.url))


def _collect(options: argparse.Namespace) -> None:
    from ebt_policy.demonstrations.robomimic import write_robomimic
    from ebt_policy.tasks import make_task
    from ebt_policy.tasks.collection import collect

    task, out = make_task(options.task), Path(options.out)
    if out.exists():
        raise UserError(f"--out {out}: exists already; choose another name or remove it")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: it must be at least 0")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    names = options.cameras.split(",") if options.cameras else []
    cameras = {name.strip(): (options.size, options.size) for name in names}
    episodes = collect(task, options.episodes, options.seed, cameras=cameras)
    kwargs: dict[str, Any] = {"control_freq": task.rate}
    if task.action_bounds is not None:
        kwargs["action_bounds"] = task.action_bounds
    write_robomimic(out, episodes, task.name, kwargs)
    print(f"{out}: {len(episodes)} episodes, {sum(len(e.actions) for e in episodes)} steps")


def _train(options: argparse.Namespace) -> None:
    from ebt_policy.demonstrations import open_demonstrations
    from ebt_policy.demonstrations.inspection import missing
    from ebt_policy.demonstrations.mixture import MixedDemonstrations
    from ebt_policy.energy.vision import make_vision
    from ebt_policy.training.trainer import train
    from ebt_policy.windows.windows import choose_streams

    if options.objective is not None and options.policy != "ebt":
        raise UserError(f"--objective {options.objective}: only --policy ebt has an objective")
    for text in options.set:
        top = re.split(r"[.=]", text)[0]
        if top in _OWN_OPTION:
            raise UserError(f"--set {text}: use {_OWN_OPTION[top]}")
        if top == "action_dim":
            raise UserError(f"--set {text}: the demonstrations decide the action dimension")
    parts = [open_demonstrations(path, options.filter) for path in options.data]
    demonstrations = parts[0] if len(parts) == 1 else MixedDemonstrations(parts)
    preset = PRESETS[options.preset]
    policy_config = PolicyConfig.of_preset(
        options.preset,
        options.policy,
        choose_streams(demonstrations, options.obs),
        demonstrations.actions.shape[0],
        options.objective or PolicyConfig.objective,
    )
    if options.encoder is not None:
        if not policy_config.cameras:
            raise UserError(f"--encoder {options.encoder}: there is no image among the --obs keys")
        policy_config = dataclasses.replace(policy_config, vision=make_vision(options.encoder))
    policy_config = settings.override(
        policy_config,
        [text for text in options.set if not text.startswith("training.")],
    )
    training_config = TrainingConfig(
        data=demonstrations.path.name,
        steps=options.steps,
        budget_seconds=None if options.budget is None else parse_duration(options.budget),
        batch_size=options.batch_size,
        filter_key=options.filter,
        weights=options.weights,
        learning_rate=(
            preset.learning_rate if options.learning_rate is None else options.learning_rate
        ),
        bf16=options.bf16,
        compile=options.compile,
        threads=options.threads,
        seed=options.seed,
    )
    training_config = settings.override(
        training_config,
        [t.removeprefix("training.") for t in options.set if t.startswith("training.")],
    )
    speaks = os.environ.get("RANK", "0") == "0"  # the first of several processes, or the only one
    if speaks:
        print(
            f"{demonstrations.path.name}: {demonstrations.episodes} episodes, "
            f"{demonstrations.steps} steps; observing {', '.join(policy_config.streams)}"
        )
        _print_sentences(demonstrations, policy_config)
        if lacking := missing(demonstrations, policy_config.streams):
            masked = "what is missing is masked out, in training and in acting"
            print(f"{lacking}: {masked}", file=sys.stderr)
    train(demonstrations, policy_config, training_config, Path(options.out), options.resume)
    if speaks:
        print(f"{options.out}: done; next: ebt-policy eval {options.out} --task …")


def _print_sentences(demonstrations: Demonstrations, config: PolicyConfig) -> None:
    """What is good to know of the data's sentences before a policy is trained on them."""
    from ebt_policy.demonstrations.base import TASK
    from ebt_policy.windows.sentences import HASHED

    encoders = [s.encoder for s in config.streams.values() if s.encoder is not None]
    count = len(demonstrations.tasks)
    for encoder in encoders:
        hashed = "hashed: by the words they share; no pretrained encoder that knows their meaning"
        print(f"{count} sentences, {hashed if encoder == HASHED else f'read by {encoder}'}")
    if count > 1 and not encoders:
        print(
            f"the data say what is done, in {count} sentences; a policy sees them by --obs {TASK}"
        )


def _eval(options: argparse.Namespace) -> None:
    from ebt_policy.evaluation.results import store_result
    from ebt_policy.evaluation.rollout import Rollout, evaluate
    from ebt_policy.evaluation.video import check_target
    from ebt_policy.policies import POLICIES
    from ebt_policy.policies.files import load_policy
    from ebt_policy.training.files import read_summary

    config = load_policy(options.run).config
    for option, owner in (("descent_steps", "ebt"), ("starts", "ebt"), ("max_ms", "ebt"), ("sampler", "diffusion")):  # fmt: skip  # noqa: E501
        if getattr(options, option) is not None and config.policy != owner:
            flag = "--" + option.replace("_", "-")
            raise UserError(
                f"{flag}: only for --policy {owner}; {options.run} holds --policy {config.policy}"
            )
    part = POLICIES[config.policy].acting
    config = _acting_config(config, options.set)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: it must be at least 0")
    if options.video:
        check_target(Path(options.video))
    read_summary(Path(options.run))  # a damaged one is better known before the rollouts
    changes = {
        "steps": options.descent_steps, "starts": options.starts, "max_ms": options.max_ms,
        "sampler": options.sampler,
    }  # fmt: skip
    acting = None
    if part is not None:
        given = {k: v for k, v in changes.items() if v is not None}
        acting = dataclasses.replace(getattr(config, part), **given)
    rollout = Rollout(
        options.run, options.task, acting, options.video, options.seed if options.video else None,
        action_steps=config.windows.action_steps,
    )  # fmt: skip
    result = evaluate(rollout, options.episodes, options.seed, options.workers)
    store_result(result, Path(options.run), Path(options.json) if options.json else None)
    _print_result(result)


def _calibrate(options: argparse.Namespace) -> None:
    from ebt_policy.evaluation.calibration import calibrate

    alarm = calibrate(
        Path(options.run), options.data, options.false_alarms, options.task,
        options.episodes, options.seed, options.imagine,
    )  # fmt: skip
    print(
        f"{options.run}: alarm above {alarm.threshold:.4g}, at most {alarm.rate:g} of successful "
        f"episodes; from {alarm.source}"
    )


def _merge(options: argparse.Namespace) -> None:
    from ebt_policy.evaluation.results import merge_results, to_text
    from ebt_policy.policies.files import replace_file

    result = merge_results([Path(part) for part in options.parts])
    replace_file(Path(options.out), to_text(result).encode())
    _print_result(result)


def _print_result(result: dict[str, Any]) -> None:
    low, high = result["success_ci95"]
    latency = result["latency_ms"]
    print(
        f"{result['task']} {result['policy']} ({result['sampler']}): "
        f"success {result['success_rate']:.3f} [{low:.3f}, {high:.3f}], "
        f"score {result['score_mean']:.3f} [{result['score_ci95'][0]:.3f}, "
        f"{result['score_ci95'][1]:.3f}], {result['descent_steps_mean']:.1f} steps per chunk, "
        f"{latency['p50']:.1f} ms p50, {latency['p95']:.1f} ms p95, {result['episodes']} episodes"
        + (f", without {', '.join(result['missing'])}" if "missing" in result else "")
    )
    for task, found in result.get("per_task", {}).items():
        low, high = found["success_ci95"]
        print(f"{task:<24}{found['success_rate']:.3f} [{low:.3f}, {high:.3f}]")
    for which, found in result.get("alarms", {}).items():
        low, high = found["ci95"]
        print(
            f"alarm in {found['rate']:.3f} [{low:.3f}, {high:.3f}] of the {found['episodes']} "
            f"{which.removeprefix('of_')}"
        )


def _report(options: argparse.Namespace) -> None:
    from ebt_policy.report.html import write_report

    write_report([Path(run) for run in options.runs], Path(options.out))
    print(options.out)


def _acting_config(config: settings.PolicyConfig, assignments: list[str]) -> settings.PolicyConfig:
    """The configuration of a trained policy with some settings of acting replaced.

    Raises:
        UserError: a setting is not one of acting.
    """
    from ebt_policy.policies import POLICIES

    part = POLICIES[config.policy].acting
    kept = "windows.action_steps"
    for text in assignments:
        is_of_part = part is not None and text.startswith(f"{part}.")
        if not (is_of_part or text.startswith(f"{kept}=")):
            raise UserError(
                f"--set {text}: a trained --policy {config.policy} can change only "
                + (f"{part}.… and {kept}" if part else kept)
            )
    return settings.override(config, assignments)


def _acting(policy: Policy, assignments: list[str]) -> Policy:
    """A trained policy with some settings of acting replaced.

    Raises:
        UserError: a setting is not one of acting.
    """
    config = _acting_config(policy.config, assignments)
    part = None if policy.acting is None else getattr(config, policy.acting)
    return policy.with_sampling(part, config.windows.action_steps)


def _export(options: argparse.Namespace) -> None:
    from ebt_policy.policies.export import export_onnx
    from ebt_policy.policies.files import load_policy

    policy = _acting(load_policy(options.run), options.set)
    written = export_onnx(policy, Path(options.out))
    print(
        f"{options.out}: {', '.join([*written['streams'], *written['draws']])} -> "
        f"{', '.join(written['outputs'])}; at most {written['difference']:.1e} from the policy"
    )


def _serve(options: argparse.Namespace) -> None:
    import torch

    from ebt_policy.policies.files import load_policy
    from ebt_policy.serving.limits import ActionLimits, read_limits
    from ebt_policy.serving.server import PolicyServer, read_api_key, run_server

    server_config = ServerConfig(options.host, options.port, options.max_mb, options.budget_ms)
    key = None if options.api_key_file is None else read_api_key(Path(options.api_key_file))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = _acting(load_policy(options.run, device), options.set)
    limits = (
        ActionLimits(policy)
        if options.limits is None
        else read_limits(Path(options.limits), policy)
    )
    server = PolicyServer(policy, server_config, limits, key)

    def started(port: int) -> None:
        streams = ", ".join(policy.stream_names)
        print(
            f"{options.run}: serving on {options.host} port {port}, observing {streams}", flush=True
        )

    run_server(server, started)


def _push(options: argparse.Namespace) -> None:
    from ebt_policy.sharing import push

    print(push(Path(options.run), options.repository, options.private))


def _pull(options: argparse.Namespace) -> None:
    from ebt_policy.sharing import pull

    pull(options.repository, Path(options.out), options.revision)
    print(f"{options.out}: here; next: ebt-policy eval {options.out} --task …")


def _bench_study(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks import language, manipulation, objectives
    from ebt_policy.benchmarks.claims import render_claims
    from ebt_policy.benchmarks.pages import render
    from ebt_policy.benchmarks.runner import missing_acts, run_cell, run_cells

    studies = (objectives.STUDY, *manipulation.STUDIES.values(), language.STUDY)
    study = next(study for study in studies if study.name == options.study)
    work = Path(options.work or f"runs/{study.work or study.name}")
    results = Path(options.results or f"results/{study.name}")
    pusht, chosen = Path(options.pusht), study.cells(options.only)
    if options.render and study is objectives.STUDY:
        render(Path(options.render), results)
    elif options.render and study is language.STUDY:
        language.render_language(Path(options.render), results)
    elif options.render:
        render_claims(Path(options.render), results.parent)
    elif options.list:
        for cell in chosen:
            missing = ", ".join(act.name for act in missing_acts(cell, results))
            print(f"{cell.name}: {f'missing {missing}' if missing else 'complete'}")
    elif options.here:
        for cell in chosen:
            run_cell(cell, work, results, pusht)
    else:
        run_cells(study, chosen, work, results, pusht, options.jobs)


def _bench_uncertainty(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.uncertainty import measure_uncertainty

    measured = measure_uncertainty(
        Path(options.run), Path(options.diffusion), options.data, options.task,
        options.episodes, options.seed,
    )  # fmt: skip
    print(f"{measured['task']}: {measured['failures']} failures, {measured['successes']} successes")
    for name, found in measured["signals"].items():
        shift = "  ".join(f"{size}: {values[0]:.3f}" for size, values in found["shift"].items())
        print(f"{name:<30} failure {found['failure'][0]:.3f}   shifted by noise {shift}")
    _write_json(options.json, measured)


def _bench_stability(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.stability import measure_stability

    runs = {"energy policy": Path(options.run)}
    if options.diffusion is not None:
        runs["Diffusion Policy"] = Path(options.diffusion)
    measured = measure_stability(
        runs, options.data, options.task, options.episodes, options.seed
    )  # fmt: skip
    for name, found in measured["policies"].items():
        for where, (mean, low, high) in found["exposure"].items():
            print(f"{name}: error on {where} {mean:.3f} [{low:.3f}, {high:.3f}]")
        for chunk, (pairs, median, most) in found["growth"]["distance"].items():
            print(f"{name}: after {chunk} chunks {median:.3f}, {most:.3f} (90%) of {pairs} pairs")
        for how, conditions in found["divergence"].items():
            shares = "  ".join(f"{what} {one['diverged']:.3f}" for what, one in conditions.items())
            print(f"{name}, {how}: diverged {shares}")
    _write_json(options.json, measured)


def _bench_cost(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.cost import measure_cost

    size = options.batch_size
    name = options.preset if size is None else f"{options.preset}-{size}"
    path = Path(options.results) / f"cost-{name}.json"
    if size is None and path.exists():
        raise UserError(
            f"{path}: exists, and the trainings of the study are counted by it; remove it to "
            "measure anew (their results will be stale), or give another --results"
        )
    measured = measure_cost(options.preset, size, options.rounds)
    _write_json(str(path), measured)
    for name, found in measured["methods"].items():
        print(f"{name:<12}{found['ms']:>9.1f} ms{found['ratio']:>8.2f} x diffusion")


def _bench_floor(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.latency import measure_floors
    from ebt_policy.benchmarks.throughput import measure_step_floors
    from ebt_policy.provenance import provenance

    presets = options.preset or list(PRESETS)
    rows = [*measure_floors(presets, options.threads), *measure_step_floors(presets)]
    for row in rows:
        how = (
            f"{row['sampler']:<12}{row['steps']:>4} steps{row['starts']:>3} starts"
            if row["of"] == "chunk"
            else f"{row['objective']:<15} batch{row['batch_size']:>5}"
        )
        print(
            f"{row['preset']:<6}{row['of']:<14}{row['policy']:<11}{how:<31}{row['threads']:>3} "
            f"threads{row['multiply_adds'] / 1e6:>10.1f} M multiply-adds{row['mbytes']:>9.1f} MB"
            f"{row['gflops']:>8.1f} GFLOP/s{row['floor_ms']:>9.2f} ms"
        )
    _write_json(options.json, {"rows": rows, **provenance()})


def _bench_latency(options: argparse.Namespace) -> None:
    import torch

    from ebt_policy.benchmarks.latency import measure_latency

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = measure_latency(
        options.preset, options.rounds, options.threads, device, options.compile, options.onnx
    )
    for row in measured["rows"]:
        print(
            f"{row['policy']:<11}{row['sampler']:<8}{row['loop']:<10}{row['steps']:>4} steps"
            f"{row['starts']:>3} starts{row['threads']:>3} threads {row['runtime']:<13}"
            f"{row['p50_ms']:>10.2f} ms"
            f"{row['p95_ms']:>10.2f} ms (95%){row['p50_ms'] / row['floor_ms']:>7.2f} x floor"
        )
    _write_json(options.json, measured)


def _bench_train(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.throughput import measure_training

    measured = measure_training(
        options.preset, options.batch_sizes, options.rounds, options.compile
    )
    for row in measured["rows"]:
        print(
            f"{row['objective'] or row['policy']:<15}batch{row['batch_size']:>5}"
            f"{' compiled' if row['compiled'] else ' eager   '}{row['p50_ms']:>10.1f} ms"
            f"{row['samples_per_second']:>10.0f} samples/s{row['loading_ms']:>8.2f} ms of loading"
            f"{row['p50_ms'] / row['floor_ms']:>7.2f} x floor{row['peak_mb']:>8.0f} MB"
        )
    for name, ratio in measured["ratios"].items():
        print(f"{name}: {ratio:.2f}")
    _write_json(options.json, measured)


def _bench_loading(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.loading import measure_loading

    measured = measure_loading(
        options.data, options.obs, options.preset, options.batch_size, options.rounds,
        options.compile,
    )  # fmt: skip
    print(
        f"loading {measured['loading_per_second']} samples/s, training "
        f"{measured['training_per_second']} samples/s: {measured['ratio']:.1f} x"
    )
    for row in measured["memory"]:
        print(
            f"{row['windows']:>9} windows: data {row['data_mb']:.1f} MB, index "
            f"{row['index_mb']:.1f} MB, memory taken {row['taken_mb']:.1f} MB"
        )
    _write_json(options.json, measured)


def _bench_evaluation(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.evaluation import measure_evaluation

    measured = measure_evaluation(options.run, options.task, options.episodes, options.rounds)
    for workers, rate in measured["steps_per_second"].items():
        print(f"{options.task}, {workers} workers: {rate:.0f} steps/s")
    print(
        f"two workers over one: {measured['two_over_one']:.2f}; policy "
        f"{100 * measured['policy_share']:.0f} % of an evaluation"
    )
    _write_json(options.json, measured)


def _bench_serve(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.serving import measure_serving

    measured = measure_serving(options.preset, options.clients, float(options.seconds))
    print(
        f"{measured['clients']} clients, {measured['seconds']:.0f} s: {measured['replies']} "
        f"replies, {measured['per_second']:.1f} a second, {measured['p50_ms']:.1f} ms p50, "
        f"{measured['p95_ms']:.1f} ms p95, {measured['p99_ms']:.1f} ms p99, "
        f"{measured['mixed_up']} mixed up"
    )
    _write_json(options.json, measured)


def _bench_encoders(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.encoders import measure_encoders

    measured = measure_encoders(options.preset, options.rounds, options.threads)
    for row in measured["rows"]:
        print(
            f"{row['encoder']:<9} {row['policy']:<11} {row['sampler']:<8} {row['steps']:>3} steps "
            f"{row['p50_ms']:>8.2f} ms, of which {row['encode_ms']:.2f} ms "
            f"({100 * row['share']:.0f}%) encode the observation"
        )
    _write_json(options.json, measured)


def _bench_delay(options: argparse.Namespace) -> None:
    from ebt_policy.benchmarks.delay import Link, measure_delay

    links = [
        Link(delay, options.jitter if delay else 0.0, options.lost if delay else 0.0)
        for delay in options.delays
    ]
    measured = measure_delay(
        Path(options.run), options.set, options.task, links, options.episodes, options.seed,
        options.robots,
    )  # fmt: skip
    for row in measured["rows"]:
        low, high = row["score_ci95"]
        print(
            f"{row['delay_ms']:g} ms: score {row['score']:.3f} [{low:.3f}, {high:.3f}], success "
            f"{row['success']:.3f}, jerk {row['seam_jerk']} where chunks begin and "
            f"{row['inner_jerk']} elsewhere, {100 * row['held']:.1f}% of the steps held"
        )
    _write_json(options.json, measured)


def _write_json(path: str | None, measured: dict[str, Any]) -> None:
    import json

    from ebt_policy.policies.files import replace_file

    if path is not None:
        replace_file(Path(path), (json.dumps(measured, indent=1) + "\n").encode())


def _demo(options: argparse.Namespace) -> None:
    from ebt_policy.cli.demo import demo

    demo(Path(options.out))


def entry() -> None:
    """The installed command."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
