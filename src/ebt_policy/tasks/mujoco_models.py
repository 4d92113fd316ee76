"""MuJoCo models that many environments of one process have in common."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEPT = 4  # models of a process; a robosuite environment compiles each robot's, and the scene's
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within it MuJoCo compiles a model once, and hands out copies of it when asked again.

    Compiling meshes takes most of the time in which robosuite makes an environment, and an
    evaluation makes dozens that are the same. A copy is an environment's own: it may be changed.
    """
    import mujoco

    names = ("from_xml_string", "from_xml_path")
    with _ONE_AT_A_TIME:
        compilers = {name: getattr(mujoco.MjModel, name) for name in names}
        try:
            for name, compiler in compilers.items():
                setattr(mujoco.MjModel, name, functools.partial(_copied, compiler))
            yield
        finally:
            for name, compiler in compilers.items():
                setattr(mujoco.MjModel, name, compiler)


def _copied(compiler: Any, *given: Any, **named: Any) -> Any:
    if named or len(given) != 1:  # with assets, whose bytes may differ from call to call
        return compiler(*given, **named)
    return copy.copy(_compiled(compiler, given[0]))


@functools.lru_cache(_KEPT)
def _compiled(compiler: Any, source: str) -> Any:
    return compiler(source)
