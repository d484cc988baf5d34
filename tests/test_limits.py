import dataclasses
import math

import pytest

from seedstory_jax.config import Config, check, from_dict, load_config, override, to_dict
from seedstory_jax.errors import UserError
from seedstory_jax.limits import Limit, OneOf, check_value, limits, marked_hints


def keys(config, path=""):
    """(dotted key, type with limits, default) of every leaf."""
    hints = marked_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", hints[field.name], value


def edges(limit, like):
    """(values just outside, values just inside) of a range, of the type of `like`."""

    def step(x, towards):
        return int(x) + (1 if towards > 0 else -1) if type(like) is int else math.nextafter(x, towards)

    outside, inside = [], []
    for bound, away in ((limit.at_least, -math.inf), (limit.at_most, math.inf)):
        if bound is not None:
            inside.append(type(like)(bound))
            outside.append(step(bound, away))
    for bound, towards in ((limit.above, math.inf), (limit.below, -math.inf)):
        if bound is not None:
            outside.append(type(like)(bound))
            inside.append(step(bound, towards))
    return outside, inside


TABLE = [(key, hint, default, limit) for key, hint, default in keys(Config()) for limit in limits(hint)]


@pytest.mark.parametrize(("key", "hint", "default", "limit"), TABLE, ids=lambda x: x if isinstance(x, str) else "")
def test_a_value_just_outside_is_refused_and_the_limit_accepted(key, hint, default, limit):
    if isinstance(limit, OneOf):
        outside, inside = ["nonsense"], limit.choices
    else:
        number = default[0] if isinstance(default, tuple) and default else default
        outside, inside = edges(limit, number if type(number) in (int, float) else 1 if "int" in str(hint) else 1.0)
    assert outside and inside
    for value in outside:
        text = repr((value,)) if isinstance(default, tuple) else value if isinstance(value, str) else repr(value)
        with pytest.raises(UserError, match=key.replace(".", r"\.")) as refused:
            override(Config(), {key: text})
        assert str(limit) in str(refused.value) and repr(value) in str(refused.value)
    for value in inside:
        check_value(hint, (value,) if isinstance(default, tuple) else value, key)


def numeric(default):
    return any(type(value) in (int, float) for value in (default if isinstance(default, tuple) else (default,)))


# Numbers that any finite value, or any whole number, means something for.
WITHOUT_RANGE = {"sample.guidance": "a negative scale draws away from the condition"}


def test_every_number_has_a_range():
    ranged = {key for key, _, _, limit in TABLE if isinstance(limit, Limit)}
    assert {key for key, _, default in keys(Config()) if numeric(default)} - ranged == WITHOUT_RANGE.keys()


@pytest.mark.parametrize("key", [key for key, _, default in keys(Config()) if isinstance(default, float)])
def test_numbers_are_finite(key):
    for text in ("1e400", "-1e400"):
        with pytest.raises(UserError, match=key):
            override(Config(), {key: text})
    values = to_dict(Config())
    section = values
    *path, last = key.split(".")
    for name in path:
        section = section[name]
    section[last] = math.nan
    with pytest.raises(UserError, match=rf"{key} is nan"):
        from_dict(Config, values)


def test_a_config_made_in_python_is_checked():
    with pytest.raises(UserError, match=r"story\.keep is 0, but must be at least 1; the default is 2"):
        check(dataclasses.replace(Config(), story=dataclasses.replace(Config().story, keep=0)))


@pytest.mark.parametrize("name", ["toy", "small", "seedstory_7b", "seedstory_7b:paper", "finetune", "finetune:one-gpu"])
def test_what_comes_with_the_package_is_within_limits(name):
    check(load_config(name))


def test_the_micro_config_is_within_limits(micro):
    check(micro)


def test_a_limit_says_its_range():
    assert str(Limit(above=0, at_most=1)) == "above 0 and at most 1"
    assert str(Limit(at_least=1, otherwise=-1)) == "at least 1, or -1"
