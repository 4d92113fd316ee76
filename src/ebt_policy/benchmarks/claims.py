"""``docs/claims.md``: the paper's claims with our figures, from the files of ``results/`` alone.

A claim *holds* where the 95% interval says so, *does not hold* where it says the contrary, and is
*open* where it says neither. Of diverging descents and of jerk the measured figure is judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ebt_policy.benchmarks import language, manipulation, objectives
from ebt_policy.benchmarks.manipulation import (
    FROM_HAND,
    IMAGINING,
    RECOVERIES,
    SHIFTS,
    UNFELT,
    WITHHELD,
)
from ebt_policy.benchmarks.pages import (
    COLOURS,
    OURS,
    Group,
    Results,
    bracketed,
    difference,
    fill,
    interval,
    markdown,
    verdict_of,
)
from ebt_policy.benchmarks.stability import CHUNKS, FACTORS, RATIO, SCALES
from ebt_policy.benchmarks.study import BenchTask
from ebt_policy.benchmarks.uncertainty import OBSERVED, OBSERVED_AND_CHANGE
from ebt_policy.benchmarks.uncertainty import SHIFTS as SHIFTED_BY
from ebt_policy.errors import UserError
from ebt_policy.evaluation.statistics import bootstrap_crossed, wilson
from ebt_policy.policies.files import replace_file
from ebt_policy.report.figures import png
from ebt_policy.shapes import Float


class Their(NamedTuple):
    """What the claims compare with: its name, how files of its evaluations end, where it stands."""

    name: str
    file: str
    is_in_headline: bool = True


THEIRS = {  # by method and way of acting
    ("diffusion", "DDIM-10"): Their("DDIM-10", "diffusion"),
    ("diffusion", "DDPM-100"): Their("DDPM-100", "diffusion-ddpm"),
    ("diffusion", "DDIM-10, mean of 16"): Their(
        "the mean of 16 by DDIM-10", "diffusion-mean-of-16"
    ),
    ("diffusion-x0", "DDIM-2"): Their("DDIM-2 of predicted actions", "diffusion-x0-2-steps"),
    ("diffusion-x0", "DDIM-10"): Their("DDIM-10 of predicted actions", "diffusion-x0"),
    ("diffusion-x0", "DDPM-100"): Their(
        "DDPM-100 of predicted actions", "diffusion-x0-ddpm", is_in_headline=False
    ),
    ("diffusion-x0", "DDIM-10, mean of 16"): Their(
        "the mean of 16 by DDIM-10 of predicted actions", "diffusion-x0-mean-of-16",
        is_in_headline=False,
    ),
    ("mip", "2 evaluations"): Their("MIP", "mip"),
    ("regression", "1 evaluation"): Their("regression", "regression"),
}  # fmt: skip
# Ways of acting by an energy, what the claims call them and what they are compared with; those
# after the first where there are several trainings of them, or longer ones.
_COMPARED = {
    OURS: ("two steps", "are", "succeed", tuple(THEIRS)),
    ("annealed", "2 steps"): ("two steps of `annealed`", "are", "succeed", (
        OURS, ("diffusion", "DDIM-10"), ("diffusion", "DDPM-100"),
        ("diffusion-x0", "DDIM-2"), ("diffusion-x0", "DDIM-10"), ("diffusion-x0", "DDPM-100"),
    )),
    ("annealed", objectives.MEAN.name): ("the mean of 16 of `annealed`", "is", "succeeds", (
        ("diffusion", "DDIM-10"),
        ("diffusion", "DDIM-10, mean of 16"), ("diffusion-x0", "DDIM-10, mean of 16"),
    )),
    ("split", objectives.MEAN.name): ("the mean of 16 of `split`", "is", "succeeds", (
        OURS, ("diffusion", "DDIM-10"), ("diffusion", "DDPM-100"),
        ("diffusion", "DDIM-10, mean of 16"), ("diffusion-x0", "DDIM-10"),
        ("diffusion-x0", "DDIM-10, mean of 16"), ("mip", "2 evaluations"),
    )),
}  # fmt: skip
_SEVERAL = tuple(_COMPARED)[1:]
NAMES = {
    "robosuite-Lift": "Lift",
    "robosuite-PickPlaceCan": "Can",
    "robosuite-NutAssemblySquare": "Square",
    "robosuite-ToolHang": "Tool Hang",
    "robosuite-ToolHangFrame": "Tool Hang's frame",
}
_MARGIN = 0.03  # how far below "not below" allows
_DELAY, _KEPT = 200.0, 0.95  # ms, and what is left of the undelayed score
_PREFIX = "frozen prefix"
_ADDED = ("noise", "delay")  # shifts of which 0 is none; the others are factors
_ALARM_MARGIN = 0.03  # how far from the stated rate the measured one may be
_DIVERGING = 0.05
_DISTURBED = {
    "start": f"starts × {min(SCALES):g} to × {max(SCALES):g}",
    "step": f"steps × {min(FACTORS):g} to × {max(FACTORS):g}",
}
MANY = max(manipulation.STEP_BUDGETS)
_SEEING = {
    "": "", UNFELT: ", fingers unseen", FROM_HAND: ", hand's place unseen",
    WITHHELD: ", own state withheld in training",
}  # fmt: skip
_TARGETS = {"Lift": 0.98, "Can": 0.95, "Square": 0.80, "Tool Hang": 0.60}
_SEEN_TARGETS = {"robosuite/Lift": 0.90, "pusht": 0.80}  # from cameras
_GPU_TARGETS = {"robosuite/ToolHang": 0.60}
_EXPERT_TARGETS = {"Lift": 0.95, "Can": 0.95, "Square": 0.95, "Tool Hang": 0.80}


class Found:
    """All results that the page is made of.

    Args:
        folder: ``results``.
    """

    def __init__(self, folder: Path) -> None:
        self.studies = {
            name: Results(folder / name, study) for name, study in manipulation.STUDIES.items()
        }
        self.objectives = Results(folder / objectives.STUDY.name)
        self.language = Results(folder / language.STUDY.name, language.STUDY)
        self.uncertainty = _files(folder, "uncertainty-*.json")
        self.alarms = _files(folder, "alarm-*.json")
        self.delays = _files(folder, "delay-*.json")
        self.stability = _files(folder, "stability-*.json")
        self.images = _files(folder, "images-*.json")
        self.gpu = _files(folder, "gpu-*.json")
        self.experts = _files(folder, "experts-*.json")


def _files(folder: Path, pattern: str) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob(pattern))}


def render_claims(page: Path, folder: Path) -> None:
    """Write the page's tables and figures.

    Raises:
        UserError: the page is missing or names an unknown table.
    """
    found = Found(folder)
    fill(
        page,
        {
            "headline": lambda: _headline(found), "claims": lambda: _claims(found),
            "experts": lambda: _experts(found),
            "success": lambda: _success(found), "predictions": lambda: _predictions(found),
            "compute": lambda: _compute(found), "recovery": lambda: _recovery(found),
            "energy": lambda: _energy(found), "shift": lambda: _shift(found),
            "uncertainty": lambda: _uncertainty(found), "alarms": lambda: _alarms(found),
            "budgets": lambda: _budgets(found), "phases": lambda: _phases(found),
            "exposure": lambda: _exposure(found), "growth": lambda: _growth(found),
            "divergence": lambda: _divergence(found), "scale": lambda: _scale(found),
            "embodiments": lambda: _embodiments(found), "delay": lambda: _delay(found),
        },
    )  # fmt: skip
    text = page.read_text()
    for name, draw in (("delay", _figure_delay), ("shift", _figure_shift)):
        place = f"figures/claims-{name}.png"
        figure = draw(found) if place in text else None
        if figure is not None:
            replace_file(page.parent / place, png(figure))


def _of(values: np.ndarray, verdict: str) -> str:
    """A verdict from values (seeds, starts), which says so if it is of one training seed."""
    return verdict + (", of one training seed" if len(values) == 1 else "")


def _acts(study: str, results: Results) -> list[tuple[str, str]]:
    methods = manipulation.STUDIES[study].methods.values()
    return [
        (method.name, act.name)
        for method in methods
        for act in method.acts
        if any(key[2:] == (method.name, act.name) for key in results.groups)
    ]


def _claims(found: Found) -> str:
    """Claim, command, figure, verdict."""
    rows = _expert_claims(found)
    for name, study, results, slug, key in _tasks(found):
        command, target = f"bench {study} --only '{slug}/", _TARGETS.get(name)
        ways = {
            which: group
            for which, group in results.ways(slug).items()
            if which not in _SEVERAL or len(group.lines) > 1
        }
        rows += _method_claims(name, f"{command}{results.most(slug)}/*'", key, ways, target)
        for share in sorted({share for *_, share in results.partial if share > 1}):
            rows += _method_claims(
                f"{name}, {share:g} × the training", f"{command}*@{100 * share:g}/*'", key,
                results.ways(slug, share), target,
            )  # fmt: skip
    for slug, arm in manipulation.EMBODIMENTS.tasks.items():
        rows += _method_claims(
            f"{_arm(arm)}, {arm.demonstrations[-1]} demonstrations",
            f"bench embodiments --only '{slug}/*'", "successes",
            found.studies["embodiments"].ways(slug),
        )  # fmt: skip
    for slug, name in NAMES.items():
        command = f"`bench recovery --only '{slug}/200/*'`"
        for disturbance in RECOVERIES:
            rows += _recovery_claims(found.studies["recovery"], slug, name, disturbance, command)
    rows += _compute_claims(found.studies["compute"])
    rows += _stability_claims(found)
    rows += _delay_claims(found)
    rows += _evaluated_claims(found.images, _SEEN_TARGETS, "from cameras")
    rows += _evaluated_claims(found.gpu, _GPU_TARGETS, "trained on a GPU")
    for file, measured in found.uncertainty.items():
        signals, task = measured["signals"], measured["task"]
        where = f"{task}, {measured['demonstrations']} demonstrations"
        command = f"`bench uncertainty … --task {task} --json results/{file}`"
        for signal, how, label in (
            ("energy", "failure", "the chunk's energy, highest"),
            ("gradient", "failure_mean", "the gradient at the last step, mean"),
            ("drop of the energy", "failure_mean", "the energy's drop, mean"),
            ("spread of 8 starts", "failure_mean", "the spread of eight starts, mean"),
            (OBSERVED, "failure", "the observation's energy, highest"),
            (OBSERVED_AND_CHANGE, "failure_mean", "observation's energy and change of plan, mean"),
        ):
            mean, low, high = signals[signal][how]
            rows.append([
                f"{label}: AUROC 0.85 for failure: {where}", command,
                bracketed(mean, low, high), verdict_of(low, high, 0.85),
            ])  # fmt: skip
        for other, (mean, low, high) in signals[OBSERVED]["minus"]["failure"].items():
            rows.append([
                f"the observation's energy tells failure at most {_MARGIN:g} worse than {other}: "
                f"{where}",
                command, f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]",
                verdict_of(low, high, -_MARGIN),
            ])  # fmt: skip
        size, (mean, low, high) = list(signals[OBSERVED]["shift"].items())[-1]
        rows.append([
            f"the observation's energy: AUROC 0.95 for noise of {size} m: {where}", command,
            bracketed(mean, low, high), verdict_of(low, high, 0.95),
        ])  # fmt: skip
    for file, result in found.alarms.items():
        if "+" in result["task"]:
            continue  # disturbed: an alarm is then no false one
        alarm, measured = result["alarm_rate"], result["alarms"]["of_successes"]
        low, high = measured["ci95"]
        rows.append([
            f"false alarms within {_ALARM_MARGIN:g} of {alarm:g}: {result['task']}",
            f"`calibrate`, `eval --json results/{file}`",
            f"{bracketed(measured['rate'], low, high)}, {measured['episodes']} episodes",
            _within(low, high, alarm, _ALARM_MARGIN),
        ])  # fmt: skip
    return markdown(["claim", "command", "figure [95%]", "verdict"], rows)


def _method_claims(
    name: str,
    command: str,
    key: str,
    groups: Mapping[tuple[str, str], Group],
    target: float | None = None,
) -> list[list[str]]:
    """Of one task: what the energy's ways of acting reach, and are compared with others'.

    Args:
        name: of the task.
        command: that gives the results.
        key: what is measured, ``scores`` or ``successes``.
        groups: the results by method and way of acting.
        target: of the successes, if there is one.
    """
    rows = []
    for which, (subject, verb, succeeds, others) in _COMPARED.items():
        one = groups.get(which)
        if one is None:
            continue
        if target is not None:
            rows.append(
                _reaches(name, command, one.values(key), target, f"{subject} {succeeds} in")
            )
        for their in others:
            theirs = groups.get(their)
            gap = None if theirs is None else difference(one, theirs, key)
            if gap is not None and gap.size:
                other = "two steps of `basin`" if their == OURS else THEIRS[their].name
                rows.append(_is_not_below(name, command, gap, other, f"{subject} {verb}"))
    return rows


def _reaches(
    name: str, command: str, values: Float[np.ndarray, "trainings starts"], target: float, does: str
) -> list[str]:
    """The row of one claim: the energy policy's figure reaches a target."""
    return [
        f"{does} {target:g}: {name}", f"`{command}`",
        f"{interval(values)}, {_size(values)}",
        _of(values, verdict_of(*bootstrap_crossed(values), target)),
    ]  # fmt: skip


