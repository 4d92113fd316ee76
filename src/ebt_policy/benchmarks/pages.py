"""The tables and plots of ``docs/objectives.md``, from the files under ``results/`` alone.

What they share with another page, :mod:`ebt_policy.benchmarks.claims`, is here, too. Between
``<!-- table: NAME -->`` and ``<!-- end -->`` stands a table; figures are written beside the page,
into ``figures/``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ebt_policy.benchmarks.objectives import METHODS, STUDY, TASKS
from ebt_policy.benchmarks.runner import is_current, read_lines
from ebt_policy.benchmarks.study import LANDSCAPE, QUALITY, Study
from ebt_policy.errors import UserError
from ebt_policy.evaluation.statistics import bootstrap_crossed
from ebt_policy.policies.files import replace_file
from ebt_policy.report.figures import png
from ebt_policy.tasks.planar import RADIUS

OURS = ("basin", "2 steps")
COLOURS = {
    "basin": "#1b6ca8", "one-way": "#2f8f9d", "scalar": "#12324a",
    "equilibrium": "#6aa5cf", "unrolled": "#a9c9e4", "diffusion": "#d1642b",
    "flow": "#c9a227", "mip": "#4c9a52", "regression": "#7d6b9e", "ibc": "#8a8a8a",
    "annealed": "#3d4fb5", "diffusion-x0": "#8f3d14", "split": "#b5338a",
}  # fmt: skip
_METAWORLD = [slug for slug in TASKS if slug.startswith("metaworld")]
_STEPS = re.compile(r"^(\d+) steps?$")


@dataclass(frozen=True)
class Group:
    """All results of one method acting one way on one task, over its training seeds."""

    lines: tuple[dict[str, Any], ...]

    def values(self, key: str) -> np.ndarray:
        """(seeds, starts) of ``scores`` or ``successes``."""
        return np.array([line[key] for line in self.lines], np.float64)

    def mean(self, *path: str) -> float:
        """Mean over seeds of a number in the lines."""
        found = []
        for line in self.lines:
            value: Any = line
            for key in path:
                value = value[key]
            found.append(float(value))
        return float(np.mean(found))


def _group(lines: dict[int, dict[str, Any]]) -> Group:
    return Group(tuple(lines[seed] for seed in sorted(lines)))


class Results:
    """Every result of a study, grouped.

    Attributes:
        groups: by task, number of demonstrations, method and way of acting.
        costs: what was measured of training steps.
        partial: by task, method, way of acting and share of the budget, with most demonstrations.
    """

    def __init__(self, folder: Path, study: Study = STUDY) -> None:
        # Results of other settings than today's are left out; of two the later one counts.
        today = {cell.name: cell for cell in study.cells([])}
        found: dict[tuple[str, int, str, str], dict[int, dict[str, Any]]] = {}
        partial: dict[tuple[str, str, str, float], dict[int, dict[str, Any]]] = {}
        for slug in study.tasks:
            for line in read_lines(folder / f"{slug}.jsonl"):
                cell = today.get(line["cell"])
                if cell is None or not is_current(line, cell, folder):
                    continue
                key = (slug, line["demonstrations"], line["method"], line["act"])
                if cell.share == 1:
                    found.setdefault(key, {})[line["seed"]] = line
                where = (slug, line["method"], line["act"], cell.share)
                partial.setdefault(where, {})[line["seed"]] = line
        self.costs = [json.loads(path.read_text()) for path in sorted(folder.glob("cost-*.json"))]
        self.groups = {key: _group(lines) for key, lines in found.items()}
        self.partial = {key: _group(lines) for key, lines in partial.items()}

    def most(self, slug: str) -> int:
        """The largest number of demonstrations with results."""
        return max((demos for task, demos, _, _ in self.groups if task == slug), default=0)

    def ways(self, slug: str, share: float = 1.0) -> dict[tuple[str, str], Group]:
        """All groups of a task by method and way of acting, of the most demonstrations."""
        if share == 1:
            most = self.most(slug)
            return {key[2:]: group for key, group in self.groups.items() if key[:2] == (slug, most)}
        return {
            (method, act): group
            for (task, method, act, part), group in self.partial.items()
            if (task, part) == (slug, share)
        }

    def get(self, slug: str, method: str, act: str, demos: int | None = None) -> Group | None:
        """One group; by default of the most demonstrations."""
        demos = self.most(slug) if demos is None else demos
        return self.groups.get((slug, demos, method, act))


def render(page: Path, results: Path) -> None:
    """Write the page's tables and figures.

    Raises:
        UserError: the page is missing or names an unknown table.
    """
    if not page.exists():
        raise UserError(f"--render {page}: no such page")
    found = Results(results)
    for name, figure in (
        ("steps", _figure_steps(found)), ("curve", _figure_curve(found)),
        ("adaptive", _figure_adaptive(found)), ("landscape", _figure_landscape(found)),
    ):  # fmt: skip
        if figure is not None:
            replace_file(page.parent / "figures" / f"objectives-{name}.png", png(figure))

    tables = {slug: functools.partial(_table_task, slug=slug) for slug in TASKS} | _TABLES
    fill(page, {name: functools.partial(table, found) for name, table in tables.items()})


def fill(page: Path, tables: Mapping[str, Callable[[], str]]) -> None:
    """Write a page's tables anew.

    Raises:
        UserError: the page names an unknown table.
    """

    def table(match: re.Match[str]) -> str:
        if match[1] not in tables:
            raise UserError(f"{page}: unknown table {match[1]!r}")
        return f"<!-- table: {match[1]} -->\n{tables[match[1]]()}<!-- end -->"

    text = re.sub(r"<!-- table: (\S+) -->.*?<!-- end -->", table, page.read_text(), flags=re.S)
    replace_file(page, text.encode())
    print(page)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bracketed(mean: float, low: float, high: float) -> str:
    """A figure and its interval."""
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def verdict_of(low: float, high: float, least: float) -> str:
    """Whether a value of this interval is at least so large."""
    return "holds" if low >= least else "does not hold" if high < least else "open"


def interval(values: np.ndarray, signed: bool = False, tasks: int = 1) -> str:
    """Mean and 95% interval of values (seeds, starts), or of differences, as text."""
    low, high = bootstrap_crossed(values, tasks, are_differences=signed)
    sign = "+" if signed else ""
    return f"{np.nanmean(values):{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def difference(one: Group, other: Group, key: str) -> np.ndarray:
    """(seeds, starts) of one minus the other, over the seeds and starts that both have."""
    left, right = ({line["seed"]: line[key] for line in group.lines} for group in (one, other))
    rows = []
    for seed in sorted(set(left) & set(right)):
        starts = min(len(left[seed]), len(right[seed]))
        rows.append(np.subtract(left[seed][:starts], right[seed][:starts]))
    return np.array(rows, np.float64)


def _table_task(found: Results, slug: str) -> str:
    """Every method and way of acting on one task."""
    reference = found.get(slug, *OURS)
    key = "scores" if slug == "pusht" else "successes"
    has_routes = slug == "planar-fork"
    head = [
        "method", "acts by", "steps", "success [95%]",
        *(["score [95%]"] if key == "scores" else []),
        "minus basin, 2 steps", *(["above / below", "collisions"] if has_routes else []),
        "seeds × starts", "training steps", "windows seen", "multiply-adds",
    ]  # fmt: skip
    rows = []
    for method in METHODS.values():
        for act in filter(lambda act: act.is_rollout, method.acts):
            group = found.get(slug, method.name, act.name)
            if group is None:
                continue
            gap = ""
            if reference is not None and len(paired := difference(group, reference, key)):
                gap = interval(paired, True)
            shares = []
            if has_routes:
                above, below = (group.mean("route_shares", way) for way in ("above", "below"))
                shares = [f"{above:.2f} / {below:.2f}", f"{group.mean('collisions'):.2f}"]
            seeds, starts = group.values("scores").shape
            rows.append([
                method.name, act.name, f"{group.mean('descent_steps_mean'):.1f}",
                interval(group.values("successes")),
                *([interval(group.values("scores"))] if key == "scores" else []),
                "" if group is reference else gap, *shares, f"{seeds} × {starts}",
                f"{group.mean('training', 'steps'):,.0f}",
                f"{group.mean('training', 'samples'):,.0f}",
                f"{group.mean('training', 'multiply_adds'):.1e}",
            ])  # fmt: skip
    return markdown(head, rows)


def _table_metaworld(found: Results) -> str:
    """Success on each Meta-World task with the most demonstrations."""
    slugs = _METAWORLD
    rows = []
    for method in METHODS.values():
        for act in filter(lambda act: act.is_rollout, method.acts):
            groups = {slug: found.get(slug, method.name, act.name) for slug in slugs}
            measured = [group for group in groups.values() if group is not None]
            if not measured:
                continue
            cells = [
                "" if g is None else f"{g.values('successes').mean():.2f}" for g in groups.values()
            ]
            every = np.concatenate([group.values("successes") for group in measured], 1)
            mean = interval(every, tasks=len(slugs)) if len(measured) == len(slugs) else ""
            rows.append([method.name, act.name, *cells, mean])
    names = [slug.removeprefix("metaworld-") for slug in slugs]
    return markdown(["method", "acts by", *names, "mean [95%]"], rows)


def _curve(found: Results, method: str, act: str) -> dict[int, np.ndarray]:
    """(seeds, tasks × starts) of successes by number of demonstrations, where complete."""
    slugs, curve = _METAWORLD, {}
    for count in sorted({demos for slug, demos, _, _ in found.groups if slug in slugs}):
        groups = [found.get(slug, method, act, count) for slug in slugs]
        whole = [group for group in groups if group is not None]
        if len(whole) == len(slugs):
            curve[count] = np.concatenate([group.values("successes") for group in whole], 1)
    return curve


def _core_acts() -> list[tuple[str, str]]:
    return [(m.name, act.name) for m in METHODS.values() for act in m.acts if act.core]


def _table_curve(found: Results) -> str:
    """Mean success over the Meta-World tasks by number of demonstrations."""
    curves = {key: _curve(found, *key) for key in _core_acts()}
    counts = sorted({count for curve in curves.values() for count in curve})
    rows = [
        [
            *key,
            *(interval(curve[c], tasks=len(_METAWORLD)) if c in curve else "" for c in counts),
        ]
        for key, curve in curves.items()
        if curve
    ]
    return markdown(["method", "acts by", *(f"{c} demonstrations" for c in counts)], rows)


def _table_quality(found: Results) -> str:
    """Energy quality, the untrained network beside it."""
    rows = []
    for (slug, _, method, act), group in sorted(found.groups.items()):
        if act != QUALITY:
            continue
        cells = []
        for name in ("auroc_random", "auroc_near", "spearman_white", "spearman_smooth"):
            trained, untrained = (
                np.mean([line[which][name][0] for line in group.lines])
                for which in ("quality", "untrained")
            )
            cells.append(f"{trained:.3f} ({untrained:.3f})")
        observations = sum(line["quality"]["observations"] for line in group.lines)
        rows.append([slug, method, str(observations), *cells])
    return markdown(
        ["task", "method", "observations", "AUROC, random chunks", "AUROC, near chunks",
         "Spearman, white", "Spearman, smooth"], rows,
    )  # fmt: skip


def _table_cost(found: Results) -> str:
    """Time of one training step relative to a Diffusion Policy step."""
    rows = []
    for measured in found.costs:
        for name, cost in measured["methods"].items():
            low, high = cost["quartiles"]
            rows.append([
                measured["preset"], str(cost["batch_size"]), name, f"{cost['ms']:.1f}",
                f"{cost['ratio']:.2f} ({low:.2f} to {high:.2f})",
            ])  # fmt: skip
    return markdown(["preset", "batch", "method", "ms", "ratio to diffusion (quartiles)"], rows)


_TABLES: dict[str, Callable[[Results], str]] = {
    "metaworld": _table_metaworld, "curve": _table_curve, "quality": _table_quality,
    "cost": _table_cost,
}  # fmt: skip


def _figure_steps(found: Results) -> Figure | None:
    """Score or success against the number of descent steps, on every task."""
    slugs = [slug for slug in TASKS if found.get(slug, *OURS) is not None]
    if not slugs:
        return None
    figure = Figure(figsize=(9.0, 2.6 * ((len(slugs) + 2) // 3)), layout="constrained")
    handles: dict[str, Any] = {}
    for place, slug in enumerate(slugs, 1):
        axes = figure.add_subplot((len(slugs) + 2) // 3, 3, place)
        key = "scores" if slug == "pusht" else "successes"
        for method in ("basin", "equilibrium", "unrolled"):
            points = []
            for act in METHODS[method].acts:
                group, match = found.get(slug, method, act.name), _STEPS.match(act.name)
                if group is not None and match:
                    values = group.values(key)
                    points.append((int(match[1]), values.mean(), *bootstrap_crossed(values)))
            if points:
                steps, mean, low, high = np.array(points).T
                axes.plot(steps, mean, "o-", ms=3, color=COLOURS[method], label=method)
                axes.fill_between(steps, low, high, color=COLOURS[method], alpha=0.2, lw=0)
        for method, act_name in (
            ("diffusion", "DDIM-10"),
            ("mip", "2 evaluations"),
            ("regression", "1 evaluation"),
        ):
            group = found.get(slug, method, act_name)
            if group is not None:
                axes.axhline(
                    group.values(key).mean(), color=COLOURS[method], lw=1, ls="--",
                    label=f"{method}, {act_name}",
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.set_title(slug, fontsize=9)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("descent steps")
        axes.set_ylabel("score" if key == "scores" else "success")
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=7
    )
    return figure


def _figure_curve(found: Results) -> Figure | None:
    """Mean success over the Meta-World tasks against the number of demonstrations."""
    figure = Figure(figsize=(5.5, 3.4))
    axes = figure.add_subplot()
    drawn = False
    for method, act in _core_acts():
        curve = _curve(found, method, act)
        if not curve:
            continue
        drawn = True
        counts = sorted(curve)
        style = ":" if (method, act) == ("basin", "1 step") else "-"
        means = [curve[c].mean() for c in counts]
        tasks = len(_METAWORLD)
        low, high = np.array([bootstrap_crossed(curve[c], tasks) for c in counts]).T
        axes.plot(counts, means, f"o{style}", ms=3, color=COLOURS[method], label=f"{method}, {act}")
        if (method, act) == OURS:
            axes.fill_between(counts, low, high, color=COLOURS[method], alpha=0.2, lw=0)
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("demonstrations")
    axes.set_ylabel("mean success, Meta-World")
    if not drawn:
        return None
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _figure_adaptive(found: Results) -> Figure | None:
    """Where chunks stop by themselves: steps by what the robot did, and along one episode."""
    slugs = [slug for slug in TASKS if found.get(slug, "basin", "adaptive") is not None]
    if not slugs:
        return None
    figure = Figure(figsize=(9.0, 2.5 * len(slugs)))
    every = figure.subplots(len(slugs), 2, squeeze=False, width_ratios=(1, 1.6))
    groups = {slug: found.groups[slug, found.most(slug), "basin", "adaptive"] for slug in slugs}
    lines = [line for group in groups.values() for line in group.lines]
    phases = sorted({doing for line in lines for doing in line["steps_by_doing"]})
    colours = dict(zip(phases, COLOURS.values(), strict=False))
    for slug, (bars, along) in zip(slugs, every, strict=True):
        group = groups[slug]
        counts: dict[str, dict[int, int]] = {}
        for line in group.lines:
            for doing, taken in line["steps_by_doing"].items():
                mine = counts.setdefault(doing, {})
                for steps, number in taken.items():
                    mine[int(steps)] = mine.get(int(steps), 0) + number
        most = max(steps for mine in counts.values() for steps in mine)
        width = 0.8 / len(counts)
        for place, doing in enumerate(sorted(counts)):
            mine, chunks = counts[doing], sum(counts[doing].values())
            bars.bar(
                [steps + (place - (len(counts) - 1) / 2) * width for steps in sorted(mine)],
                [mine[steps] / chunks for steps in sorted(mine)],
                width, color=colours[doing], label=f"{doing} ({chunks} chunks)",
            )  # fmt: skip
        bars.set_yscale("log")
        bars.set_ylim(top=1)
        bars.set_xticks(range(1, most + 1, max(1, most // 6)))
        bars.set_xlabel("steps of a chunk")
        bars.set_ylabel("share of chunks")
        bars.set_title(f"{slug}: {group.mean('descent_steps_mean'):.2f} steps", fontsize=9)
        episode = group.lines[0]["first_episode"]
        for doing, colour in colours.items():
            at = [k for k, what in enumerate(episode["doing"]) if what == doing]
            along.bar(at, [episode["steps"][k] for k in at], 0.9, color=colour)
        along.legend(
            *bars.get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0),
            ncols=len(counts), fontsize=6, frameon=False,
        )  # fmt: skip
        along.xaxis.set_major_locator(MaxNLocator(integer=True))
        along.yaxis.set_major_locator(MaxNLocator(integer=True))
        along.set_ylabel("steps")
        along.set_xlabel("chunk of one episode, the first start")
        energy = along.twinx()
        energy.plot(episode["energy"], "k.-", lw=0.8, ms=3)
        energy.set_ylabel("energy (line)", fontsize=8)
    figure.tight_layout()
    return figure


def _figure_landscape(found: Results) -> Figure | None:
    """The energy of the fork on a slice, with descents, and the same chunks in the plane."""
    group = found.get("planar-fork", "basin", LANDSCAPE)
    if group is None:
        return None
    line = group.lines[0]
    figure = Figure(figsize=(9.6, 3.9))
    slice_axes, plane = figure.subplots(1, 2)
    energy = np.array(line["energy"])
    levels = energy.min() + np.geomspace(0.02, 1.0, 24) * (np.percentile(energy, 97) - energy.min())
    shades = slice_axes.contourf(
        line["across"], line["along"], energy, levels=levels, cmap="viridis", extend="both"
    )
    figure.colorbar(shades, ax=slice_axes, label="energy", format="%.2f")
    colours = ("#f2f2f2", "#f6b26b", "#e0382e")
    names = ("step 1: a proposal", "walk", "step 2: jump")
    for path in np.array(line["paths"]):
        slice_axes.plot(*path.T, color="white", lw=0.8)
        for colour, point in zip(colours, path, strict=True):
            slice_axes.plot(*point, "o", ms=5, color=colour, mec="black", mew=0.5)
    for colour, name in zip(colours, names, strict=True):
        slice_axes.plot([], [], "o", ms=5, color=colour, mec="black", mew=0.5, label=name)
    slice_axes.plot(  # hollow: the dots are around it
        [1, -1], [0, 0], "*", ms=15, mfc="none", mec="white", zorder=3, label="demonstrated ways",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )  # fmt: skip
    slice_axes.set_xlabel("from one way (-1) to the other (1)")
    slice_axes.set_ylabel("along the way")
    slice_axes.set_xlim(line["across"][0], line["across"][-1])
    slice_axes.set_ylim(line["along"][0], line["along"][-1])
    slice_axes.legend(fontsize=7, loc="upper right")
    plane.add_patch(Circle(line["disc"], RADIUS, color="#b0b0b0", lw=0))
    for way in line["demonstrated"]:
        plane.plot(*np.array(way).T, color="black", lw=3, alpha=0.25)
    for chunks in np.array(line["chunks"]):
        for colour, chunk in zip(("#555555", "#f6b26b", "#e0382e"), chunks, strict=True):
            plane.plot(*chunk.T, "-", lw=1, color=colour)
    for colour, name in zip(("#555555", "#f6b26b", "#e0382e"), names, strict=True):
        plane.plot([], [], "-", color=colour, label=name)
    plane.plot([], [], color="black", lw=3, alpha=0.25, label="demonstrated")
    plane.plot(*line["point"], "ko", ms=5)
    plane.set_aspect("equal")
    plane.set_xlim(-0.9, 0.4)
    plane.set_ylim(-0.7, 0.7)
    plane.legend(fontsize=7, loc="upper right")
    plane.set_xlabel("x")
    plane.set_ylabel("y")
    figure.tight_layout()
    return figure
