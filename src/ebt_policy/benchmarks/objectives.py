"""The study behind ``docs/objectives.md``: which methods, on which tasks, acting how.

A *cell* is one training run: a task, a number of demonstrations, a method and a seed. It is
evaluated in several ways of acting. All methods share the encoder, the trunk, the data and the
CPU time of training. That time is turned into a number of steps once, by what a step of each
method costs side by side in one run on a quiet machine (``bench cost``): so a cell can be trained
beside other work, on another day, and be the same.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from ebt_policy.config import ObjectiveName, PolicyName
from ebt_policy.errors import UserError

PRESET = "tiny"
EVALUATION_SEED = 100_000
QUALITY = "energy quality"
LANDSCAPE = "landscape"


@dataclass(frozen=True)
class Act:
    """One way in which a trained policy acts.

    Attributes:
        name: in the tables.
        settings: of acting, as ``eval --set`` takes them.
        core: whether it is measured for every number of demonstrations, or only for the most.
    """

    name: str
    settings: tuple[str, ...] = ()
    core: bool = False


@dataclass(frozen=True)
class Method:
    """One way to train. The second and third of :data:`METHODS` vary the first.

    Attributes:
        name: in the tables.
        policy, objective, batch_size, compile, settings: as ``train`` takes them. Where several
            steps of a descent are unrolled in training, compiling takes longer than it saves.
        acts: how it is evaluated.
    """

    name: str
    policy: PolicyName
    acts: tuple[Act, ...]
    settings: tuple[str, ...] = ()
    objective: ObjectiveName = "basin"
    batch_size: int = 64
    compile: bool = True

    @property
    def options(self) -> list[str]:
        """The options of ``train``."""
        objective = ["--objective", self.objective] if self.policy == "ebt" else []
        compiled = ["--compile"] if self.compile else []
        chosen = [part for setting in self.settings for part in ("--set", setting)]
        return [
            "--policy", self.policy, "--batch-size", str(self.batch_size),
            *compiled, *objective, *chosen,
        ]  # fmt: skip


def _steps(*counts: int, core: tuple[int, ...] = ()) -> tuple[Act, ...]:
    return tuple(
        Act(f"{k} step{'s' if k > 1 else ''}", (f"descent.steps={k}",), core=k in core)
        for k in counts
    )


ADAPTIVE = Act("adaptive", ("descent.steps=20", "descent.tolerance=0.04"))
SEVERAL = Act("2 steps, 8 starts", ("descent.steps=2", "descent.starts=8"))
METHODS = {
    method.name: method
    for method in (
        Method("basin", "ebt", (
            *_steps(1, 2, 3, 5, 10, 20, 50, core=(1, 2)), SEVERAL, ADAPTIVE,
            Act("2 steps, no walk", ("descent.steps=2", "descent.noise=0")),
        )),
        Method("one-way", "ebt", (*_steps(1, 2, 20), SEVERAL), ("basin.ways=1",)),
        Method("scalar", "ebt", (*_steps(1, 2, 20), SEVERAL), ("form=scalar",)),
        Method("equilibrium", "ebt", _steps(2, 10, 50), objective="equilibrium"),
        Method("unrolled", "ebt", (*_steps(2), Act("21 steps")), objective="unrolled",
               compile=False),
        Method("diffusion", "diffusion", (
            Act("DDIM-2", ("diffusion.ddim_steps=2",)),
            Act("DDIM-10", ("diffusion.ddim_steps=10",), core=True),
            Act("DDPM-100", ("diffusion.sampler=ddpm",)),
        ), batch_size=128),
        Method("flow", "flow", tuple(
            Act(f"Euler-{k}", (f"flow.steps={k}",), core=k == 2) for k in (1, 2, 10)
        ), batch_size=128),
        Method("mip", "mip", (Act("2 evaluations", core=True),)),
        Method("regression", "regression", (Act("1 evaluation", core=True),)),
        # A step of the default settings costs 144 diffusion steps: too few would be left.
        Method("ibc", "ibc", (Act("Langevin", ("ibc.iterations=20",), core=True),),
               ("ibc.counter_examples=8", "ibc.iterations=5"), batch_size=32, compile=False),
    )
}  # fmt: skip
ENERGY_METHODS = ("basin", "one-way", "scalar", "equilibrium", "unrolled", "ibc")
_ONE_SEED = ("one-way", "scalar", "equilibrium", "unrolled", "ibc")
_CURVE_METHODS = ("basin", "diffusion", "flow", "mip", "regression", "ibc")


@dataclass(frozen=True)
class BenchTask:
    """One task of the study.

    Attributes:
        name: as ``--task`` takes it.
        demonstrations: how many to learn from, the most last; () is a given file.
        budget: CPU time of each training in seconds, on the machine of ``bench cost``.
        seeds: of training; the variants of our own method and IBC have the first only.
        episodes: evaluation starts.
        methods: of :data:`METHODS`.
    """

    name: str
    demonstrations: tuple[int, ...]
    budget: float
    seeds: tuple[int, ...]
    episodes: int
    methods: tuple[str, ...]

    @property
    def slug(self) -> str:
        return self.name.replace("/", "-")


TASKS = {
    task.slug: task
    for task in (
        BenchTask("planar/fork", (200,), 60.0, (0, 1, 2), 200, tuple(METHODS)),
        BenchTask("pusht", (), 600.0, (0, 1, 2), 200, tuple(METHODS)),
        *(
            BenchTask(f"metaworld/{name}", (5, 10, 20, 50), budget, (0,), 50, _CURVE_METHODS)
            for name, budget in (
                ("assembly", 60.0),
                ("drawer-open", 60.0),
                ("pick-place", 60.0),
                ("push", 60.0),
                ("shelf-place", 300.0),  # after 60 s no method had learned it
            )
        ),
    )
}
PUSHT_DEMONSTRATIONS = 206


@dataclass(frozen=True)
class Cell:
    """One training run of the study."""

    task: BenchTask
    demonstrations: int
    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task.slug}/{self.demonstrations}/{self.method.name}/{self.seed}"

    @property
    def acts(self) -> tuple[Act, ...]:
        """The ways of acting that are measured for this cell."""
        most = not self.task.demonstrations or self.demonstrations == self.task.demonstrations[-1]
        acts = [act for act in self.method.acts if most or act.core]
        if most and self.method.name in ENERGY_METHODS:
            acts.append(Act(QUALITY))
        if self.task.name == "planar/fork" and self.method.name == "basin" and self.seed == 0:
            acts.append(Act(LANDSCAPE))
        return tuple(acts)


def cells(patterns: list[str]) -> list[Cell]:
    """The cells whose names match any pattern (``pusht/*/basin/*``); all without patterns.

    Seeds go round first, so that an interrupted study has compared every method.

    Raises:
        UserError: a pattern matches nothing.
    """
    every = [
        Cell(task, count, METHODS[method], seed)
        for task in TASKS.values()
        for seed in task.seeds
        for count in task.demonstrations or (PUSHT_DEMONSTRATIONS,)
        for method in task.methods
        if seed == task.seeds[0] or method not in _ONE_SEED
    ]
    for pattern in patterns:
        if not fnmatch.filter([cell.name for cell in every], pattern):
            raise UserError(
                f"--only {pattern}: matches no cell; a cell is TASK/DEMONSTRATIONS/METHOD/SEED, "
                f"for instance {every[0].name} (see --list)"
            )
    return [
        cell
        for cell in every
        if not patterns or any(fnmatch.fnmatchcase(cell.name, p) for p in patterns)
    ]
