"""The study of objectives: cells, resuming, tables from files alone, energy quality, cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer

from conftest import policy
from ebt_policy.benchmarks import cost, language, manipulation, pages, runner
from ebt_policy.benchmarks.claims import render_claims
from ebt_policy.benchmarks.cost import measure_cost
from ebt_policy.benchmarks.language import render_language
from ebt_policy.benchmarks.objectives import MEAN, METHODS, STUDY, TASKS
from ebt_policy.benchmarks.pages import Group, difference, render
from ebt_policy.benchmarks.runner import missing_acts, read_lines, results_file
from ebt_policy.benchmarks.stability import FACTORS, RATIO, SCALES
from ebt_policy.benchmarks.study import LANDSCAPE, QUALITY, Act, Study
from ebt_policy.cli.main import main
from ebt_policy.config import DESCENT_DEFAULTS, DescentConfig, WindowConfig
from ebt_policy.errors import UserError
from ebt_policy.evaluation.energy_quality import energy_quality
from ebt_policy.evaluation.statistics import bootstrap_crossed
from ebt_policy.windows.arrays import Arrays
from ebt_policy.windows.windows import Windows


def line(cell: Any, act: str, scores: list[float], **more: Any) -> dict[str, Any]:
    return {
        "cell": cell.name, "task": cell.task.name, "demonstrations": cell.demonstrations,
        "method": cell.method.name, "options": cell.method.options,
        "settings_of_cell": runner._settings(runner._config(cell)), "seed": cell.seed, "act": act,
        "settings_of_act": next((list(a.settings) for a in cell.acts if a.name == act), None),
        "scores": scores,
        "successes": [int(score >= 1) for score in scores], "descent_steps_mean": 2.0,
        "steps_by_doing": {"pushing": {"2": 7, "3": 1}, "moving freely": {"2": 4}},
        "first_episode": {"steps": [2, 3], "doing": ["pushing"] * 2, "energy": [-1.0, -2.0]},
        "training": {"steps": 10, "samples": 640, "multiply_adds": 1e9}, **more,
    }  # fmt: skip


def write_cost(results: Path, ms: float) -> None:
    """What a training step costs; a budget of 1 s is 1000 / ms steps."""
    results.mkdir(exist_ok=True, parents=True)
    found = {"methods": {name: {"ms": ms} for name, made in METHODS.items() if not made.cost}}
    (results / "cost-tiny.json").write_text(json.dumps(found))


def test_cells_are_named_chosen_by_pattern_and_measured_fully_with_the_most_data() -> None:
    assert len(STUDY.cells([])) == len({cell.name for cell in STUDY.cells([])})
    (cell,) = STUDY.cells(["metaworld-push/5/basin/0"])
    assert [act.name for act in cell.acts] == ["1 step", "2 steps"]
    (cell,) = STUDY.cells(["metaworld-push/50/basin/0"])
    assert {"50 steps", "adaptive", "energy quality"} <= {act.name for act in cell.acts}
    assert {c.seed for c in STUDY.cells(["pusht/*/mip/*"])} == {0, 1, 2}
    with pytest.raises(UserError, match="matches no cell"):
        STUDY.cells(["pusht/nothing/*"])
    for task in TASKS.values():
        assert set(task.methods) <= set(METHODS)


def test_shares_and_some_acts_are_of_the_first_seed_and_slow_methods_of_the_whole_budget() -> None:
    names = [cell.name for cell in manipulation.TASKS.cells(["robosuite-Lift/*"])]
    shares = {name.split("/")[1] for name in names if "/basin/" in name}
    assert shares == {"200", "200@50", "200@25", "200@12.5"}
    assert not [name for name in names if "@" in name and name.endswith(("/1", "/2"))]
    assert [name for name in names if "/ibc/" in name] == ["robosuite-Lift/200/ibc/0"]
    first, second = (
        {act.name for act in cell.acts}
        for cell in manipulation.RECOVERY.cells(["robosuite-Lift/200/diffusion/[01]"])
    )
    assert first - second == {"DDIM-10, imagining", "DDIM-10, imagining+drop"}
    assert second == {"DDIM-10+drop", "DDIM-10+move", "DDIM-10+open"}


def test_a_cell_is_run_once_and_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real cell with a training of a moment: collect, train, evaluate, append; then nothing."""
    (cell,) = STUDY.cells(["planar-fork/200/basin/0"])
    task = replace(cell.task, demonstrations=(5,), budget=1.0, episodes=4)
    acts = (Act("1 step", ("descent.steps=1",)), Act("2 steps"), Act(QUALITY), Act(LANDSCAPE))
    method = replace(cell.method, acts=acts, compile=False)
    cell = replace(cell, task=task, demonstrations=5, method=method)
    work, results = tmp_path / "work", tmp_path / "results"
    monkeypatch.setattr(runner, "HELD_OUT_EPISODES", 3)
    monkeypatch.setattr(runner, "QUALITY_OBSERVATIONS", 10)
    with pytest.raises(UserError, match="'ebt-policy bench cost --preset tiny"):
        runner.run_cell(cell, work, results, tmp_path)
    costs = results / "cost-tiny.json"
    write_cost(results, ms=50.0)
    whole = costs.read_text()
    costs.write_text('{"methods": {"flow": {"ms": 50.0}}}')
    with pytest.raises(UserError, match="has flow and not basin"):
        runner.run_cell(cell, work, results, tmp_path)
    costs.write_text(whole)
    runner.run_cell(cell, work, results, tmp_path)
    found = read_lines(results_file(cell, results))
    assert [one["act"] for one in found] == ["1 step", "2 steps", "energy quality", "landscape"]
    assert [one["descent_steps_mean"] for one in found[:2]] == [1.0, 2.0]
    assert set(found[0]["route_shares"]) == {"above", "below"}
    assert len(found[0]["scores"]) == 4
    assert set(found[1]["steps_by_doing"]) <= {
        "before the disc", "beside the disc", "behind the disc"
    }  # fmt: skip
    taken = list(found[1]["steps_by_doing"].values())
    assert {count for steps in taken for count in steps} == {"2"}
    episode = found[1]["first_episode"]
    assert len(episode["steps"]) == len(episode["doing"]) == len(episode["energy"])
    assert found[0]["training"]["multiply_adds"] > 1e6
    assert found[0]["training"]["steps"] == 20
    assert found[0]["training"]["samples"] == 64 * 20
    assert np.shape(found[3]["energy"]) == (61, 61)
    assert np.shape(found[3]["paths"]) == (8, 3, 2)
    assert missing_acts(cell, results) == []
    monkeypatch.setattr(runner, "_evaluation", lambda *_: pytest.fail("evaluated again"))
    before = results_file(cell, results).read_text()
    runner.run_cell(cell, work, results, tmp_path)
    assert results_file(cell, results).read_text() == before
    # Results of other settings, or of another number of steps, are not this cell's.
    other = replace(cell, method=replace(cell.method, settings=("basin.ways=2",)))
    assert len(missing_acts(other, results)) == 4
    assert len(missing_acts(replace(cell, task=replace(task, budget=2.0)), results)) == 4
    slower = replace(method, acts=(acts[0], Act("2 steps", ("descent.noise=0.1",)), *acts[2:]))
    assert len(missing_acts(replace(cell, method=slower), results)) == 1
    with monkeypatch.context() as patched:
        patched.setitem(DESCENT_DEFAULTS, "basin", DescentConfig(noise=0.3))
        assert len(missing_acts(cell, results)) == 4

    # Nor are weights that were trained otherwise, or for another number of steps.
    with pytest.raises(UserError, match=r"was trained with basin = .*'ways': 8.*, now .*: 2"):
        runner.run_cell(other, work, results, tmp_path)
    longer = replace(cell, task=replace(task, budget=2.0))
    with pytest.raises(UserError, match="was trained for 20 steps, now 40; move it away"):
        runner.run_cell(longer, work, results, tmp_path)
    less = replace(cell, method=replace(method, observes="state:elements=0"))
    with pytest.raises(UserError, match=r"was trained with streams = .*elements=None, .*move it"):
        runner.run_cell(less, work, results, tmp_path)

    monkeypatch.setattr(Study, "cells", lambda *_: [cell])
    runner._append(results_file(cell, results), found[0] | {"scores": [9.0], "settings_of_act": []})
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- table: planar-fork --><!-- end -->\n<!-- table: quality --><!-- end -->"
    )
    render(page, results)
    text = page.read_text()
    assert "| basin | 2 steps | 2.0 |" in text
    assert "| 1 × 4 |" in text  # and not the line of other settings
    assert "| 1 × 1 |" not in text
    assert "planar-fork | basin |" in text
    assert (tmp_path / "figures" / "objectives-landscape.png").stat().st_size > 10_000


