"""Stories to folders: what is written, restarts, bad stories among good ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from seedstory_jax.generation import sample
from seedstory_jax.generation.policies import MultimodalSink
from seedstory_jax.generation.story import StoryTeller
from seedstory_jax.generation.telling import TellingConfig

POLICY = MultimodalSink(window=2, head=(1, 1), tail=(1, 1))
CONFIG = TellingConfig(length=5, max_text_tokens=6, allow_end=False)


@pytest.fixture(scope="module")
def teller(story_model, tokenizer):
    return StoryTeller(story_model, tokenizer, POLICY, CONFIG)


def request(number, features, **settings):
    picture = np.full((4, 4, 3), number, np.uint8)
    return sample.Request(f"s{number}", number, "abc", features[number % 4], picture, **settings)


def draw(features, stories, frames):
    """A picture that shows its keys: (story, frame, number of features)."""
    return np.array(
        [np.full((4, 4, 3), (story, frame, len(features))) for story, frame in zip(stories, frames)], np.uint8
    )


def test_one_story(teller, image_features, tmp_path):
    out = tmp_path / "deep" / "story"
    story = sample.sample(teller, request(2, image_features), out, draw=draw)
    assert story == json.loads((out / "story.json").read_text())
    assert {"policy", "length", "seed", "frames", "timing", "kv_slots", "llm_calls", "compilations"} <= story.keys()
    assert story["policy"] == "multimodal_sink"
    assert [frame["source"] for frame in story["frames"]] == ["prompt"] + ["generated"] * 4
    assert len(story["timing"]["llm_s"]) == len(story["llm_calls"]) == 5
    from PIL import Image

    pixels = [np.asarray(Image.open(out / frame["image"]))[0, 0].tolist() for frame in story["frames"]]
    assert pixels == [[2, 2, 2]] + [[2, frame, 4] for frame in range(1, 5)]
    assert sum(count for *_, count in story["frames"][1]["kept"]) == 1 + 3 + 6
    assert {part for part, *_ in story["frames"][4]["kept"]} == {"text_sink", "image_sink", "window"}


def test_text_only_and_over_an_older_story(teller, image_features, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    sample.sample(teller, request(1, image_features), tmp_path, draw=draw)
    story = sample.sample(teller, request(1, image_features), tmp_path)
    assert all(frame["image"] is None for frame in story["frames"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "story.json"]


def test_visualize_ends_with_its_captions(teller, image_features, tmp_path):
    story = sample.sample(teller, request(0, image_features, captions=("de", "fg")), tmp_path, mode="visualize")
    assert [frame["text"] for frame in story["frames"]] == ["abc", "de", "fg"]
    assert [frame["source"] for frame in story["frames"]] == ["prompt", "caption", "caption"]
    assert story["ending"] == "captions"
    longer = sample.sample(teller, request(0, image_features, captions=("de", "fg")), tmp_path)
    assert [frame["text"] for frame in longer["frames"]][:3] == ["abc", "de", "fg"]
    assert [frame["source"] for frame in longer["frames"]][2:] == ["caption", "generated", "generated"]
    assert (len(longer["frames"]), longer["ending"]) == (5, "length")


def test_stories_told_together_share_their_time(teller, image_features, tmp_path):
    short = request(1, image_features, captions=("de",))
    requests = [request(0, image_features, captions=("de", "fg")), short]
    told = {one.request.name: one for one in sample.tell(teller, requests, mode="visualize")}
    assert [one.together for one in told["s0"].sequences] == [2, 2, 1]  # the short one ends before the third
    sample.sample_many(teller, requests, tmp_path, batch=2, draw=draw, mode="visualize")
    timing = json.loads((tmp_path / "s0" / "story.json").read_text())["timing"]
    assert timing["together"] == [2, 2, 1] and len(timing["llm_s"]) == 3
    one = replace(told["s0"].sequences[0], seconds=3.0)
    halved = replace(told["s0"], sequences=(one, *told["s0"].sequences[1:]))
    assert sample.write_story(teller, halved, tmp_path / "halved", draw)["timing"]["llm_s"][0] == 1.5


def test_many_stories_restart_and_survive_bad_ones(teller, image_features, tmp_path):
    good = [request(number, image_features) for number in range(5)]
    bad = [
        replace(request(5, image_features), text="far too long a caption"),
        ValueError("no such picture: x.png"),
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
        sample.sample_many(teller, iter(requests), tmp_path, batch=2, draw=draw, after=stop_after_three)
    assert finished == ["s0", "s1", "s2"]
    counts = sample.sample_many(teller, iter(requests), tmp_path, batch=2, draw=draw)
    assert counts == {"written": 2, "skipped": 3, "failed": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "s0", "s1", "s2", "s3", "s4"]
    errors = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()][-4:]
    assert [error["story"] for error in errors] == ["s5", "line 4", "s6", "../up"]
    # What a story says depends on no batch and no restart.
    alone = sample.sample(teller, good[3], tmp_path / "alone", draw=draw)
    together = json.loads((tmp_path / "s3" / "story.json").read_text())
    assert [frame["text"] for frame in alone["frames"]] == [frame["text"] for frame in together["frames"]]


def test_a_picture_that_cannot_be_drawn_takes_no_other_story_along(teller, image_features, tmp_path):
    def fails_once(features, stories, frames):
        if stories[0] == 1:
            raise ValueError("not finite")
        return draw(features, stories, frames)

    requests = [request(number, image_features) for number in range(3)]
    counts = sample.sample_many(teller, requests, tmp_path, batch=3, draw=fails_once)
    assert counts == {"written": 2, "skipped": 0, "failed": 1}
    assert not (tmp_path / "s1").exists()
