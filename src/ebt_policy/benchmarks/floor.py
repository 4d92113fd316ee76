"""What the matrix products alone cost: the floor under every time.

The products of a computation are recorded with their shapes while it runs. Each shape is then
timed by itself, on operands that lie ready in cache, less what calling a product of one number
takes; the floor is the sum of these times. What a computation takes beyond it is memory, small
operations, and the interpreter.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[int, int, int, int]
"""(b, n, k, m): b products of (n, k) and (k, m)."""

_REPEATS, _AT_LEAST_S = 15, 0.5e-3


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products inside a ``with`` block, by shape.

    It sees through autograd (double backward included) and takes fused attention apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._add(*args[:2])
        elif name in ("addmm", "baddbmm"):
            self._add(*args[1:3])
        elif name.startswith("_scaled_dot_product"):
            queries, keys, values = (tensor.flatten(0, -3) for tensor in args[:3])
            self._add(queries, keys.transpose(1, 2))
            self._add(queries.new_empty(len(queries), queries.shape[1], keys.shape[1]), values)
        return func(*args, **(kwargs or {}))

    def _add(self, one: Tensor, other: Tensor) -> None:
        batch = one.shape[0] if one.ndim == 3 else 1
        self.counts[batch, one.shape[-2], one.shape[-1], other.shape[-1]] += 1


def products(computation: Callable[[], Any]) -> Counter[Shape]:
    """The matrix products of a computation, by shape."""
    with MatrixProducts() as recorded:
        computation()
    return recorded.counts


def multiply_adds(counts: Counter[Shape]) -> int:
    """Multiply-adds of some products."""
    return sum(math.prod(shape) * count for shape, count in counts.items())


def traffic(counts: Counter[Shape]) -> int:
    """Bytes of float32 that some products read and write, each operand once."""
    return sum(4 * b * (n * k + k * m + n * m) * c for (b, n, k, m), c in counts.items())


class Floor:
    """Measures the time of products on one device, each shape once.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._times: dict[tuple[int, Shape], float] = {}

    def milliseconds(self, counts: Counter[Shape]) -> float:
        """The floor of some products with up to torch's present number of threads.

        A small product may be faster with one thread than with two; the faster one counts.
        """
        allowed = torch.get_num_threads()
        total = 0.0
        for shape, count in counts.items():
            call = self._time((min(shape[0], 2), 1, 1, 1), 1)
            total += count * max(0, min(self._time(shape, n) for n in {1, allowed}) - call)
        torch.set_num_threads(allowed)
        return 1e3 * total

    def _time(self, shape: Shape, threads: int) -> float:
        if (threads, shape) not in self._times:
            torch.set_num_threads(threads)
            self._times[threads, shape] = self._measure(shape)
        return self._times[threads, shape]

    def _measure(self, shape: Shape) -> float:
        b, n, k, m = shape
        one = torch.randn(b, n, k, device=self.device)
        # As a layer's weight lies: (m, k), used transposed.
        other = torch.randn(b, m, k, device=self.device).transpose(1, 2)
        out = torch.empty(b, n, m, device=self.device)
        if b == 1:
            one, other, out = one[0], other[0], out[0]
        run = torch.mm if b == 1 else torch.bmm
        rounds, times = 1, list[float]()
        while len(times) < _REPEATS:
            began = time.perf_counter()
            for _ in range(rounds):
                run(one, other, out=out)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            taken = time.perf_counter() - began
            if taken < _AT_LEAST_S:
                rounds *= 2
            else:
                times.append(taken / rounds)
        return float(np.median(times))
