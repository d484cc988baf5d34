import numpy as np
import pytest

from seedstory_jax.generation.policies import WindowRecompute
from seedstory_jax.models.kv_buffer import Kind
from seedstory_jax.parity.generation import kept_tokens
from seedstory_jax.parity.runner import run_fixture, table_row

CODES = {"bos": 0, "text": 1, "boi": 2, "img": 3, "eoi": 4}


def test_published_numbers_come_out(fixtures_dir):
    result = run_fixture(fixtures_dir / "sink_indices")
    assert result.ok and len(result.arrays) == 24, table_row(result)


@pytest.mark.parametrize(
    ("window", "image_tokens", "start", "head", "tail"),
    [(2, 8, 4, (-4, 8), (-8, 4)), (3, 25, 2, (-3, 5), (-6, 2)), (1, 16, 0, (0, 1), (0, 1))],
)
def test_windows_and_images_of_other_sizes(write_fixture, window, image_tokens, start, head, tail):
    """The rule as its description says it, over a list of positions."""
    texts = [7, 5, 9, 6, 8, 5, 11, 7]
    types, boi, eoi, text_start = [CODES["bos"]], [], [], []
    for length in texts:
        text_start.append(len(types))
        types += [CODES["text"]] * length
        boi.append(len(types))
        types += [CODES["boi"], *[CODES["img"]] * image_tokens, CODES["eoi"]]
        eoi.append(len(types) - 1)
    inputs = {"token_type": types, "boi": boi, "eoi": eoi, "text_start": text_start, "text_len": texts}
    outputs = {}
    for eviction in range(len(texts) - 1 - window):
        end = text_start[window + 1 + eviction] + texts[window + 1 + eviction]
        kept = {*range(start), *range(eoi[eviction] + 1, end)}
        outputs[f"a:evict{eviction}:recomputed_window"] = np.arange(eoi[eviction] + 1, end)
        for b, e in zip(boi[: eviction + 1], eoi[: eviction + 1]):
            kept |= {*range(b + head[0], b + head[1]), *range(e + tail[0], e + tail[1])}
        outputs[f"a:evict{eviction}:nominal_kept"] = np.array(sorted(kept))
    config = {"window_size": window, "num_sink_start": start, "image_head": head, "image_tail": tail}
    config |= {"layouts": {"a": texts}, "token_type_codes": CODES}
    inputs = {f"a:{name}": np.array(value) for name, value in inputs.items() if name not in ("boi", "eoi")}
    inputs |= {"a:boi": np.array(boi[:-1]), "a:eoi": np.array(eoi[:-1])}
    result = run_fixture(write_fixture("sink_indices", outputs, config, inputs))
    assert result.ok, table_row(result)


def test_a_window_keeps_whole_turns():
    kind = np.array([Kind.BOS, Kind.TEXT, Kind.BOI, Kind.EOI, Kind.TEXT, Kind.BOI, Kind.EOI])
    facts = {"kind": kind, "frame": np.array([0, 0, 0, 0, 1, 1, 1])}
    assert kept_tokens(WindowRecompute(window=1), facts, 2).tolist() == [4, 5, 6]
