import dataclasses

import jax
import numpy as np
import pytest

from seedstory_jax.checkpoints.parts import random_parameters
from seedstory_jax.data.pipeline import HOST_FIELDS, stack
from seedstory_jax.features.run_data import RunData
from seedstory_jax.training.batches import ExampleBatches
from seedstory_jax.training.stages.story import story_loss


def test_packed_rows_have_the_loss_of_single_ones(micro, trained_workdir):
    """Several prefixes a row, the last turn of each supervised: what is lost is padding."""
    story = dataclasses.replace(micro.story, supervise="last", turns="prefix", position_offset=0)
    config = dataclasses.replace(micro, story=story)
    run_data = RunData(micro, trained_workdir)
    parameters = random_parameters(config.model, "story", 0)
    features = run_data.encodings("squash", {**parameters, **_vit(micro, trained_workdir)})
    make = dict(seed=0, batch_size=2)
    packed = ExampleBatches(
        config, run_data.tokenizer, run_data.train, {"image_features": features}, packed=True, **make
    )
    fields = packed(0)
    places = [single for place in range(2) for single in packed.source.places(place)]
    assert len(places) > 2
    single = stack([packed.rows[place] for place in places])

    def loss(fields):
        batch = {name: value for name, value in fields.items() if name not in HOST_FIELDS}
        return jax.jit(lambda batch: story_loss(config, parameters, batch, None))(batch)

    (together, metrics), (apart, wanted) = loss(fields), loss(single)
    assert float(together) == pytest.approx(float(apart), rel=1e-5)
    assert float(metrics["target_images"]) == float(wanted["target_images"]) == len(places)
    assert float(metrics["real_token_share"]) > 1.4 * float(wanted["real_token_share"])
    assert np.isfinite(float(together))


def _vit(config, workdir):
    from seedstory_jax.checkpoints.load import load_parameters

    return load_parameters(config.model, ("vit",), workdir, seed=config.seed)
