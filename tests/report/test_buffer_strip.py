import pytest

from seedstory_jax.report.buffer_strip import Cell, describe, story_cells, strip_html

WHOLE = [["bos", 0, 1], ["text", 0, 6], ["boi", 0, 1], ["query", 0, 16], ["eoi", 0, 1]]


def following(frame: int) -> list[list]:
    return [["text", frame, 5], ["boi", frame, 1], ["query", frame, 16], ["eoi", frame, 1]]


@pytest.mark.parametrize(
    "left, pieces",
    [
        (WHOLE, (("window", 25),)),
        ([], (("evicted", 25),)),
        ([["bos", 0, 1], ["text", 0, 3]], (("text_sink", 4), ("evicted", 21))),
        (
            [["bos", 0, 1], ["text", 0, 6], ["boi", 0, 1], ["query", 0, 14], ["eoi", 0, 1]],
            (("text_sink", 4), ("image_sink", 11), ("evicted", 2), ("image_sink", 8)),
        ),
        (
            [["boi", 0, 1], ["query", 0, 4]],
            (("evicted", 7), ("image_sink", 3), ("evicted", 12), ("image_sink", 2), ("evicted", 1)),
        ),
    ],
)
def test_the_parts_of_an_earlier_frame(left, pieces):
    cells = story_cells([[], WHOLE, left + following(1)])
    assert cells[2] == [Cell(0, pieces), Cell(1, (("window", 23),))]
    assert cells[2][0].total == 25


def test_the_second_evicted_frame_has_no_text_sink():
    sinks = [["bos", 0, 1], ["text", 0, 3], ["text", 1, 4], ["boi", 1, 1], ["query", 1, 2]]
    cells = story_cells([[], WHOLE, WHOLE + following(1), sinks + following(2)])[3]
    assert cells[1].pieces == (("evicted", 1), ("image_sink", 6), ("evicted", 14), ("image_sink", 1), ("evicted", 1))


def test_parts_by_name_are_taken_as_they_are():
    cells = story_cells([[], [["window", 0, 25]], [["text_sink", 0, 4], ["window", 1, 23]]])
    assert cells[2] == [Cell(0, (("text_sink", 4), ("evicted", 21))), Cell(1, (("window", 23),))]
    sinks = story_cells([[], [["window", 0, 25]], [["text_sink", 0, 4], ["image_sink", 0, 12], ["window", 1, 23]]])
    assert sinks[2][0] == Cell(0, (("text_sink", 4), ("image_sink", 6), ("evicted", 9), ("image_sink", 6)))


def test_a_frame_half_written_counts_as_window():
    assert story_cells([[], [*WHOLE, ["text", 1, 3]]])[1][1] == Cell(1, (("window", 3),))


def test_frames_without_a_record_have_no_cells():
    assert story_cells([None, WHOLE, None])[::2] == [None, None]


def test_describe_and_html():
    cells = story_cells([[], WHOLE, WHOLE[:2] + following(1)])[2]
    assert describe(cells) == "30 of 48 tokens held · 1 frame in the window · sinks of 1"
    html = strip_html(cells, 5)
    assert html.count("<a ") == 2 and html.count("<b ") == 1 and html.count("<s>") == 2
    assert describe([]) == "The buffer was empty."
