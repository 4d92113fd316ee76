"""``bench uncertainty``: do energies tell that an episode will fail, or that the scene is another?

Every signal is computed at each chunk of the same episodes; positive ones as logarithms. An
episode's score after so many chunks is the highest, or the mean, until then. AUROC: how often a
failed episode scores above a successful one after as many chunks as both have, so that a failure is
not recognised by its length; and how often an observation of a successful episode scores higher
once it has been shifted than another as it was.

*Change of plan*: mean square between a chunk and the one before it, over the steps that both plan
for, both drawn anew (cf. arXiv 2410.04640). It is about what the robot's actions have led to, as
the observation's energy is about where it is; the sum of their logarithms is a signal of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm, trange

from ebt_policy.descent import rms
from ebt_policy.energy.observation import BATCH, minimise
from ebt_policy.errors import UserError
from ebt_policy.evaluation.calibration import learn_observations, one_thread, training_windows
from ebt_policy.evaluation.rollout import Rollout, visits
from ebt_policy.policies.alarm import flat
from ebt_policy.policies.diffusion import DiffusionPolicy
from ebt_policy.policies.ebt import EnergyPolicy
from ebt_policy.policies.files import load_policy
from ebt_policy.provenance import provenance
from ebt_policy.shapes import Float
from ebt_policy.windows.normaliser import held
from ebt_policy.windows.windows import Windows

_STARTS = 8  # chunks whose spread is measured
_RESAMPLES = 2_000
_ROWS = 256  # observations at once
# Standard deviations of normal noise on every observed number, in its own units.
SHIFTS = (0.005, 0.01, 0.02)

OBSERVED, _DISTILLED = "energy of the observation", "random network distillation"
_SAMPLED = f"spread of {_STARTS} diffusion chunks"
REFERENCES = (_DISTILLED, _SAMPLED)  # what an energy is compared with
_CHANGE = "change of plan"
_AND_CHANGE = f" and {_CHANGE}"
OBSERVED_AND_CHANGE = OBSERVED + _AND_CHANGE
_PLAN = "plan"

Signals = dict[str, np.ndarray]


def measure_uncertainty(
    run: Path,
    diffusion_run: Path,
    data: str,
    task: str,
    episodes: int,
    seed: int,
) -> dict[str, Any]:
    """AUROC of every signal on the episodes of an energy policy.

    Args:
        run: of the energy policy.
        diffusion_run: of a Diffusion Policy trained on the same demonstrations.
        data: path of the demonstrations that both were trained on.
        task: where to roll out; disturbances may follow its name.
        episodes: how many.
        seed: of the first start.

    Raises:
        UserError: a run holds another kind of policy, or all episodes end alike.
    """
    policy, other = (load_policy(folder, with_alarm=False) for folder in (run, diffusion_run))
    if not isinstance(policy, EnergyPolicy) or not isinstance(other, DiffusionPolicy):
        raise UserError(
            f"{run} holds --policy {policy.config.policy}, {diffusion_run} --policy "
            f"{other.config.policy}; the first must be ebt, the second diffusion"
        )
    trained, _ = training_windows(run, policy, data)
    training_windows(diffusion_run, other, data)  # the same data
    windows = policy.config.windows
    if windows.action_steps >= windows.horizon:
        raise UserError(
            f"{run}: all {windows.horizon} steps of a chunk are executed, so no two chunks plan "
            "for the same step"
        )
    names = policy.stream_names
    torch.manual_seed(seed)
    signals = _signals(policy, other, trained, seed)
    rollout = visits(Rollout(str(run), task), seed)
    seen = list(tqdm(itertools.islice(rollout, episodes), desc=task, total=episodes, unit="ep"))
    rollout.close()
    # Two chunks at least: a plan changes from one to the next.
    seen = [visit for visit in seen if len(visit.windows) > 1]
    failed = np.array([not visit.record.success for visit in seen])
    if failed.all() or not failed.any():
        raise UserError(
            f"{task}: {failed.sum()} of {len(seen)} episodes failed (of two chunks or more); "
            "AUROC needs both"
        )
    lengths = np.array([len(visit.windows) for visit in seen])
    of_episode = np.repeat(np.arange(len(seen)), lengths)
    every = _stack([window for visit in seen for window in visit.windows], names)
    goes_on = np.diff(of_episode, prepend=-1) == 0
    found = signals(every, goes_on)
    calm = ~failed[of_episode]
    quiet = {name: values[calm] for name, values in every.items()}
    random = np.random.default_rng(seed)
    shifted = {size: signals(_noisy(quiet, size, random), goes_on[calm]) for size in SHIFTS}
    areas: dict[str, dict[str, np.ndarray]] = {how: {} for how in _UNTIL}
    for name, values in found.items():
        by_episode = np.split(values, np.cumsum(lengths)[:-1])
        for how, until in _UNTIL.items():
            areas[how][name] = areas_in_time([until(scores) for scores in by_episode], failed)
    rows: dict[str, dict[str, Any]] = {}
    for name, values in found.items():
        rows[name] = {how: with_interval(areas[how][name]) for how in areas}
        rows[name]["minus"] = {
            how: {other: with_interval(of[name] - of[other]) for other in REFERENCES}
            for how, of in areas.items()
        }
        rows[name]["shift"] = {
            str(size): auroc_of_episodes(moved[name], values[calm], of_episode[calm])
            for size, moved in shifted.items()
        }
    return {
        "task": task, "episodes": episodes, "first_seed": seed, "failures": int(failed.sum()),
        "successes": int((~failed).sum()), "signals": rows,
        "data": Path(data).name, "demonstrations": len(trained.first.unique()),
        **provenance(),
    }  # fmt: skip


def areas_in_time(scores: list[np.ndarray], failed: np.ndarray) -> np.ndarray:
    """How often failed episodes score above others after as many chunks, and so when resampled.

    Args:
        scores: of every episode, its score after each of its chunks.
        failed: of every episode.

    Returns:
        The area, then those of bootstrap samples of the failed ones and of the others, the same
        samples for any scores of these episodes.
    """
    lost, won = ([scores[i] for i in np.flatnonzero(which)] for which in (failed, ~failed))
    wins = np.empty((len(lost), len(won)))
    for i, one in enumerate(lost):
        for j, other in enumerate(won):
            last = min(len(one), len(other)) - 1
            wins[i, j] = (1 + np.sign(one[last] - other[last])) / 2
    random = np.random.default_rng(0)
    areas = [wins.mean()]
    for _ in range(_RESAMPLES):
        some, others = (random.integers(size, size=size) for size in wins.shape)
        areas.append(wins[np.ix_(some, others)].mean())
    return np.array(areas)


def _means(values: np.ndarray) -> np.ndarray:
    """(n,) mean of the values until each; NaN is left out."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.cumsum(np.where(known, values, 0)) / np.cumsum(known)
    return means


