"""The report's figures, each one function from results to a PNG."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ebt_policy.descent import Trace

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    }
)  # fmt: skip

COLOURS: dict[str, str] = {
    "ebt": "#1b6ca8", "diffusion": "#d1642b", "flow": "#c9a227", "mip": "#4c9a52",
    "regression": "#7d6b9e", "ibc": "#8a8a8a",
}  # fmt: skip
NAMES: dict[str, str] = {
    "ebt": "EBT-Policy", "diffusion": "Diffusion Policy", "flow": "Flow matching", "mip": "MIP",
    "regression": "Regression", "ibc": "IBC",
}  # fmt: skip


def label(result: dict[str, Any]) -> str:
    """A policy and how it acted, for legends and tables."""
    name = NAMES[result["policy"]]
    if result["policy"] == "ebt":
        descent = result["settings"]["descent"]
        mean = "mean of " if descent.get("pick") == "mean" else ""
        starts = f", {mean}{descent['starts']} starts" if descent["starts"] > 1 else ""
        return f"{name}, {_steps(descent['steps'])}{starts}"
    steps = round(result["descent_steps_mean"])
    if result["policy"] == "diffusion":
        settings = result["settings"]["diffusion"]
        predicts = " of predicted actions" if settings.get("prediction") == "sample" else ""
        many = settings.get("samples", 1)
        mean = f", mean of {many}" if many > 1 else ""
        return f"{name}{predicts}, {result['sampler'].upper()}-{steps}{mean}"
    if result["policy"] == "flow":
        return f"{name}, Euler-{steps}"
    if result["policy"] == "ibc":
        return f"{name}, {result['sampler']}"
    return name


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def png(figure: Figure) -> bytes:
    """Render a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return buffer.getvalue()


def success_bars(results: list[dict[str, Any]], measure: str) -> Figure:
    """Bars with 95% intervals: ``success`` (Wilson) or ``score``, by task.

    Args:
        results: each with the name of its run as ``run``.
        measure: one of the two.
    """
    value_key, interval_key = (
        ("success_rate", "success_ci95") if measure == "success" else ("score_mean", "score_ci95")
    )
    ordered = sorted(results, key=lambda result: result["task"])
    figure = Figure(figsize=(7.0, 0.6 + 0.42 * len(ordered)))
    axes = figure.add_subplot()
    place, places = 0.0, []
    for index, result in enumerate(ordered):
        if index and result["task"] != ordered[index - 1]["task"]:
            place += 0.6
        value, (low, high) = result[value_key], result[interval_key]
        axes.barh(place, value, color=COLOURS[result["policy"]], height=0.75)
        axes.errorbar(
            value, place, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            color="black", capsize=4, linewidth=1,
        )  # fmt: skip
        places.append(place)
        place += 1
    names = [f"{result['task']}, {result['run']}: {label(result)}" for result in ordered]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("success rate" if measure == "success" else "mean score")
    axes.grid(axis="y", visible=False)
    return figure


def learning_curves(curves: list[tuple[str, str, list[dict[str, Any]]]]) -> Figure:
    """Loss and held-out action error against training time, one line for each run.

    Args:
        curves: (name, policy, metrics) of each run.
    """
    figure = Figure(figsize=(8.4, 3.0))
    loss_axes, error_axes = figure.subplots(1, 2)
    styles = ["-", "--", ":", "-."]
    seen: dict[str, int] = {}
    for name, policy, metrics in curves:
        style = styles[seen.setdefault(policy, 0) % len(styles)]
        seen[policy] += 1
        for axes, key, marker in (
            (loss_axes, "loss", None), (error_axes, "validation_action_mse", "o"),
        ):  # fmt: skip
            points = [(m["seconds"], m[key]) for m in metrics if key in m]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=COLOURS[policy], label=name,
                    marker=marker if len(points) > 1 else "o", markersize=3, linewidth=1.2,
                )  # fmt: skip
    for axes, title in (
        (loss_axes, "training loss (each objective's own scale)"),
        (error_axes, "held-out action error (mean square, normalised)"),
    ):
        axes.set_yscale("log")
        axes.set_xlabel("training time (s)")
        axes.set_title(title, fontsize=9)
    if error_axes.get_legend_handles_labels()[1]:
        error_axes.legend(fontsize=7)
    figure.tight_layout()
    return figure


def energy_against_step(trace: Trace, first: int, moments: list[int], rate: float | None) -> Figure:
    """Energy and gradient norm over the descent steps, one line for each moment.

    Args:
        trace: of a descent without noise.
        first: steps taken before its start.
        moments: control steps of the episode, one for each sample.
        rate: control steps per second, if it is known.
    """
    steps = np.arange(first, first + trace.energy.shape[1])
    figure = Figure(figsize=(8.4, 2.8))
    energy_axes, norm_axes = figure.subplots(1, 2)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(moments)))
    for row, moment in enumerate(moments):
        name = f"step {moment}" if rate is None else f"{moment / rate:.1f} s"
        style = {"color": colours[row], "ms": 3}
        energy_axes.plot(steps, trace.energy[row].tolist(), "o-", label=name, **style)
        norm_axes.plot(steps[:-1], trace.gradient_norm[row].tolist(), "o-", **style)
    energy_axes.set_ylabel("energy")
    if bool((trace.energy > 0).all()):
        energy_axes.set_yscale("log")
    energy_axes.legend(fontsize=7, title="moment in the episode", title_fontsize=7)
    norm_axes.set_ylabel("gradient norm (RMS)")
    norm_axes.set_yscale("log")
    for axes in (energy_axes, norm_axes):
        axes.set_xlabel("descent step")
    figure.tight_layout()
    return figure


