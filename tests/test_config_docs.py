from pathlib import Path

from seedstory_jax.config import Config
from seedstory_jax.config_docs import page, rows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"


def test_every_key_has_a_meaning():
    assert [key for key, _, _, meaning in rows(Config()) if not meaning] == []


def test_the_page_is_fresh():
    assert PAGE.read_text() == page(), "run python -m seedstory_jax.config_docs > docs/config.md"
