import jax
import numpy as np
import pytest

from seedstory_jax.parity import llm
from seedstory_jax.parity.runner import run_fixture


@pytest.mark.parametrize("kind", list(llm.KINDS))
def test_published_numbers_come_out(fixtures_dir, kind):
    pytest.importorskip("safetensors")
    with jax.default_matmul_precision("highest"):
        result = run_fixture(fixtures_dir / kind, llm.KINDS)
    assert result.ok, {name: array.max_rel for name, array in result.arrays.items() if not array.ok}
    if kind == "llama_lora":  # both namings of the same weights
        assert "logits@weights_peft_new" in result.arrays


def test_published_masks_become_rows():
    """Two rows: one reads an image and draws one, the other only draws."""
    read = np.zeros((2, 6), bool)
    drawn = np.zeros((2, 6), bool)
    read[0, 1:3], drawn[0, 4:6], drawn[1, 2:4] = True, True, True
    images = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    batch = llm.batch_from_published(
        {
            "input_ids": np.arange(12, dtype=np.int32).reshape(2, 6),
            "attention_mask": np.ones((2, 6), np.int32),
            "labels": np.asarray([[-100, -100, 7, 8, -100, -100]] * 2, np.int32),
            "ids_cmp_mask": read,
            "ids_gen_mask": drawn,
            "embeds_cmp_mask": np.asarray([True, False, False]),
            "embeds_gen_mask": np.asarray([False, True, True]),
            "image_embeds": images,
        },
        num_image_tokens=2,
    )
    assert batch.image_slot.tolist() == [[-1, 0, 1, -1, -1, -1], [-1] * 6]
    assert batch.target_slot.tolist() == [[-1, -1, -1, -1, 2, 3], [-1, -1, 0, 1, -1, -1]]
    assert batch.image_features[..., 0, 0].tolist() == [[0, 1], [2, 0]]
    assert batch.image_valid.tolist() == [[True, True], [True, False]]
    assert batch.labels[0].tolist() == [-100, 7, 8, -100, -100, -100]
