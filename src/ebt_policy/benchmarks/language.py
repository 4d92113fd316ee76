"""The study behind ``docs/language.md``: one policy for many tasks, told by a sentence which.

``basin-minilm`` is ``basin`` with sentences read by a pretrained text encoder instead of hashed.
In every start of ``metaworld/mt10`` a sentence is drawn from those that were trained on; or, as
``+paraphrase``, from others.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from ebt_policy.benchmarks.manipulation import TWO_STEPS
from ebt_policy.benchmarks.objectives import METHODS
from ebt_policy.benchmarks.pages import (
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
from ebt_policy.benchmarks.study import PARAPHRASED, WORDS, Act, BenchTask, Method, Study
from ebt_policy.evaluation.statistics import bootstrap_crossed, wilson

_HASHED = "state,task"
_MINILM = f"{_HASHED}:encoder=sentence-transformers/all-MiniLM-L6-v2"


def _told(name: str, act: Act, *more: Act, observes: str = _HASHED) -> Method:
    """A method of the study of objectives that is told what to do, in trained words and others."""
    other = replace(act, name=act.name + PARAPHRASED, disturbance=PARAPHRASED)
    return replace(
        METHODS[name], acts=(replace(act, core=True), *more, other), observes=observes, cost=name
    )


_METHODS = {
    "basin": _told("basin", TWO_STEPS, Act("1 step", ("descent.steps=1",)), Act(WORDS)),
    "basin-minilm": replace(
        _told("basin", TWO_STEPS, Act(WORDS), observes=_MINILM), name="basin-minilm"
    ),
    "diffusion": _told("diffusion", Act("DDIM-10", ("diffusion.ddim_steps=10",))),
    "mip": _told("mip", Act("2 evaluations")),
    "regression": _told("regression", Act("1 evaluation")),
}
_TASKS = {
    task.slug: task
    for task in (
        BenchTask("metaworld/puck", (150,), 120.0, (0,), 300, ("basin", "basin-minilm")),
        BenchTask("metaworld/mt10", (500,), 360.0, (0,), 200, tuple(_METHODS)),
        BenchTask("metaworld/mt50", (1000,), 1800.0, (0,), 500, tuple(_METHODS)),
    )
}
STUDY = Study("language", _TASKS, _METHODS)
_PUCK = "metaworld-puck"
MANY = {"metaworld-mt10": "MT10", "metaworld-mt50": "MT50"}
_NAMES = MANY | {_PUCK: "puck"}
_READERS = {"basin": "hashed", "basin-minilm": "all-MiniLM-L6-v2"}
# What tells the right sentence, and in words.
_PREFERRED = {
    "auroc_energy": "the energy", "auroc_excess": "the energy above where a step lands",
    "auroc_step": "the step",
}  # fmt: skip
_TARGET, _MARGIN = 0.9, 0.03
_SUCCESS = {"MT10": 0.9, "MT50": 0.75}
_SHOWN = 10  # tasks whose sentences are told apart one by one


def render_language(page: Path, folder: Path) -> None:
    """Write the tables of ``docs/language.md``.

    Raises:
        UserError: the page is missing or names an unknown table.
    """
    found = Results(folder, STUDY)
    fill(
        page,
        {
            "claims": lambda: _claims(found), "success": lambda: _success(found),
            "puck": lambda: _puck(found), "words": lambda: _words(found),
            **{
                f"tasks-{name}": functools.partial(_per_task, found, slug)
                for slug, name in MANY.items()
            },
        },
    )  # fmt: skip


def _claims(found: Results) -> str:
    """Claim, command, figure, verdict; all of one training seed."""
    rows: list[list[str]] = []

    def add(claim: str, slug: str, method: str, values: np.ndarray, least: float) -> None:
        signed = least < 0
        low, high = bootstrap_crossed(values, are_differences=signed)
        rows.append([
            claim, f"`bench language --only '{slug}/*/{method}/0'`",
            f"{interval(values, signed)}, {len(values)} × {values.shape[1]}",
            verdict_of(low, high, least),
        ])  # fmt: skip

    for slug, task in MANY.items():
        ours = found.get(slug, *OURS)
        if ours is None:
            continue
        name = f"two steps succeed in {_SUCCESS[task]:g}: {task}"
        add(name, slug, OURS[0], ours.values("successes"), _SUCCESS[task])
        for method, act in (("diffusion", "DDIM-10"), ("mip", "2 evaluations"),
                            ("regression", "1 evaluation")):  # fmt: skip
            other = found.get(slug, method, act)
            if other is not None:
                gap = difference(ours, other, "successes")
                name = f"two steps are at most {_MARGIN:g} below {method}, {act}: {task}"
                add(name, slug, method, gap, -_MARGIN)
    for method, reader in _READERS.items():
        group = found.get(_PUCK, method, OURS[1])
        if group is not None:
            name = f"the named task is done, and no other first, in {_TARGET:g}: puck, {reader}"
            add(name, _PUCK, method, group.values("successes"), _TARGET)
            did = group.lines[0]["did"]
            named = sum(did[task][task] for task in did)
            some = sum(sum(did[task][other] for other in did) for task in did)
            low, high = wilson(named, some)
            rows.append([
                f"what is done is the named task in {_TARGET:g}: puck, {reader}", rows[-1][1],
                f"{named / some:.3f} [{low:.3f}, {high:.3f}], {named} of {some}",
                verdict_of(low, high, _TARGET),
            ])  # fmt: skip
    for slug, task in _NAMES.items():
        for method, reader in _READERS.items():
            seen = found.get(slug, method, OURS[1])
            unseen = found.get(slug, method, OURS[1] + PARAPHRASED)
            if seen is not None and unseen is not None:
                said = [group.values("successes") for group in (seen, unseen)]
                low, high = bootstrap_crossed(said[1] - _TARGET * said[0])
                rows.append([
                    f"unseen sentences keep {_TARGET:g} of the seen ones' success: {task}, "
                    f"{reader}", f"`bench language --only '{slug}/*/{method}/0'`",
                    f"{said[1].mean() / said[0].mean():.3f}, {len(said[0])} × {said[0].shape[1]}",
                    verdict_of(low, high, 0.0),
                ])  # fmt: skip
            measured = found.get(slug, method, WORDS)
            for key, what in _PREFERRED.items():
                if measured is not None:
                    mean, low, high = measured.lines[0]["words"][key]
                    rows.append([
                        f"{what} tells the right sentence, AUROC {_TARGET:g}: {task}, {reader}",
                        f"`bench language --only '{slug}/*/{method}/0'`",
                        bracketed(mean, low, high), verdict_of(low, high, _TARGET),
                    ])  # fmt: skip
    return markdown(["claim", "command", "figure [95%]", "verdict"], rows)


def _told_acts(found: Results, slug: str) -> list[tuple[str, str, Group, Group | None]]:
    """Method, way of acting, its results with seen sentences and with others."""
    acts = []
    for method in _METHODS.values():
        for act in method.acts:
            group = found.get(slug, method.name, act.name)
            if act.is_rollout and not act.disturbance and group is not None:
                unseen = found.get(slug, method.name, act.name + PARAPHRASED)
                acts.append((method.name, act.name, group, unseen))
    return acts


def _success(found: Results) -> str:
    rows = [
        [
            task, method, act, f"{seen.mean('descent_steps_mean'):.1f}",
            interval(seen.values("successes")),
            "" if unseen is None else interval(unseen.values("successes")),
            f"{len(seen.lines)} × {seen.mean('episodes'):.0f}",
            f"{seen.mean('training', 'steps'):,.0f}", f"{seen.mean('training', 'samples'):,.0f}",
        ]
        for slug, task in MANY.items()
        for method, act, seen, unseen in _told_acts(found, slug)
    ]  # fmt: skip
    head = ["tasks", "method", "acts by", "steps", "seen sentences [95%]", "unseen sentences [95%]"]
    return markdown([*head, "seeds × starts", "training steps", "windows seen"], rows)


def _per_task(found: Results, slug: str) -> str:
    acts = _told_acts(found, slug)
    tasks = list(acts[0][2].lines[0]["per_task"]) if acts else []
    rows = [
        [task, *(f"{seen.mean('per_task', task, 'success_rate'):.2f}" for _, _, seen, _ in acts)]
        for task in tasks
    ]
    return markdown(["task", *(f"{method}, {act}" for method, act, _, _ in acts)], rows)


def _puck(found: Results) -> str:
    rows = []
    for method, act, seen, unseen in _told_acts(found, _PUCK):
        for said, group in (("seen", seen), ("unseen", unseen)):
            if group is not None and act == OURS[1]:
                did = group.lines[0]["did"]
                rows += [
                    [_READERS[method], said, named, *map(str, did[named].values())] for named in did
                ]
    what = ["reach", "push", "pick-place", "nothing"]
    head = ["sentences read by", "sentences", "named", *(f"did {name}" for name in what)]
    return markdown(head, rows)


def _words(found: Results) -> str:
    rows = []
    for slug, task in _NAMES.items():
        for method, reader in _READERS.items():
            group = found.get(slug, method, WORDS)
            if group is None:
                continue
            measured = group.lines[0]["words"]
            meanings = measured["by_meaning"] if len(measured["by_meaning"]) <= _SHOWN else {}
            for name, values in (("all", measured), *meanings.items()):
                cells = [f"{np.atleast_1d(values[key])[0]:.3f}" for key in _PREFERRED]
                rows.append([task, reader, name, *cells])
    head = ["task", "sentences read by", "demonstrated"]
    return markdown([*head, *_PREFERRED.values()], rows)
