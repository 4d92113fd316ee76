"""``calibrate``: an alarm for a trained policy, from its demonstrations and successful episodes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ebt_policy.config import TrainingConfig, from_json
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.energy.observation import ObservationEnergy
from ebt_policy.errors import UserError
from ebt_policy.evaluation.action_error import chunk_starts
from ebt_policy.evaluation.rollout import Rollout, check_fit, visits
from ebt_policy.policies.alarm import ALARM_FILE, Alarm, flat, least_episodes
from ebt_policy.policies.base import Policy
from ebt_policy.policies.files import WEIGHTS_FILE, load_policy, replace_file
from ebt_policy.tasks import make_task
from ebt_policy.training.files import TRAINING_FILE, read_summary
from ebt_policy.windows.arrays import load_arrays
from ebt_policy.windows.windows import Windows, split_episodes

_IMAGINED = 256  # demonstrated values of each stream that may be imagined
_LEAST_SUCCESS = 0.2


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for small products, which more threads only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def training_windows(run: Path, policy: Policy, data: str) -> tuple[Windows, Windows]:
    """The windows a run was trained on, and those that it held out.

    Args:
        run: folder of a training run.
        policy: of that run.
        data: path of the demonstrations.

    Raises:
        UserError: it is no training run, the policy sees images or may miss a stream, or the data
            are not those.
    """
    if policy.config.cameras:
        raise UserError(
            f"{run} sees images ({', '.join(policy.config.cameras)}); the energy of observations "
            "is of numbers only"
        )
    if policy.config.may_be_missing:
        raise UserError(
            f"{run} may miss {', '.join(policy.config.may_be_missing)}; the energy of observations "
            "is of all streams together"
        )
    path = run / TRAINING_FILE
    if not path.exists():
        raise UserError(f"{path}: no such file; this needs the folder of a training run")
    training = from_json(TrainingConfig, path.read_text(), str(path))
    demonstrations = open_demonstrations(data, training.filter_key)
    arrays = load_arrays(demonstrations, policy.config.streams)
    summary = read_summary(run)
    if summary is not None and summary["data"]["sha256"] != arrays.sha256:
        raise UserError(f"--data {data}: {run} was trained on {training.data} with other values")
    parts = split_episodes(demonstrations.episodes, training.validation_share, training.seed)
    trained, held_out = (
        Windows(arrays, demonstrations.episode_ends, part, policy.config.windows) for part in parts
    )
    return trained, held_out


def learn_observations(policy: Policy, windows: Windows, seed: int) -> ObservationEnergy:
    """The energy of observations, from windows that the policy was trained on."""
    batch = windows.gather(torch.arange(len(windows)))
    torch.manual_seed(seed)
    energy = ObservationEnergy(policy.window_features, policy.config.observation_limit)
    observation = policy.normalise_observation(batch.observations)
    sizes = [observation[name][0].numel() for name in sorted(observation)]
    with one_thread():
        energy.fit(flat(observation), sizes, seed)
    return energy


def _demonstrated(
    policy: Policy, windows: Windows, streams: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Some demonstrated values of the streams that the robot may imagine (n, To * features).

    Raises:
        UserError: the policy has no such stream, or no other one to judge it by.
    """
    for name in streams:
        if name not in policy.stream_names or len(policy.stream_names) == 1:
            raise UserError(
                f"--imagine {name}: the policy observes {', '.join(policy.stream_names)}; it can "
                "imagine one of several streams"
            )
    random = np.random.default_rng(seed)
    count = min(_IMAGINED, len(windows))
    chosen = torch.from_numpy(random.choice(len(windows), count, replace=False))
    observation = policy.normalise_observation(windows.gather(chosen).observations)
    return {name: observation[name].flatten(1).contiguous() for name in streams}


