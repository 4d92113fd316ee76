"""The study behind ``docs/objectives.md``: objectives, descents and baselines."""

from __future__ import annotations

from dataclasses import replace

from ebt_policy.benchmarks.study import LANDSCAPE, QUALITY, Act, BenchTask, Method, Study


def _steps(*counts: int, core: tuple[int, ...] = ()) -> tuple[Act, ...]:
    return tuple(
        Act(f"{k} step{'s' if k > 1 else ''}", (f"descent.steps={k}",), core=k in core)
        for k in counts
    )


ADAPTIVE = Act("adaptive", ("descent.steps=20", "descent.tolerance=0.04"))
_QUALITY = Act(QUALITY)
SEVERAL = Act("2 steps, 8 starts", ("descent.steps=2", "descent.starts=8"))
MEAN = Act("2 steps, mean of 16 starts", ("descent.steps=2", "descent.starts=16",
                                          "descent.pick=mean"))  # fmt: skip
DRAWN = (
    Act("DDIM-2", ("diffusion.ddim_steps=2",)),
    Act("DDIM-10", ("diffusion.ddim_steps=10",), core=True),
    Act("DDPM-100", ("diffusion.sampler=ddpm",)),
)
METHODS = {
    method.name: method
    for method in (
        Method("basin", "ebt", (
            *_steps(1, 2, 3, 5, 10, 20, 50, core=(1, 2)), SEVERAL, ADAPTIVE,
            Act("2 steps, no walk", ("descent.steps=2", "descent.noise=0")),
            _QUALITY, Act(LANDSCAPE, first_seed=True),
        )),
        Method("one-way", "ebt", (*_steps(1, 2, 20), SEVERAL, _QUALITY), ("basin.ways=1",)),
        Method("scalar", "ebt", (*_steps(1, 2, 20), SEVERAL, _QUALITY), ("form=scalar",)),
        # Two transformers of two blocks each, not one of three: a fifth more parameters.
        Method("split", "ebt", (replace(MEAN, core=True), *_steps(1), _QUALITY), (
            "basin.split=true", "basin.noise=1", "basin.near_share=1", "network.action_blocks=2",
            "descent.noise=0.3",
        )),
        Method("annealed", "ebt", (*_steps(1, 2, 3, 10, core=(2,)), MEAN, _QUALITY),
               objective="annealed", batch_size=128),
        Method("equilibrium", "ebt", (*_steps(2, 10, 50), _QUALITY), objective="equilibrium"),
        Method("unrolled", "ebt", (*_steps(2), Act("21 steps"), _QUALITY), objective="unrolled",
               compile=False),
        Method("diffusion", "diffusion", DRAWN, batch_size=128),
        # Predicting actions: as a loss of the actions another weight of the noise levels.
        Method("diffusion-x0", "diffusion", DRAWN, ("diffusion.prediction=sample",),
               batch_size=128, cost="diffusion"),
        Method("flow", "flow", tuple(
            Act(f"Euler-{k}", (f"flow.steps={k}",), core=k == 2) for k in (1, 2, 10)
        ), batch_size=128),
        Method("mip", "mip", (Act("2 evaluations", core=True),)),
        Method("regression", "regression", (Act("1 evaluation", core=True),)),
        # A step of the default settings costs 144 diffusion steps: too few would be left.
        Method("ibc", "ibc", (Act("Langevin", ("ibc.iterations=20",), core=True), _QUALITY),
               ("ibc.counter_examples=8", "ibc.iterations=5"), batch_size=32, compile=False,
               episodes=20),
    )
}  # fmt: skip
_ONE_SEED = ("one-way", "scalar", "equilibrium", "unrolled", "ibc")
_CURVE_METHODS = ("basin", "diffusion", "flow", "mip", "regression", "ibc")
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
STUDY = Study("objectives", TASKS, METHODS, _ONE_SEED)
