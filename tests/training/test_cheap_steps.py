"""What a step of the full recipe does not do: copy what is frozen to float32, give it gradients, hold buffers twice."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.parts import PARTS
from seedstory_jax.config import OptimizerConfig
from seedstory_jax.models.lora import LoRAConfig
from seedstory_jax.models.parameters import abstract_parameters, with_prefix
from seedstory_jax.training.optimizer import make_optimizer
from seedstory_jax.training.stages.story import story_loss
from seedstory_jax.training.step import train_step
from seedstory_jax.training.trainable import trainable_names

PROJECTIONS = 7  # of a layer


@pytest.fixture(scope="module")
def step(micro):
    """The story stage's step with LoRA in bfloat16, lowered from shapes: jaxpr, its inputs, and the program."""
    config = micro
    llama = dataclasses.replace(
        config.model.story.llama, lora=LoRAConfig(rank=2, dropout=0.0), dtype="bfloat16", remat="full"
    )
    model = dataclasses.replace(config.model, story=dataclasses.replace(config.model.story, llama=llama))
    config = dataclasses.replace(config, model=model, story=dataclasses.replace(config.story, trainable="released"))
    trains = trainable_names("story", "released")
    shapes = with_prefix("story", abstract_parameters(PARTS["story"](model))[1])
    trained = {name: shape for name, shape in shapes.items() if trains(name)}
    frozen = {
        name: jax.ShapeDtypeStruct(shape.shape, jnp.bfloat16) for name, shape in shapes.items() if not trains(name)
    }
    rows, tokens, images = 2, 96, 3
    batch = {
        name: jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
        for name in ("ids", "labels", "position", "segment", "generated_block", "image_slot", "target_slot")
    }
    batch["image_features"] = jax.ShapeDtypeStruct((rows, images, model.vit.n_queries, 16), jnp.bfloat16)
    batch["image_valid"] = jax.ShapeDtypeStruct((rows, images), jnp.bool_)
    optimizer = make_optimizer(OptimizerConfig(), 100)  # the published one, AdamW
    state = jax.eval_shape(optimizer.init, trained)
    key = jax.eval_shape(lambda: jax.random.key(0))
    one = jax.jit(partial(train_step, partial(story_loss, config), optimizer, 1), donate_argnums=(0, 1))
    arguments = (trained, state, frozen, batch, key)
    return one.trace(*arguments), arguments, llama


def test_optimizer_state_is_of_what_trains_alone_and_float32(step):
    _, (trained, state, frozen, *_), _ = step
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert len(moments) == 2 * len([shape for shape in trained.values() if shape.ndim])
    assert all(leaf.dtype == jnp.float32 for leaf in [*moments, *trained.values()])
    layers = [name for name in trained if ".layers." in name]
    assert sum("lora_a" in name for name in layers) == PROJECTIONS and not any("kernel" in name for name in layers)
    assert sum(name.endswith("_proj.kernel") for name in frozen) == PROJECTIONS


def equations(jaxpr):
    """Every equation whose result is used, those of inner programs too: the others are never compiled."""
    used = {id(value) for value in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if used.isdisjoint(map(id, equation.outvars)):
            continue
        used.update(map(id, equation.invars))
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_frozen_projections_get_no_gradient_and_stay_half(step):
    """No product has the shape of a frozen kernel's gradient, and none of their stacks is ever made float32."""
    traced, (_, _, frozen, *_), llama = step
    kernels = {tuple(shape.shape[1:]) for name, shape in frozen.items() if ".mlp." in name}  # shapes of no other array
    assert kernels == {(24, 32), (32, 24)}
    products = found = 0
    for equation in equations(traced.jaxpr.jaxpr):
        for out in equation.outvars:
            shape, dtype = tuple(out.aval.shape), out.aval.dtype
            if equation.primitive.name == "dot_general":
                products += 1
                assert shape not in kernels and shape[::-1] not in kernels, equation
                found += shape == (2, 96, llama.intermediate_size) and dtype == jnp.bfloat16
            assert not (len(shape) == 3 and shape[1:] in kernels and dtype == jnp.float32), equation
    assert products > 50 and found >= 4  # gate and up, forward and again in the backward pass


def test_what_trains_is_updated_in_place(step):
    traced, (trained, state, *_), _ = step
    compiled = traced.lower().compile()
    size = sum(int(np.prod(leaf.shape)) * 4 for leaf in jax.tree.leaves((trained, state)))
    assert compiled.memory_analysis().alias_size_in_bytes == pytest.approx(size, rel=0.02)
