"""Policies as text, the same everywhere: `multimodal_sink(window=8,head=4:8,positions=absolute)`.

A name is one of `policies.POLICIES`, `mine.py:Class` (a file) or `package.module:Class`; in parentheses stand fields of
the policy's dataclass. Numbers of a tuple are joined by colons; `none` is None.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from seedstory_jax.errors import UserError, nearest
from seedstory_jax.generation.policies import POLICIES, Policy


@dataclass(frozen=True)
class NamedPolicy:
    """A policy's class under its name, and the settings that were given, in the order of its fields."""

    name: str
    kind: type[Policy]
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """The text that `parse_named` reads back as the same."""
        pairs = ",".join(f"{name}={_written(value)}" for name, value in self.settings)
        return f"{self.name}({pairs})" if pairs else self.name

    @property
    def known(self) -> tuple[str, ...]:
        """The settings that this policy has."""
        return tuple(field.name for field in fields(self.kind))

    def with_settings(self, pairs: Sequence[tuple[str, str]]) -> "NamedPolicy":
        """The same with further settings, as text. Raises UserError for unknown names and impossible values."""
        found = dict(self.settings)
        for name, text in pairs:
            if name not in self.known:
                raise UserError(f"policy {self.name!r} has no setting {name!r}: {nearest(name, self.known)}")
            field = next(field for field in fields(self.kind) if field.name == name)
            found[name] = _read(self, field, text)
        ordered = tuple((name, found[name]) for name in self.known if name in found)
        return NamedPolicy(self.name, self.kind, ordered)

    def make(self, sample: Any = None, **settings: Any) -> Policy:
        """The policy. What its text leaves out is taken from `settings`, then from the section `sample` of a config."""
        for name in settings:
            if name not in self.known:
                raise UserError(f"policy {self.name!r} has no setting {name!r}: {nearest(name, self.known)}")
        configured = {} if sample is None else {name: getattr(sample, name) for name in self.kind.configured}
        return self.kind(**(configured | settings | dict(self.settings)))


def parse_policy(text: str, sample: Any = None, **settings: Any) -> Policy:
    """The policy that a text names.

    Args:
        text: as in this module's first line.
        sample: section of a config that has `window`, `head` and `tail`, for policies that have these settings.
        settings: what holds where the text says nothing.

    Raises UserError for unknown names, settings and values, and for a file or module that cannot be used.
    """
    return parse_named(text).make(sample, **settings)


def parse_named(text: str) -> NamedPolicy:
    """A policy's text in its parts, its settings checked. Raises UserError as `parse_policy` does."""
    match = re.fullmatch(r"([^()]+)(?:\((.*)\))?", text.strip())
    if not match:
        raise UserError(f"policy {text!r}: write name or name(setting=value,setting=value)")
    name, inside = match[1].strip(), match[2]
    pairs = []
    for part in split_list(inside or ""):
        setting, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not setting or not value:
            raise UserError(f"policy {text!r}: {part!r} is no setting; write {setting or 'setting'}=value")
        if setting in dict(pairs):
            raise UserError(f"policy {text!r}: {setting} stands twice")
        pairs.append((setting, value))
    named = NamedPolicy(name, _class_of(name)).with_settings(pairs)
    named.make()  # values that cannot go together
    return named


def split_list(text: str) -> list[str]:
    """The parts between commas, those inside parentheses apart; empty ones are left out."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def source_digest(kind: type[Policy]) -> str | None:
    """Digest of the file that holds a user's policy; None for those of this package."""
    if kind.__module__.startswith("seedstory_jax."):
        return None
    path = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else None


def _class_of(name: str) -> type[Policy]:
    if ":" not in name:
        if name not in POLICIES:
            raise UserError(f"unknown policy {name!r}: {nearest(name, list(POLICIES))}, or FILE.py:CLASS of your own")
        return POLICIES[name]
    place, _, class_name = name.rpartition(":")
    module = _module_of_file(str(Path(place).resolve())) if place.endswith(".py") else _module(place)
    kind = getattr(module, class_name, None)
    if kind is None:
        classes = [one for one, value in vars(module).items() if isinstance(value, type) and issubclass(value, Policy)]
        raise UserError(f"policy {name!r}: {place} has no {class_name!r}: {nearest(class_name, classes)}")
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise UserError(f"policy {name!r} is no class derived from {Policy.__module__}.Policy (or one of the policies)")
    bare = [field.name for field in fields(kind) if field.default is MISSING]
    if bare:
        raise UserError(f"policy {name!r}: give its setting {bare[0]!r} a default")
    return kind


@cache  # one class however often it is named: compiled programs are found by it
def _module_of_file(path: str):
    if not Path(path).is_file():
        raise UserError(f"policy file {path} does not exist; write FILE.py:CLASS")
    name = f"seedstory_policy_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"policy file {path} cannot be read: {type(error).__name__}: {error}") from error
    return module


def _module(name: str):
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"policy module {name!r} cannot be imported: {type(error).__name__}: {error} (a file is FILE.py:CLASS)"
        ) from error


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _read(named: NamedPolicy, field: Field, text: str) -> Any:
    """A setting's value from its text, of the type that the field's default and annotation say."""
    default, annotation = field.default, str(field.type)
    try:
        if text == "none" and "None" in annotation:
            return None
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            kind = float if any(isinstance(one, float) for one in default) else int
            values = tuple(kind(one) for one in text.split(":"))
            if "..." not in annotation and len(values) != len(default):
                raise ValueError
            return values
        if isinstance(default, str):
            return text
        if isinstance(default, float) or (default is None and field.type is not None and "float" in annotation):
            return float(text)
        return int(text)
    except (ValueError, KeyError):
        raise UserError(
            f"policy {named.name!r}: {field.name}={text} cannot be; the default is {field.name}={_written(default)}"
        ) from None
