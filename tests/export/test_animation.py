import numpy as np
import pytest
from PIL import Image

from seedstory_jax.export import export
from seedstory_jax.export.reader import read_book
from seedstory_jax.export.subtitles import reading_seconds

pytest.importorskip("fontTools")


@pytest.mark.parametrize(("suffix", "width"), [(".gif", 480), (".webp", 720)])
def test_cards_are_shown_as_long_as_they_take_to_read(colour, story_dir, tmp_path, suffix, width):
    path = export(story_dir, tmp_path / f"book{suffix}").path
    texts = [page.text for page in read_book(story_dir).pages]
    with Image.open(path) as film:
        assert film.n_frames == 3 and film.size[0] == width and film.info["loop"] == 0
        for index, text in enumerate(texts):
            film.seek(index)
            film.load()
            assert film.info["duration"] == pytest.approx(1000 * reading_seconds(text), abs=10)
            middle = np.asarray(film.convert("RGB"))[width // 2, width // 2].astype(int)
            assert np.abs(middle - colour(index)).max() < 12