def descent_in_action_space(path: list[np.ndarray], first: int, executed: slice) -> Figure:
    """How one chunk moves over the descent: its first two action dimensions.

    Args:
        path: chunks (T, A) of the iterates, in the units of the demonstrations; the last one is
            what the policy returns.
        first: steps taken before the first iterate.
        executed: the part of the chunk that is executed.
    """
    two = path[0].shape[1] > 1
    figure = Figure(figsize=(8.4, 3.4))
    plane, time = figure.subplots(1, 2)
    colours = matplotlib.colormaps["plasma"](np.linspace(0.85, 0.0, len(path)))
    for k, chunk in enumerate(path):
        last = k == len(path) - 1
        style = {"color": colours[k], "lw": 2.0 if last else 1.0, "label": _steps(first + k)}
        if two:
            plane.plot(chunk[:, 0], chunk[:, 1], "o-", ms=3, **style)
        time.plot(chunk[:, 0], "o-", ms=3, **style)
    time.axvspan(executed.start - 0.5, executed.stop - 0.5, color="#1b6ca8", alpha=0.08, lw=0)
    time.set_xlabel("action of the chunk (shaded: executed)")
    time.set_ylabel("action dimension 0")
    time.legend(fontsize=7)
    if two:
        plane.set_xlabel("action dimension 0")
        plane.set_ylabel("action dimension 1")
    else:
        plane.set_visible(False)
    figure.tight_layout()
    return figure


def word_saliency(said: list[str], moved: np.ndarray, moments: list[int], rate: float) -> Figure:
    """Bars of how much each word matters, a colour for each moment.

    Args:
        said: the words.
        moved: (moments, words), see :func:`ebt_policy.evaluation.energy_quality.word_saliency`.
        moments: control steps of the episode.
        rate: control steps per second.
    """
    figure = Figure(figsize=(8.4, 2.4))
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(moments)))
    width = 0.8 / len(moments)
    for row, moment in enumerate(moments):
        places = np.arange(len(said)) + (row - (len(moments) - 1) / 2) * width
        axes.bar(places, moved[row], width, color=colours[row], label=f"{moment / rate:.1f} s")
    axes.set_xticks(range(len(said)), said)
    axes.set_ylabel("moved without it (RMS)")
    axes.legend(fontsize=7, title="moment in the episode", title_fontsize=7)
    figure.tight_layout()
    return figure


def pixel_saliency(
    pictures: np.ndarray, slopes: np.ndarray, moments: list[int], rate: float
) -> Figure:
    """What a camera saw at some moments, and under it the same with what mattered lit up.

    Args:
        pictures: (moments, h, w, 3) in [0, 1].
        slopes: (moments, h, w), see :func:`ebt_policy.evaluation.energy_quality.pixel_saliency`.
        moments: control steps of the episode.
        rate: control steps per second.
    """
    figure = Figure(figsize=(1.7 * len(moments), 3.5))
    axes = figure.subplots(2, len(moments), squeeze=False)
    for column, moment in enumerate(moments):
        light = np.clip(slopes[column] / np.quantile(slopes[column], 0.995), 0, 1)[..., None]
        grey = pictures[column].mean(-1, keepdims=True).repeat(3, -1)
        heat = matplotlib.colormaps["inferno"](light[..., 0])[..., :3]
        axes[0, column].imshow(pictures[column])
        axes[1, column].imshow(0.4 * grey * (1 - light) + heat * light)
        axes[0, column].set_title(f"{moment / rate:.1f} s", fontsize=8)
        for axis in axes[:, column]:
            axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    return figure


def along_episode(record: dict[str, Any], action_steps: int, rate: float | None) -> Figure:
    """Descent steps and final energy of each chunk along an episode."""
    figure = Figure(figsize=(8.4, 2.4))
    steps_axes, energy_axes = figure.subplots(1, 2)
    times = np.arange(len(record["descent_steps"])) * action_steps / (rate or 1)
    steps_axes.step(times, record["descent_steps"], where="post", color=COLOURS["ebt"])
    steps_axes.set_ylim(0, max(record["descent_steps"]) + 1)
    steps_axes.set_ylabel("descent steps of the chunk")
    energy_axes.plot(
        times[: len(record["energy"])], record["energy"], "o-", ms=3, color=COLOURS["ebt"]
    )
    energy_axes.set_ylabel("final energy of the chunk")
    for axes in (steps_axes, energy_axes):
        axes.set_xlabel("time in the episode (s)" if rate else "step of the episode")
    figure.tight_layout()
    return figure
