"""Pictures of MuJoCo scenes without a screen, all environments of a scene in one graphics context.

A context holds the scene's meshes and textures, hundreds of megabytes where the processor draws,
and an evaluation has dozens of environments. It is current when it draws and when it is freed:
otherwise what is freed would belong to whichever context is.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ebt_policy.shapes import UInt8

IMAGE = "_image"  # after a camera's name that of its stream, as robomimic has it


class Pictures:
    """Draws the scene of any model that has the same meshes and textures.

    Args:
        model: one of them, ``mujoco.MjModel``.
        shadows: whether lights throw them.
    """

    def __init__(self, model: Any, shadows: bool) -> None:
        import mujoco

        width, height = model.vis.global_.offwidth, model.vis.global_.offheight
        self._window: Any = mujoco.GLContext(width, height)
        self._window.make_current()
        self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        buffer = mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value
        mujoco.mjr_setBuffer(buffer, self._context)
        self._scene: Any = mujoco.MjvScene(model, maxgeom=10_000)
        # Reflections take half of the time, and hardly a pixel shows them.
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(shadows)
        self._visible: Any = mujoco.MjvOption()
        self._visible.geomgroup[0] = 0  # shapes for collisions only
        free = weakref.finalize(self, _free, self._window, self._context)
        # At exit before what the graphics library does then, which is registered by now.
        free.atexit = False
        atexit.register(free)

    def draw(
        self, model: Any, data: Any, camera: str, height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The present state as a camera of the model sees it, upright."""
        import mujoco

        self._window.make_current()
        if height > self._context.offHeight or width > self._context.offWidth:
            mujoco.mjr_resizeOffscreen(width, height, self._context)
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            model, data, self._visible, None, view, everything, self._scene
        )  # fmt: skip
        picture, place = np.empty((height, width, 3), np.uint8), mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(place, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, place, self._context)
        return np.ascontiguousarray(picture[::-1])


def camera_streams(
    cameras: Mapping[str, tuple[int, int]], draw: Callable[[str, int, int], np.ndarray]
) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """The image streams of some cameras, each of its height and width."""
    return {name: draw(name.removesuffix(IMAGE), *size) for name, size in cameras.items()}


def _free(window: Any, context: Any) -> None:
    window.make_current()
    context.free()
    window.free()


_PICTURES = weakref.WeakValueDictionary[str, Pictures]()


def shared_pictures(scene: str, model: Any, shadows: bool = True) -> Pictures:
    """This process's pictures of a scene, made when they are first asked for."""
    pictures = _PICTURES.get(scene)
    if pictures is None:
        pictures = _PICTURES[scene] = Pictures(model, shadows)
    return pictures