def _is_not_below(
    name: str,
    command: str,
    gap: Float[np.ndarray, "trainings starts"],
    other: str,
    subject: str = "two steps are",
) -> list[str]:
    """The row of one claim: the energy policy is at most a margin below another way of acting."""
    return [
        f"{subject} at most {_MARGIN:g} below {other}: {name}", f"`{command}`",
        f"{interval(gap, signed=True)}, {_size(gap)}",
        _of(gap, verdict_of(*bootstrap_crossed(gap, are_differences=True), -_MARGIN)),
    ]  # fmt: skip


def _within(low: float, high: float, target: float, margin: float) -> str:
    """Whether an interval says that a figure is within a margin of another."""
    if target - margin <= low and high <= target + margin:
        return "holds"
    apart = high < target - margin or target + margin < low
    return "does not hold" if apart else "open"


def _recovery_claims(
    results: Results, slug: str, name: str, disturbance: str, command: str
) -> list[list[str]]:
    """Of one task and disturbance: each way of the energy policy, and against the other."""
    rows = []
    ways = (("", ""), ("", IMAGINING), (UNFELT, ""), (FROM_HAND, ""), (WITHHELD, ""))
    for seeing, how in ways:
        other = results.get(slug, "diffusion" + seeing, "DDIM-10" + disturbance)
        ours = results.get(slug, "basin" + seeing, "2 steps" + how + disturbance)
        if ours is None or not _recovered(ours)[1]:
            continue
        what = f"{name}{disturbance}{how}{_SEEING[seeing]}"
        their = "such a" if seeing else "plain"
        if disturbance == "+drop":
            values = _with_effect(ours)
            low, high = bootstrap_crossed(values)
            won, tried = _recovered(ours)
            rows.append([
                f"recovers in 0.8 of the cases: {what}", command,
                f"{interval(values)}, {won} of {tried}", _of(values, verdict_of(low, high, 0.8)),
            ])  # fmt: skip
        gap = None if other is None else _both_disturbed(ours, other)
        if gap is not None and not np.isnan(gap).all():
            low, high = bootstrap_crossed(gap, are_differences=True)
            verdict = "holds" if low > 0 else "does not hold" if high < 0 else "open"
            rows.append([
                f"recovers more often than {their} Diffusion Policy: {what}", command,
                f"{interval(gap, signed=True)}, {_size(gap)}",
                _of(gap, verdict),
            ])  # fmt: skip
    return rows


