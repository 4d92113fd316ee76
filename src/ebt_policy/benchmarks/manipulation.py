"""The studies behind ``docs/claims.md``: the paper's manipulation tasks and its claims.

Recovery, shift and compute look at the policies that the first study has trained; scale and
embodiments train their own. The ways of acting that are compared: two descent steps, from one or
from sixteen starts, and steps until they no longer move the chunk, against a Diffusion Policy's
ten and hundred and the mean of sixteen of its samples, two-step and one-step regression, and
implicit behavioural cloning.
"""

from __future__ import annotations

from dataclasses import replace

from ebt_policy.benchmarks.objectives import ADAPTIVE, DRAWN, MEAN, METHODS
from ebt_policy.benchmarks.study import Act, BenchTask, Method, Study

TWO_STEPS = Act("2 steps", ("descent.steps=2",), core=True)
ONE_STEP = Act("1 step", ("descent.steps=1",))
_MEAN_OF_SAMPLES = Act("DDIM-10, mean of 16", ("diffusion.ddim_steps=10", "diffusion.samples=16"))
_ACTS = {
    "basin": (TWO_STEPS, ONE_STEP, ADAPTIVE),
    "split": (replace(MEAN, core=True), ONE_STEP),
    "annealed": (TWO_STEPS, Act("3 steps", ("descent.steps=3",)), MEAN),
    "diffusion": (*DRAWN[1:], _MEAN_OF_SAMPLES),
    "diffusion-x0": (*DRAWN, _MEAN_OF_SAMPLES),
    "flow": METHODS["flow"].acts,
    "mip": (Act("2 evaluations", core=True),),
    "regression": (Act("1 evaluation", core=True),),
    "ibc": (Act("Langevin", ("ibc.iterations=20",), core=True),),
}
_FELT = {name: replace(METHODS[name], acts=acts) for name, acts in _ACTS.items()}
# The same without the fingers' state, from which a policy tells what it has just done; without the
# hand's own place, so that what is left of places is where the object is, in the world and as seen
# from the hand; and with each stream of the robot's own state withheld from a quarter of training.
UNFELT, FROM_HAND, WITHHELD = "-no-fingers", "-from-hand", "-withheld"
_OWN = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
_METHODS = _FELT | {
    name + way: replace(
        _FELT[name], name=name + way, cost=name, acts=acts,
        observes=observes,
    )
    for way, observes, kinds in (
        (UNFELT, "robot0_eef_pos,robot0_eef_quat,object", {
            "basin": (TWO_STEPS,), "diffusion": _ACTS["diffusion"][:1],
        }),
        (FROM_HAND, "object,robot0_eef_quat,robot0_gripper_qpos", {
            "basin": (TWO_STEPS, ONE_STEP), "diffusion": _ACTS["diffusion"][:1],
            "regression": _ACTS["regression"],
        }),
        (WITHHELD, ",".join(("object", *(f"{name}:dropout=0.25" for name in _OWN))), {
            "basin": (TWO_STEPS,), "diffusion": _ACTS["diffusion"][:1],
            "mip": _ACTS["mip"], "regression": _ACTS["regression"],
        }),
    )
    for name, acts in kinds.items()
}  # fmt: skip


def _named(*variants: str) -> tuple[str, ...]:
    """The methods that observe everything, and those of some variants."""
    return (*_FELT, *(name for name in _METHODS if name.endswith(variants)))


_SLOW = "ibc"  # and hardly learns these tasks: one training of each, undisturbed


def _but_slow(methods: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in methods if name != _SLOW)


_TASKS = {
    task.slug: task
    for task in (
        BenchTask(
            f"robosuite/{name}", (200,), budget, (0, 1, 2), 50, methods,
            shares=(1.0, 0.5, 0.25, 0.125),
        )
        for name, budget, methods in (
            ("Lift", 60.0, _named(UNFELT, FROM_HAND, WITHHELD)),
            ("PickPlaceCan", 240.0, _named(UNFELT, WITHHELD)),
            ("NutAssemblySquare", 480.0, _named(WITHHELD)),
        )
    )
}  # fmt: skip
# Success and speed of training only: its episodes are long, and nothing disturbs them yet. In 16
# minutes on a CPU little of it is learned, so it is trained four times as long, too.
_TOOL_HANG = BenchTask(
    "robosuite/ToolHang", (200,), 960.0, (0, 1, 2), 50, _named(), shares=(1.0, 4.0)
)
# The half of it that fails, alone: 64 passes over the data in 15 minutes on a CPU.
_FRAME = BenchTask(
    "robosuite/ToolHangFrame", (100,), 900.0, (0, 1, 2), 100,
    _but_slow(_named()), shares=(1.0, 0.25),
)  # fmt: skip
_WHOLE = {slug: replace(task, shares=(1.0,)) for slug, task in _TASKS.items()}


def _disturbed(acts: tuple[Act, ...], disturbances: tuple[str, ...]) -> tuple[Act, ...]:
    """Some ways of acting, disturbed in several ways."""
    return tuple(
        replace(act, name=act.name + disturbance, disturbance=disturbance)
        for disturbance in disturbances
        for act in acts
    )


