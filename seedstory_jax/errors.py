"""Errors that a user can mend: shown as one line, with the way out, and exit code 2."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """Something that was typed or given is wrong; the message names the value, the limit and the way out."""


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an error message: the known name closest to `name`, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
