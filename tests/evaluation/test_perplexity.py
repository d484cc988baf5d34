import numpy as np
import pytest

from seedstory_jax.convert import smollm2
from seedstory_jax.evaluation.perplexity import Perplexity, rows

STORY = (
    "Grandma told Bruno the bear that the secret word was acorn.",
    "Bruno closed the door and went into the forest to look for his bell.",
    "",
    "Deep in the forest he met Hazel the hedgehog, who wore a red scarf.",
    "Purple window seven the of swim carried never loudly under.",
)


def test_rows_score_every_caption_once_with_half_a_row_before_it():
    lengths = [10, 20, 30, 5, 40, 8, 8, 50, 1]
    made = rows(lengths, room=60, between=1)
    assert [scored for _, scored, _ in made] == [0, *(end for *_, end in made[:-1])] and made[-1][2] == len(lengths)
    for first, scored, end in made:
        assert sum(lengths[first:end]) + (end - first - 1) <= 60 or end == first + 1
        before = lengths[scored] + sum(lengths[first:scored]) + scored - first
        assert first == 0 or before + lengths[first - 1] + 1 > 30
    assert rows([], 60, 1) == []
    assert rows([60, 60], 60, 1) == [(0, 0, 1), (1, 1, 2)]


def test_values_are_those_of_transformers(smollm2_folder):
    """And a caption of shuffled words is the least likely one."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file = smollm2.wheel_file()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    measure = Perplexity(context=128)
    found = measure(STORY)
    assert found[2] is None and found[4] == max(value for value in found if value is not None)

    ids, spans = [0], []
    for text in STORY:
        caption = measure.tokenizer.encode(text)
        spans.append(slice(len(ids), len(ids) + len(caption)))
        ids += [*caption, *measure.tokenizer.encode("\n")]
    with torch.no_grad():
        likely = theirs.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    losses = -np.concatenate([[0], likely[np.arange(len(ids) - 1), ids[1:]]])
    for number in (0, 1, 3, 4):
        assert found[number] == pytest.approx(np.exp(losses[spans[number]].mean()), rel=1e-3)


def test_a_story_longer_than_a_row(smollm2_folder):
    """Every caption has its value, and what lies beyond the row before changes nothing."""
    measure = Perplexity(context=128)
    story = [f"On day {day} Bruno walked on to the next village and asked for his bell." for day in range(1, 21)]
    lengths = [len(measure.tokenizer.encode(text)) for text in story]
    assert sum(lengths) > 2 * 128
    found = measure(story)
    assert min(found) > 1 and found[0] > 20 > 4 > max(found[4:])  # what repeats is soon expected
    _, _, end = rows(lengths, 127, 1)[0]
    assert end < 20 and measure(story[:end]) == pytest.approx(found[:end], rel=1e-3)
    assert measure(["word " * 300])[0] > 1
