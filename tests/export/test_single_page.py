import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.errors import UserError
from seedstory_jax.export import export


@pytest.mark.parametrize("size", [200, 64])
def test_everything_is_inside(colour, tmp_path, make_story, size):
    folder = make_story(tmp_path / 'odd #1 "name"', size=size)
    text = export(folder, tmp_path / "book.html", language="fr").path.read_text()
    sources = re.findall(r'<img src="([^"]*)"', text)
    assert len(sources) == 6 and '<html lang="fr">' in text and "All stories" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "http" not in text
    for index, source in enumerate(sources[:3]):
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
        assert picture.size == (size, size)
        assert np.abs(np.asarray(picture.convert("RGB"))[9, 9].astype(int) - colour(index)).max() < 6
    assert "caption given" in text and "<script>x" not in text


def test_text_only(tmp_path, make_story):
    text = export(make_story(tmp_path / "s", size=None), tmp_path / "book.html").path.read_text()
    assert "<img" not in text and "3 turns, text only" in text


@pytest.mark.parametrize("change", [{"timing": [1]}, {"timing": {"llm_s": 3}}])
def test_damaged_facts_end_in_one_line(story_dir, tmp_path, change):
    story = json.loads((story_dir / "story.json").read_text()) | change
    story["frames"][1]["kept"] = [[1]]
    (story_dir / "story.json").write_text(json.dumps(story))
    with pytest.raises(UserError, match="damaged"):
        export(story_dir, tmp_path / "book.html")
    assert not (tmp_path / "book.html").exists()
