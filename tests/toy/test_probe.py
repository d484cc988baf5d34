from dataclasses import fields

import numpy as np
import pytest
from PIL import Image, ImageFilter

from seedstory_jax.toy import probe
from seedstory_jax.toy.probe import FrameScore, score_stories, score_story
from seedstory_jax.toy.world import CASTS, caption_of, make_story, render_frame


@pytest.fixture(scope="module")
def world():
    stories = [make_story(np.random.default_rng([9, i]), series) for i in range(2) for series in CASTS]
    captions = [[caption_of(facts) for facts in story] for story in stories]
    return captions, [[render_frame(facts) for facts in story] for story in stories]


def table(captions, pictures):
    scores = [score_story(*story) for story in zip(captions, pictures, strict=True)]
    return means([score for story in scores for score in story])


def means(scores):
    """The mean of every question that some frame answers, else None."""
    answers = {f.name: [getattr(score, f.name) for score in scores] for f in fields(FrameScore)}
    answers = {name: [value for value in values if value is not None] for name, values in answers.items()}
    return {name: sum(values) / len(values) if values else None for name, values in answers.items()}


ALL = (
    "well_formed",
    "scene",
    "characters",
    "all_characters",
    "poses",
    "props",
    "treasure",
    "persistence",
    "opening_shown",
)


def soft(pictures):
    return [[np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(1.5))) for p in story] for story in pictures]


def large(pictures):
    return [[picture.repeat(2, 0).repeat(2, 1) for picture in story] for story in pictures]


@pytest.mark.parametrize("change", [lambda pictures: pictures, soft, large], ids=["true", "soft", "large"])
def test_true_pictures_score_one(world, change):
    captions, pictures = world
    result = table(captions, change(pictures))
    assert {name: result[name] for name in ALL if name != "poses"} == {name: 1.0 for name in ALL if name != "poses"}
    assert result["poses"] > 0.98 and result["extra"] == 0 and result["opening_named"] == 1


def test_pictures_of_other_stories_score_as_chance(world):
    captions, pictures = world
    result = table(captions, pictures[2:] + pictures[:2])
    assert result["scene"] < 0.4 and result["all_characters"] < 0.5 and result["props"] < 0.5
    assert result["treasure"] < 0.3 and result["persistence"] < 0.5 and result["opening_shown"] < 0.3


def test_an_average_of_all_pictures_shows_nobody(world):
    captions, pictures = world
    mean = np.mean(np.concatenate(pictures), 0).astype(np.uint8)
    result = table(captions, [[mean] * 30] * len(captions))
    assert result["all_characters"] == 0 and result["props"] == 0 and result["scene"] < 0.5


def test_one_frame_by_hand():
    first = "At the farm, the monkey and the spotted dog wave. They dream of a red star."
    second = "At the farm, the monkey waves while the spotted dog sleeps near a kite. The blue star shines."
    from seedstory_jax.toy.world import draw

    pictures = [
        draw("farm", {0: ("monkey", "wave"), 3: ("spotted dog", "wave")}, found=("red", "star")),
        draw("farm", {0: ("monkey", "jump"), 1: ("man in yellow", "stand")}, ["kite"], ("red", "star")),
    ]
    one, two = score_story([first, second], pictures)
    assert one.all_characters and one.treasure and one.persistence is None and one.props is None
    assert two.characters == 0.5 and two.poses == 0 and two.extra == 1 and two.props == 1
    assert two.treasure is False and two.opening_named is False and two.opening_shown is True
    assert two.cast_kept == 1 and two.persistence is False


def test_many_stories_are_judged_by_several_processes_alike(world, monkeypatch):
    captions, pictures = world
    stories = [(captions[0], pictures[0]), (captions[1], None), (captions[2], pictures[1])]
    alone = [score_story(*story) for story in stories]
    assert list(score_stories(stories)) == alone
    monkeypatch.setattr(probe, "SHARED_OUT", 2)
    monkeypatch.setattr(probe, "look", None)  # this process judges no picture
    assert list(score_stories(stories)) == alone


def test_text_alone(world):
    captions, _ = world
    scores = score_story([captions[0][0], "no no no"])
    assert scores[0].well_formed and scores[0].scene is None
    assert not scores[1].well_formed and scores[1].scene is None


def test_a_caption_that_is_not_well_formed_misses_everything(world):
    _, pictures = world
    score = score_story(["nonsense"], pictures[0][:1])[0]
    assert (score.well_formed, score.scene, score.characters, score.all_characters) == (False, False, 0.0, False)