def _compute_claims(results: Results) -> list[list[str]]:
    """Steps until they no longer move the chunk, against always as many as allowed."""
    rows = []
    for slug, name in NAMES.items():
        ours, all_steps = (
            results.get(slug, "basin", act)
            for act in (f"at most {MANY}", manipulation.ALL_STEPS.name)
        )
        if ours is None or all_steps is None:
            continue
        gap = difference(ours, all_steps, "successes")
        low, high = bootstrap_crossed(gap, are_differences=True)
        share = ours.mean("descent_steps_mean") / all_steps.mean("descent_steps_mean")
        rows.append([
            f"stopping by itself, in {share:.2f} of the steps, is at most {_MARGIN:g} below {MANY} "
            f"steps: {name}", f"`bench compute --only '{slug}/*'`",
            f"{interval(gap, signed=True)}, {_size(gap)}",
            _of(gap, verdict_of(low, high, -_MARGIN)),
        ])  # fmt: skip
    return rows


def _stability_claims(found: Found) -> list[list[str]]:
    rows = []
    for file, measured in found.stability.items():
        where, command = measured["task"], f"`bench stability … --json results/{file}`"
        ours = measured["policies"]["energy policy"]
        theirs = measured["policies"].get("Diffusion Policy", {"exposure": {}})
        if RATIO in ours["exposure"] and RATIO in theirs["exposure"]:
            one, other = ours["exposure"][RATIO], theirs["exposure"][RATIO]
            verdict = (
                "holds" if one[2] < other[1] else "does not hold" if one[1] > other[2] else "open"
            )
            rows.append([
                "the error on its own states, over that on demonstrations, is below Diffusion "
                f"Policy's: {where}", command, f"{bracketed(*one)} against {bracketed(*other)}",
                f"{verdict}, of one training seed",
            ])  # fmt: skip
        for what in ("start", "step"):
            how, conditions = next(iter(ours["divergence"].items()))  # as it was saved to act
            worst = max(c["diverged"] for name, c in conditions.items() if name.startswith(what))
            verdict = "holds" if worst <= _DIVERGING else "does not hold"
            rows.append([
                f"at most {_DIVERGING:g} of the descents diverge, {how}, {_DISTURBED[what]}: "
                + where,
                command, f"{worst:.3f} at the worst",
                f"{verdict}, of one training seed",
            ])  # fmt: skip
    return rows