def test_a_line_cut_short_is_dropped_and_another_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    runner._append(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2, "b')
    assert read_lines(path) == [{"a": 1}]
    runner._append(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]
    path.write_text('{"a": 1}\nrubbish\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        read_lines(path)


def test_tables_pair_the_starts_that_both_methods_have(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_cost(results, ms=60_000.0)  # the 10 steps of ``line``
    for name, act, scores in [
        ("basin", "2 steps", [1.0, 0.5, 1.0, 0.9]),
        ("diffusion", "DDPM-100", [0.8, 0.3]),
    ]:
        for cell in STUDY.cells([f"pusht/*/{name}/*"]):
            runner._append(results_file(cell, results), line(cell, act, scores))
    page = tmp_path / "page.md"
    page.write_text("<!-- table: pusht --><!-- end -->")
    render(page, results)
    text = page.read_text()
    assert "| -0.200 [-0.200, -0.200] |" in text
    assert "3 × 4" in text
    assert "3 × 2" in text
    page.write_text("<!-- table: nonsense --><!-- end -->")
    with pytest.raises(UserError, match="unknown table 'nonsense'"):
        render(page, results)


def write_success(results: Path, name: str, act: str, rate: float) -> None:
    """A result of a cell of the tasks, of which the first starts succeed."""
    (cell,) = manipulation.TASKS.cells([name])
    won = round(rate * cell.episodes)
    scores = [1.0] * won + [0.0] * (cell.episodes - won)
    runner._append(results_file(cell, results / "tasks"), line(cell, act, scores))


def test_claims_of_the_annealed_energy_are_of_several_trainings(tmp_path: Path) -> None:
    write_cost(tmp_path / "objectives", ms=90_000.0)  # 900 s are the 10 steps of ``line``
    page = tmp_path / "claims.md"
    rows = []
    for seed in (0, 1):
        for method, act, rate in (
            ("basin", "2 steps", 0.5), ("annealed", "2 steps", 1.0), ("annealed", MEAN.name, 0.5),
            ("diffusion", "DDIM-10", 0.5), ("diffusion", "DDIM-10, mean of 16", 1.0),
            ("diffusion-x0", "DDIM-10", 1.0),
        ):  # fmt: skip
            write_success(tmp_path, f"robosuite-ToolHangFrame/100/{method}/{seed}", act, rate)
        page.write_text("<!-- table: claims --><!-- end -->")
        render_claims(page, tmp_path)
        rows.append([row for row in page.read_text().splitlines() if "of `annealed`" in row])
    command = "Tool Hang's frame | `bench tasks --only 'robosuite-ToolHangFrame/100/*'`"
    below = "at most 0.03 below"
    assert rows == [
        [],
        [
            f"| two steps of `annealed` are {below} two steps of `basin`: {command} "
            "| +0.500 [+0.410, +0.600], 2 × 100 | holds |",
            f"| two steps of `annealed` are {below} DDIM-10: {command} "
            "| +0.500 [+0.410, +0.600], 2 × 100 | holds |",
            f"| two steps of `annealed` are {below} DDIM-10 of predicted actions: {command} "
            "| +0.000 [-0.019, +0.019], 2 × 100 | holds |",
            f"| the mean of 16 of `annealed` is {below} DDIM-10: {command} "
            "| +0.000 [-0.019, +0.019], 2 × 100 | holds |",
            f"| the mean of 16 of `annealed` is {below} the mean of 16 by DDIM-10: {command} "
            "| -0.500 [-0.600, -0.410], 2 × 100 | does not hold |",
        ],
    ]


def test_a_longer_training_is_claimed_by_itself(tmp_path: Path) -> None:
    # Four times 960 s are the 10 steps of ``line``.
    write_cost(tmp_path / "objectives", ms=384_000.0)
    for method, act, rate in (
        ("annealed", "2 steps", 0.2), ("annealed", MEAN.name, 0.9), ("diffusion", "DDIM-10", 0.4),
        ("split", MEAN.name, 0.5),
    ):  # fmt: skip
        write_success(tmp_path, f"robosuite-ToolHang/200@400/{method}/0", act, rate)
    page = tmp_path / "claims.md"
    page.write_text("<!-- table: claims --><!-- end --><!-- table: compute --><!-- end -->")
    render_claims(page, tmp_path)
    where = "Tool Hang, 4 × the training | `bench tasks --only 'robosuite-ToolHang/*@400/*'`"
    text = page.read_text()
    for row in (
        f"| two steps of `annealed` succeed in 0.6: {where} | 0.200 [",
        f"| two steps of `annealed` are at most 0.03 below DDIM-10: {where} | -0.200 [",
        f"| the mean of 16 of `annealed` succeeds in 0.6: {where} | 0.900 [",
        f"| the mean of 16 of `annealed` is at most 0.03 below DDIM-10: {where} | +0.500 [",
        f"| the mean of 16 of `split` succeeds in 0.6: {where} | 0.500 [",
        f"| the mean of 16 of `split` is at most 0.03 below DDIM-10: {where} | +0.100 [",
        "| Tool Hang | diffusion | DDIM-10 | 0.40 (",
    ):
        assert row in text, text


def test_predicted_actions_are_compared_with_noise_seed_by_seed(tmp_path: Path) -> None:
    write_cost(tmp_path / "objectives", ms=90_000.0)
    for method, act, seed, rate in (
        ("basin", "2 steps", 0, 0.4), ("diffusion", "DDIM-10", 0, 0.5),
        ("diffusion", "DDIM-10", 1, 0.2), ("diffusion-x0", "DDIM-10", 0, 1.0),
        ("diffusion-x0", "DDIM-2", 0, 0.9), ("diffusion", "DDPM-100", 0, 0.1),
    ):  # fmt: skip
        write_success(tmp_path, f"robosuite-ToolHangFrame/100/{method}/{seed}", act, rate)
    page = tmp_path / "results.md"
    page.write_text("<!-- table: predictions --><!-- end -->")
    render_claims(page, tmp_path)
    assert page.read_text().splitlines()[3:-1] == [
        "| Tool Hang's frame | DDIM-2 |  | 0.90 |  | 0.40 |",
        "| Tool Hang's frame | DDIM-10 | 0.50, 0.20 | 1.00 | +0.500 [+0.400, +0.600], 1 × 100 "
        "| 0.40 |",
    ]


def test_claims_are_rendered_with_verdicts_from_results_alone(tmp_path: Path) -> None:
    write_cost(tmp_path / "objectives", ms=6_000.0)  # 60 s are the 10 steps of ``line``
    shown = {
        ("tasks", "basin", "2 steps"): [1.0] * 50,
        ("tasks", "diffusion", "DDIM-10"): [1.0] * 20 + [0.0] * 30,
        ("tasks", "diffusion", "DDPM-100"): [1.0] * 50,
        ("recovery", "basin", "2 steps+drop"): [1.0] * 40 + [0.0] * 10,
        ("recovery", "diffusion", "DDIM-10+drop"): [0.0] * 50,
    }
    for (study, method, act), scores in shown.items():
        cell_name = f"robosuite-Lift/200/{method}/0"
        (cell,) = manipulation.STUDIES[study].cells([cell_name])
        more = {"took_effect": [True] * 40 + [False] * 10, "energy_around": {"-1": -9.0, "1": -5.0}}
        runner._append(results_file(cell, tmp_path / study), line(cell, act, scores, **more))
    # Shifts are of one training, and so is what stands beside them.
    for study, seed, act, rate in (
        ("tasks", 0, "", 1.0), ("tasks", 1, "", 0.0),
        ("shift", 0, "+noise=0.01", 0.5), ("shift", 0, "+delay=2", 0.0),
    ):  # fmt: skip
        (cell,) = manipulation.STUDIES[study].cells([f"robosuite-Lift/200/mip/{seed}"])
        scores = [1.0] * int(50 * rate) + [0.0] * int(50 - 50 * rate)
        one = line(cell, "2 evaluations" + act, scores)
        runner._append(results_file(cell, tmp_path / study), one)
    # A policy that never grasped: nothing took effect, and nothing is claimed of it.
    (can,) = manipulation.RECOVERY.cells(["robosuite-PickPlaceCan/200/basin/0"])
    none = {"took_effect": [False] * 50, "energy_around": {}}
    trained = {"training": {"steps": 40, "samples": 2560, "multiply_adds": 4e9}}
    scores = [0.0] * 50
    runner._append(
        results_file(can, tmp_path / "recovery"),
        line(can, "2 steps+drop", scores, **none, **trained),
    )
    (half,) = manipulation.TASKS.cells(["robosuite-Lift/200@50/basin/0"])
    less = {"training": {"steps": 5, "samples": 320, "multiply_adds": 5e8}}
    runner._append(results_file(half, tmp_path / "tasks"), line(half, "2 steps", [0.5], **less))
    for name, rate, within in (("x", 0.14, [0.1, 0.2]), ("y", 0.1, [0.08, 0.12]),
                               ("z", 0.2, [0.15, 0.25])):  # fmt: skip
        alarm = {"rate": rate, "episodes": 100, "ci95": within}
        (tmp_path / f"alarm-{name}.json").write_text(
            json.dumps({"task": name, "alarm_rate": 0.1, "alarms": {"of_successes": alarm}})
        )
    auroc = {
        "failure": [0.7, 0.6, 0.8], "failure_mean": [0.9, 0.86, 0.94],
        "shift": {"0.01": [0.9, 0.8, 1.0]}, "minus": {"failure": {"y": [0.1, 0.02, 0.2]}},
    }  # fmt: skip
    seen = "energy of the observation"
    measured = ("energy", "gradient", "drop of the energy", "spread of 8 starts", seen,
                f"{seen} and change of plan")  # fmt: skip
    signals = dict.fromkeys(measured, auroc)
    (tmp_path / "uncertainty-x.json").write_text(
        json.dumps({"task": "x", "signals": signals, "demonstrations": 5, "failures": 9,
                    "successes": 8})
    )  # fmt: skip
    page = tmp_path / "claims.md"
    names = ("claims", "success", "compute", "recovery", "energy", "shift", "uncertainty", "alarms")
    tables = "\n".join(f"<!-- table: {name} --><!-- end -->" for name in names)
    page.write_text(f"{tables}\n![](figures/claims-shift.png)")
    render_claims(page, tmp_path)
    assert (tmp_path / "figures" / "claims-shift.png").stat().st_size > 10_000
    assert not (tmp_path / "figures" / "claims-delay.png").exists()  # not on this page
    text = page.read_text()
    for row in (
        f"| Lift | mip | 2 evaluations | 1.00 |{'  |' * 4} 0.50 |  | 0.00 |{'  |' * 7}",
        "at most 0.03 below DDIM-10: Lift | `bench tasks --only 'robosuite-Lift/200/*'` | +0.600",
        "at most 0.03 below MIP: Lift | `bench tasks --only 'robosuite-Lift/200/*'` | +0.000",
        "succeed in 0.98: Lift | `bench tasks --only 'robosuite-Lift/200/*'` "
        "| 1.000 [0.929, 1.000], 1 × 50 | open, of one training seed |",
        "0.8 of the cases: Lift+drop | `bench recovery --only 'robosuite-Lift/200/*'` "
        "| 1.000 [0.912, 1.000], 40 of 40 | holds, of one training seed |",
        "Diffusion Policy: Lift+drop | `bench recovery --only 'robosuite-Lift/200/*'` "
        "| +1.000 [+0.912, +1.000], 1 × 50 | holds, of one training seed |",
        "chunk's energy, highest: AUROC 0.85 for failure: x, 5 demonstrations | `bench uncertainty "
        "… --task x --json results/uncertainty-x.json` | 0.700 [0.600, 0.800] | does not hold |",
        "change of plan, mean: AUROC 0.85 for failure: x, 5 demonstrations | `bench uncertainty "
        "… --task x --json results/uncertainty-x.json` | 0.900 [0.860, 0.940] | holds |",
        "failure at most 0.03 worse than y: x, 5 demonstrations | `bench uncertainty … --task x "
        "--json results/uncertainty-x.json` | +0.100 [+0.020, +0.200] | holds |",
        "AUROC 0.95 for noise of 0.01 m: x, 5 demonstrations | `bench uncertainty … --task x "
        "--json results/uncertainty-x.json` | 0.900 [0.800, 1.000] | open |",
        "within 0.03 of 0.1: x | `calibrate`, `eval --json results/alarm-x.json` "
        "| 0.140 [0.100, 0.200], 100 episodes | open |",
        "alarm-y.json` | 0.100 [0.080, 0.120], 100 episodes | holds |",
        "alarm-z.json` | 0.200 [0.150, 0.250], 100 episodes | does not hold |",
        "| Lift | basin | 2 steps | 0.00 (0.0005) | 1.00 (0.001) |",
        "| Lift | drop | diffusion | DDIM-10 | 0.000 [0.000, 0.088] | 0 of 40 | 1 × 50 | 0.400 |",
        "| Lift | drop |  | -9.0 |  | -5.0 |",
        "| x | 0.1 | 0.140 [0.100, 0.200] of 100 |  |",
    ):  # fmt: skip
        assert row in text, text
    assert "Can+drop" not in text


def test_disturbed_results_from_before_there_was_a_limit_are_measured_again(
    tmp_path: Path,
) -> None:
    write_cost(tmp_path / "objectives", ms=6_000.0)
    (cell,) = manipulation.RECOVERY.cells(["robosuite-Lift/200/basin-from-hand/0"])
    (plain,) = manipulation.TASKS.cells(["robosuite-Lift/200/basin-from-hand/0"])
    (told,) = language.STUDY.cells(["metaworld-mt10/*/basin/0"])
    for of, act, folder in (
        (cell, "2 steps+drop", "recovery"),
        (plain, "2 steps", "tasks"),
        (told, "2 steps+paraphrase", "language"),
    ):
        now = line(of, act, [1.0] * of.episodes, episodes=of.episodes)
        now["training"] = {"steps": runner.training_steps(of, tmp_path / folder)}
        before = now | {"settings_of_cell": dict(now["settings_of_cell"])}
        assert before["settings_of_cell"].pop("observation_limit") == 1.3
        assert runner.is_current(now, of, tmp_path / folder)
        assert runner.is_current(before, of, tmp_path / folder) == (folder != "recovery")


def test_experts_and_single_evaluations_are_claims_of_their_own(tmp_path: Path) -> None:
    expert = {
        "task": "robosuite/NutAssemblySquare", "successes": 200, "starts": 205, "steps": 24_000,
        "success_rate": 200 / 205, "success_ci95": [0.944, 0.990], "seconds": 240.0,
    }  # fmt: skip
    (tmp_path / "experts-square.json").write_text(json.dumps(expert))
    for name, scores in (
        ("ebt", [1.0] * 40 + [0.0] * 10), ("diffusion", [1.0] * 50), ("ebt-5-steps", [1.0] * 50),
        ("diffusion-ddpm", [0.0] * 50), ("mip", [0.0] * 50), ("regression", [1.0] * 50),
        ("diffusion-mean-of-16", [1.0] * 50),
    ):  # fmt: skip
        records = [{"score": score} for score in scores]
        result = {"task": "robosuite/ToolHang", "seeds": list(range(50)), "records": records}
        (tmp_path / f"gpu-tool-hang-{name}.json").write_text(json.dumps(result))
    page = tmp_path / "claims.md"
    page.write_text("".join(f"<!-- table: {n} --><!-- end -->\n" for n in ("claims", "experts")))
    render_claims(page, tmp_path)
    text = page.read_text()
    for row in (
        "| the scripted expert succeeds in 0.95: Square | `collect robosuite/NutAssemblySquare "
        "--episodes 200 --out … --json results/experts-square.json` "
        "| 0.976 [0.944, 0.990], 205 starts | open |",
        "| Square | 0.976 [0.944, 0.990] | 200 of 205 | 24,000 | 4.0 |",
        "| two steps score 0.6: Tool Hang trained on a GPU | `eval … --json "
        "results/gpu-tool-hang-ebt.json` | 0.800 [0.680, 0.900], 1 × 50 "
        "| holds, of one training seed |",
        "below DDIM-10: Tool Hang trained on a GPU | `eval … --json "
        "results/gpu-tool-hang-ebt.json` | -0.200 [-0.320, -0.100], 1 × 50 "
        "| does not hold, of one training seed |",
        "below DDPM-100: Tool Hang trained on a GPU | `eval … --json "
        "results/gpu-tool-hang-ebt.json` | +0.800 [+0.680, +0.900], 1 × 50 "
        "| holds, of one training seed |",
        "below the mean of 16 by DDIM-10: Tool Hang trained on a GPU | `eval … --json "
        "results/gpu-tool-hang-ebt.json` | -0.200 [-0.320, -0.100], 1 × 50 "
        "| does not hold, of one training seed |",
        "below MIP: Tool Hang trained on a GPU | `eval … --json "
        "results/gpu-tool-hang-ebt.json` | +0.800 [+0.680, +0.900], 1 × 50 "
        "| holds, of one training seed |",
        "below regression: Tool Hang trained on a GPU | `eval … --json "
        "results/gpu-tool-hang-ebt.json` | -0.200 [-0.320, -0.100], 1 × 50 "
        "| does not hold, of one training seed |",
    ):
        assert row in text
    assert text.count("trained on a GPU") == 6
    (tmp_path / "gpu-tool-hang-diffusion.json").write_text(json.dumps(result | {"seeds": [7]}))
    with pytest.raises(UserError, match="other starts"):
        render_claims(page, tmp_path)


def test_claims_on_steps_sizes_arms_and_stability_are_rendered(tmp_path: Path) -> None:
    write_cost(tmp_path / "objectives", ms=6_000.0)  # 60 s are the 10 steps of ``line``
    write_cost(tmp_path / "scale", ms=12_000.0)
    found = {"methods": {name: {"ms": 6_000.0} for name in METHODS}}
    (tmp_path / "scale" / "cost-small.json").write_text(json.dumps(found))
    energies = {"pushing": -3.0, "moving freely": 1.0}
    more = {"latency_ms": {"p50": 4.0}, "energy_by_doing": energies, "validation_error": 0.25}
    shown = (
        ("compute", "robosuite-Lift/200/basin/0", "at most 20", 4.0, [1.0] * 49 + [0.0]),
        ("compute", "robosuite-Lift/200/basin/0", "20 steps", 20.0, [1.0] * 50),
        ("scale", "metaworld-pick-place-small/50/mip/0", "2 evaluations", 2.0, [1.0, 0.0] * 25),
        ("embodiments", "robosuite-Lift-UR5e/50/basin/0", "2 steps", 2.0, [1.0] * 50),
        ("embodiments", "robosuite-Lift-UR5e/50/diffusion/0", "DDIM-10", 10.0, [0.0] * 50),
    )  # fmt: skip
    for study, name, act, steps, scores in shown:
        (cell,) = manipulation.STUDIES[study].cells([name])
        assert runner.training_steps(cell, tmp_path / study) == 10
        one = line(cell, act, scores, **more | {"descent_steps_mean": steps})
        runner._append(results_file(cell, tmp_path / study), one)
    disturbed = [f"start × {x:g}" for x in SCALES] + [f"step × {x:g}" for x in FACTORS]
    kept = {name: {"diverged": 0.0, "error": 0.1} for name in ("undisturbed", *disturbed)}
    lost = kept | {"start × 3": {"diverged": 0.5, "error": 1.0}}
    policies = {
        name: {
            "exposure": {"demonstrated": [0.1, 0.1, 0.1], "visited": [own, own, own],
                         RATIO: [10 * own, 9 * own, 11 * own]},
            "growth": {"success": [1.0, 0.5], "distance": {"1": [50, 0.5, 0.75]}},
            "divergence": {how: lost},
        }
        for name, own, how in (
            ("energy policy", 0.2, "2 steps"), ("Diffusion Policy", 0.4, "DDIM-10"),
        )
    }  # fmt: skip
    (tmp_path / "stability-x.json").write_text(json.dumps({"task": "x", "policies": policies}))
    page = tmp_path / "claims.md"
    names = (
        "claims", "budgets", "phases", "exposure", "growth", "divergence", "scale", "embodiments",
    )  # fmt: skip
    page.write_text("\n".join(f"<!-- table: {name} --><!-- end -->" for name in names))
    render_claims(page, tmp_path)
    text = page.read_text()
    for row in (
        "in 0.20 of the steps, is at most 0.03 below 20 steps: Lift "
        "| `bench compute --only 'robosuite-Lift/*'` | -0.020 [-0.060, +0.000], 1 × 50 "
        "| open, of one training seed |",
        "below DDIM-10: Lift:UR5e, 50 demonstrations "
        "| `bench embodiments --only 'robosuite-Lift-UR5e/*'` | +1.000 [+0.929, +1.000], 1 × 50 "
        "| holds, of one training seed |",
        "below Diffusion Policy's: x | `bench stability … --json results/stability-x.json` "
        "| 2.000 [1.800, 2.200] against 4.000 [3.600, 4.400] | holds, of one training seed |",
        "diverge, 2 steps, starts × 0.5 to × 3: x | `bench stability … --json "
        "results/stability-x.json` | 0.500 at the worst | does not hold, of one training seed |",
        "steps × 0.5 to × 1.5: x | `bench stability … --json results/stability-x.json` "
        "| 0.000 at the worst | holds, of one training seed |",
        "| Lift | 20 steps | 20.00 | 1.000 [0.929, 1.000] |  | 4.0 | 1 × 50 |",
        "| Lift | pushing | 8 | 2.12 | 0.125 | 3 | -3.0 |",
        "| x | Diffusion Policy | 0.100 [0.100, 0.100] | 0.400 [0.400, 0.400] |  | 4.000",
        "| x | energy policy | 0.50, 0.75 (50) |  |  |  |  | 1.00 / 0.50 |",
        "| x | energy policy | 2 steps | 0.000 (0.100) |",
        "| mip | 2 evaluations | small |  | 0.50 (0.250) |  | 10 |",
        "| Lift:UR5e | basin | 2 steps | 2.0 | 1.000 [0.929, 1.000] | 1 × 50 |",
    ):
        assert row in text, text


def test_the_page_of_language_is_rendered_from_results_alone(tmp_path: Path) -> None:
    write_cost(tmp_path / "objectives", ms=12_000.0)
    did = {
        "reach": {"reach": 10, "push": 0, "pick-place": 0, "nothing": 0},
        "push": {"reach": 0, "push": 8, "pick-place": 0, "nothing": 2},
        "pick-place": {"reach": 1, "push": 0, "pick-place": 9, "nothing": 0},
    }
    auroc = {
        "auroc_energy": [0.8, 0.7, 0.85], "auroc_excess": [0.9, 0.8, 0.95],
        "auroc_step": [0.97, 0.95, 0.99],
    }  # fmt: skip
    of_task = {"reach": {"auroc_energy": 0.8, "auroc_excess": 0.9, "auroc_step": 0.97}}
    shown: tuple[tuple[str, str, str, list[float], dict[str, Any]], ...] = (
        ("mt10/500", "basin", "2 steps", [1.0] * 190 + [0.0] * 10, {}),
        ("mt10/500", "basin", "2 steps+paraphrase", [1.0] * 100 + [0.0] * 100, {}),
        ("mt10/500", "mip", "2 evaluations", [1.0] * 200, {}),
        ("puck/150", "basin", "2 steps", [1.0] * 270 + [0.0] * 30, {"did": did}),
        ("puck/150", "basin", "energy of words", [0.0], {"words": auroc | {"by_meaning": of_task}}),
    )
    for where, method, act, scores, more in shown:
        (cell,) = language.STUDY.cells([f"metaworld-{where}/{method}/0"])
        steps = runner.training_steps(cell, tmp_path / "language")
        more |= {
            "training": {"steps": steps, "samples": 64 * steps, "multiply_adds": 1e9},
            "per_task": {"reach": {"success_rate": 0.75}}, "episodes": cell.task.episodes,
        }  # fmt: skip
        path = results_file(cell, tmp_path / "language")
        runner._append(path, line(cell, act, scores, **more))
    page = tmp_path / "language.md"
    names = ("claims", "success", "tasks-MT10", "puck", "words")
    page.write_text("\n".join(f"<!-- table: {name} --><!-- end -->" for name in names))
    render_language(page, tmp_path / "language")
    text = page.read_text()
    for row in (
        "two steps succeed in 0.9: MT10 | `bench language --only 'metaworld-mt10/*/basin/0'` "
        "| 0.950 [",
        "at most 0.03 below mip, 2 evaluations: MT10 | `bench language "
        "--only 'metaworld-mt10/*/mip/0'` | -0.050",
        "what is done is the named task in 0.9: puck, hashed | `bench language "
        "--only 'metaworld-puck/*/basin/0'` | 0.964 [0.823, 0.994], 27 of 28 | open |",
        "keep 0.9 of the seen ones' success: MT10, hashed | `bench language "
        "--only 'metaworld-mt10/*/basin/0'` | 0.526, 1 × 200 | does not hold |",
        "the energy tells the right sentence, AUROC 0.9: puck, hashed | `bench language "
        "--only 'metaworld-puck/*/basin/0'` | 0.800 [0.700, 0.850] | does not hold |",
        "| reach | 0.75 | 0.75 |", "| hashed | seen | push | 0 | 8 | 0 | 2 |",
        "| puck | hashed | reach | 0.800 | 0.900 | 0.970 |",
    ):  # fmt: skip
        assert row in text, text


def test_phase_has_one_colour_on_every_task(tmp_path: Path) -> None:
    def group(*phases: str) -> Group:
        episode = {"steps": [2, 3], "doing": [phases[-1]] * 2, "energy": [-1.0, -2.0]}
        steps = {phase: {"2": 7, "3": 1} for phase in phases}
        means = {"descent_steps_mean": 2.1}
        return Group(({"steps_by_doing": steps, "first_episode": episode, **means},))

    found = pages.Results(tmp_path)
    found.groups["planar-fork", 50, "basin", "adaptive"] = group("beside", "reaching")
    found.groups["pusht", 50, "basin", "adaptive"] = group("pushing", "reaching")
    figure = pages._figure_adaptive(found)
    assert figure is not None
    drawn: list[dict[str, Any]] = []
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            assert axes.get_ylim()[1] == 1  # a share is not more
            colours = [cast(BarContainer, bar).patches[0].get_facecolor() for bar in handles]
            drawn.append(dict(zip(labels, colours, strict=True)))
    one, other = drawn
    assert one["reaching (8 chunks)"] == other["reaching (8 chunks)"]
    assert len(set((one | other).values())) == 3


def test_difference_uses_common_seeds_and_starts() -> None:
    one = Group(tuple({"seed": seed, "scores": [1.0, 0.0, seed]} for seed in (0, 1, 2)))
    other = Group(tuple({"seed": seed, "scores": [seed, 0.5, 0.5]} for seed in (0, 2)))
    assert difference(one, other, "scores").tolist() == [[1, -0.5, -0.5], [-1, -0.5, 1.5]]


def test_crossed_bootstrap_is_wider_where_seeds_differ() -> None:
    random = np.random.default_rng(0)
    starts = random.normal(size=(1, 200)).repeat(3, 0)
    same = bootstrap_crossed(starts)
    seeds = bootstrap_crossed(starts + np.array([[-0.5], [0.0], [0.5]]))
    assert same[0] < starts.mean() < same[1]
    assert seeds[1] - seeds[0] > 1.5 * (same[1] - same[0])
    assert bootstrap_crossed(starts) == same
    # Two tasks, one always solved and one never: drawn within tasks there is nothing in doubt.
    halves = np.concatenate([np.ones((1, 50)), np.zeros((1, 50))], 1)
    assert bootstrap_crossed(halves, tasks=2) == (0.5, 0.5)
    assert bootstrap_crossed(halves)[0] < 0.45
    assert bootstrap_crossed(np.zeros((1, 50)), are_differences=True) == pytest.approx(
        (-0.0713, 0.0713), abs=1e-3
    )
    low, high = bootstrap_crossed(-np.ones((1, 50)), are_differences=True)
    assert low == -1
    assert -0.95 < high < -0.9
    low, high = bootstrap_crossed(np.ones((1, 50)))
    assert 0.9 < low < 0.95
    assert high == 1


def test_energy_quality_of_a_true_energy_and_of_a_blind_one(monkeypatch: Any) -> None:
    made: Any = policy()
    random = np.random.default_rng(0)
    count = 120
    state = random.normal(size=(count, 5)).astype(np.float32)
    observations = {"state": state, "extra": np.zeros((count, 2, 3), np.float32)}
    actions = (80 * random.normal(size=(count, 2))).astype(np.float32)
    ends = np.array([60, 120])
    arrays = Arrays(observations, actions, {})
    parts = [Windows(arrays, ends, np.array([i]), WindowConfig()) for i in range(2)]
    held_out = made.action_normaliser.normalise(parts[1].gather(torch.arange(60)).actions)
    features = made.normalise_observation(parts[1].gather(torch.arange(60)).observations)["state"]

    def true_energy(actions: torch.Tensor, memory: Any) -> torch.Tensor:
        return 0.5 * (actions - memory).square().sum((1, 2))

    def remember(observation: Any) -> Any:  # the chunk that was demonstrated there
        return held_out[(features - observation["state"]).square().sum((1, 2)).argmin()]

    monkeypatch.setattr(made.energy, "remember", remember)
    monkeypatch.setattr(made.energy, "given", lambda memory, n=1: lambda a: true_energy(a, memory))
    found = energy_quality(made, parts[1], parts[0], 30, seed=0)
    assert found["observations"] == 30
    assert found["auroc_random"][0] == found["auroc_near"][0] == 1
    assert found["spearman_white"][0] > 0.999
    blind = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        made.energy, "given",
        lambda memory, n=1: lambda a: torch.rand(len(a), generator=blind),
    )  # fmt: skip
    found = energy_quality(made, parts[1], parts[0], 30, seed=0)
    assert 0.35 < found["auroc_random"][0] < 0.65
    assert abs(found["spearman_smooth"][0]) < 0.2


@pytest.mark.usefixtures("tiny")
def test_cost_compares_every_method_with_diffusion_in_one_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    eager = {name: replace(method, compile=False) for name, method in METHODS.items()}
    monkeypatch.setattr(cost, "METHODS", eager)
    monkeypatch.setattr(cost, "_WARMUP", 0)
    found = measure_cost("tiny", batch_size=2, rounds=2)
    assert set(found["methods"]) == {name for name, made in METHODS.items() if not made.cost}
    assert found["methods"]["diffusion"]["ratio"] == 1
    assert all(cost["ms"] > 0 for cost in found["methods"].values())
    assert {cost["batch_size"] for cost in found["methods"].values()} == {2}
    found = measure_cost("tiny", None, 1, ["flow", "diffusion"])
    assert set(found["methods"]) == {"flow", "diffusion"}
    assert found["methods"]["flow"]["batch_size"] == METHODS["flow"].batch_size == 128
    known = measure_cost("tiny", None, 1, ["basin", "diffusion"])
    added = cost.with_added(known, found)["methods"]
    assert added["basin"] == known["methods"]["basin"]
    assert added["diffusion"] == known["methods"]["diffusion"]
    ratio = found["methods"]["flow"]["ratio"]
    assert added["flow"]["ms"] == pytest.approx(ratio * known["methods"]["diffusion"]["ms"], 0.01)
    assert added["flow"]["added"]["rounds"] == 1
    tmp_path.joinpath("cost-tiny.json").write_text(json.dumps({"methods": {"diffusion": {}}}))
    for asked in ([], ["--methods", "diffusion"], ["--methods", "flow"]):
        assert main(["bench", "cost", "--preset", "tiny", "--results", str(tmp_path), *asked]) == 2
        assert "add what it lacks with --methods diffusion,NAME" in capsys.readouterr().err
    with pytest.raises(UserError, match="--methods flwo: expected some of basin, one-way, "):
        measure_cost("tiny", None, 1, ["diffusion", "flwo"])
    with pytest.raises(UserError, match="--methods basin,flow: diffusion is what others"):
        measure_cost("tiny", None, 1, ["basin", "flow"])


def test_bench_lists_what_is_missing_and_refuses_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(name: str) -> str:
        own = ["--list", "--only", name, "--results", str(tmp_path)]
        assert main(["bench", "objectives", *own]) == 0
        return capsys.readouterr().out

    (cell,) = STUDY.cells(["pusht/206/regression/0"])
    assert "missing 1 evaluation" in listed(cell.name)
    write_cost(tmp_path, ms=60_000.0)  # the 10 steps of ``line``
    (tmp_path / "pusht.jsonl").write_text(json.dumps(line(cell, "1 evaluation", [1.0])) + "\n")
    assert f"{cell.name}: complete" in listed(cell.name)
    for arguments, message in [
        (["--only", "nothing"], "--only nothing: matches no cell"),
        (["--only", "pusht/206/mip/0", "--pusht", "nowhere"], "--pusht nowhere: no such data"),
        (["--render", "nowhere.md"], "--render nowhere.md: no such page"),
    ]:
        assert main(["bench", "objectives", *arguments, "--results", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "objectives", "--jobs", "0"])
    assert "--jobs: 0: it must be a whole number, at least 1" in capsys.readouterr().err
