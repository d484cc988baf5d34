import numpy as np
import pytest
from PIL import Image

from seedstory_jax.evaluation.measure import Tools, measure
from seedstory_jax.evaluation.stories import StoryFolder
from seedstory_jax.toy.world import caption_of, make_story, render_frame


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> list[StoryFolder]:
    folder, made = tmp_path_factory.mktemp("toy"), []
    for number in range(3):
        images, texts = [], []
        for index, facts in enumerate(make_story(np.random.default_rng(number), "sunny", 6)):
            images.append(folder / f"{number}_{index}.png")
            Image.fromarray(render_frame(facts)).save(images[-1])
            texts.append(caption_of(facts))
        made.append(StoryFolder(f"s{number}", tuple(texts), tuple(images)))
    return made


def encode(pictures) -> np.ndarray:
    """A stand-in for the ViT: mean colours of 4 x 4 patches."""
    return np.stack([p.reshape(4, 16, 4, 16, 3).mean((1, 3)).reshape(16, 3) / 255 for p in pictures])


def column(found, system: str, name: str) -> list:
    return [record[name] for record in found.records if record["policy"] == system]


def test_true_stories_score_full_on_the_probe(stories):
    found = measure({"true": stories}, Tools(encode=encode), reference=stories)
    for name in ("well_formed", "scene", "all_characters"):
        assert all(column(found, "true", name))
    assert found.figures["true"]["frechet_vit"].mean == pytest.approx(0, abs=1e-6)
    assert found.figures["true"]["length"].mean == 6
    assert "clip_score" not in found.records[0] and "fid" not in found.figures["true"]


def test_a_system_that_repeats_its_prompt(stories):
    parrot = [StoryFolder(s.name, (s.texts[0],) * 6, (s.images[0],) * 6) for s in stories]
    systems = {"true": stories, "parrot": parrot}
    clip = lambda pictures, texts: [float(len(text)) for text in texts]  # noqa: E731
    found = measure(systems, Tools(encode=encode, clip=clip, probe=False), reference=stories)
    assert column(found, "parrot", "said_before") == [False, *[True] * 5] * 3
    assert column(found, "parrot", "copied_text") == [1.0] * 18
    assert column(found, "parrot", "copied_picture") == [None, *[True] * 5] * 3
    assert column(found, "parrot", "style_consistency")[1] == pytest.approx(1)
    assert column(found, "parrot", "likeness_to_first")[5] == pytest.approx(1)
    assert column(found, "true", "clip_score")[0] == len(stories[0].texts[0])
    figures = found.figures
    assert figures["parrot"]["frechet_vit"].mean > figures["true"]["frechet_vit"].mean
    assert figures["parrot"]["frechet_vit"].low < figures["parrot"]["frechet_vit"].mean
    assert figures["parrot"]["distinct_2"].mean < figures["true"]["distinct_2"].mean
    assert not any(column(found, "true", "copied_picture")[1:3]) and "scene" not in found.records[0]


def test_pretrained_networks_are_columns(stories):
    tools = Tools(
        encoders={"net": lambda pictures: encode(pictures).mean(1), "parts": encode},
        aesthetic=lambda pictures: [5.0 + k for k in range(len(pictures))],
        probe=False,
    )
    found = measure({"true": stories[:1], "text": [StoryFolder("a", ("Once.",), (None,))]}, tools)
    first, *rest = [record for record in found.records if record["policy"] == "true"]
    names = {"net_to_first", "net_to_before", "parts_to_first", "parts_to_before"}
    names |= {"parts_character_consistency", "parts_likeness_to_first"}
    assert names < first.keys() and all(first[name] is None for name in names)
    assert all(0 < record[name] <= 1 for record in rest for name in ("net_to_first", "net_to_before"))
    assert [record["aesthetic_score"] for record in (first, *rest)] == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert not names & found.records[-1].keys()  # a story without pictures


def test_given_turns_count_nowhere(stories):
    frames = [{"source": "prompt"}] * 3 + [{"source": "generated"}] * 3
    given = [StoryFolder(s.name, s.texts, s.images, {"frames": frames}) for s in stories]
    assert given[0].given == 3 and stories[0].given == 1
    found = measure({"all": stories, "given": given}, Tools(encode=encode), reference=stories)
    rows = {name: [r for r in found.records if r["policy"] == name and r["story"] == "s0"] for name in ("all", "given")}
    assert rows["given"][0] == {**rows["all"][0], "policy": "given"} and rows["given"][3:][0]["scene"] is True
    for row in rows["given"][1:3]:
        assert {key for key, value in row.items() if value is not None} == {"policy", "story", "frame"}
    assert [r["said_before"] for r in rows["given"][3:]] == [r["said_before"] for r in rows["all"][3:]]
    assert found.figures["given"]["frechet_vit"].mean > found.figures["all"]["frechet_vit"].mean


def test_text_only_and_no_toy(stories):
    plain = [StoryFolder("a", ("Once.", "Twice upon a time."), (None, None))]
    found = measure({"plain": plain}, Tools(encode=encode), reference=stories)
    assert set(found.records[0]) == {"policy", "story", "frame", "repeated", "said_before", "copied_text"}
    assert "frechet_vit" not in found.figures["plain"]
    toy = measure({"toy": [StoryFolder(s.name, s.texts, (None,) * 6) for s in stories]})
    assert all(column(toy, "toy", "well_formed")) and column(toy, "toy", "scene") == [None] * 18