def _tasks(found: Found) -> list[tuple[str, str, Results, str, str]]:
    """Name, study, its results, slug and the measure of every task that all methods are run on."""
    manipulated = found.studies["tasks"]
    return [
        ("PushT", "objectives", found.objectives, "pusht", "scores"),
        *((name, "tasks", manipulated, slug, "successes") for slug, name in NAMES.items()),
    ]


def _size(values: np.ndarray) -> str:
    seeds, starts = values.shape
    return f"{seeds} × {starts}"


def _headline(found: Found) -> str:
    """The methods side by side, one row for each task."""
    shown = [OURS, *(which for which, their in THEIRS.items() if their.is_in_headline)]
    rows = []
    for name, _, results, slug, key in (
        *_tasks(found),
        *(
            (name, "language", found.language, slug, "successes")
            for slug, name in language.MANY.items()
        ),
    ):
        groups = [results.get(slug, *which) for which in shown]
        values = [None if group is None else group.values(key) for group in groups]
        cells = ["" if v is None else f"{interval(v)}, {_size(v)}" for v in values]
        if any(cells):
            rows.append([f"{name}, score" if key == "scores" else name, *cells])
    heads = [f"{method}, {act}" for method, act in shown]
    return markdown(["task", *heads], rows)


def _expert_name(measured: dict[str, Any]) -> str:
    return NAMES.get(measured["task"].replace("/", "-"), measured["task"])


def _experts(found: Found) -> str:
    rows = []
    for measured in found.experts.values():
        rows.append([
            _expert_name(measured),
            bracketed(measured["success_rate"], *measured["success_ci95"]),
            f"{measured['successes']} of {measured['starts']}", f"{measured['steps']:,}",
            f"{measured['seconds'] / 60:.1f}",
        ])  # fmt: skip
    return markdown(["task", "success [95%]", "starts", "steps", "minutes of one process"], rows)


def _expert_claims(found: Found) -> list[list[str]]:
    claims = []
    for file, measured in found.experts.items():
        name = _expert_name(measured)
        target = _EXPERT_TARGETS.get(name)
        if target is None:
            continue
        low, high = measured["success_ci95"]
        asked = f"{measured['task']} --episodes {measured['successes']}"
        claims.append([
            f"the scripted expert succeeds in {target:g}: {name}",
            f"`collect {asked} --out … --json results/{file}`",
            f"{bracketed(measured['success_rate'], low, high)}, {measured['starts']} starts",
            verdict_of(low, high, target),
        ])  # fmt: skip
    return claims


def _success(found: Found) -> str:
    results = found.studies["tasks"]
    rows = []
    names = {slug: name for slug, name in NAMES.items() if results.most(slug)}
    for method, act in _acts("tasks", results):
        cells = []
        for slug in names:
            group = results.get(slug, method, act)
            cells += (
                ["", ""]
                if group is None
                else [interval(group.values("successes")), _size(group.values("successes"))]
            )
        steps = [g.mean("descent_steps_mean") for g in _groups(results, method, act)]
        rows.append([method, act, f"{np.mean(steps):.1f}", *cells])
    head = [part for name in names.values() for part in (f"{name} [95%]", "seeds × starts")]
    return markdown(["method", "acts by", "steps", *head], rows)


