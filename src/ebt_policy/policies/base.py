"""What every policy does: learn from a batch, predict a chunk, act step by step."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ebt_policy.config import PolicyConfig
from ebt_policy.descent import Trace
from ebt_policy.energy.model import EnergyModel, Prefix
from ebt_policy.energy.pretrained import PretrainedBackbone
from ebt_policy.energy.transformer import Memory, Network
from ebt_policy.errors import UserError
from ebt_policy.policies.alarm import Alarm
from ebt_policy.shapes import Bool, Float, Int, Shaped
from ebt_policy.windows.batch import Batch, presence
from ebt_policy.windows.images import ImageNormaliser, to_uint8
from ebt_policy.windows.normaliser import Normaliser
from ebt_policy.windows.sentences import embed_all

_FIT_STEPS = 2**16  # looked at at once


@dataclass
class Prediction:
    """A predicted chunk for each observation.

    Attributes:
        actions: (b, Ta, A), the part to execute, in the units of the demonstrations; fewer where
            the chunk ends before.
        plan: (b, T, A), the whole chunk.
        evaluations: sequential network evaluations per sample (b,): descent steps of an energy
            policy, denoising steps of a diffusion policy.
        trace: of the descent, for an energy policy.
        score: (b,), the energy of each observation itself, if the policy has an alarm.
        alarm: (b,), whether it is above the alarm's threshold.
    """

    actions: Float[np.ndarray, "b ta a"]
    plan: Float[np.ndarray, "b t a"]
    evaluations: np.ndarray
    trace: Trace | None = None
    score: Float[np.ndarray, b] | None = None
    alarm: Bool[np.ndarray, b] | None = None


class Policy(nn.Module):
    """Base of all policies.

    ``forward`` is the training loss, so that wrappers of a module (distributed data parallel)
    see the whole computation.

    Args:
        config: all that is needed to build the policy again.

    Attributes:
        alarm: tells whether an observation is off the demonstrations; None until calibrated
            (``ebt-policy calibrate``).
    """

    alarm: Alarm | None = None
    acting: str | None = None
    """Name of the part of the configuration that says how a trained policy acts, if one does."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.action_normaliser = Normaliser(config.action_dim)
        self.stream_names = sorted(config.streams)
        self.stream_normalisers = nn.ModuleList(
            ImageNormaliser(config.streams[name].shape, config.vision)
            if name in config.cameras
            else Normaliser(config.streams[name].features)
            for name in self.stream_names
        )
        self.reset()

    # -- for subclasses ------------------------------------------------------------------

    @abstractmethod
    def errors(
        self, observation: dict[str, Tensor], actions: Float[Tensor, "b t a"]
    ) -> Float[Tensor, "b t a"]:
        """Squared error of each action element: the objective, on normalised values."""

    @abstractmethod
    def sample(
        self,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        """A normalised chunk for each observation, its sequential evaluations, and a trace."""

    def sample_after(
        self,
        prefix: Prefix,
        observation: dict[str, Tensor],
        generators: Sequence[torch.Generator] | Draws | None,
        previous: Float[Tensor, "b t a"] | None,
    ) -> tuple[Float[Tensor, "b t a"], Tensor, Trace | None]:
        """As :meth:`sample`, going on from actions that are decided, if it learned to."""
        return self.sample(observation, generators, previous)

    @property
    def holds_prefix(self) -> bool:
        """Whether it learned to go on from actions that are decided."""
        return False

    @property
    def sampler(self) -> str:
        """Name of the way this policy acts, for reports."""
        return "none"

    def with_sampling(self, settings: Any = None, action_steps: int | None = None) -> Policy:
        """A policy with the same weights (shared, not copied) and other settings for acting.

        Args:
            settings: what stands in the configuration under ``acting``, e.g. ``DescentConfig``;
                None: as they are.
            action_steps: actions executed of each chunk; None: as many as before.

        Raises:
            UserError: more actions than a chunk has.
        """
        other = copy.copy(self)
        if settings is not None:
            assert self.acting is not None
            other.config = replace(other.config, **{self.acting: settings})
        if action_steps is not None:
            windows = replace(other.config.windows, action_steps=action_steps)
            other.config = replace(other.config, windows=windows)
        other.reset()
        return other

    @property
    def core(self) -> EnergyModel | Network:
        """The network, which sees normalised values only."""
        return next(part for part in self.children() if isinstance(part, EnergyModel | Network))

    def compile_acting(self) -> None:
        """Fuse what acting calls with ``torch.compile``: the same chunks to rounding, sooner.

        Compiling takes a minute or so for each batch size, when it first occurs; beyond the
        limit of ``torch._dynamo.config.recompile_limit`` batch sizes the rest is not fused. Needs
        a C++ compiler on a CPU. For acting only: an energy cannot be trained afterwards.
        Policies that share these weights (:meth:`with_sampling`) are compiled with it.
        """
        core = self.core
        for name in core.called_in_acting:
            compiled = torch.compile(getattr(type(core), name), dynamic=False)
            setattr(core, name, MethodType(compiled, core))  # a method: copies get their own

    # -- learning ------------------------------------------------------------------------

    def load_pretrained(self) -> None:
        """Take the weights of pretrained backbones from the hub or their folder, if there are any.

        Raises:
            UserError: they cannot be read.
        """
        for part in self.modules():
            if isinstance(part, PretrainedBackbone):
                part.load()

    def fit_normalisers(
        self,
        streams: Mapping[str, Shaped[np.ndarray, "n ..."]],
        actions: Float[np.ndarray, "n a"],
        steps: Int[np.ndarray, k],
        source: str,
        sentences: Mapping[str, Float[np.ndarray, "s d"]] = MappingProxyType({}),
    ) -> None:
        """Take the ranges of every number stream and of the actions from all training steps.

        Args:
            streams: all steps, in the units of the demonstrations, and the presence of some; what
                stands where a stream is missing is left out.
            actions: likewise.
            steps: which of them to look at.
            source: where they are from, for messages.
            sentences: of each text stream the vectors, whose ranges are taken instead.

        Raises:
            UserError: a value is NaN or infinite, or a stream is missing from all of these steps.
        """
        for name, normaliser in self.named_normalisers():
            having = steps
            if presence(name) in streams:
                having = steps[streams[presence(name)][steps, 0] > 0]
                if len(having) == 0:
                    raise UserError(
                        f"{source}: no episode that is learned from has observation {name!r}"
                    )
            if isinstance(normaliser, ImageNormaliser):
                continue
            if name in sentences:
                normaliser.fit([sentences[name]], f"{source}: sentences")
                continue
            parts = (streams[name][part].astype(np.float32) for part in _in_parts(having))
            features = (self._features(name, torch.from_numpy(part)).numpy() for part in parts)
            normaliser.fit(features, f"{source}: observation {name!r}")
        chunks = (actions[part].astype(np.float32) for part in _in_parts(steps))
        self.action_normaliser.fit(chunks, f"{source}: actions")

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Training loss: mean of the objective's squared errors, 0 where an action is padding.

        The divisor is the batch's size, not its number of valid actions, so that the gradient
        of a batch is the mean of its parts' gradients however it is shared out.
        """
        observation = self.normalise_observation(batch.observations)
        errors = self.errors(observation, self.action_normaliser.normalise(batch.actions))
        return (errors * batch.valid[..., None]).mean()

    def normalise_observation(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw streams (b, To, *shape) to what the network is given, in [-1, 1] on demonstrations.

        A sentence is raw as its vector; :meth:`raw_windows` takes text. In training mode pictures,
        sentences and, where asked for, numbers are changed a little (``vision``,
        ``sentence_noise``, ``observation_noise``), and streams are said to be absent where they are
        dropped (``StreamConfig.dropout``).

        Returns:
            Features (b, To, features) of numbers, pictures (b, To, 3, h, w) of images; a camera's
            features (b, To, C, p, p) where the batch has those; and the presence of the streams
            that come with it. Streams that are missing still are.
        """
        normalised = {}
        for name, normaliser in self.named_normalisers():
            if name not in observations:
                assert name in self.config.may_be_missing, name
                continue
            if presence(name) in observations:
                normalised[presence(name)] = observations[presence(name)]
            values = observations[name]
            if name in self.config.cameras and values.is_floating_point():
                normalised[name] = values.float()  # features, as the network takes them
                continue
            if isinstance(normaliser, Normaliser):
                values = self._features(name, values)
            normalised[name] = normaliser.normalise(values)
            dropout = self.config.streams[name].dropout
            if self.training and dropout:
                # In all steps of a window.
                kept = torch.rand(len(values), 1, 1, device=values.device) >= dropout
                there = normalised.get(presence(name), torch.ones_like(normalised[name][..., :1]))
                normalised[presence(name)] = there * kept
            is_text = self.config.streams[name].kind == "text"
            largest = self.config.sentence_noise if is_text else self.config.observation_noise
            if self.training and largest and isinstance(normaliser, Normaliser):
                # The same at all steps of a window; none where the demonstrations do not differ.
                noise = normaliser.moves * torch.randn_like(normalised[name][:, :1])
                size = largest if is_text else largest * torch.rand_like(noise[..., :1])
                normalised[name] = normalised[name] + size * noise
        return normalised

    def named_normalisers(self) -> list[tuple[str, Normaliser | ImageNormaliser]]:
        """Every stream's name and normaliser, in the order of ``stream_names``."""
        normalisers = cast(list[Normaliser | ImageNormaliser], list(self.stream_normalisers))
        return list(zip(self.stream_names, normalisers, strict=True))

    def _features(self, name: str, values: Tensor) -> Tensor:
        """Flatten a stream of numbers, replace its angles by sine and cosine, drop the unseen."""
        stream = self.config.streams[name]
        flat = values.reshape(*values.shape[: values.ndim - len(stream.shape)], -1)
        if not stream.angles and stream.elements is None:
            return flat
        angles = flat[..., list(stream.angles)]
        keep = [i for i in stream.seen if i not in stream.angles]
        return torch.cat([flat[..., keep], angles.sin(), angles.cos()], dim=-1)

    @property
    def window_features(self) -> int:
        """Numbers of a whole observation window, after the sine-cosine transform; no images."""
        streams = self.config.streams.values()
        each = sum(stream.features for stream in streams if stream.kind != "image")
        return self.config.windows.observation_steps * each

    def zero_chunk(self, memory: Memory) -> Float[Tensor, "b t a"]:
        """A chunk of zeros (the middle of the demonstrated range) for each observation."""
        keys = memory[0][0]
        horizon = self.config.windows.horizon
        return torch.zeros(len(keys), horizon, self.config.action_dim, device=keys.device)

    # -- acting --------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the episode: observation window, queued actions and previous chunk."""
        self._window: deque[dict[str, np.ndarray]] = deque(
            maxlen=self.config.windows.observation_steps
        )
        self._queue: deque[np.ndarray] = deque()
        self._previous: np.ndarray | None = None

    def select_action(
        self, observation: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> Float[np.ndarray, a]:
        """The next action of one robot; call once per control step, ``reset`` per episode.

        A new chunk is predicted every Ta steps, from the last To observations (the first one
        repeated at the beginning of an episode)::

            step          0   1 ... 7   8   9 ...
            observation   o   o ... o   o   o
            chunk         |-- Ta = 8 --||-- Ta = 8 --

        Args:
            observation: each stream of the policy, without batch or time; a sentence is a str;
                more is ignored. A stream that may be missing is absent or None where it is.
            generator: for noisy starts; the global one if None.

        Returns:
            The action (A,), in the units of the demonstrations.

        Raises:
            UserError: a stream is missing, has another shape, or is not finite.
        """
        self._window.append(self.check_observation(observation))
        if not self._queue:
            padding = [self._window[0]] * (self._window.maxlen or 1)
            steps = [*padding, *self._window][-len(padding) :]
            observations = self.stacked([self.window(steps)])
            prediction = self.predict_chunk(
                observations, None if generator is None else [generator], self._previous
            )
            self._previous = moved_on(prediction.plan, self.config.windows.action_steps)
            self._queue.extend(prediction.actions[0])
        return self._queue.popleft()

    def predict_chunk(
        self,
        observations: Mapping[str, Any],
        generators: Sequence[torch.Generator] | Draws | None = None,
        previous: Float[np.ndarray, "b t a"] | None = None,
        prefix: Float[np.ndarray, "b n a"] | None = None,
    ) -> Prediction:
        """Predict a chunk for each observation window. Holds no state.

        Works in any context, ``no_grad`` and ``inference_mode`` included. With one generator
        per sample, a sample's result does not depend on the batch it is in.

        In real time (Black et al. 2025, arXiv 2506.07339) a chunk is asked for while the one
        before is still being executed. The new chunk's first actions are decided then: the To - 1
        that were executed since its oldest observation, and those that will be until it is here.
        A policy that learned with prefixes (``basin.prefix_share``) holds them fixed and finds how
        to go on, one with ``descent.smoothness`` goes on smoothly from them; any other plans as if
        there were none. ``actions`` begin after the prefix::

            chunk        |To-1|--- executed meanwhile ---|--------- Ta ---------|
            prefix       |-------------- n --------------|
            actions                                      |----------------------|

        Args:
            observations: each stream (b, To, *shape), arrays or tensors, raw units; of sentences
                an array of text (b, To), or their vectors. A stream that may be missing
                (``StreamConfig.may_be_missing``) is absent or None where no window has it; for
                where some have, see :meth:`stacked`.
            generators: one per sample, for noisy starts and samplers; None: the global one.
            previous: what was planned before for the same control steps (:func:`moved_on`), for a
                warm start; and its first To - 1 actions, which were executed, for smoothness.
            prefix: the first n actions of each chunk, where more than the To - 1 are decided, in
                the units of the demonstrations; To - 1 <= n < T.

        Raises:
            UserError: a stream is missing, has another shape, or is not finite; the prefix has
                another shape or is not finite.
        """
        first = self.config.windows.executed.start
        if prefix is not None:
            self.check_prefix(prefix)
            first = prefix.shape[1]
        was_training = self.training
        self.eval()
        try:
            device = self.action_normaliser.centre.device
            # Energies are compared and descended in float32, whatever the caller's autocast.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                raw = self.raw_windows(observations)
                if {len(values) for values in raw.values()} == {0}:
                    raise UserError("the batch of observations is empty")
                if len({len(values) for values in raw.values()}) != 1:
                    sizes = ", ".join(f"{name}: {len(values)}" for name, values in raw.items())
                    raise UserError(f"observation streams differ in batch size ({sizes})")
                before = None
                if previous is not None:
                    before = self._normalised(previous)
                observation = self.normalise_observation(raw)
                score = None
                if self.alarm is not None:
                    score = self.alarm.score(observation)
                    observation = self.alarm.imagine(observation)
                if prefix is None:
                    chunk, evaluations, trace = self.sample(observation, generators, before)
                else:
                    chunk, evaluations, trace = self.sample_after(
                        self._prefix(prefix), observation, generators, before
                    )
                plan = self.action_normaliser.unnormalise(chunk.clamp(-1, 1)).cpu().numpy()
        finally:
            self.train(was_training)
        executed = plan[:, first : first + self.config.windows.action_steps]
        alarm = None if self.alarm is None or score is None else score > self.alarm.threshold
        return Prediction(executed, plan, evaluations.cpu().numpy(), trace, score, alarm)

    def raw_windows(self, observations: Mapping[str, Any]) -> dict[str, Tensor]:
        """The policy's streams of a batch of windows, checked, on the policy's device.

        Args:
            observations: as :meth:`predict_chunk` takes them.

        Raises:
            UserError: as :meth:`check_observation`.
        """
        window = (None, self.config.windows.observation_steps)
        device = self.action_normaliser.centre.device
        raw = {}
        for name in self._present(observations):
            raw[name] = torch.tensor(self._checked(name, observations, window), device=device)
            if presence(name) in observations:
                if name not in self.config.may_be_missing:
                    raise UserError(
                        f"observation {name!r} is missing from some windows; the policy was "
                        "trained with it in all of them"
                    )
                raw[presence(name)] = torch.as_tensor(observations[presence(name)], device=device)
        return raw

    def window(self, steps: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """To observations, oldest first, as each stream (To, *shape).

        As in training, a stream is missing from all of a window or from none of it.

        Raises:
            UserError: no stream is in all of the observations.
        """
        whole = {
            name: steps[0][name]
            for name in self.stream_names
            if all(step.get(name) is not None for step in steps)
        }
        return {name: np.stack([step[name] for step in steps]) for name in self._present(whole)}

    def stacked(self, windows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Windows as a batch, whichever streams each of them has.

        Returns:
            Each stream (b, To, *shape). Where some windows lack it, another's stands in its place
            and its presence says so: it has no influence.
        """
        batch = {}
        for name in self.stream_names:
            present = [name in window for window in windows]
            if not any(present):
                continue
            example = windows[present.index(True)][name]
            batch[name] = np.stack([window.get(name, example) for window in windows])
            if not all(present):
                has_it = np.array(present, np.float32)[:, None, None]
                batch[presence(name)] = np.repeat(has_it, batch[name].shape[1], 1)
        return batch

    def check_prefix(self, prefix: Float[np.ndarray, "b n a"]) -> None:
        """Check actions that are decided.

        Raises:
            UserError: see :meth:`predict_chunk`.
        """
        windows, shape = self.config.windows, np.shape(prefix)
        least = windows.observation_steps - 1
        if (
            len(shape) != 3
            or not least <= shape[1] < windows.horizon
            or shape[2] != self.config.action_dim
        ):
            raise UserError(
                f"prefix has shape {shape}, expected (batch, {least} to {windows.horizon - 1}, "
                f"{self.config.action_dim})"
            )
        if not np.isfinite(prefix).all():
            raise UserError(f"prefix holds {prefix[~np.isfinite(prefix)][0]}")

    def _prefix(self, given: Float[np.ndarray, "b n a"]) -> Prefix:
        """The first actions of each chunk, normalised."""
        actions = self._normalised(given).clamp(-1, 1)
        horizon, count = self.config.windows.horizon, actions.shape[1]
        lengths = torch.full((len(actions), 1), count, device=actions.device)
        return Prefix.of(torch.nn.functional.pad(actions, (0, 0, 0, horizon - count)), lengths)

    def _normalised(self, actions: Float[np.ndarray, "b n a"]) -> Float[Tensor, "b n a"]:
        device = self.action_normaliser.centre.device
        return self.action_normaliser.normalise(
            torch.tensor(actions, device=device, dtype=torch.float32)
        )

    def check_observation(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The policy's streams of one observation, without batch or time.

        Returns:
            Numbers and the vectors of sentences as float32, images as uint8. What may be missing
            and is, is not among them.

        Raises:
            UserError: a stream is missing that may not be, or all are; one has another shape, is
                not finite, or is an image of other values than whole numbers from 0 to 255; a
                sentence is empty or too long.
        """
        return {name: self._checked(name, observation, ()) for name in self._present(observation)}

    def _present(self, observation: Mapping[str, Any]) -> list[str]:
        """The streams that an observation has, and those that it must have.

        Raises:
            UserError: there are none, or it is no mapping.
        """
        if not isinstance(observation, Mapping):
            raise UserError(
                f"an observation is a mapping of streams, not a {type(observation).__name__}; the "
                f"policy was trained on {', '.join(self.stream_names)}"
            )
        missing = [n for n in self.config.may_be_missing if observation.get(n) is None]
        present = [name for name in self.stream_names if name not in missing]
        if not present:
            raise UserError(
                f"observation has none of the streams {', '.join(self.stream_names)}; each of them "
                "may be missing, but not all"
            )
        return present

    def _checked(
        self, name: str, observation: Mapping[str, Any], leading: tuple[int | None, ...]
    ) -> np.ndarray:
        """One stream as an array, with its presence, shape and values checked."""
        if observation.get(name) is None:
            given = [key for key, value in observation.items() if value is not None]
            raise UserError(
                f"observation has no stream {name!r} (it has {', '.join(sorted(given))}); "
                f"the policy was trained on {', '.join(self.stream_names)}"
            )
        value = observation[name]
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        encoder = self.config.streams[name].encoder
        if encoder is not None and np.asarray(value).dtype.kind not in "fiu":
            value = embed_all(np.asarray(value), encoder)
        is_image = name in self.config.cameras
        try:
            array = np.asarray(value, dtype=None if is_image else np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"observation {name!r} is no array of numbers: {error}") from error
        expected = (*leading, *self.config.streams[name].shape)
        fits = len(array.shape) == len(expected) and all(
            want is None or want == got for want, got in zip(expected, array.shape, strict=True)
        )
        if not fits:
            shown = tuple("batch" if extent is None else extent for extent in expected)
            raise UserError(f"observation {name!r} has shape {array.shape}, expected {shown}")
        if is_image:
            image, bad = to_uint8(array)
            if bad is not None:
                raise UserError(
                    f"observation {name!r} holds {array[bad]}; an image is uint8, or whole numbers "
                    "from 0 to 255"
                )
            return image
        if not np.isfinite(array).all():
            raise UserError(f"observation {name!r} holds {array[~np.isfinite(array)][0]}")
        return array


def _in_parts(steps: Int[np.ndarray, k]) -> list[Int[np.ndarray, _]]:
    """Steps, so many at a time as are looked at at once."""
    return np.array_split(steps, math.ceil(len(steps) / _FIT_STEPS))


def moved_on(plan: Float[np.ndarray, "b t a"], steps: int) -> Float[np.ndarray, "b t a"]:
    """What plans say of the chunks that begin some control steps later; their last action stays."""
    return plan[:, np.minimum(np.arange(plan.shape[1]) + steps, plan.shape[1] - 1)]


class Draws:
    """Standard normal draws made beforehand: they stand in for generators where a policy samples.

    Args:
        tensors: in the order in which the policy asks for them.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = deque(tensors)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """The next draw.

        Raises:
            ValueError: there is none, or it has another shape.
        """
        tensor = self._tensors.popleft() if self._tensors else None
        if tensor is None or tensor.shape != shape:
            given = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"a draw of shape {shape} is asked for, the next one given is {given}")
        return tensor


def draw(
    shape: tuple[int, ...],
    batch: int,
    generators: Sequence[torch.Generator] | Draws | None,
    device: torch.device,
) -> Tensor:
    """Standard normal draws (batch, *shape), each sample from its own generator if given."""
    if isinstance(generators, Draws):
        return generators.take((batch, *shape))
    if generators is None:
        return torch.randn(batch, *shape, device=device)
    if len(generators) != batch:
        raise ValueError(f"{len(generators)} generators for a batch of {batch}")
    return torch.stack(
        [torch.randn(*shape, generator=g, device=g.device).to(device) for g in generators]
    )
