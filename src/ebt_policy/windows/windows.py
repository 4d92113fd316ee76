"""Training windows: To observations, T actions, padded by repetition, with a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ebt_policy.config import StreamConfig, WindowConfig, is_image
from ebt_policy.demonstrations import Demonstrations
from ebt_policy.demonstrations.base import TASK
from ebt_policy.demonstrations.zarr_buffer import PUSHT_KEYS
from ebt_policy.errors import UserError
from ebt_policy.shapes import Float
from ebt_policy.windows.arrays import Arrays
from ebt_policy.windows.batch import Batch
from ebt_policy.windows.sentences import HASHED, embed


def split_episodes(
    episodes: int, validation_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split whole episodes into training and validation, at random but reproducibly.

    At least one episode always trains; with a share above 0 and two episodes or more, at
    least one validates.
    """
    count = min(max(1, round(validation_share * episodes)), episodes - 1)
    if validation_share == 0:
        count = 0
    order = np.random.default_rng([seed, 1]).permutation(episodes)
    return np.sort(order[count:]), np.sort(order[:count])


class Windows:
    """Every window of some episodes, gathered a whole batch at a time.

    There is one window for each step of an episode; the step is the window's "now". A sentence is
    its vector.

    Args:
        arrays: all steps of all episodes.
        episode_ends: exclusive ends.
        episodes: which episodes to draw windows from.
        config: To, T and Ta.
    """

    def __init__(
        self,
        arrays: Arrays,
        episode_ends: np.ndarray,
        episodes: np.ndarray,
        config: WindowConfig,
    ) -> None:
        self.config = config
        self.observations = {n: torch.from_numpy(v) for n, v in arrays.observations.items()}
        self.sentences = {n: torch.from_numpy(v) for n, v in arrays.sentences.items()}
        self.actions = torch.from_numpy(arrays.actions)
        starts = np.concatenate([[0], episode_ends[:-1]])
        steps = [np.arange(starts[e], episode_ends[e]) for e in episodes]
        self.steps = torch.from_numpy(np.concatenate([np.arange(0), *steps]))  # even of none
        lengths = (episode_ends - starts)[episodes]
        self.first = torch.from_numpy(np.repeat(starts[episodes], lengths))
        self.last = torch.from_numpy(np.repeat(episode_ends[episodes] - 1, lengths))

    def __len__(self) -> int:
        return len(self.steps)

    def gather(self, indices: Tensor) -> Batch:
        """The windows of these indices.

        Steps beyond the episode repeat its first or last step; their actions are not valid.
        """
        now = self.steps[indices, None]
        first, last = self.first[indices, None], self.last[indices, None]
        oldest = now - self.config.observation_steps + 1
        seen = (oldest + torch.arange(self.config.observation_steps)).clamp(first, last)
        planned = oldest + torch.arange(self.config.horizon)
        inside = planned.clamp(first, last)
        # Whole steps are copied, several times faster than values[seen] is.
        observed = {
            name: values.index_select(0, seen.flatten()).unflatten(0, seen.shape)
            for name, values in self.observations.items()
        }
        observed |= {name: table[observed[name]] for name, table in self.sentences.items()}
        return Batch(
            observed,
            self.actions[inside],
            inside == planned,
        )


class BatchOrder:
    """Which windows make up training step k: a function of the seed and k alone.

    Each epoch is a permutation, or as many draws with replacement where windows are weighted,
    cut into whole batches; nothing has to be remembered to continue at any step.

    Args:
        windows: number of windows.
        batch_size: of all processes together.
        seed: of the permutations.
        shares: (windows,), how often each is drawn, adding up to 1; None is equally often.
    """

    def __init__(
        self,
        windows: int,
        batch_size: int,
        seed: int,
        shares: Float[np.ndarray, n] | None = None,
    ) -> None:
        self.shares = shares
        self.windows, self.batch_size, self.seed = windows, min(batch_size, windows), seed
        self.per_epoch = windows // self.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Indices (batch,) of the windows of training step ``step``."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, 2, epoch])
            order = (
                random.permutation(self.windows)
                if self.shares is None
                else random.choice(self.windows, self.windows, p=self.shares)
            )
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]


def window_shares(
    steps: np.ndarray, part_ends: np.ndarray, weights: Sequence[float]
) -> Float[np.ndarray, n]:
    """How often each window is drawn, so that every part of a mixture has its share.

    Args:
        steps: (n,), of the windows.
        part_ends: exclusive end of each part, in steps.
        weights: of the parts, in any unit.
    """
    part = np.searchsorted(part_ends, steps, side="right")
    counts = np.bincount(part, minlength=len(part_ends))
    shares: np.ndarray = (np.asarray(weights) / np.maximum(counts, 1))[part]
    return shares / shares.sum()