def _predictions(found: Found) -> str:
    """Diffusion Policies that predict noise and actions, training seed by training seed."""
    rows = []
    for name, _, results, slug, key in _tasks(found):
        ours = results.get(slug, *OURS)
        for act in manipulation.TASKS.methods["diffusion-x0"].acts:
            noise, actions = (
                results.get(slug, method, act.name) for method in ("diffusion", "diffusion-x0")
            )
            if actions is None:
                continue
            more = ""
            if noise is not None:
                gap = difference(actions, noise, key)
                more = f"{interval(gap, signed=True)}, {_size(gap)}" if gap.size else ""
            rows.append([
                name, act.name, _each(noise, key), _each(actions, key), more, _each(ours, key)
            ])  # fmt: skip
    head = ["task", "acts by", "noise", "actions", "actions − noise, of the same seeds"]
    return markdown([*head, "energy, 2 steps"], rows)


def _each(group: Group | None, key: str) -> str:
    """The mean of each training by itself."""
    return "" if group is None else ", ".join(f"{np.mean(line[key]):.2f}" for line in group.lines)


def _groups(results: Results, method: str, act: str) -> list[Group]:
    groups = (results.get(slug, method, act) for slug in NAMES)
    return [group for group in groups if group is not None]


def _compute(found: Found) -> str:
    """Success over the share of the training budget, and multiply-adds."""
    results = found.studies["tasks"]
    rows = []
    shares = sorted({share for *_, share in results.partial})
    for slug, name in NAMES.items():
        for method, act in (
            (trained.name, act.name)
            for trained in manipulation.TASKS.methods.values()
            for act in trained.acts
        ):
            mine = {s: results.partial.get((slug, method, act, s)) for s in shares}
            measured = {share: group for share, group in mine.items() if group is not None}
            if not measured.keys() - {1.0}:
                continue
            cells = []
            for share in shares:
                group = measured.get(share)
                cells.append(
                    ""
                    if group is None
                    else f"{group.values('successes').mean():.2f} "
                    f"({group.mean('training', 'multiply_adds') / 1e12:.2g})"
                )
            rows.append([name, method, act, *cells])
    head = [f"{100 * share:g} %" for share in shares]
    return markdown(["task", "method", "acts by", *head], rows)


def _with_effect(group: Group) -> np.ndarray:
    """(seeds, starts): successes; NaN where the disturbance took no effect."""
    return np.where(group.values("took_effect") > 0, group.values("successes"), np.nan)


def _recovered(group: Group) -> tuple[int, int]:
    """Successes and episodes among those in which the disturbance took effect."""
    values = _with_effect(group)
    return int(np.nansum(values)), int((~np.isnan(values)).sum())


def _both_disturbed(ours: Group, other: Group) -> np.ndarray:
    """(seeds, starts): differences; NaN where the disturbance took no effect under both."""
    gap = difference(ours, other, "successes")
    seeds = sorted({line["seed"] for line in ours.lines} & {line["seed"] for line in other.lines})
    for row, seed in enumerate(seeds):
        for group in (ours, other):
            effect = next(line["took_effect"] for line in group.lines if line["seed"] == seed)
            gap[row, ~np.array(effect, bool)[: gap.shape[1]]] = np.nan
    return gap


def _recovery(found: Found) -> str:
    results, plain = found.studies["recovery"], found.studies["tasks"]
    rows = []
    for slug, name in NAMES.items():
        for disturbance in RECOVERIES:
            for method, act in _acts("recovery", results):
                group = results.get(slug, method, act)
                if not act.endswith(disturbance) or group is None:
                    continue
                won, tried = _recovered(group)
                if not tried:
                    continue
                how = act.removesuffix(disturbance)
                before = results.get(slug, method, how) or plain.get(slug, method, how)
                seeds = {line["seed"] for line in group.lines}
                same = (
                    []
                    if before is None
                    else [line["successes"] for line in before.lines if line["seed"] in seeds]
                )
                undisturbed = f"{np.mean(same):.3f}" if same else ""
                rows.append([
                    name, disturbance.removeprefix("+"), method, act.removesuffix(disturbance),
                    interval(_with_effect(group)), f"{won} of {tried}",
                    _size(group.values("successes")), undisturbed,
                ])  # fmt: skip
    return markdown(
        ["task", "disturbance", "method", "acts by", "recovered [95%]", "episodes with effect",
         "seeds × starts", "success undisturbed"], rows,
    )  # fmt: skip


def _energy(found: Found) -> str:
    """Mean energy of the chunks about the disturbance."""
    results = found.studies["recovery"]
    places = [str(place) for place in range(-2, 7)]
    rows = []
    for slug, name in NAMES.items():
        for disturbance in RECOVERIES:
            group = results.get(slug, "basin", "2 steps" + disturbance)
            if group is not None:
                energies = [group.lines[0]["energy_around"].get(place) for place in places]
                cells = ["" if energy is None else f"{energy:.1f}" for energy in energies]
                rows.append([name, disturbance.removeprefix("+"), *cells])
    head = ["before" if p == "-1" else "during" if p == "0" else p for p in places]
    return markdown(["task", "disturbance", *head], rows)


def _shifts(found: Found) -> dict[tuple[str, str, str], dict[str, Group]]:
    """By task, method and way of acting: what was measured under each shift, and under none ("").

    All of the same training runs.
    """
    shifted, plain = found.studies["shift"], found.studies["tasks"]
    measured = {}
    for slug in NAMES:
        for method, act in sorted({(m, a.split("+")[0]) for m, a in _acts("shift", shifted)}):
            groups = {
                shift: group
                for shift in SHIFTS
                if (group := shifted.get(slug, method, act + shift)) is not None
            }
            if not groups:
                continue
            before = plain.get(slug, method, act)
            if before is not None:
                seeds = {line["seed"] for group in groups.values() for line in group.lines}
                same = tuple(line for line in before.lines if line["seed"] in seeds)
                groups |= {"": Group(same)} if same else {}
            measured[slug, method, act] = groups
    return measured


