"""Messages of the policy server: msgpack with NumPy arrays, as openpi's clients pack them.

An array is the map ``{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [3]}``, a
NumPy scalar ``{b"__npgeneric__": True, b"data": 3.0, b"dtype": "<f8"}``. Nothing here can run
code: only numbers, text and bytes are built, and not before the message is known to be small.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import msgpack
import numpy as np

from ebt_policy.errors import UserError

MAX_ITEMS = 10_000  # numbers, texts, arrays, maps and their keys together
MAX_DEPTH = 16
_MAX_AXES = 8
# Booleans, integers, floats, text of at most 999,999 characters: no objects, no records.
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,6})")
# By the first byte of an item: how many bytes of length follow, or how many of content.
_LENGTH_BYTES = {
    0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4,
}  # fmt: skip
_CONTENT_BYTES = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1,
    0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        UserError: a value is neither number, text, bytes, list, map nor an array of them.
    """
    try:
        return cast(bytes, msgpack.packb(message, default=_pack_array))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"message cannot be sent: {error}") from error


def unpack(data: bytes) -> dict[str, Any]:
    """The message that ``pack`` or openpi's client made; arrays read-only, scalars as Python's.

    Raises:
        UserError: it is damaged, too deep, has too many items, or is something else.
    """
    _check_structure(data)
    try:
        message = msgpack.unpackb(data, object_hook=_unpack_array)
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise UserError(f"message is not valid msgpack ({str(error)[:80]})") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise UserError("message is not a map with text keys")
    return message


def _pack_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} is not a number, text, list, map or array")
    if not _DTYPE.fullmatch(value.dtype.str):
        raise TypeError(f"arrays of {value.dtype} are not allowed")
    dtype = value.dtype.str
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": dtype, b"shape": value.shape}


def _unpack_array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
        if not isinstance(shape, list) or not isinstance(data, bytes) or len(shape) > _MAX_AXES:
            raise UserError("an array's shape or data is missing or of the wrong type")
        if not all(type(extent) is int and 0 <= extent < 2**31 for extent in shape):
            raise UserError(f"an array has the shape {str(shape)[:80]}")
        # Empty text takes no bytes: without the 1, an array of any size could come with none.
        if math.prod(shape) * max(dtype.itemsize, 1) != len(data):
            raise UserError(
                f"an array of shape {tuple(shape)} and {dtype} comes with {len(data)} bytes"
            )
        return np.ndarray(shape, dtype, data)
    if b"__npgeneric__" in found:
        dtype, value = _dtype(found), found.get(b"data")
        if not isinstance(value, {"U": str, "S": bytes}.get(dtype.kind, bool | int | float)):
            raise UserError(f"a scalar of {dtype} comes as a {type(value).__name__}")
        return value
    return found


def _dtype(found: dict[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise UserError(f"dtype {str(name)[:40]!r} is not allowed: only numbers and text are")
    return np.dtype(name)


def _check_structure(data: bytes) -> None:
    """Walk over a message without building any of it.

    A byte of a message can ask for a dictionary of 64 bytes, five bytes for a list of millions:
    unpacking takes far more memory than was sent, unless its items are counted first.

    Raises:
        UserError: it ends too early or too late, is too deep, or has too many items.
    """
    place, items = 0, 0
    waiting = [1]  # items that are still to come at each level
    while waiting:
        if waiting[-1] == 0:
            waiting.pop()
            continue
        waiting[-1] -= 1
        items += 1
        if place >= len(data):
            raise UserError("message ends too early")
        first = data[place]
        place += 1
        inside = 0
        if first in _LENGTH_BYTES:
            width = _LENGTH_BYTES[first]
            length = int.from_bytes(data[place : place + width], "big")
            place += width
            if first >= 0xDC:
                inside = length * (2 if first >= 0xDE else 1)
            else:
                place += length
        elif first in _CONTENT_BYTES:
            place += _CONTENT_BYTES[first]
        elif 0x80 <= first < 0x90:
            inside = 2 * (first & 0x0F)
        elif 0x90 <= first < 0xA0:
            inside = first & 0x0F
        elif 0xA0 <= first < 0xC0:
            place += first & 0x1F
        elif 0xC0 < first < 0xE0:
            raise UserError(f"message holds an item of type 0x{first:x}, which is not allowed")
        if items + inside > MAX_ITEMS:
            raise UserError(f"message has more than {MAX_ITEMS} items")
        if inside:
            if len(waiting) >= MAX_DEPTH:
                raise UserError(f"message is more than {MAX_DEPTH} levels deep")
            waiting.append(inside)
    if place != len(data):
        raise UserError("message ends too early" if place > len(data) else "message has a tail")
