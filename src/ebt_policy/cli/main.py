"""The command ``ebt-policy``. Exit codes: 0 done, 2 the user's mistake, 1 anything else."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import select
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebt_policy import config as settings
from ebt_policy.cli.bench import add_bench
from ebt_policy.cli.parsing import Parser, add_command, count
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
        print(end="", flush=True)
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of it
        return 1
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
    except KeyboardInterrupt as interruption:
        saved = f" {interruption}; continue with the same command and --resume"
        print(f"ebt-policy: interrupted{saved if interruption.args else ''}", file=sys.stderr)
        return 1
    return 0


def _is_unread(output: Any) -> bool:
    """Whether the reader of a pipe is gone, as ``| head`` is when it has seen enough."""
    try:
        pipe = select.poll()
        pipe.register(output, 0)
    except (TypeError, OSError):  # no output at all, or not one of the system's
        return False
    return bool(pipe.poll(0))


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(
        prog="ebt-policy",
        description="Energy-based transformer policies: learn from demonstrations, act by descent.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    data = commands.add_parser("data", help="look at, download or convert demonstrations")
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=Parser)
    info = add_command(
        actions, "info", _data_info, "show what a file of demonstrations holds, and its problems",
        "ebt-policy data info data/pusht_cchi_v7_replay.zarr",
    )  # fmt: skip
    info.add_argument(
        "paths", metavar="PATH", nargs="+",
        help="robomimic HDF5, zarr folder or .zarr.zip, or LeRobot folder; of several also which "
        "lacks what others have",
    )  # fmt: skip
    info.add_argument("--filter", metavar="KEY", help="robomimic filter key, e.g. train")
    get = add_command(
        actions, "get", _data_get, "download a published data set and verify it",
        "ebt-policy data get pusht --out data",
    )  # fmt: skip
    get.add_argument("name", metavar="NAME", help="pusht")
    get.add_argument("--out", metavar="DIR", default="data", help="folder (default: data)")
    get.add_argument("--url", help="download from here instead of the published address")

    convert = add_command(
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

    collect = add_command(
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
        "--json", metavar="FILE", help="write here how often the expert succeeded, and how long it "
        "took",
    )  # fmt: skip
    collect.add_argument(
        "--cameras", metavar="NAMES",
        help="images to record, comma-separated, e.g. agentview_image,robot0_eye_in_hand_image",
    )  # fmt: skip
    collect.add_argument(
        "--size", metavar="N", type=count, default=84, help="their height and width (default: 84)"
    )

    train = add_command(
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
        "--objective", choices=list(typing.get_args(settings.ObjectiveName)),
        help="how the energy is trained (default: basin)",
    )  # fmt: skip
    train.add_argument(
        "--obs", metavar="KEYS",
        help="observation keys, comma-separated, images among them; KEY:angles=I+J marks angles in "
        "radians, KEY:elements=I+J leaves out all others, KEY:dropout=P withholds it in a share P "
        "of training, so that the policy does not lean on it; task is the sentence of what is "
        "done, hashed, task:encoder=NAME read by a text encoder of transformers (hub name or "
        "folder); of several --data some may lack a key that is named",
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

    evaluation = add_command(
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

    calibrate = add_command(
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
        "--episodes", metavar="N", type=count, default=400,
        help="successful ones of the task (default: 400)",
    )  # fmt: skip
    calibrate.add_argument("--seed", metavar="S", type=int, default=500_000, help="first start")
    calibrate.add_argument(
        "--imagine", metavar="STREAM", action="append", default=[],
        help="where the alarm goes off, plan as if this stream of the robot's own state were as "
        "demonstrated, e.g. robot0_gripper_qpos (may be given again)",
    )  # fmt: skip

    merge = add_command(
        commands, "merge", _merge, "join evaluations of one policy on different starts",
        "ebt-policy merge machine-1.json machine-2.json --out all.json",
    )  # fmt: skip
    merge.add_argument("parts", metavar="FILE", nargs="+", help="results of ebt-policy eval --json")
    merge.add_argument("--out", metavar="FILE", required=True, help="JSON file to write")

    export = add_command(
        commands, "export", _export, "a trained policy as one ONNX file",
        "ebt-policy export runs/ebt --out policy.onnx",
    )  # fmt: skip
    export.add_argument("run", metavar="RUN", help="folder of the policy")
    export.add_argument("--out", metavar="FILE", required=True, help="ONNX file to write")
    export.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="a setting of acting, e.g. descent.steps=3",
    )  # fmt: skip

    server = add_command(
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

    report = add_command(
        commands, "report", _report, "one HTML file that compares runs",
        "ebt-policy report runs/ebt runs/diffusion --out runs/report.html",
    )  # fmt: skip
    report.add_argument("runs", metavar="RUN", nargs="+", help="runs that have been evaluated")
    report.add_argument("--out", metavar="FILE", required=True, help="HTML file to write")

    push = add_command(
        commands, "push", _push, "put a run and its card on the Hugging Face Hub",
        "ebt-policy push runs/pick me/pick",
    )  # fmt: skip
    push.add_argument("run", metavar="RUN", help="folder of the policy; its checkpoints stay here")
    push.add_argument("repository", metavar="USER/NAME")
    push.add_argument("--private", action="store_true", help="for its owner alone, if it is new")

    pull = add_command(
        commands, "pull", _pull, "bring a run from the Hugging Face Hub",
        "ebt-policy pull me/pick --out runs/pick",
    )  # fmt: skip
    pull.add_argument("repository", metavar="USER/NAME")
    pull.add_argument("--out", metavar="DIR", required=True, help="the new run's folder")
    pull.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: newest)")

    add_bench(commands)

    demo = add_command(
        commands, "demo", _demo, "two Meta-World tasks from nothing to a report, in minutes",
        "ebt-policy demo --out runs/demo",
    )  # fmt: skip
    demo.add_argument("--out", metavar="DIR", default="runs/demo")
    return parser


def _weights(text: str) -> tuple[float, ...]:
    """The type of an option that is a list of shares."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: write numbers, e.g. 2,1") from error


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
        try:
            mixture = MixedDemonstrations(parts)
        except UserError as error:
            print(f"no mixture: {error}")
            return
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
    from ebt_policy.evaluation.statistics import wilson
    from ebt_policy.policies.files import replace_file
    from ebt_policy.provenance import provenance
    from ebt_policy.tasks import make_task
    from ebt_policy.tasks.collection import collect

    task, out = make_task(options.task), Path(options.out)
    if out.exists():
        raise UserError(f"--out {out}: exists already; choose another name or remove it")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: it must be at least 0")
    report = Path(options.json) if options.json else None
    if report is not None and (report.is_dir() or report.resolve() == out.resolve()):
        raise UserError(f"--json {report}: give the name of a file of its own")
    for option, path in (("--out", out), ("--json", report)):
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from error
    names = options.cameras.split(",") if options.cameras else []
    cameras = {name.strip(): (options.size, options.size) for name in names}
    began = time.perf_counter()
    episodes = collect(task, options.episodes, options.seed, cameras=cameras)
    seconds = time.perf_counter() - began
    kwargs: dict[str, Any] = {"control_freq": task.rate}
    if task.action_bounds is not None:
        kwargs["action_bounds"] = task.action_bounds
    write_robomimic(out, episodes, task.name, kwargs)
    steps = sum(len(episode.actions) for episode in episodes)
    if report is not None:
        # Starts are tried in order, and none after the last that is kept.
        tried = episodes[-1].seed - options.seed + 1
        measured = {
            "task": task.name, "first_seed": options.seed, "starts": tried,
            "successes": len(episodes), "success_rate": len(episodes) / tried,
            "success_ci95": wilson(len(episodes), tried), "steps": steps,
            "seconds": round(seconds, 1), "processes": 1, **provenance(),
        }  # fmt: skip
        replace_file(report, (json.dumps(measured, indent=1) + "\n").encode())
    print(f"{out}: {len(episodes)} episodes, {steps} steps")


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
        hidden = [key for key in demonstrations.observations if key not in policy_config.streams]
        if hidden and options.obs is None:
            them = "it" if len(hidden) == 1 else "them"
            print(f"not shown: {', '.join(hidden)} (name {them} in --obs)")
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


def _demo(options: argparse.Namespace) -> None:
    from ebt_policy.cli.demo import demo

    demo(Path(options.out))


def entry() -> None:
    """The installed command."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
