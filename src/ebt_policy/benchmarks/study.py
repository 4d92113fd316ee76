"""What a study is: tasks, methods, ways of acting, and the cells that they make.

A *cell* is one training run: a task, a number of demonstrations, a share of the task's training
budget, a method and a seed. It is evaluated in several ways of acting. All methods share the
encoder, the trunk, the data and the CPU time of training. That time is turned into a number of
steps once, by what a step of each method costs side by side in one run on a quiet machine
(``bench cost``): so a cell can be trained beside other work, on another day, and be the same.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from ebt_policy.config import ObjectiveName, PolicyName
from ebt_policy.errors import UserError

EVALUATION_SEED = 100_000
QUALITY = "energy quality"
LANDSCAPE = "landscape"  # of the fork, once
WORDS = "energy of words"
PARAPHRASED = "+paraphrase"  # the one disturbance that leaves what is observed in numbers
GIVEN_DEMONSTRATIONS = 206  # of PushT, the one task whose data are given


@dataclass(frozen=True)
class Act:
    """One way in which a trained policy acts, or what else is measured of it.

    Attributes:
        name: in the tables.
        settings: of acting, as ``eval --set`` takes them.
        core: whether it is measured for every number of demonstrations and share of the budget,
            or only for the most.
        disturbance: added to the task's name, as ``--task`` takes it; empty for none.
        imagines: streams that the policy may imagine otherwise (``calibrate --imagine``); its
            alarm is calibrated on held-out demonstrations.
        validates: whether the error of its actions on other demonstrations is measured, too.
        first_seed: whether it is measured of a task's first training seed only.
    """

    name: str
    settings: tuple[str, ...] = ()
    core: bool = False
    disturbance: str = ""
    imagines: tuple[str, ...] = ()
    validates: bool = False
    first_seed: bool = False

    @property
    def is_rollout(self) -> bool:
        """Whether episodes are run, and not something else measured."""
        return self.name not in (QUALITY, LANDSCAPE, WORDS)


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: in the tables.
        policy, objective, batch_size, compile, settings: as ``train`` takes them. Where several
            steps of a descent are unrolled in training, compiling takes longer than it saves.
        acts: how it is evaluated.
        observes: the observation keys, as ``train --obs`` takes them; empty for the data's own.
            Where they are others than its own, no share of the training budget is tried.
        cost: the method whose training step costs as much, where that is another one, of which
            this is a variant.
        episodes: most evaluation starts, where it acts so slowly that a task's would take hours.
    """

    name: str
    policy: PolicyName
    acts: tuple[Act, ...]
    settings: tuple[str, ...] = ()
    objective: ObjectiveName = "basin"
    batch_size: int = 64
    compile: bool = True
    observes: str = ""
    cost: str = ""
    episodes: int | None = None

    @property
    def options(self) -> list[str]:
        """The options of ``train``."""
        objective = ["--objective", self.objective] if self.policy == "ebt" else []
        compiled = ["--compile"] if self.compile else []
        observed = ["--obs", self.observes] if self.observes else []
        chosen = [part for setting in self.settings for part in ("--set", setting)]
        return [
            "--policy", self.policy, "--batch-size", str(self.batch_size),
            *compiled, *objective, *observed, *chosen,
        ]  # fmt: skip


@dataclass(frozen=True)
class BenchTask:
    """One task of a study.

    Attributes:
        name: as ``--task`` takes it.
        demonstrations: how many to learn from, the most last; () is a given file.
        budget: CPU time of each training in seconds, on the machine of ``bench cost``.
        seeds: of training.
        episodes: evaluation starts.
        methods: names of the study's methods.
        shares: of the budget that trainings of the first seed get, the whole of it first; 4 is
            four times as much.
        preset: size of the network.
    """

    name: str
    demonstrations: tuple[int, ...]
    budget: float
    seeds: tuple[int, ...]
    episodes: int
    methods: tuple[str, ...]
    shares: tuple[float, ...] = (1.0,)
    preset: str = "tiny"

    @property
    def data(self) -> str:
        """What files of demonstrations are called after."""
        return self.name.replace("/", "-").replace(":", "-")

    @property
    def slug(self) -> str:
        """The same, and the preset unless it is the usual one."""
        return self.data if self.preset == "tiny" else f"{self.data}-{self.preset}"


@dataclass(frozen=True)
class Cell:
    """One training run of a study."""

    task: BenchTask
    demonstrations: int
    method: Method
    seed: int
    share: float = 1.0

    @property
    def name(self) -> str:
        share = "" if self.share == 1 else f"@{100 * self.share:g}"
        return f"{self.task.slug}/{self.demonstrations}{share}/{self.method.name}/{self.seed}"

    @property
    def episodes(self) -> int:
        """Evaluation starts."""
        return min(self.task.episodes, self.method.episodes or self.task.episodes)

    @property
    def acts(self) -> tuple[Act, ...]:
        """The ways of acting that are measured for this cell."""
        most = not self.task.demonstrations or self.demonstrations == self.task.demonstrations[-1]
        first = self.seed == self.task.seeds[0]
        return tuple(
            act
            for act in self.method.acts
            if (most and self.share >= 1) or act.core
            if first or not act.first_seed
            if act.name != LANDSCAPE or self.task.name == "planar/fork"
        )


@dataclass(frozen=True)
class Study:
    """A comparison: what is trained on what, and measured how.

    Attributes:
        name: of its folders under ``runs/`` and ``results/``.
        tasks: by slug, the cheapest first.
        methods: by name.
        one_seed: methods that are trained with a task's first seed only, and its whole budget.
        work: name of the folder of the training runs, where it is that of another study.
    """

    name: str
    tasks: dict[str, BenchTask]
    methods: dict[str, Method]
    one_seed: tuple[str, ...] = ()
    work: str = ""

    def cells(self, patterns: list[str]) -> list[Cell]:
        """The cells whose names match any pattern (``pusht/*/basin/*``); all without patterns.

        Seeds go round first, so that an interrupted study has compared every method.

        Raises:
            UserError: a pattern matches nothing.
        """
        every = [
            Cell(task, count, self.methods[method], seed, share)
            for task in self.tasks.values()
            for seed in task.seeds
            for share in (task.shares if seed == task.seeds[0] else (1.0,))
            for count in task.demonstrations or (GIVEN_DEMONSTRATIONS,)
            for method in task.methods
            if seed == task.seeds[0] or method not in self.one_seed
            if share == 1 or not (method in self.one_seed or self.methods[method].observes)
        ]
        for pattern in patterns:
            if not fnmatch.filter([cell.name for cell in every], pattern):
                raise UserError(
                    f"--only {pattern}: matches no cell; a cell is "
                    f"TASK/DEMONSTRATIONS/METHOD/SEED, for instance {every[0].name} (see --list)"
                )
        return [
            cell
            for cell in every
            if not patterns or any(fnmatch.fnmatchcase(cell.name, p) for p in patterns)
        ]
