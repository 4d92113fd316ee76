"""The energy of an observation itself: low where the demonstrator has been.

A chunk's energy E(o, a) says which of two chunks suits an observation better. Added to it, any
function of the observation alone would leave every descent as it is; so training a descent does
not determine it, and energies under different observations cannot be compared. This energy scores
the observation by itself. It is learned by the same rule as the chunk's (one unit step lands on
the demonstration, see :mod:`ebt_policy.objectives.basin`), the observation in the place of the
chunk:

    F(o) = 1/2 r^T P r + 1/2 || e ||^2,    r = s - g(s),    L = || g(c(o)) - o ||^2

s is the observation as the policy's network sees it, held at its limit, and e = o - s what that
leaves out: little counts little, a sensor gone wild counts. With g frozen the step P^-1 grad F = r
lands on g(s), where s would be if it had been demonstrated. The precision P is the inverse of r's
second moments on the demonstrations (and a small ridge): numbers that are bound to each other there
(a place, a hand's place, and the one as seen from the other) have hardly any r in some directions,
and what breaks those bonds shows although it is small. c adds normal noise of a size drawn from
U(0, noise), and exchanges each stream, now and then, for that of another window: g learns what each
stream is to be, given the others, and F is high where they do not belong together (a closed gripper
far from everything), however far from each other the demonstrated values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ebt_policy.shapes import Float
from ebt_policy.windows.normaliser import held

_NOISE = 0.1  # of the range [-1, 1] of the demonstrations
_EXCHANGED = 0.25  # of the windows, for each stream
_RIDGE = 0.01  # of the mean variance of r, added to every one
_SHOWN = 20_000  # windows that r's second moments are of
STEPS, BATCH, _LEARNING_RATE = 6_000, 256, 1e-3


def minimise(
    parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], steps: int = STEPS
) -> None:
    """Adam with a learning rate that falls to 0, for a small network."""
    optimizer = torch.optim.Adam(parameters, _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


class ObservationEnergy(nn.Module):
    """F(o) of an observation window, flattened and normalised.

    Args:
        features: of the whole window, To times those of one step.
        limit: where the policy's network sees numbers that lie beyond (``observation_limit``).
        width: of the two hidden layers.
    """

    def __init__(self, features: int, limit: float | None, width: int = 256) -> None:
        super().__init__()
        self.limit = limit
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, features),
        )  # fmt: skip
        self.register_buffer("root", torch.eye(features))
        self.root: Tensor  # of the precision: P = root root^T

    def forward(self, windows: Float[Tensor, "b d"]) -> Float[Tensor, b]:
        """F of each window."""
        seen = held(windows, self.limit)
        rest = (seen - self.layers(seen)) @ self.root
        return 0.5 * (rest.square().sum(1) + (windows - seen).square().sum(1))

    def fit(
        self, windows: Float[Tensor, "n d"], streams: Sequence[int], seed: int, steps: int = STEPS
    ) -> None:
        """Learn from demonstrated windows; some seconds on a CPU.

        Args:
            windows: normalised.
            streams: how many features of a window each stream has, in their order.
            seed: of batches and corruptions.
            steps: of training.
        """
        generator = torch.Generator().manual_seed(seed)

        def some() -> Tensor:
            return windows[torch.randint(len(windows), (BATCH,), generator=generator)]

        def loss() -> Tensor:
            clean = some()
            corrupt = clean
            if len(streams) > 1:
                chosen = torch.rand(BATCH, len(streams), generator=generator) < _EXCHANGED
                mask = chosen.repeat_interleave(torch.tensor(streams), 1)
                # Each stream from a window of its own.
                mixed = [some().split(list(streams), 1)[i] for i in range(len(streams))]
                corrupt = torch.where(mask, torch.cat(mixed, 1), clean)
            size = _NOISE * torch.rand(BATCH, 1, generator=generator)
            corrupt = corrupt + size * torch.randn(clean.shape, generator=generator)
            return (self.layers(corrupt) - clean).square().mean()

        minimise(self.parameters(), loss, steps)
        self.requires_grad_(False)
        shown = windows[torch.randint(len(windows), (_SHOWN,), generator=generator)]
        rest = (shown - self.layers(shown)).double()
        variances, axes = torch.linalg.eigh(rest.T @ rest / len(rest))
        ridge = _RIDGE * variances.mean() + torch.finfo(torch.float32).tiny
        self.root.copy_(axes / (variances.clamp_min(0) + ridge).sqrt())