def calibrate(
    run: Path,
    data: str,
    rate: float,
    task: str | None,
    episodes: int,
    seed: int,
    imagined: Sequence[str] = (),
) -> Alarm:
    """Make a policy's alarm and save it with the policy.

    The energy of observations learns from the episodes that the policy was trained on. The
    threshold is taken from successful episodes: of the policy in a simulated task; or, without
    one, from the demonstrations that the policy's training held out, which a policy that strays
    a little from what was demonstrated will exceed more often than the rate says.

    Args:
        run: folder of a training run.
        data: path of the demonstrations that it was trained on.
        rate: of false alarms, per successful episode of the policy as it acts without imagining
            anything; whatever imagining has saved is a success with an alarm besides.
        task: where to roll the policy out; None for none.
        episodes: successful ones, of the task.
        seed: of the first start.
        imagined: streams of the robot's own state that it may imagine otherwise where the alarm
            goes off, see :meth:`Alarm.imagine`.

    Raises:
        UserError: as :func:`training_windows`; there are too few episodes for the rate, or the
            policy hardly ever succeeds.
    """
    policy = load_policy(run, with_alarm=False)
    trained, held_out = training_windows(run, policy, data)
    if task is None:
        _check_enough(len(held_out.first.unique()), len(trained.first.unique()), rate)
    else:
        check_fit(policy, make_task(task))
        if episodes < (least := least_episodes(rate)):
            raise UserError(
                f"--episodes {episodes}: a rate of {rate} false alarms takes {least} or more"
            )
    values = _demonstrated(policy, trained, imagined, seed)
    energy = learn_observations(policy, trained, seed)
    unset = Alarm(energy, [0.0], 0.5, "")
    if task is None:
        highest = _of_held_out(policy, unset, held_out)
        source = f"{len(highest)} held-out demonstrations of {Path(data).name}"
    else:
        highest = _of_task(run, policy, unset, task, episodes, seed)
        source = f"{len(highest)} successful episodes of {task} from seed {seed} on"
    alarm = Alarm(energy, highest, rate, source, values)
    replace_file(run / ALARM_FILE, alarm.to_bytes((run / WEIGHTS_FILE).read_bytes()))
    return alarm


def _check_enough(held_out: int, trained: int, rate: float) -> None:
    """Check, before anything is learned, that a run has held out as many episodes as it takes.

    Raises:
        UserError: it has not; says what would do.
    """
    least, total = least_episodes(rate), held_out + trained
    if held_out >= least:
        return
    ways = ["--task"]
    if held_out > 0:
        ways.append(f"--false-alarms {math.ceil(100 / (held_out + 1)) / 100:g} or more")
    if 2 * least <= total:
        share = math.ceil(100 * least / total) / 100
        ways.append(f"train with --set training.validation_share={share:g}")
    counted = "1 held-out episode is" if held_out == 1 else f"{held_out} held-out episodes are"
    raise UserError(
        f"{counted} too few for a rate of {rate} false alarms; it takes "
        f"{least} or more; give {', or '.join(ways)}"
    )


def window_scores(policy: Policy, alarm: Alarm, windows: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The alarm's score of each observation window of an episode."""
    streams = {name: np.stack([window[name] for window in windows]) for name in policy.stream_names}
    with torch.no_grad():
        return alarm.score(policy.normalise_observation(policy.raw_windows(streams)))


def _of_task(
    run: Path, policy: Policy, alarm: Alarm, task: str, episodes: int, seed: int
) -> list[float]:
    highest: list[float] = []
    tried = 0
    with tqdm(total=episodes, desc=f"calibrate on {task}", unit="ep") as bar:
        for visit in visits(Rollout(str(run), task), seed):
            tried += 1
            if visit.record.success:
                highest.append(float(window_scores(policy, alarm, visit.windows).max()))
                bar.update()
            if len(highest) == episodes:
                break
            if tried % 100 == 0 and len(highest) < _LEAST_SUCCESS * tried:
                raise UserError(
                    f"calibrate: the policy succeeded in {len(highest)} of {tried} episodes of "
                    f"{task}; it must be trained better before its alarm can be calibrated"
                )
    return highest


def _of_held_out(policy: Policy, alarm: Alarm, held_out: Windows) -> list[float]:
    # As often as the policy would look: once for each chunk that is executed.
    looked = chunk_starts(held_out)
    batch = held_out.gather(looked)
    scores = alarm.score(policy.normalise_observation(batch.observations))
    first = held_out.first[looked].numpy()
    return [float(scores[first == start].max()) for start in np.unique(first)]