_UNTIL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "failure": np.fmax.accumulate, "failure_mean": _means,
}  # fmt: skip


def auroc_of_episodes(above: np.ndarray, below: np.ndarray, episode: np.ndarray) -> list[float]:
    """How often chunks score above others of the same episodes, with an interval over episodes.

    Args:
        above: (n,) of each chunk, one way; NaN is left out.
        below: the other way.
        episode: (n,) number of each chunk's episode.
    """
    known = ~np.isnan(above)
    above, below, episode = above[known], below[known], episode[known]
    chunks = [np.flatnonzero(episode == number) for number in np.unique(episode)]
    random = np.random.default_rng(0)
    areas = [_share(above, below)]
    for _ in range(_RESAMPLES):
        some = np.concatenate([chunks[i] for i in random.integers(len(chunks), size=len(chunks))])
        areas.append(_share(above[some], below[some]))
    return with_interval(np.array(areas))


def _share(one: np.ndarray, other: np.ndarray) -> float:
    order = np.sort(other)
    wins = np.searchsorted(order, one, "left") + np.searchsorted(order, one, "right")
    return float(wins.mean() / (2 * len(other)))


def with_interval(areas: np.ndarray) -> list[float]:
    """The first of these, and the 95% interval of the others."""
    return [round(float(x), 4) for x in (areas[0], *np.percentile(areas[1:], [2.5, 97.5]))]


def change_of_plan(
    plans: Float[np.ndarray, "n t a"], goes_on: np.ndarray, executed: int
) -> Float[np.ndarray, n]:
    """Mean square between each plan and the one before it, over the steps that both plan for.

    Args:
        plans: chunks, one after the other.
        goes_on: (n,) whether a plan is of the same episode as the one before it; NaN where not.
        executed: control steps from one to the next.
    """
    change = np.full(len(plans), np.nan, np.float32)
    change[1:] = np.square(plans[:-1, executed:] - plans[1:, :-executed]).mean((1, 2))
    return np.where(goes_on, change, np.nan)


