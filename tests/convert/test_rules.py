import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seedstory_jax.convert.rules import (
    CONV,
    LINEAR,
    Rule,
    WeightsError,
    contiguous,
    export_tensors,
    flat_params,
    load_tensors,
    prefixed,
    reshaped,
)


class Small(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(3, 4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(2, 2, use_bias=False, rngs=rngs) for _ in range(2)])
        self.layers = nnx.Param(jnp.zeros((3, 2, 5)))


RULES = (
    Rule(r"a\.weight", "a.kernel", LINEAR),
    Rule(r"a\.bias", "a.bias"),
    Rule(r"block\.(?P<i>\d+)\.w", r"blocks.\g<i>.kernel", LINEAR),
    Rule(r"layer\.(?P<layer>\d+)\.w", "layers", LINEAR),
    Rule(r"h\.(?P<layer>\d+)", "layers", LINEAR),  # an older name of the same
)


def numbers(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_names_and_layouts_there_and_back():
    module = Small(nnx.Rngs(0))
    tensors = {name: value + 1 for name, value in export_tensors(module, RULES).items()}
    assert {name: value.shape for name, value in tensors.items()} == {
        "a.weight": (4, 3),
        "a.bias": (4,),
        "block.0.w": (2, 2),
        "block.1.w": (2, 2),
        "layer.0.w": (5, 2),
        "layer.1.w": (5, 2),
        "layer.2.w": (5, 2),
    }
    load_tensors(module, tensors, RULES)
    for name, value in export_tensors(module, prefixed(RULES, "x.y.")).items():
        np.testing.assert_array_equal(value, tensors[name.removeprefix("x.y.")])


def test_an_older_name_is_read_too_but_not_beside_the_newer_one():
    module = Small(nnx.Rngs(0))
    tensors = export_tensors(module, RULES)
    old = {
        name.replace("layer.", "h.").replace(".w", "") if "layer" in name else name: v for name, v in tensors.items()
    }
    load_tensors(module, old, RULES)
    with pytest.raises(WeightsError, match=r"h\.0 \(a second one beside layer\.0\.w\)"):
        load_tensors(module, {**tensors, **old}, RULES)


def test_all_complaints_come_at_once_and_nothing_is_set():
    module = Small(nnx.Rngs(0))
    tensors = {name: value + 1 for name, value in export_tensors(module, RULES).items()}
    tensors["layer.1.w"] = tensors["layer.1.w"].T
    tensors["layer.7.w"] = tensors["layer.0.w"]
    tensors["stranger"] = tensors.pop("a.bias")
    before = export_tensors(module, RULES)
    with pytest.raises(WeightsError) as error:
        load_tensors(module, tensors, RULES, what="small")
    assert str(error.value).splitlines() == [
        "small: 1 missing, 2 unexpected, 1 wrongly shaped",
        "  missing: a.bias",
        "  unexpected: layer.7.w (only 3 layers are configured)",
        "  unexpected: stranger",
        "  wrongly shaped: layer.1.w is [2, 5], wanted [5, 2]",
    ]
    for name, value in export_tensors(module, RULES).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_partial_checkpoint_keeps_the_rest():
    module = Small(nnx.Rngs(0))
    load_tensors(module, {"layer.1.w": np.ones((5, 2), "f"), "junk": np.zeros(1)}, RULES, partial=True, ignore=["junk"])
    assert flat_params(module)["layers"].get_value().sum(axis=(1, 2)).tolist() == [0, 10, 0]
    with pytest.raises(WeightsError, match="2 missing"):
        load_tensors(module, {"a.weight": np.ones((4, 3)), "a.bias": np.ones(4)}, RULES, partial=["layers"])


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (LINEAR, (4, 3)),
        (CONV, (5, 4, 3, 2)),
        (reshaped((6, 2), (3, 4)), (6, 2)),
    ],
)
def test_transforms_undo_themselves(transform, shape):
    x = numbers(shape)
    np.testing.assert_array_equal(transform.inverse(transform.forward(x)), x)


@pytest.mark.parametrize("shape", [(70, 100), (64, 64), (3, 200), (5,), (), (2, 70, 70)])
def test_a_copy_in_row_order_has_the_same_numbers(shape):
    x = numbers(shape)
    copy = contiguous(x.T, np.dtype(np.float64))
    np.testing.assert_array_equal(copy, x.T)
    assert copy.flags.c_contiguous
    assert copy.dtype == np.float64


def test_a_regular_expression_without_a_template_must_be_plain():
    with pytest.raises(ValueError, match="give template="):
        Rule("a.weight", "a")
    with pytest.raises(ValueError, match="lacks"):
        Rule("a", r"\g<i>")
    assert Rule(r"(?:x\.)?a", "a", template="a").published_name("a") == "a"


def test_each_parameter_keeps_its_dtype():
    module = Small(nnx.Rngs(0))
    module.a.bias.set_value(module.a.bias.get_value().astype(jnp.bfloat16))
    load_tensors(module, {name: v.astype(np.float64) for name, v in export_tensors(module, RULES).items()}, RULES)
    assert module.a.bias.get_value().dtype == jnp.bfloat16
    assert module.a.kernel.get_value().dtype == jnp.float32
