"""The one exception that the command line turns into exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: a file, a key, a shape, an argument.

    The message is one line that says which value is wrong, where it came from and what
    would be right. Broken invariants of our own are assertions instead.
    """
