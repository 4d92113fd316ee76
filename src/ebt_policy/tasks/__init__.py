"""Tasks by name: ``planar/fork``, ``pusht``, ``metaworld/…``, ``robosuite/…``, ``gym:<id>``.

Disturbances may follow a name: ``robosuite/Lift+drop``, see :mod:`ebt_policy.tasks.disturbances`.
"""

from __future__ import annotations

from ebt_policy.errors import UserError
from ebt_policy.tasks.base import Environment, Outcome, Task
from ebt_policy.tasks.disturbances import disturbed


def make_task(name: str) -> Task:
    """The task that ``--task`` names.

    Raises:
        UserError: unknown name, or its simulator is not installed.
    """
    name, plus, disturbances = name.partition("+")
    if plus:
        return disturbed(make_task(name), disturbances)
    # Each simulator is imported only by those who ask for it.
    if name == "planar/fork":
        from ebt_policy.tasks.planar import fork

        return fork()
    if name == "pusht":
        from ebt_policy.tasks.pusht import pusht

        return pusht()
    if name.startswith("metaworld/"):
        from ebt_policy.tasks.metaworld import metaworld

        return metaworld(name.removeprefix("metaworld/"))
    if name.startswith("robosuite/"):
        from ebt_policy.tasks.robosuite import robosuite_task

        return robosuite_task(name.removeprefix("robosuite/"))
    if name.startswith("gym:"):
        from ebt_policy.tasks.gymnasium import gymnasium_task

        return gymnasium_task(name.removeprefix("gym:"))
    raise UserError(
        f"--task {name}: unknown; there are planar/fork, pusht, metaworld/<task>, "
        "robosuite/<task> and gym:<id>"
    )


__all__ = ["Environment", "Outcome", "Task", "make_task"]
