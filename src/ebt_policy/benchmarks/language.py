"""The study behind ``docs/language.md``: one policy for many tasks, told by a sentence which.

``basin-minilm`` is ``basin`` with sentences read by a pretrained text encoder instead of hashed.
In every start of ``metaworld/mt10`` a sentence is drawn from those that were trained on; or, as
``+paraphrase``, from others.
"""

from __future__ import annotations

from dataclasses import replace

from ebt_policy.benchmarks.manipulation import TWO_STEPS
from ebt_policy.benchmarks.objectives import METHODS
from ebt_policy.benchmarks.study import WORDS, Act, BenchTask, Method, Study

PARAPHRASED = "+paraphrase"
_HASHED = "state,task"
_MINILM = f"{_HASHED}:encoder=sentence-transformers/all-MiniLM-L6-v2"


def _told(name: str, act: Act, *more: Act, observes: str = _HASHED) -> Method:
    """A method of the study of objectives that is told what to do, in trained words and others."""
    other = replace(act, name=act.name + PARAPHRASED, disturbance=PARAPHRASED)
    return replace(
        METHODS[name], acts=(replace(act, core=True), other, *more), observes=observes, cost=name
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
    )
}
STUDY = Study("language", _TASKS, _METHODS)
