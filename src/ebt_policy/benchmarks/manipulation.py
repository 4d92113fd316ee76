"""The studies behind ``docs/claims.md``: the paper's manipulation tasks and its claims.

Recovery, shift and compute look at the policies that the first study has trained; scale and
embodiments train their own. The ways of acting that are compared: two descent steps and steps
until they no longer move the chunk, against a Diffusion Policy's ten and hundred, two-step and
one-step regression, and implicit behavioural cloning.
"""

from __future__ import annotations

from dataclasses import replace

from ebt_policy.benchmarks.objectives import ADAPTIVE, METHODS
from ebt_policy.benchmarks.study import Act, BenchTask, Method, Study

TWO_STEPS = Act("2 steps", ("descent.steps=2",), core=True)
ONE_STEP = Act("1 step", ("descent.steps=1",))
_ACTS = {
    "basin": (TWO_STEPS, ONE_STEP, ADAPTIVE),
    "diffusion": (
        Act("DDIM-10", ("diffusion.ddim_steps=10",), core=True),
        Act("DDPM-100", ("diffusion.sampler=ddpm",)),
    ),
    "mip": (Act("2 evaluations", core=True),),
    "regression": (Act("1 evaluation", core=True),),
    "ibc": (Act("Langevin", ("ibc.iterations=20",), core=True),),
}
_FELT = {name: replace(METHODS[name], acts=acts) for name, acts in _ACTS.items()}
# The same without the fingers' state, from which a policy tells what it has just done; with a wider
# walk, which leads out of what does not succeed; and without the hand's own place, so that what is
# left of places is where the object is, in the world and as seen from the hand.
UNFELT, FROM_HAND = "-no-fingers", "-from-hand"
WIDE = Act("2 steps, wide walk", ("descent.steps=2", "descent.noise=0.2"))
_METHODS = _FELT | {
    name + way: replace(
        _FELT[name], name=name + way, cost=name, acts=acts,
        observes=observes,
    )
    for way, observes, kinds in (
        (UNFELT, "robot0_eef_pos,robot0_eef_quat,object", {
            "basin": (TWO_STEPS, WIDE), "diffusion": _ACTS["diffusion"][:1],
        }),
        (FROM_HAND, "object,robot0_eef_quat,robot0_gripper_qpos", {
            "basin": (TWO_STEPS, ONE_STEP), "diffusion": _ACTS["diffusion"][:1],
            "regression": _ACTS["regression"],
        }),
    )
    for name, acts in kinds.items()
}  # fmt: skip
_TASKS = {
    task.slug: task
    for task in (
        BenchTask(
            f"robosuite/{name}", (200,), budget, (0, 1, 2), 50, tuple(_METHODS),
            shares=(1.0, 0.5, 0.25, 0.125),
        )
        for name, budget in (
            ("Lift", 60.0), ("PickPlaceCan", 240.0), ("NutAssemblySquare", 480.0),
        )
    )
}  # fmt: skip
# Success and speed of training only: its episodes are long, and nothing disturbs them yet.
_TOOL_HANG = BenchTask("robosuite/ToolHang", (200,), 960.0, (0, 1, 2), 50, tuple(_FELT))
_WHOLE = {slug: replace(task, shares=(1.0,)) for slug, task in _TASKS.items()}
_WHOLE_FELT = {slug: replace(task, methods=tuple(_FELT)) for slug, task in _WHOLE.items()}


def _disturbed(method: Method, disturbances: tuple[str, ...]) -> Method:
    """The method's core acts, and some more of the energy, disturbed in several ways."""
    acts = [act for act in method.acts if act.core or act in (ONE_STEP, ADAPTIVE, WIDE)]
    return replace(
        method,
        acts=tuple(
            replace(act, name=act.name + disturbance, disturbance=disturbance)
            for disturbance in disturbances
            for act in acts
        ),
    )


RECOVERIES = ("+drop", "+move", "+open")
IMAGINING = ", imagining"
_HAND = ("robot0_gripper_qpos",)


def _recovering(method: Method) -> Method:
    """Every recovery, also where the policy may imagine its hand otherwise; and undisturbed so."""
    plain = _disturbed(method, RECOVERIES)
    first = next(act for act in method.acts if act.core)
    imagining = tuple(
        replace(first, name=first.name + IMAGINING + way, disturbance=way, imagines=_HAND)
        for way in ("", *RECOVERIES)
    )
    return replace(plain, acts=(*plain.acts, *imagining))


SHIFTS = (
    "+spread=1.5", "+spread=2", "+noise=0.002", "+noise=0.005", "+noise=0.01",
    "+delay=1", "+delay=2", "+delay=3", "+mass=0.5", "+mass=2",
    "+friction=0.5", "+friction=2", "+gain=0.8", "+gain=1.2",
)  # fmt: skip
TASKS = Study("tasks", _TASKS | {_TOOL_HANG.slug: _TOOL_HANG}, _METHODS)
RECOVERY = Study(
    "recovery",
    _WHOLE,
    {
        name: _recovering(method)
        if name in _FELT
        else _disturbed(method, ("+drop",) if name.endswith(UNFELT) else RECOVERIES)
        for name, method in _METHODS.items()
    },
    work="tasks",
)
SHIFT = Study(
    "shift", _WHOLE_FELT, {n: _disturbed(m, SHIFTS) for n, m in _FELT.items()}, work="tasks"
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
_CORE = {
    name: replace(method, acts=tuple(act for act in method.acts if act.core))
    for name, method in (_FELT | {"flow": METHODS["flow"]}).items()
}
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

_ARMS = tuple(
    BenchTask(f"robosuite/{name}", (50,), 60.0, (0,), 50, ("basin", "diffusion"))
    for name in ("Lift", "Lift:UR5e", "Lift:Sawyer")
)
EMBODIMENTS = Study("embodiments", {task.slug: task for task in _ARMS}, _CORE)

STUDIES = {study.name: study for study in (TASKS, RECOVERY, SHIFT, COMPUTE, SCALE, EMBODIMENTS)}
