"""``ebt-policy bench …``: the comparisons of ``docs/``, reproduced.

Each command imports what it needs when it runs, see :mod:`ebt_policy.cli.main`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ebt_policy.cli.parsing import Parser, add_command, count, not_negative
from ebt_policy.config import PRESETS
from ebt_policy.errors import UserError


def add_bench(commands: Any) -> None:
    """``bench`` and what belongs to it."""
    bench = commands.add_parser("bench", help="reproduce the comparisons of docs/")
    studies = bench.add_subparsers(required=True, metavar="STUDY", parser_class=Parser)
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
        studies, "embodiments", "the same task with other arms, and one for two",
        "ebt-policy bench embodiments --only 'robosuite-Lift-UR5e/*'",
    )  # fmt: skip

    _study(
        studies, "language", "many tasks by one policy that is told what to do, and by what words",
        "ebt-policy bench language --only 'metaworld-mt10/*/basin/0'",
    )  # fmt: skip

    doubt = add_command(
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
    doubt.add_argument("--episodes", metavar="N", type=count, default=200)
    doubt.add_argument("--seed", metavar="S", type=int, default=200_000, help="first start")

    steady = add_command(
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
    steady.add_argument("--episodes", metavar="N", type=count, default=50)
    steady.add_argument("--seed", metavar="S", type=int, default=100_000, help="first start")

    cost = add_command(
        studies, "cost", _bench_cost,
        "time of one training step of every method, side by side",
        "ebt-policy bench cost --preset small",
    )  # fmt: skip
    cost.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    cost.add_argument(
        "--batch-size", metavar="N", type=count,
        help="of every method; by default the one each is trained with in the study",
    )  # fmt: skip
    cost.add_argument(
        "--methods", metavar="NAME,NAME", type=lambda text: text.split(","),
        help="of these alone, diffusion among them (default: all but variants of another's cost; "
        "ibc takes hours on a large network); those that a file of costs lacks are added to it, by "
        "their ratio to diffusion",
    )  # fmt: skip
    cost.add_argument("--rounds", metavar="N", type=count, default=20, help="timed steps")
    cost.add_argument("--results", metavar="DIR", default="results/objectives")

    floor = add_command(
        studies, "floor", _bench_floor,
        "multiply-adds of a chunk and a training step, and the time that these alone take here",
        "ebt-policy bench floor --preset paper",
    )  # fmt: skip
    floor.add_argument("--preset", choices=list(PRESETS), action="append", help="default: all")

    latency = add_command(
        studies, "latency", _bench_latency,
        "time of one chunk at batch 1: every policy on the same trunk, in turns",
        "ebt-policy bench latency --preset paper --json results/latency.json",
    )  # fmt: skip
    latency.add_argument("--preset", choices=list(PRESETS), default="paper", help="network size")
    latency.add_argument("--rounds", metavar="N", type=count, default=30, help="timed calls")
    latency.add_argument(
        "--compile", action="store_true", help="compiled policies besides (takes many minutes)"
    )
    latency.add_argument(
        "--onnx", action="store_true", help="exported policies in onnxruntime besides (minutes)"
    )
    training = add_command(
        studies, "train", _bench_train,
        "samples per second and memory of the objectives and baselines, in turns",
        "ebt-policy bench train --preset small --batch-sizes 32 128 512",
    )  # fmt: skip
    training.add_argument("--preset", choices=list(PRESETS), default="tiny", help="network size")
    training.add_argument(
        "--batch-sizes", metavar="N", type=count, nargs="+", default=[128], help="default: 128"
    )
    training.add_argument("--rounds", metavar="N", type=count, default=9, help="timed steps")
    training.add_argument(
        "--compile", action="store_true", help="compiled steps instead (takes many minutes)"
    )
    loading = add_command(
        studies, "loading", _bench_loading,
        "windows gathered in a second against windows learned from, and the memory for it",
        "ebt-policy bench loading --data data/pusht_cchi_v7_replay.zarr",
    )  # fmt: skip
    loading.add_argument("--data", metavar="PATH", required=True, help="the demonstrations")
    loading.add_argument("--obs", metavar="KEYS", help="as train takes it")
    loading.add_argument("--preset", choices=list(PRESETS), default="tiny", help="network size")
    loading.add_argument("--batch-size", metavar="N", type=count, default=64)
    loading.add_argument("--rounds", metavar="N", type=count, default=100, help="timed batches")
    loading.add_argument("--compile", action="store_true", help="compile the training step")

    simulation = add_command(
        studies, "evaluation", _bench_evaluation,
        "simulation with one worker and two, and the policy's share of an evaluation",
        "ebt-policy bench evaluation runs/pusht --task pusht",
    )  # fmt: skip
    simulation.add_argument("run", metavar="RUN", help="folder of the policy")
    simulation.add_argument("--task", metavar="TASK", required=True)
    simulation.add_argument("--episodes", metavar="N", type=count, default=50)
    simulation.add_argument("--rounds", metavar="N", type=count, default=7)

    serving = add_command(
        studies, "serve", _bench_serve,
        "many clients of one server at once: latency, throughput, mixed-up replies",
        "ebt-policy bench serve --clients 8 --seconds 120 --json results/serve.json",
    )  # fmt: skip
    serving.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    serving.add_argument("--clients", metavar="N", type=count, default=8)
    serving.add_argument("--seconds", metavar="N", type=count, default=120)

    eyes = add_command(
        studies, "encoders", _bench_encoders,
        "what cameras cost: encoding and descent apart",
        "ebt-policy bench encoders --preset tiny --json results/encoders-tiny.json",
    )  # fmt: skip
    eyes.add_argument("--preset", choices=list(PRESETS), default="small", help="network size")
    eyes.add_argument("--rounds", metavar="N", type=count, default=15)
    eyes.add_argument("--threads", metavar="N", type=count, default=1)

    slow = add_command(
        studies, "delay", _bench_delay,
        "robots at a fixed control rate, driven through the server over a slow link",
        "ebt-policy bench delay runs/pusht --task pusht --delays 0 200 --json results/delay.json",
    )  # fmt: skip
    slow.add_argument("run", metavar="RUN", help="folder of a policy")
    slow.add_argument("--task", metavar="TASK", required=True)
    slow.add_argument(
        "--delays", metavar="MS", type=not_negative, nargs="+",
        default=[0.0, 50.0, 100.0, 200.0, 400.0],
        help="from a question to its answer (default: 0 50 100 200 400)",
    )  # fmt: skip
    slow.add_argument(
        "--jitter", metavar="MS", type=not_negative, default=20.0, help="(default: 20)"
    )
    slow.add_argument(
        "--lost", metavar="SHARE", type=not_negative, default=0.0,
        help="of the questions, never answered",
    )  # fmt: skip
    slow.add_argument("--episodes", metavar="N", type=count, default=50)
    slow.add_argument("--seed", metavar="S", type=int, default=100_000, help="first start")
    slow.add_argument("--robots", metavar="N", type=count, default=8, help="at once (default: 8)")
    slow.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="how it acts, e.g. descent.warm_start=true",
    )  # fmt: skip

    for study in (floor, latency):
        study.add_argument(
            "--threads", metavar="N", type=count, nargs="+", default=[1, 2], help="default: 1 2"
        )
    own = (floor, latency, training, loading, simulation, doubt, steady, serving, eyes, slow)
    for study in own:
        study.add_argument("--json", metavar="FILE", help="write the rows here too")


def _study(studies: Any, name: str, what: str, example: str) -> None:
    """The command of a study of cells."""
    parser = add_command(
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
    parser.add_argument("--jobs", metavar="N", type=count, default=1, help="cells at once")
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
        highest, mean = (found[how][0] for how in ("failure", "failure_mean"))
        failure = f"failure, highest: {highest:.3f}  mean: {mean:.3f}"
        print(f"{name:<46} {failure}   noise {shift}")
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
    from ebt_policy.benchmarks.cost import REFERENCE, measure_cost, with_added

    size = options.batch_size
    name = options.preset if size is None else f"{options.preset}-{size}"
    path = Path(options.results) / f"cost-{name}.json"
    known = json.loads(path.read_text()) if size is None and path.exists() else None
    if known is not None:
        asked = set(options.methods or ())
        if asked == {REFERENCE} or asked & set(known["methods"]) != {REFERENCE}:
            raise UserError(
                f"{path}: exists, and the trainings of the study are counted by it; add what it "
                f"lacks with --methods {REFERENCE},NAME, remove it to measure anew (their results "
                "will be stale), or give another --results"
            )
    measured = measure_cost(options.preset, size, options.rounds, options.methods)
    _write_json(str(path), measured if known is None else with_added(known, measured))
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