def _shift(found: Found) -> str:
    """Success against the strength of each shift."""
    rows = [
        [
            NAMES[slug], method, act,
            *(
                f"{groups[shift].values('successes').mean():.2f}" if shift in groups else ""
                for shift in ("", *SHIFTS)
            ),
        ]
        for (slug, method, act), groups in _shifts(found).items()
    ]  # fmt: skip
    head = ["none", *(shift.removeprefix("+") for shift in SHIFTS)]
    return markdown(["task", "method", "acts by", *head], rows)


def _figure_shift(found: Found) -> Figure | None:
    """Success against strength, one panel for each task and kind of shift."""
    measured = _shifts(found)
    slugs = list(dict.fromkeys(slug for slug, _, _ in measured))
    if not slugs:
        return None
    kinds: dict[str, dict[float, str]] = {}
    for shift in SHIFTS:
        kind, strength = shift.removeprefix("+").split("=")
        nothing = 0.0 if kind in _ADDED else 1.0
        kinds.setdefault(kind, {nothing: ""})[float(strength)] = shift
    figure = Figure(figsize=(1.9 * len(kinds), 2.1 * len(slugs) + 0.4), layout="constrained")
    panels = figure.subplots(len(slugs), len(kinds), squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for slug, row in zip(slugs, panels, strict=True):
        ours = {of[1:]: groups for of, groups in measured.items() if of[0] == slug}
        for (kind, shifts), axes in zip(kinds.items(), row, strict=True):
            strengths = sorted(shifts)
            for place, ((method, act), groups) in enumerate(ours.items()):
                at = [k for k, strength in enumerate(strengths) if shifts[strength] in groups]
                successes = [groups[shifts[strengths[k]]].values("successes") for k in at]
                means = np.array([values.mean() for values in successes])
                ends = np.array([wilson(int(v.sum()), v.size) for v in successes]).reshape(-1, 2)
                around = np.abs(ends.T - means)
                aside = 0.08 * (place - (len(ours) - 1) / 2)  # so that intervals do not hide others
                handles[f"{method}, {act}"] = axes.errorbar(
                    np.array(at) + aside, means, around, ms=3, lw=1.2, elinewidth=0.7,
                    fmt="s--" if method.endswith(WITHHELD) else "o-",
                    color=COLOURS[method.removesuffix(WITHHELD)],
                )  # fmt: skip
            axes.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
            axes.set_ylim(-0.03, 1.05)
            axes.set_title(f"{NAMES[slug]}, {kind}", fontsize=9)
        row[0].set_ylabel("success")
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8
    )
    return figure


def _uncertainty(found: Found) -> str:
    rows = []
    for measured in found.uncertainty.values():
        for signal, values in measured["signals"].items():
            rows.append([
                f"{measured['task']}, {measured['demonstrations']} demonstrations", signal,
                bracketed(*values["failure"]), bracketed(*values["failure_mean"]),
                *(f"{shifted[0]:.3f}" for shifted in values["shift"].values()),
                f"{measured['failures']} / {measured['successes']}",
            ])  # fmt: skip
    head = ["setting", "signal", "AUROC failure, highest [95%]", "mean [95%]"]
    head += [f"noise {size:g}" for size in SHIFTED_BY]
    return markdown([*head, "failures / successes"], rows)


def _alarms(found: Found) -> str:
    rows = []
    for result in found.alarms.values():
        cells = []
        for which in ("of_successes", "of_failures"):
            measured = result["alarms"].get(which)
            cells.append(
                ""
                if measured is None
                else f"{bracketed(measured['rate'], *measured['ci95'])} of {measured['episodes']}"
            )
        rows.append([result["task"], f"{result['alarm_rate']:g}", *cells])
    return markdown(
        ["task", "stated rate", "alarm in successful episodes", "in failed episodes"], rows
    )


def _budgets(found: Found) -> str:
    """Success by the steps allowed."""
    results = found.studies["compute"]
    rows = []
    for slug, name in NAMES.items():
        every = results.get(slug, "basin", manipulation.ALL_STEPS.name)
        for method, act in _acts("compute", results):
            group = results.get(slug, method, act)
            if group is None:
                continue
            gap = None if every is None else difference(group, every, "successes")
            rows.append([
                name, act, f"{group.mean('descent_steps_mean'):.2f}",
                interval(group.values("successes")),
                "" if gap is None or group is every else interval(gap, signed=True),
                f"{group.mean('latency_ms', 'p50'):.1f}", _size(group.values("successes")),
            ])  # fmt: skip
    head = ["task", "acts by", "steps", "success [95%]", f"minus {MANY} steps", "ms a chunk"]
    return markdown([*head, "seeds × starts"], rows)


def _phases(found: Found) -> str:
    """Steps and energy by what the robot did, of the descents that stop by themselves."""
    rows = []
    for slug, name in NAMES.items():
        group = found.studies["compute"].get(slug, "basin", f"at most {MANY}")
        if group is None:
            continue
        counts: dict[str, dict[int, int]] = {}
        for line in group.lines:
            for doing, taken in line["steps_by_doing"].items():
                mine = counts.setdefault(doing, {})
                for steps, number in taken.items():
                    mine[int(steps)] = mine.get(int(steps), 0) + number
        for doing, mine in counts.items():
            chunks = sum(mine.values())
            energies = [line["energy_by_doing"][doing] for line in group.lines
                        if doing in line["energy_by_doing"]]  # fmt: skip
            rows.append([
                name, doing, str(chunks),
                f"{sum(steps * number for steps, number in mine.items()) / chunks:.2f}",
                f"{sum(n for steps, n in mine.items() if steps > 2) / chunks:.3f}",
                str(max(mine)), f"{np.mean(energies):.1f}",
            ])  # fmt: skip
    return markdown(
        ["task", "doing", "chunks", "steps", "more than 2", "most", "mean energy"], rows
    )


