"""Stories to folders: what is written, restarts, bad stories among good ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import MultimodalSink
from seedstory_jax.generation.story_files import (
    GivenTurn,
    Request,
    fault_of,
    generate,
    story_seed,
    write_many,
    write_one,
    write_story,
)

POLICY = MultimodalSink(window=2, head=(1, 1), tail=(1, 1))
CONFIG = GenerationConfig(length=5, max_text_tokens=6, allow_end=False)


@pytest.fixture(scope="module")
def engine(story_model, tokenizer):
    return StoryEngine(story_model, tokenizer, POLICY, CONFIG)


def request(number, features, **settings):
    image = np.full((4, 4, 3), number, np.uint8)
    return Request(f"s{number}", number, "abc", features[number % 4], image, **settings)


def render(features, stories, turns):
    """An image that shows its keys: (story, turn, number of features)."""
    return np.array([np.full((4, 4, 3), (story, turn, len(features))) for story, turn in zip(stories, turns)], np.uint8)


def test_one_story(engine, image_features, tmp_path):
    out = tmp_path / "deep" / "story"
    story = write_one(engine, request(2, image_features), out, render=render)
    assert story == json.loads((out / "story.json").read_text())
    assert {"policy", "length", "seed", "frames", "timing", "kv_slots", "llm_calls", "compilations"} <= story.keys()
    assert story["policy"] == "multimodal_sink"
    assert [frame["source"] for frame in story["frames"]] == ["prompt"] + ["generated"] * 4
    assert len(story["timing"]["llm_s"]) == len(story["llm_calls"]) == 5
    from PIL import Image

    pixels = [np.asarray(Image.open(out / frame["image"]))[0, 0].tolist() for frame in story["frames"]]
    assert pixels == [[2, 2, 2]] + [[2, turn, 4] for turn in range(1, 5)]
    assert sum(count for *_, count in story["frames"][1]["kept"]) == 1 + 3 + 6
    assert {part for part, *_ in story["frames"][4]["kept"]} == {"text_sink", "image_sink", "window"}


def test_text_only_and_over_an_older_story(engine, image_features, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    write_one(engine, request(1, image_features), tmp_path, render=render)
    story = write_one(engine, request(1, image_features), tmp_path)
    assert all(frame["image"] is None for frame in story["frames"])
    assert files_in(tmp_path) == ["index.html", "story.json"]
    assert (tmp_path / "index.html").read_text() == "mine"


def files_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_pictures_of_the_user_are_neither_removed_nor_overwritten(engine, image_features, tmp_path):
    own = {name: name.encode() for name in ("frame_of_my_holiday.png", "frame_0900.png", "other.png")}
    for name, data in own.items():
        (tmp_path / name).write_bytes(data)
    for _ in range(2):
        write_one(engine, request(1, image_features), tmp_path, render=render)
    assert {name: (tmp_path / name).read_bytes() for name in own} == own and len(files_in(tmp_path)) == 3 + 5 + 1
    (tmp_path / "frame_0003.png").write_bytes(b"repainted by hand")
    with pytest.raises(UserError, match=r"frame_0003\.png .* was not written by `sample`, or was changed since"):
        write_one(engine, request(1, image_features), tmp_path, render=render)
    assert (tmp_path / "frame_0003.png").read_bytes() == b"repainted by hand"
    assert json.loads((tmp_path / "story.json").read_text())["id"] == "s1"  # nor was the older story taken apart


def test_what_shaped_a_story_is_asked_before_it_counts_as_there(
    engine, story_model, tokenizer, image_features, tmp_path
):
    requests = [request(number, image_features) for number in range(2)]
    assert write_many(engine, requests, tmp_path, identity={"checkpoint": 1})["written"] == 2
    assert write_many(engine, requests, tmp_path, identity={"checkpoint": 1})["skipped"] == 2
    others = {
        "policy": StoryEngine(story_model, tokenizer, replace(POLICY, window=3), CONFIG),
        "generation": StoryEngine(story_model, tokenizer, POLICY, replace(CONFIG, seed=7)),
    }
    for what, other in others.items():
        with pytest.raises(UserError, match=f"outputs of another {what}: give another --out"):
            write_many(other, requests, tmp_path, identity={"checkpoint": 1})
    for mode, checkpoint, what in (("visualize", 1, "mode"), ("generate", 2, "checkpoint")):
        with pytest.raises(UserError, match=f"outputs of another {what}"):
            write_many(engine, requests, tmp_path, mode=mode, identity={"checkpoint": checkpoint})
    changed = [replace(requests[0], text="dcba"), replace(requests[1], image_digest="another picture")]
    assert write_many(engine, changed, tmp_path, identity={"checkpoint": 1})["failed"] == 2


def test_no_two_ids_share_a_folder(engine, image_features, tmp_path):
    names = ["a/b", "a_b", "A", "a", "", ".", "../up", "x" * 300, "con", "\0", "a"]
    requests = [replace(request(number, image_features), name=name) for number, name in enumerate(names)]
    counts = write_many(engine, requests, tmp_path / "out", batch=4)
    assert counts == {"written": 10, "skipped": 0, "failed": 1}
    told = {json.loads(path.read_text())["id"] for path in (tmp_path / "out").glob("*/story.json")}
    assert told == set(names) and files_in(tmp_path) == ["out"]
    (error,) = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert "stands more than once" in error


def test_visualize_ends_with_its_captions(engine, image_features, tmp_path):
    story = write_one(engine, request(0, image_features, captions=("de", "fg")), tmp_path, mode="visualize")
    assert [frame["text"] for frame in story["frames"]] == ["abc", "de", "fg"]
    assert [frame["source"] for frame in story["frames"]] == ["prompt", "caption", "caption"]
    assert story["ending"] == "captions"
    longer = write_one(engine, request(0, image_features, captions=("de", "fg")), tmp_path)
    assert [frame["text"] for frame in longer["frames"]][:3] == ["abc", "de", "fg"]
    assert [frame["source"] for frame in longer["frames"]][2:] == ["caption", "generated", "generated"]
    assert (len(longer["frames"]), longer["ending"]) == (5, "length")


def test_stories_generated_together_share_their_time(engine, image_features, tmp_path):
    short = request(1, image_features, captions=("de",))
    requests = [request(0, image_features, captions=("de", "fg")), short]
    stories = {one.request.name: one for one in generate(engine, requests, mode="visualize")}
    assert [turn.together for turn in stories["s0"].turns] == [2, 2, 1]  # the short one ends before the third
    write_many(engine, requests, tmp_path, batch=2, render=render, mode="visualize")
    timing = json.loads((tmp_path / "s0" / "story.json").read_text())["timing"]
    assert timing["together"] == [2, 2, 1] and len(timing["llm_s"]) == 3
    first = replace(stories["s0"].turns[0], seconds=3.0)
    halved = replace(stories["s0"], turns=(first, *stories["s0"].turns[1:]))
    assert write_story(engine, halved, tmp_path / "halved", render)["timing"]["llm_s"][0] == 1.5


def test_many_stories_restart_and_survive_bad_ones(engine, image_features, tmp_path):
    good = [request(number, image_features) for number in range(5)]
    bad = [
        replace(request(5, image_features), text="far too long a caption"),
        ValueError("no such image: x.png"),
        replace(request(6, image_features), image_features=np.full((16, 32), np.nan, np.float32)),
        replace(request(7, image_features), name="../up"),
    ]
    requests = [good[0], bad[0], good[1], bad[1], *good[2:4], bad[2], good[4], bad[3]]
    finished = []

    def stop_after_three(folder, story):
        finished.append(folder.name)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_many(engine, iter(requests), tmp_path, batch=2, render=render, after=stop_after_three)
    assert finished == ["s0", "s1", "s2"]
    counts = write_many(engine, iter(requests), tmp_path, batch=2, render=render)
    assert counts == {"written": 3, "skipped": 3, "failed": 3}
    found = ["errors.jsonl", "s0", "s1", "s2", "s3", "s4", "sample_settings.json"]
    assert files_in(tmp_path) == ["%2e.%2fup", *found]
    errors = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()][-3:]
    assert [error["story"] for error in errors] == ["s5", "line 4", "s6"]
    # What a story says depends on no batch and no restart.
    alone = write_one(engine, good[3], tmp_path / "alone", render=render)
    together = json.loads((tmp_path / "s3" / "story.json").read_text())
    assert [frame["text"] for frame in alone["frames"]] == [frame["text"] for frame in together["frames"]]


def test_an_image_that_cannot_be_rendered_takes_no_other_story_along(engine, image_features, tmp_path):
    def fails_once(features, stories, turns):
        if stories[0] == 1:
            raise ValueError("not finite")
        return render(features, stories, turns)

    requests = [request(number, image_features) for number in range(3)]
    counts = write_many(engine, requests, tmp_path, batch=3, render=fails_once)
    assert counts == {"written": 2, "skipped": 0, "failed": 1}
    assert not (tmp_path / "s1").exists()


def given(number, features):
    return GivenTurn("ef", features[number], np.full((4, 4, 3), 200 + number, np.uint8))


def test_several_turns_are_given(engine, image_features, tmp_path):
    """Each story has its own number of given turns, and the very words and pictures that it has alone."""
    several = request(1, image_features, given=(given(2, image_features), given(3, image_features)))
    requests = [request(0, image_features), several]
    together = {one.request.name: one for one in generate(engine, requests, batch=3)}
    (alone,) = generate(engine, [several])
    assert [one.source for one in together["s1"].turns] == ["prompt"] * 3 + ["generated"] * 2
    assert [one.source for one in together["s0"].turns] == ["prompt"] + ["generated"] * 4
    assert [one.text for one in together["s1"].turns] == [one.text for one in alone.turns]
    by_hand = engine.start(image_features[1], "abc", seed=story_seed(0, 1))
    by_hand.append("ef", image_features[2])
    by_hand.append("ef", image_features[3])
    assert [one.text for one in by_hand] == [one.text for one in alone.turns[3:]]
    np.testing.assert_allclose(
        alone.turns[-1].predicted_image_features, by_hand.turns[-1].predicted_image_features, atol=1e-5
    )

    story = write_story(engine, together["s1"], tmp_path / "s1", render)
    from PIL import Image

    shown = [np.asarray(Image.open(tmp_path / "s1" / frame["image"]))[0, 0, 0] for frame in story["frames"]]
    assert shown == [1, 202, 203, 1, 1] and [f["source"] for f in story["frames"]][:4] == ["prompt"] * 3 + ["generated"]


def test_given_turns_and_captions_end_together(engine, image_features):
    requests = [
        request(0, image_features, captions=("de",)),
        request(1, image_features, captions=("de", "fg", "hi"), given=(given(2, image_features),)),
    ]
    stories = list(generate(engine, requests, mode="visualize"))
    assert [(one.request.name, one.ending, len(one.turns)) for one in stories] == [
        ("s0", "captions", 2),
        ("s1", "captions", 5),
    ]
    assert [one.text for one in stories[1].turns] == ["abc", "ef", "de", "fg", "hi"]


def test_more_given_turns_than_the_length(engine, image_features):
    many = request(1, image_features, given=(given(2, image_features),) * 5)
    assert "6 turns are given, more than length=5" in str(fault_of(engine, many))
    bad = GivenTurn("ef", np.full_like(image_features[0], np.nan))
    assert "not finite" in str(fault_of(engine, request(1, image_features, given=(bad,))))
