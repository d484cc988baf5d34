import pytest
from PIL import Image, ImageDraw, ImageFont

from seedstory_jax.errors import UserError
from seedstory_jax.export.fonts import MISSING, Font, FontChoice, carried, find_fonts
from seedstory_jax.export.typeset import LEADING, fit_text, wrap

pytest.importorskip("fontTools")
LATIN = Font(None)  # Pillow's own


class Greek(Font):
    characters = frozenset(map(ord, "αβγ"))

    def at(self, size):
        return ImageFont.load_default(size)


def test_one_font_takes_a_text_that_it_has_whole():
    greek = Greek(None)
    assert FontChoice([LATIN, greek]).runs("abc de") == [(LATIN, "abc de")]
    assert FontChoice([LATIN, greek]).runs("αβ") == [(greek, "αβ")]


def test_words_that_need_another_font_get_it():
    greek = Greek(None)
    assert FontChoice([LATIN, greek]).runs("a αβ b") == [(LATIN, "a "), (greek, "αβ "), (LATIN, "b")]


def test_what_no_font_has_is_marked_and_remembered():
    fonts = FontChoice([LATIN])
    mark = MISSING if ord(MISSING) in LATIN.characters else "?"
    assert "".join(part for _, part in fonts.runs("a 猴b c")) == f"a {mark}b c"
    assert fonts.missing == {"猴"}
    assert fonts.runs("fine\u200d") == [(LATIN, "fine\u200d")]  # a joiner draws nothing


def test_a_given_font_goes_first_and_must_be_one(tmp_path):
    file = tmp_path / "own.ttf"
    file.write_bytes(carried())
    assert find_fonts([file]).runs("abc")[0][0].path == file
    bad = tmp_path / "bad.ttf"
    bad.write_bytes(b"no font")
    for path in (bad, tmp_path / "gone.ttf"):
        with pytest.raises(UserError, match="is no font"):
            find_fonts([path])


def test_lines_fit_and_lose_no_character():
    fonts = FontChoice([LATIN])
    text = "The monkey and the girl in red wave in the park. " * 3 + "Donaudampfschifffahrtsgesellschaft" * 3
    for width in (90, 300):
        lines = wrap(fonts, text, width, 20)
        assert all(LATIN.at(20).getlength(part) <= width for line in lines for _, part in line)
        joined = "".join(part for line in lines for _, part in line)
        assert joined.replace(" ", "") == text.replace(" ", "")


def test_scripts_without_spaces_break_between_characters():
    class Chinese(Font):
        characters = frozenset(map(ord, "猴子在公园里挥手。"))

        def at(self, size):
            return ImageFont.load_default(size)

    font = Chinese(None)
    width = font.at(20).getlength("猴子在") + 1
    lines = ["".join(part for _, part in line) for line in wrap(FontChoice([font]), "猴子在公园里挥手。", width, 20)]
    assert lines[0] == "猴子在" and "".join(lines) == "猴子在公园里挥手。"
    assert not any(line.startswith("。") for line in lines if len(line) < 3)


@pytest.mark.parametrize("words", [3, 40, 900])
def test_text_stays_inside_its_box(words):
    setting = fit_text(FontChoice([LATIN]), "wondering " * words, 300, 120, 40)
    assert setting.height <= 120 and setting.size <= 40
    assert (setting.lines[-1][-1][1][-1] == "…") == (words == 900)
    canvas = Image.new("L", (400, 220), 255)
    setting.draw(ImageDraw.Draw(canvas), 50, 50, 300, 0)
    left, top, right, bottom = canvas.point(lambda value: 255 - value).getbbox()
    assert left >= 48 and right <= 352 and top >= 48 and bottom <= 50 + setting.size * LEADING * len(setting.lines) + 2