def _core(method: Method) -> tuple[Act, ...]:
    return tuple(act for act in method.acts if act.core)


RECOVERIES = ("+drop", "+move", "+open")
IMAGINING = ", imagining"
_HAND = ("robot0_gripper_qpos",)


def _recovering(method: Method) -> Method:
    """Core acts and one step with every disturbance, adaptive steps with a drop.

    ``basin`` and ``diffusion`` imagine, too, of the first seed: undisturbed and with a drop.
    """
    drop = RECOVERIES[:1]
    usual = tuple(act for act in method.acts if act.core or act == ONE_STEP)
    many = tuple(act for act in method.acts if act == ADAPTIVE)
    acts = (*_disturbed(usual, RECOVERIES), *_disturbed(many, drop))
    if method.name in ("basin", "diffusion"):
        imagining = tuple(
            replace(act, name=act.name + IMAGINING, imagines=_HAND, first_seed=True)
            for act in _core(method)
        )
        acts = (*acts, *imagining, *_disturbed(imagining, drop))
    return replace(method, acts=acts)


SHIFTS = (
    "+spread=1.5", "+spread=2", "+noise=0.002", "+noise=0.005", "+noise=0.01",
    "+delay=1", "+delay=2", "+delay=3", "+mass=0.5", "+mass=2",
    "+friction=0.5", "+friction=2", "+gain=0.8", "+gain=1.2",
)  # fmt: skip
_ONE_SEED = (_SLOW, "regression" + FROM_HAND, "regression" + WITHHELD, "mip" + WITHHELD)
TASKS = Study(
    "tasks", _TASKS | {task.slug: task for task in (_TOOL_HANG, _FRAME)}, _METHODS,
    one_seed=_ONE_SEED,
)  # fmt: skip
RECOVERY = Study(
    "recovery",
    {
        slug: replace(_WHOLE[slug], methods=_but_slow(_named(unseen, WITHHELD)))
        for slug, unseen in (("robosuite-Lift", FROM_HAND), ("robosuite-PickPlaceCan", UNFELT))
    },
    {name: _recovering(method) for name, method in _METHODS.items()},
    one_seed=("mip", "regression", *_ONE_SEED),
    work="tasks",
)
_SHIFTED = {
    slug: _named(WITHHELD) if slug == "robosuite-PickPlaceCan" else _named() for slug in _WHOLE
}
SHIFT = Study(
    "shift",
    {
        slug: replace(task, seeds=(0,), methods=_but_slow(_SHIFTED[slug]))
        for slug, task in _WHOLE.items()
    },
    {
        name: replace(method, acts=_disturbed(_core(method), SHIFTS))
        for name, method in _METHODS.items()
    },
    work="tasks",
)

STEP_BUDGETS = (20, 10, 5, 3, 2, 1)


def _at_most(steps: int) -> Act:
    """Steps until they no longer move the chunk, but at most so many."""
    limit = f"descent.steps={steps}"
    return replace(ADAPTIVE, name=f"at most {steps}", settings=(limit, *ADAPTIVE.settings[1:]))


ALL_STEPS = Act("20 steps", ("descent.steps=20",))
_BUDGETED = replace(METHODS["basin"], acts=(ALL_STEPS, *map(_at_most, STEP_BUDGETS)))
COMPUTE = Study(
    "compute",
    {slug: replace(task, methods=("basin",)) for slug, task in _WHOLE.items()},
    {"basin": _BUDGETED},
    work="tasks",
)

PRESETS_COMPARED = ("tiny", "small", "paper")
_SCALED = tuple(
    BenchTask(
        "metaworld/pick-place", (10, 50, 200), 60.0, (0,), 50,
        ("basin", "diffusion", "flow", "mip", "regression"), preset=preset,
    )
    for preset in PRESETS_COMPARED
)  # fmt: skip
_CORE = {name: replace(method, acts=_core(method)) for name, method in _FELT.items()}
SCALE = Study(
    "scale",
    {task.slug: task for task in _SCALED},
    {
        # Compiling takes longer than these few steps.
        name: replace(
            method, acts=tuple(replace(act, validates=True) for act in method.acts), compile=False
        )
        for name, method in _CORE.items()
    },
)

# One arm after another at the same task, and two arms at one, with actions twice as wide.
_ARMS = (
    *(
        BenchTask(f"robosuite/{name}", (50,), 60.0, (0,), 50, ("basin", "diffusion"))
        for name in ("Lift", "Lift:UR5e")
    ),
    BenchTask(
        "robosuite/TwoArmLift", (200,), 240.0, (0,), 50, ("basin", "diffusion", "mip", "regression")
    ),
)
EMBODIMENTS = Study("embodiments", {task.slug: task for task in _ARMS}, _CORE)

STUDIES = {study.name: study for study in (TASKS, RECOVERY, SHIFT, COMPUTE, SCALE, EMBODIMENTS)}