def _stack(windows: list[dict[str, np.ndarray]], names: list[str]) -> dict[str, np.ndarray]:
    return {name: np.stack([window[name] for window in windows]) for name in names}


def _noisy(
    windows: dict[str, np.ndarray], size: float, random: np.random.Generator
) -> dict[str, np.ndarray]:
    return {
        name: values + random.normal(0, size, values.shape).astype(np.float32)
        for name, values in windows.items()
    }


def _signals(
    policy: EnergyPolicy, other: DiffusionPolicy, trained: Windows, seed: int
) -> Callable[[dict[str, np.ndarray], np.ndarray], Signals]:
    """A function from observation windows, stacked, to every signal of each.

    Its second argument says of each window whether it follows the one before it; the signals that
    need a chunk before are NaN where it does not.
    """
    learned = learn_observations(policy, trained, seed)
    batch = trained.gather(torch.arange(len(trained)))
    known = flat(policy.normalise_observation(batch.observations))
    with one_thread():
        distillation, reconstruction = _distilled(known), _reconstruction(known)

    executed = policy.config.windows.action_steps

    def some(windows: dict[str, np.ndarray]) -> dict[str, Tensor]:
        observation = policy.normalise_observation(
            {name: torch.from_numpy(values) for name, values in windows.items()}
        )
        rows = flat(observation)
        seen_as = held(rows, policy.config.observation_limit)  # by the policies
        memory = policy.energy.remember(observation)
        energy = policy.energy.given(memory)
        start, noise, _ = policy.starts(memory, None, None)
        first = energy(start)
        point = start if noise is None else start + policy.config.descent.noise * noise[0]
        _, gradient = policy.energy.value_and_gradient(point, memory)
        final = energy(point - gradient)
        landed = [policy.sample(observation, None, None)[0] for _ in range(_STARTS)]
        sampled = [other.sample(observation, None, None)[0] for _ in range(_STARTS)]
        return {
            "energy": final, "drop of the energy": first - final, _PLAN: landed[0],
            "gradient": rms(gradient).log(),
            f"spread of {_STARTS} starts": torch.stack(landed).var(0).mean((1, 2)).log(),
            OBSERVED: learned(rows).log(),
            _SAMPLED: torch.stack(sampled).var(0).mean((1, 2)).log(),
            _DISTILLED: distillation(seen_as).log(),
            "reconstruction": reconstruction(seen_as).log(),
        }  # fmt: skip

    def every(windows: dict[str, np.ndarray], goes_on: np.ndarray) -> Signals:
        count = len(goes_on)
        with torch.no_grad():
            parts = [
                some({name: values[i : i + _ROWS] for name, values in windows.items()})
                for i in trange(0, count, _ROWS, desc="signals", leave=False)
            ]
        found = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        found[_CHANGE] = np.log(change_of_plan(found.pop(_PLAN), goes_on, executed))
        for name in (OBSERVED, _DISTILLED):
            found[name + _AND_CHANGE] = found[name] + found[_CHANGE]
        return found

    return every


def _layers(*widths: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for one, two in itertools.pairwise(widths):
        parts += [nn.Linear(one, two), nn.GELU()]
    return nn.Sequential(*parts[:-1])


def _fit(network: nn.Module, known: Tensor, error: Callable[[Tensor], Tensor]) -> None:
    """As many steps, of as many windows, as the energy of observations gets."""
    minimise(network.parameters(), lambda: error(known[torch.randint(len(known), (BATCH,))]).mean())


def _distilled(known: Tensor) -> Callable[[Tensor], Tensor]:
    """Error of a network that imitates a random one on the demonstrations (arXiv 1810.12894)."""
    target, learner = (_layers(known.shape[1], 256, 256, 64) for _ in range(2))
    for weights in target.parameters():
        weights.requires_grad_(False).mul_(2)

    def error(rows: Tensor) -> Tensor:
        return (learner(rows) - target(rows)).square().mean(1)

    _fit(learner, known, error)
    return error


def _reconstruction(known: Tensor) -> Callable[[Tensor], Tensor]:
    """Error of an autoencoder with a code of eight numbers."""
    network = nn.Sequential(_layers(known.shape[1], 256, 8), _layers(8, 256, known.shape[1]))

    def error(rows: Tensor) -> Tensor:
        return (network(rows) - rows).square().mean(1)

    _fit(network, known, error)
    return error
