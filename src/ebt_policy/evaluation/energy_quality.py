"""Does the energy mean something? Measured within one observation, on held-out episodes.

* ``auroc_random``: how often the demonstrated chunk has a lower energy than a random other one.
* ``auroc_near``: the same against the chunks of the nearest observations of training episodes,
  shifted to begin with the same action: other ways to go on from almost here.
* ``spearman_white``, ``spearman_smooth``: rank correlation between energy and distance from the
  demonstrated chunk, over perturbations of standard deviation 0.02 to 1.

And between sentences, for a policy that is told what to do (:func:`sentence_quality`): how often
the demonstrated chunk has a lower energy, or is moved less by a descent step, under its own
sentence than under another task's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebt_policy.energy.model import EnergyModel, energy_and_gradient
from ebt_policy.errors import UserError
from ebt_policy.objectives.noise import smooth
from ebt_policy.policies.base import Policy
from ebt_policy.shapes import Float
from ebt_policy.windows.sentences import words
from ebt_policy.windows.windows import Windows

RANDOM_CHUNKS, NEAR_CHUNKS = 100, 20
PERTURBATIONS = np.repeat(np.geomspace(0.02, 1.0, 12), 4)


def energy_quality(
    policy: Policy, held_out: Windows, training: Windows, count: int, seed: int
) -> dict[str, Any]:
    """Mean and 95% interval of each measure over ``count`` held-out observations.

    Windows of one episode overlap, so the interval is a bootstrap over episodes.

    Args:
        policy: with an ``energy``.
        held_out: windows the policy was not trained on.
        training: windows it was trained on; the nearest observations are looked for here.
        count: how many held-out windows, spread evenly; only those that do not reach
            beyond the episode's end are used.
        seed: of the perturbations and the random chunks.

    Raises:
        UserError: there are no held-out windows without padding.
    """
    model = policy.energy
    assert isinstance(model, EnergyModel)
    generator = torch.Generator().manual_seed(seed)
    normalise = policy.action_normaliser.normalise
    first = policy.config.windows.observation_steps - 1  # what came before an episode is padding
    chosen = _some_whole(held_out, first, count)
    batch = held_out.gather(chosen)
    known = training.gather(torch.arange(len(training)))
    known_features = _flat(policy.normalise_observation(known.observations))
    known_whole = known.valid[:, first:].all(1)
    known_chunks = normalise(known.actions)[known_whole]
    known_features = known_features[known_whole]
    observation = policy.normalise_observation(batch.observations)
    features, chunks = _flat(observation), normalise(batch.actions)
    scale = torch.from_numpy(PERTURBATIONS).float()[:, None, None]
    measures: dict[str, list[float]] = {
        "auroc_random": [], "auroc_near": [], "spearman_white": [], "spearman_smooth": [],
    }  # fmt: skip
    with torch.no_grad():
        for i, demonstrated in enumerate(chunks):
            memory = model.remember({n: v[i : i + 1] for n, v in observation.items()})

            def energies(some: Tensor, memory: Any = memory) -> Tensor:
                return model.given(memory, len(some))(some)

            own = energies(demonstrated[None])
            others = torch.randint(len(known_chunks), (RANDOM_CHUNKS,), generator=generator)
            measures["auroc_random"].append(_above(energies(known_chunks[others]), own))
            distance = (known_features - features[i]).square().sum(1)
            near = known_chunks[distance.topk(min(NEAR_CHUNKS, len(distance)), largest=False)[1]]
            shifted = near - near[:, first : first + 1] + demonstrated[first]
            measures["auroc_near"].append(_above(energies(shifted), own))
            draws = torch.randn(len(scale), *demonstrated.shape, generator=generator)
            for name, noise in (("white", draws), ("smooth", smooth(draws))):
                moved = scale * noise
                away = moved.square().mean((1, 2))
                found = energies(demonstrated + moved)
                measures[f"spearman_{name}"].append(_spearman(found.numpy(), away.numpy()))
    return {"observations": len(chunks), **_means(measures, held_out.first[chosen], seed)}


def sentence_quality(
    policy: Policy, held_out: Windows, meanings: Sequence[str], count: int, seed: int
) -> dict[str, Any]:
    """Area under the ROC curve of the own sentence against all those of other meanings.

    Means and 95% intervals, bootstrapped over episodes, of

    * ``auroc_energy``: by E itself, whose zero may be another one under every sentence;
    * ``auroc_excess``: by how far E is above where a step from the demonstrated chunk lands, which
      has no such offset: the own sentence is the one under which there is least to gain;
    * ``auroc_step``: by the length of that step;

    and all by meaning.

    Args:
        policy: with an ``energy``, and one text stream.
        held_out: windows the policy was not trained on.
        meanings: what each sentence of the held-out windows means, for instance its task.
        count: how many windows, spread evenly.
        seed: of the bootstrap.

    Raises:
        UserError: there are no held-out windows without padding.
    """
    model = policy.energy
    assert isinstance(model, EnergyModel)
    (stream,) = held_out.sentences
    rows, every = held_out.observations[stream], np.array(meanings)
    chosen = _some_whole(held_out, policy.config.windows.observation_steps - 1, count)
    batch = held_out.gather(chosen)
    chunks = policy.action_normaliser.normalise(batch.actions)
    told = rows[held_out.steps[chosen]].tolist()
    names = ("auroc_energy", "auroc_excess", "auroc_step")
    measures: dict[str, list[float]] = {name: [] for name in names}
    for i, row in enumerate(told):
        shown = [row, *np.flatnonzero(every != every[row])]
        window = {n: v[i : i + 1].expand(len(shown), *v.shape[1:]).clone()
                  for n, v in batch.observations.items()}  # fmt: skip
        window[stream][:] = held_out.sentences[stream][shown][:, None]
        with torch.no_grad():
            memory = model.remember(policy.normalise_observation(window))
            given, demonstrated = model.given(memory), chunks[i : i + 1].expand(len(shown), -1, -1)
            energy, gradient = energy_and_gradient(given, demonstrated)
            excess = energy - given(demonstrated - gradient)
        step = gradient.square().sum((1, 2))
        for name, values in zip(names, (energy, excess, step), strict=True):
            measures[name].append(_above(values[1:], values[:1]))
    result = {"observations": len(chunks), **_means(measures, held_out.first[chosen], seed)}
    of_window = every[told]
    result["by_meaning"] = {
        meaning: {
            name: round(float(np.mean(np.array(values)[of_window == meaning])), 4)
            for name, values in measures.items()
        }
        for meaning in np.unique(of_window).tolist()
    }
    return result


def word_saliency(
    policy: Policy, windows: Mapping[str, np.ndarray], stream: str
) -> tuple[list[str], Float[np.ndarray, "b words"]]:
    """How much each word matters to the chunk: what a step would change without it.

    The policy's own chunk for each window, under its sentence with one word left out, is moved by
    a descent step; this is how far (root mean square of normalised actions), beyond how far a step
    moves it under the whole sentence.

    Args:
        policy: with an ``energy``.
        windows: each stream (b, To, *shape), raw; all of one sentence of two words or more.
        stream: of the sentence.
    """
    model = policy.energy
    assert isinstance(model, EnergyModel)
    said = words(str(windows[stream].flat[0]))
    shorter = [said[:i] + said[i + 1 :] for i in range(len(said))]
    generators = [torch.Generator().manual_seed(0) for _ in windows[stream]]
    plan = torch.from_numpy(policy.predict_chunk(windows, generators).plan)
    chunks = policy.action_normaliser.normalise(plan)
    moved = []
    with torch.no_grad():
        for left in (said, *shorter):
            told = {**windows, stream: np.full(windows[stream].shape, " ".join(left))}
            memory = model.remember(policy.normalise_observation(policy.raw_windows(told)))
            _, gradient = energy_and_gradient(model.given(memory), chunks)
            moved.append(gradient.square().mean((1, 2)).sqrt().numpy())
    return said, np.stack(moved[1:], 1) - moved[0][:, None]


def pixel_saliency(
    policy: Policy, windows: Mapping[str, np.ndarray], camera: str
) -> tuple[Float[np.ndarray, "b h w 3"], Float[np.ndarray, "b h w"]]:
    """Which pixels the energy of the policy's own chunk depends on: the length of its gradient.

    Args:
        policy: with an ``energy``, whose image encoder is not frozen.
        windows: each stream (b, To, *shape), raw.
        camera: the image stream.

    Returns:
        The newest pictures as the network sees them, in [0, 1], and for each pixel the root of the
        sum of squares of dE / d(its colours).
    """
    model = policy.energy
    assert isinstance(model, EnergyModel)
    generators = [torch.Generator().manual_seed(0) for _ in windows[camera]]
    plan = torch.from_numpy(policy.predict_chunk(windows, generators).plan)
    chunks = policy.action_normaliser.normalise(plan)
    observation = policy.normalise_observation(policy.raw_windows(windows))
    pictures = observation[camera].detach().requires_grad_()
    energy = model(chunks, model.remember({**observation, camera: pictures}))
    (slope,) = torch.autograd.grad(energy.sum(), pictures)
    seen = (pictures[:, -1].detach().movedim(1, -1) + 1) / 2
    return seen.numpy(), slope[:, -1].square().sum(1).sqrt().numpy()


def _some_whole(held_out: Windows, first: int, count: int) -> Tensor:
    """Indices of windows without padding from action ``first`` on, spread evenly."""
    every = held_out.gather(torch.arange(len(held_out)))
    whole = every.valid[:, first:].all(1).nonzero().flatten()
    if len(whole) == 0:
        raise UserError("energy quality: no held-out window without padding")
    return whole[torch.linspace(0, len(whole) - 1, min(count, len(whole))).round().long()]


def _means(measures: dict[str, list[float]], first: Tensor, seed: int) -> dict[str, Any]:
    """Means with intervals bootstrapped over episodes, which are told apart by their first step."""
    _, episode = np.unique(first.numpy(), return_inverse=True)
    sizes = np.bincount(episode)
    draws = np.random.default_rng(seed).integers(len(sizes), size=(4_000, len(sizes)))
    result = {}
    for name, values in measures.items():
        sums = np.bincount(episode, weights=values)
        means = sums[draws].sum(1) / sizes[draws].sum(1)
        low, high = np.percentile(means, [2.5, 97.5])
        result[name] = [round(float(x), 4) for x in (np.mean(values), low, high)]
    return result


def _flat(observation: dict[str, Tensor]) -> Tensor:
    return torch.cat([observation[name].flatten(1) for name in sorted(observation)], 1)


def _above(others: Tensor, own: Tensor) -> float:
    """Share of the others above, ties counted half: the area under the ROC curve of one."""
    return ((others > own).float() + 0.5 * (others == own).float()).mean().item()


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])
