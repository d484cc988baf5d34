"""Limits of config values, written beside the types of the fields: ranges, choices, and that numbers are finite.

    steps: Natural = 0
    b2: Annotated[float, Limit(at_least=0, below=1)] = 0.98

`typing.get_type_hints` leaves such marks out unless asked, so a field's type stays what it was.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from seedstory_jax.errors import UserError


@dataclass(frozen=True)
class Limit:
    """The range of a number; `otherwise` is one value outside it that has a meaning of its own."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None
    otherwise: int | None = None

    def holds(self, value: int | float) -> bool:
        """Whether `value` may be used; never true of nan."""
        return value == self.otherwise or (
            not math.isnan(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        text = " and ".join(f"{word} {number}" for word, number in words.items() if number is not None)
        return text if self.otherwise is None else f"{text}, or {self.otherwise}"


@dataclass(frozen=True)
class OneOf:
    """The words that a text may be; with `joined`, several of them with that sign between."""

    choices: tuple[str, ...]
    joined: str = ""

    def holds(self, value: str) -> bool:
        """Whether `value` is a choice, or made of choices."""
        return all(word in self.choices for word in (value.split(self.joined) if self.joined else [value]))

    def __str__(self) -> str:
        return ", ".join(map(repr, self.choices)) + (f" (several: with {self.joined!r} between)" if self.joined else "")


Natural = Annotated[int, Limit(at_least=0)]
Positive = Annotated[int, Limit(at_least=1)]
NonNegative = Annotated[float, Limit(at_least=0)]
AboveZero = Annotated[float, Limit(above=0)]
BelowOne = Annotated[float, Limit(at_least=0, below=1)]
Seed = Annotated[int, Limit(at_least=0, below=2**32)]
Floating = Annotated[str, OneOf(("float32", "bfloat16", "float16"))]
Remat = Annotated[str, OneOf(("none", "full", "dots"))]


@functools.cache
def marked_hints(cls: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields with the limits beside them."""
    return typing.get_type_hints(cls, include_extras=True)


def limits(hint: Any) -> Iterator[Limit | OneOf]:
    """Every limit inside a field's type: beside it, and beside a tuple's entries or a union's options."""
    if typing.get_origin(hint) is Annotated:
        yield from hint.__metadata__
    for inner in typing.get_args(hint)[:1] if typing.get_origin(hint) is Annotated else typing.get_args(hint):
        yield from limits(inner)


def check_value(hint: Any, value: Any, where: str, default: Any = dataclasses.MISSING) -> None:
    """Raises UserError, naming key, value, limit and default, if `value` is outside the limits of its type.

    Says nothing of values of another type, which are an error elsewhere.
    """
    fault = _fault(hint, value)
    if fault is None:
        return
    inside, limit = fault
    entry = f" (in {value!r})" if inside is not value else ""
    if isinstance(limit, OneOf):
        raise UserError(f"{where} is {inside!r}{entry}; choose from {limit}")
    hint_of_default = "" if default is dataclasses.MISSING else f"; the default is {default!r}"
    raise UserError(f"{where} is {inside!r}{entry}, but must be {limit}{hint_of_default}")


def _fault(hint: Any, value: Any) -> tuple[Any, Any] | None:
    """The value, or the entry of a tuple, that breaks a limit, and the limit."""
    if isinstance(value, tuple):
        inner = typing.get_args(hint)[:1]
        return next((fault for entry in value for fault in [_fault(inner[0], entry)] if fault), None) if inner else None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if type(value) is _bare(option)]
        return _fault(options[0], value) if options else None
    if isinstance(value, float) and not math.isfinite(value):
        return value, "a finite number"
    if typing.get_origin(hint) is not Annotated or type(value) is not _bare(hint):
        return None
    return next(((value, limit) for limit in hint.__metadata__ if not limit.holds(value)), None)


def _bare(hint: Any) -> Any:
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def check_limits(config: Any, path: str = "") -> None:
    """Raises UserError for the first value of a (nested) dataclass that is outside the limits of its type."""
    hints = marked_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_limits(value, f"{path}{field.name}.")
        else:
            check_value(hints[field.name], value, f"{path}{field.name}", field.default)
