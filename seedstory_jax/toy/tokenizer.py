"""The toy world's own tokenizer."""

from pathlib import Path

from seedstory_jax.data.text_tokenizer import StoryTokenizer, train_tokenizer
from seedstory_jax.toy.world import toy_captions


def toy_tokenizer(folder: Path | str) -> StoryTokenizer:
    """The toy world's tokenizer, trained on captions of both series where the folder does not exist yet."""
    folder = Path(folder)
    return StoryTokenizer(folder) if folder.exists() else train_tokenizer(toy_captions(), folder)
