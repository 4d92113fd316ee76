"""Shape annotations: jaxtyping's where it is installed (development), inert otherwise.

The tests switch on run-time checking of every annotated function; users of the core need
neither jaxtyping nor beartype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped, UInt8
    except ImportError:

        class _Unchecked:
            """Stands for a jaxtyping dtype: ``Float[Tensor, "b t a"]`` is ``Tensor``."""

            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = Shaped = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int", "Shaped", "UInt8"]