def _exposure(found: Found) -> str:
    rows = []
    for measured in found.stability.values():
        for policy, one in measured["policies"].items():
            cells = [
                bracketed(*one["exposure"][where]) if where in one["exposure"] else ""
                for where in ("demonstrated", "visited", "visited, successes only", RATIO)
            ]
            rows.append([measured["task"], policy, *cells])
    head = ["task", "policy", "on demonstrations", "on its own states", "of its successes only"]
    return markdown([*head, "its own / demonstrated"], rows)


def _growth(found: Found) -> str:
    chunks = [str(chunk) for chunk in CHUNKS]
    rows = []
    for measured in found.stability.values():
        for policy, one in measured["policies"].items():
            growth = one["growth"]
            cells = []
            for chunk in chunks:
                pairs, median, most = growth["distance"].get(chunk, (0, 0, 0))
                cells.append(f"{median:.2f}, {most:.2f} ({pairs})" if pairs else "")
            success = " / ".join(f"{rate:.2f}" for rate in growth["success"])
            rows.append([measured["task"], policy, *cells, success])
    head = [f"{chunk} chunk{'s' if chunk != '1' else ''}" for chunk in chunks]
    return markdown(["task", "policy", *head, "success without / with"], rows)


def _divergence(found: Found) -> str:
    names = [
        "undisturbed",
        *(f"start × {s:g}" for s in SCALES),
        *(f"step × {f:g}" for f in FACTORS),
    ]
    rows = []
    for measured in found.stability.values():
        for policy, one in measured["policies"].items():
            for how, conditions in one["divergence"].items():
                cells = [
                    f"{conditions[name]['diverged']:.3f} ({conditions[name]['error']:.3f})"
                    for name in names
                ]
                rows.append([measured["task"], policy, how, *cells])
    return markdown(["task", "policy", "acts by", *names], rows)


def _scale(found: Found) -> str:
    """Success and validation error by method, network and number of demonstrations."""
    results, tasks = found.studies["scale"], manipulation.SCALE.tasks
    counts = next(iter(tasks.values())).demonstrations
    rows = []
    for method, act in _acts("scale", results):
        for slug, task in tasks.items():
            groups = {count: results.get(slug, method, act, count) for count in counts}
            measured = {count: group for count, group in groups.items() if group is not None}
            if not measured:
                continue
            cells = [
                f"{measured[count].values('successes').mean():.2f} "
                f"({measured[count].mean('validation_error'):.3f})"
                if count in measured
                else ""
                for count in counts
            ]
            one = next(iter(measured.values()))
            rows.append([method, act, task.preset, *cells, f"{one.mean('training', 'steps'):,.0f}"])
    head = [f"{count} demonstrations" for count in counts]
    return markdown(["method", "acts by", "network", *head, "training steps"], rows)


def _arm(task: BenchTask) -> str:
    return task.name.removeprefix("robosuite/")


def _embodiments(found: Found) -> str:
    results = found.studies["embodiments"]
    rows = []
    for slug, task in manipulation.EMBODIMENTS.tasks.items():
        for method, act in _acts("embodiments", results):
            group = results.get(slug, method, act)
            if group is not None:
                values = group.values("successes")
                rows.append([
                    _arm(task), method, act, f"{group.mean('descent_steps_mean'):.1f}",
                    interval(values), _size(values),
                ])  # fmt: skip
    return markdown(["task", "method", "acts by", "steps", "success [95%]", "seeds × starts"], rows)


def _chunking(measured: dict[str, Any]) -> str:
    """How the chunks of a measurement of delay fit together, in a few words."""
    ways = [_PREFIX if measured["prefix_share"] else "plain"]
    for setting in measured["settings"]:
        name, value = setting.removeprefix("descent.").split("=")
        if name != "windows.action_steps":
            ways.append("warm start" if name == "warm_start" else f"{name} {value}")
    return ", ".join(ways)


# Task, how chunks fit together, actions executed of each, how much the delay varied in ms, first
# start.
_Arm = tuple[str, str, int, float, int]


def _arms(found: Found) -> dict[_Arm, dict[float, dict[int, dict[str, Any]]]]:
    """Of each arm and delay the rows of all files, by training seed."""
    arms: dict[_Arm, dict[float, dict[int, dict[str, Any]]]] = {}
    for measured in found.delays.values():
        jitter = float(max(row["jitter_ms"] for row in measured["rows"]))
        executed = measured["windows"]["action_steps"]
        arm = (measured["task"], _chunking(measured), executed, jitter, measured["first_seed"])
        seed = measured["training"]["training"]["seed"]
        for row in measured["rows"]:
            arms.setdefault(arm, {}).setdefault(row["delay_ms"], {})[seed] = row
    return arms


def _crossed(rows: dict[int, dict[str, Any]], key: str) -> np.ndarray:
    """Values of each start (seeds, starts), of the starts that all seeds have."""
    starts = min(len(row[key]) for row in rows.values())
    return np.array([row[key][:starts] for row in rows.values()], np.float64)


