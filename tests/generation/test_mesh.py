"""Stories generated on a mesh of four pretended devices, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.walk
PROGRAM = """
import jax, numpy as np
from jax.sharding import AxisType
from seedstory_jax.generation.compile_stats import Compilations
from seedstory_jax.generation import decode
from seedstory_jax.generation.policies import MultimodalSink
from seedstory_jax.generation.sampling import Sampling
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.models.parameters import abstract_parameters, initial_parameters, with_prefix
from seedstory_jax.models.story_mllm import StoryMLLM
from seedstory_jax.sharding import SAMPLING, parameter_shardings
from conftest import CONFIG, LetterTokenizer

mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
make = lambda rngs: StoryMLLM(CONFIG, rngs=rngs).for_inference()
module_def, parameters = abstract_parameters(make)[0], initial_parameters(make, jax.random.key(0))
at = parameter_shardings(mesh, with_prefix("story", parameters), SAMPLING)
spread = {name: jax.device_put(value, at[f"story.{name}"]) for name, value in parameters.items()}
split = [name for name, value in spread.items() if value.addressable_shards[0].data.size < value.size]
assert len(split) > 10, split
features = np.random.default_rng(0).normal(size=(2, 16, 32)).astype(np.float32)
config = GenerationConfig(length=5, max_text_tokens=6, allow_end=False)
policy = MultimodalSink(window=2, head=(1, 1), tail=(1, 1))
sessions = []
for values, where in ((parameters, None), (spread, mesh)):
    engine = StoryEngine(module_def.build(values), LetterTokenizer(), policy, config, where)
    session = engine.start(features, ["ab", "cde"])
    session.next()
    warm = Compilations()
    for _ in range(3):
        session.next()
    assert warm.count == 0, warm.count
    sessions.append(session)
alone, together = sessions
for a, b in zip(alone.rows, together.rows):
    assert [one.tokens for one in a.turns] == [one.tokens for one in b.turns]
    for x, y in zip(a.turns, b.turns):
        np.testing.assert_allclose(x.predicted_image_features, y.predicted_image_features, atol=1e-4)
buffer = together._state.buffer
sampling = Sampling(np.float32(0.8), np.float32(0.9), np.zeros(2, np.uint32))
program = decode.decode_text.lower(engine.spec, engine.parameters, together._state, together.active, sampling)
text = program.compile().as_text()
assert " while(" in text and " sort(" not in text, "the vocabulary was sorted"
assert len(buffer.k[1].addressable_shards) == 4
assert buffer.k[1].addressable_shards[0].data.shape == (1, 1, 8, 128)
assert buffer.v[1].addressable_shards[0].data.shape == (1, 1, 128, 8)
"""


def test_a_mesh_generates_the_same_stories():
    here = Path(__file__).resolve()
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2])]),
    }
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
