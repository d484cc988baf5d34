"""The strip under a frame: which tokens of every earlier frame the KV buffer held when this one was written.

A frame's `kept` is a run-length list `[kind, frame, count]` in slot order. `kind` is a token's kind (`bos`, `text`,
`boi`, `query`, `eoi`) or already its part of the buffer (`text_sink`, `image_sink`, `window`). Parts are told from
kinds so: a frame whose image is whole belongs to the window; of a frame cut down, what lies among the buffer's first
four tokens is the text sink and the rest, around an image's borders, the image sink.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedstory_jax.report.page import escape

PARTS = {"text_sink": "text sink", "image_sink": "image sink", "window": "window", "evicted": "evicted"}
TEXT_SINK_TOKENS = 4

Run = tuple[str, int, int]  # (kind, frame, count)


@dataclass(frozen=True)
class Cell:
    """One earlier frame: its tokens from first to last as (part, count), part `evicted` for those no longer held."""

    frame: int
    pieces: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """Tokens the frame once had."""
        return sum(count for _, count in self.pieces)

    @property
    def kept(self) -> int:
        """Tokens still in the buffer."""
        return sum(count for part, count in self.pieces if part != "evicted")

    @property
    def in_window(self) -> bool:
        """Whether any of it belongs to the window."""
        return any(part == "window" for part, _ in self.pieces)


def story_cells(strips: Sequence[Sequence[Sequence] | None]) -> list[list[Cell] | None]:
    """For every frame of a story the cells of the frames before it; None where its `kept` was not recorded.

    A frame was once as large as the largest that any strip shows of it.
    """
    runs = [None if strip is None else _runs(strip) for strip in strips]
    whole: dict[int, list[Run]] = {}
    for strip in filter(None, runs):
        for frame, held in _by_frame(strip).items():
            if _count(held) > _count(whole.get(frame, [])):
                whole[frame] = held
    whole_image = max((_queries(held) for held in whole.values()), default=0)
    cells: list[list[Cell] | None] = []
    for current, strip in enumerate(runs):
        if strip is None:
            cells.append(None)
            continue
        held, seen, row = _by_frame(strip), 0, []
        newest = max(held, default=-1)  # may be half written: text and no image yet
        for frame in range(max(current, newest + 1)):
            mine = held.get(frame, [])
            in_window = _queries(mine) >= max(whole_image, 1) or (frame == newest and not _queries(mine))
            pieces = _pieces(mine, whole.get(frame, []), in_window, max(0, TEXT_SINK_TOKENS - seen))
            row.append(Cell(frame, tuple(pieces)))
            seen += _count(mine)
        cells.append(row)
    return cells


def _runs(strip: Sequence[Sequence]) -> list[Run]:
    return [(str(kind), int(frame), int(count)) for kind, frame, count in strip if int(count) > 0]


def _by_frame(runs: Sequence[Run]) -> dict[int, list[Run]]:
    frames: dict[int, list[Run]] = {}
    for run in runs:
        frames.setdefault(run[1], []).append(run)
    return frames


def _count(runs: Sequence[Run], kinds: Sequence[str] = ()) -> int:
    return sum(count for kind, _, count in runs if not kinds or kind in kinds)


def _queries(runs: Sequence[Run]) -> int:
    return _count(runs, ("query",))


def _pieces(held: Sequence[Run], whole: Sequence[Run], in_window: bool, sink: int) -> list[tuple[str, int]]:
    """One frame's tokens as (part, count) in order; `sink` of its first text tokens still count as text sink."""
    missing = _count(whole) - _count(held)
    if in_window or not held:
        return _joined([*((_part(kind), count) for kind, _, count in held), ("evicted", missing)])
    if any(kind in PARTS for kind, _, _ in held):  # by name: the places are not known, an image's borders are likely
        border = _count(held, ("image_sink",))
        first = [(_part(kind), count) for kind, _, count in held if kind != "image_sink"]
        return _joined(
            [*first, ("image_sink", border - border // 2), ("evicted", missing), ("image_sink", border // 2)]
        )
    text = _count(held, ("bos", "text"))
    sink = min(sink, text)
    query = _queries(held)
    return _joined(
        [
            ("text_sink", sink),
            ("evicted", _count(whole, ("bos", "text")) - text),
            ("image_sink", text - sink + _count(held, ("boi",))),
            ("evicted", _count(whole, ("boi",)) - _count(held, ("boi",))),
            ("image_sink", query - query // 2),  # from both borders of the image inwards
            ("evicted", _queries(whole) - query),
            ("image_sink", query // 2 + _count(held, ("eoi",))),
            ("evicted", _count(whole, ("eoi",)) - _count(held, ("eoi",))),
        ]
    )


def _part(kind: str) -> str:
    return kind if kind in PARTS else "window"


def _joined(pieces: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Without empty pieces, and neighbours of one part as one."""
    joined: list[tuple[str, int]] = []
    for part, count in pieces:
        if count > 0 and joined and joined[-1][0] == part:
            joined[-1] = (part, joined[-1][1] + count)
        elif count > 0:
            joined.append((part, count))
    return joined


def describe(cells: Sequence[Cell]) -> str:
    """One line that says what a strip shows, for those who cannot see it, too."""
    if not cells:
        return "The buffer was empty."
    window = sum(cell.in_window for cell in cells)
    sinks = sum(cell.kept > 0 and not cell.in_window for cell in cells)
    gone = sum(cell.kept == 0 for cell in cells)
    words = [f"{sum(cell.kept for cell in cells):,} of {sum(cell.total for cell in cells):,} tokens held"]
    words += [f"{window} {'frame' if window == 1 else 'frames'} in the window"] if window else []
    words += [f"sinks of {sinks}"] if sinks else []
    words += [f"{gone} forgotten"] if gone else []
    return " · ".join(words)


def strip_html(cells: Sequence[Cell], frames: int) -> str:
    """The strip: a column for each of the story's `frames`, its tokens from top to bottom; those to come are empty."""
    columns = []
    for cell in cells:
        body = "".join(f'<i class="{part}" style="flex:{count}"></i>' for part, count in cell.pieces)
        label = f"{cell.kept} of {cell.total} tokens" if cell.kept else "forgotten"
        number = cell.frame + 1
        columns.append(f'<a href="#{number}" title="Frame {number}: {label}" tabindex="-1">{body}</a>')
    columns += ['<b title="being written"></b>'] if len(cells) < frames else []
    columns += ["<s></s>"] * (frames - len(cells) - 1)
    return f'<div class="strip" role="img" aria-label="{escape(describe(cells))}">{"".join(columns)}</div>'


def legend_html(strips: Mapping[str, str] = PARTS) -> str:
    """The strip's colours, named."""
    return '<ul class="legend">' + "".join(f'<li><i class="{p}"></i>{n}</li>' for p, n in strips.items()) + "</ul>"