def _mean(rows: dict[int, dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows.values()]))


def _evaluated_claims(
    results: dict[str, Any], targets: dict[str, float], how: str
) -> list[list[str]]:
    """Of single evaluations: ``NAME-ebt.json``, and those of other methods beside it.

    Args:
        results: by the name of their file.
        targets: the score that is aimed at, by task.
        how: the policies see or were trained.

    Raises:
        UserError: two were evaluated from different starts.
    """
    claims = []
    for file, ours in results.items():
        if not file.endswith("-ebt.json"):
            continue
        task = NAMES.get(ours["task"].replace("/", "-"), ours["task"])
        name, command = f"{task} {how}", f"eval … --json results/{file}"
        scores = np.array([[record["score"] for record in ours["records"]]])
        target = targets.get(ours["task"])
        if target is not None:
            claims.append(_reaches(name, command, scores, target, "two steps score"))
        for other in THEIRS.values():
            theirs = results.get(file.replace("-ebt.json", f"-{other.file}.json"))
            if theirs is None:
                continue
            if theirs["seeds"] != ours["seeds"]:
                raise UserError(f"{file}: has other starts than the file of {other.name} beside it")
            gap = scores - np.array([[record["score"] for record in theirs["records"]]])
            claims.append(_is_not_below(name, command, gap, other.name))
    return claims


def _delay(found: Found) -> str:
    table = [
        [
            task, chunking, str(executed), f"{ms:g} ± {jitter if ms else 0:g}",
            interval(_crossed(rows, "successes")), interval(_crossed(rows, "scores")),
            f"{_mean(rows, 'seam_jerk'):.3g}", f"{_mean(rows, 'inner_jerk'):.3g}",
            f"{100 * _mean(rows, 'held'):.1f} %", _size(_crossed(rows, "scores")), str(first),
        ]
        for (task, chunking, executed, jitter, first), by_delay in _arms(found).items()
        for ms, rows in sorted(by_delay.items())
    ]  # fmt: skip
    head = ["task", "chunks", "executed", "delay, ms", "success [95%]", "score [95%]"]
    more = ["jerk, seams", "jerk, elsewhere", "held", "seeds × starts", "first start"]
    return markdown([*head, *more], table)


def _figure_delay(found: Found) -> Figure | None:
    """Score and jerk against delay, of arms that were measured at several."""
    arms = {arm: by_delay for arm, by_delay in _arms(found).items() if len(by_delay) > 2}
    if not arms:
        return None
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    score_axes, jerk_axes = figure.subplots(1, 2)
    for (task, chunking, executed, *_), by_delay in arms.items():
        delays = sorted(by_delay)
        values = [_crossed(by_delay[ms], "scores") for ms in delays]
        means = np.array([value.mean() for value in values])
        low, high = np.transpose([bootstrap_crossed(value) for value in values])
        around = np.maximum([means - low, high - means], 0)  # of a mean of ones it is rounding
        label = f"{task}, {chunking}, {executed} actions"
        score_axes.errorbar(delays, means, around, marker="o", capsize=3, label=label)
        jerk_axes.plot(delays, [_mean(by_delay[ms], "seam_jerk") for ms in delays], marker="o")
    score_axes.set(xlabel="delay, ms", ylabel="score, 95% intervals", ylim=(0, 1.05))
    jerk_axes.set(xlabel="delay, ms", ylabel="jerk where chunks begin")
    jerk_axes.set_ylim(bottom=0)
    score_axes.legend(loc="lower left", frameon=False)
    return figure


def _delay_claims(found: Found) -> list[list[str]]:
    """Of every frozen prefix, beside plain chunking of the same training seeds."""
    claims, arms = [], _arms(found)
    for (task, chunking, executed, jitter, first), ours in arms.items():
        plain = arms.get((task, "plain", executed, jitter, first), {})
        if not chunking.startswith(_PREFIX) or not {0.0, _DELAY} <= ours.keys() & plain.keys():
            continue
        measured = [of[ms] for of in (ours, plain) for ms in (0.0, _DELAY)]
        seeds = sorted(set(measured[0]).intersection(*measured))
        if not seeds:
            continue
        ours, plain = (
            {ms: {seed: of[ms][seed] for seed in seeds} for ms in (0.0, _DELAY)}
            for of in (ours, plain)
        )
        where = f"{task}, {chunking}, {executed} actions at a time, {_DELAY:g} ± {jitter:g} ms"
        command = f"`bench delay … --task {task}`"
        undelayed, delayed = (_crossed(ours[ms], "scores") for ms in (0.0, _DELAY))
        lost = delayed - _KEPT * undelayed
        kept, by_plain = (
            _mean(of[_DELAY], "score") / _mean(of[0.0], "score") for of in (ours, plain)
        )
        claims.append([
            f"keeps {_KEPT:g} of the undelayed score: {where}", command,
            f"{kept:.3f} against {by_plain:.3f} of plain chunking, {_size(lost)}",
            _of(lost, verdict_of(*bootstrap_crossed(lost, are_differences=True), 0.0)),
        ])  # fmt: skip
        jerk, of_plain = (_mean(of[_DELAY], "seam_jerk") for of in (ours, plain))
        claims.append([
            f"the jerk where chunks begin is at most half of plain chunking's: {where}", command,
            f"{jerk:.3g} against {of_plain:.3g}",
            _of(lost, "holds" if jerk <= 0.5 * of_plain else "does not hold"),
        ])  # fmt: skip
    return claims
