import json

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.clip_score import ClipScore

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP of random weights with a tokenizer of letters."""
    path = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(97, 123)]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *[c + "</w>" for c in letters]]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(vocab), "max_position_embeddings": 12},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(path)
    tokenizer = transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=12)
    tokenizer.save_pretrained(path)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessorPil(**sides).save_pretrained(path) if hasattr(
        transformers, "CLIPImageProcessorPil"
    ) else transformers.CLIPImageProcessor(**sides).save_pretrained(path)
    return path


def test_score_is_the_cosine_of_clip(folder):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(5)]
    texts = ["a dog", "cat", "abc " * 30, "", "z"]
    score = ClipScore(folder)
    scores = score(pictures, texts, batch=2)
    expected = []
    for picture, text in zip(pictures, texts):
        inputs = score.processor(text=[text], images=[picture], return_tensors="pt", truncation=True, max_length=12)
        with torch.no_grad():
            image = score.model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
            image = score.model.visual_projection(image)[0]
            text = score.model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            text = score.model.text_projection(text.pooler_output)[0]
        expected.append(max(0.0, 100 * torch.nn.functional.cosine_similarity(image, text, dim=0).item()))
    assert scores == pytest.approx(expected, abs=1e-3) and len(set(scores)) > 2


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="no CLIP folder"):
        ClipScore(tmp_path)