PUSHT_STATE = StreamConfig((5,), angles=(4,))
# What robomimic trains its low-dimensional policies on, with one arm or with two.
ROBOMIMIC_STREAMS = (
    "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos",
    "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos", "object",
)  # fmt: skip


def choose_streams(demonstrations: Demonstrations, keys: str | None) -> dict[str, StreamConfig]:
    """The observation streams of ``--obs``, or this data set's default ones.

    ``keys`` is a comma-separated list of ``KEY``, an image where its shape is (H, W, 3). A key of
    numbers may be followed by ``:angles=I+J`` (elements I and J are angles in radians) and
    ``:elements=I+J`` (the policy sees these alone) and ``:dropout=P`` (withheld in a share P of the
    windows in training). PushT's ``state`` has its angle marked by
    default (``state:angles=`` turns that off). Without ``keys``: PushT's ``state``, robomimic's
    low-dimensional keys, LeRobot's ``observation.…`` or every key; images and sentences never.
    ``task`` is the sentence of what is done, where no key has that name; ``task:encoder=NAME`` has
    it embedded by a text encoder instead of hashed, see :mod:`ebt_policy.windows.sentences`.
    Of a mixture, default streams are such as all data sets have; one that is named may be missing
    from some.

    Raises:
        UserError: a key does not exist, is neither numbers nor an image, or an index is out of
            range.
    """
    common = {
        k: i for k, i in demonstrations.observations.items() if demonstrations.lacking(k) is None
    }
    is_pusht = common.keys() >= PUSHT_KEYS
    if keys is None:
        if is_pusht:
            return {"state": PUSHT_STATE}
        low = [k for k, info in common.items() if len(info.shape) <= 2]
        lerobot = [k for k in low if k.startswith("observation.")]
        chosen = [k for k in ROBOMIMIC_STREAMS if k in low] or lerobot or low
        if not chosen:
            raise UserError(
                f"{demonstrations.path}: {'only images' if common else 'no key is in all of it'}; "
                "name those to see with --obs"
            )
        keys = ",".join(chosen)
    streams = {}
    for part in keys.split(","):
        name, *options = part.strip().split(":")
        if name == TASK and name not in demonstrations.observations and demonstrations.tasks:
            streams[name] = _text_stream(part, options)
            continue
        shape = demonstrations.require(name).shape
        if len(shape) > 2:
            if options or not is_image(shape):
                raise UserError(
                    f"--obs {part}: shape {shape} per step is "
                    + ("an image, which has no angles, elements or dropout" if is_image(shape) else
                       "neither numbers nor an RGB image (H, W, 3)")
                )  # fmt: skip
            streams[name] = StreamConfig(shape, kind="image")
            continue
        size, indices, dropout = math.prod(shape), dict[str, tuple[int, ...]](), 0.0
        for option in options:
            label, sign, text = option.partition("=")
            if label == "dropout":
                dropout = _share(part, text)
                continue
            listed = [i for i in text.split("+") if i]
            if label not in ("angles", "elements") or not sign or not all(map(str.isdigit, listed)):
                raise UserError(
                    f"--obs {part}: write KEY, KEY:angles=I+J, KEY:elements=I+J or "
                    "KEY:dropout=P, e.g. state:angles=4"
                )
            indices[label] = tuple(sorted(set(map(int, listed))))
            if any(i >= size for i in indices[label]):
                raise UserError(f"--obs {part}: {name!r} has {size} elements, counted from 0")
        elements = indices.get("elements")
        if elements == ():
            raise UserError(f"--obs {part}: no element is left; leave the key out instead")
        marked = PUSHT_STATE.angles if is_pusht and name == "state" else ()
        if elements is not None:
            marked = tuple(i for i in marked if i in elements)
        angles = indices.get("angles", marked)
        streams[name] = StreamConfig(shape, angles, elements, dropout=dropout)
    return {
        name: replace(stream, may_be_missing=demonstrations.lacking(name) is not None)
        for name, stream in streams.items()
    }


def _share(part: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise UserError(f"--obs {part}: dropout is a share from 0 to below 1, e.g. 0.5")
    return share


def _text_stream(part: str, options: list[str]) -> StreamConfig:
    label, _, encoder = (options or [f"encoder={HASHED}"])[0].partition("=")
    if len(options) > 1 or label != "encoder" or not encoder:
        raise UserError(
            f"--obs {part}: write {TASK} or {TASK}:encoder=NAME, the hub name or folder of a text "
            "encoder"
        )
    return StreamConfig(embed(TASK, encoder).shape, kind="text", encoder=encoder)
