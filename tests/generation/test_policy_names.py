"""Policies as text: the grammar, plug-ins from files and modules, and what a broken one is told."""

from dataclasses import FrozenInstanceError

import pytest

from seedstory_jax.config import SampleConfig
from seedstory_jax.errors import UserError
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import POLICIES, Dense, MultimodalSink, Window
from seedstory_jax.generation.policy_names import parse_named, parse_policy, source_digest, split_list

MINE = """
from dataclasses import dataclass

import jax.numpy as jnp
from seedstory_jax.generation.policies import Window


@dataclass(frozen=True)
class EveryOther(Window):
    share: float = 0.5
    whole: bool = False
    name: str = "a"

    def keep_mask(self, slots):
        return super().keep_mask(slots) | (slots.used & (slots.turn % 2 == 0))

    def slot_count(self, turns, turn_tokens):
        return super().slot_count(turns, turn_tokens) + (turns // 2) * turn_tokens


class WrongDtype(Window):
    def keep_mask(self, slots):
        return super().keep_mask(slots).astype(jnp.int32)


class WrongShape(Window):
    def keep_mask(self, slots):
        return super().keep_mask(slots)[:, :3]


class Looks(Window):
    def keep_mask(self, slots):
        return slots.used if slots.turn.max() > 2 else super().keep_mask(slots)


class Greedy(Window):
    def keep_mask(self, slots):
        return slots.used


class NoPolicy:
    pass


@dataclass(frozen=True, kw_only=True)
class Bare(Window):
    size: int
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("plug, in") / "mine.py"
    path.write_text(MINE)
    return path


def test_the_grammar():
    text = "multimodal_sink(positions=absolute, head=4:8,window=3,image_sink_cap=16)"
    assert parse_policy(text) == MultimodalSink("absolute", window=3, head=(4, 8), image_sink_cap=16)
    assert str(parse_named(text)) == "multimodal_sink(positions=absolute,window=3,head=4:8,image_sink_cap=16)"
    assert parse_named(str(parse_named(text))) == parse_named(text)
    assert parse_policy("dense()") == Dense() and str(parse_named("dense()")) == "dense"
    assert parse_policy("multimodal_sink(image_sink_cap=none)") == MultimodalSink()
    assert parse_policy("window_recompute(recompute_bos=true)").recompute_bos is True
    assert parse_policy("pinned(turns=0:3:7)").turns == (0, 3, 7) and parse_policy("pinned(turns=2)").turns == (2,)


def test_commas_in_parentheses_do_not_split():
    assert split_list("window, sink(window=2,start=1),,dense") == ["window", "sink(window=2,start=1)", "dense"]


def test_a_text_stands_over_settings_and_these_over_the_config():
    sample = SampleConfig(window=5, head=(1, 2), tail=(3, 4))
    assert parse_policy("multimodal_sink", sample) == MultimodalSink(window=5, head=(1, 2), tail=(3, 4))
    assert parse_policy("multimodal_sink(window=2)", sample, window=3, start=1).window == 2
    assert parse_policy("multimodal_sink", sample, window=3).window == 3
    assert parse_policy("boi_only", sample).head == (1, 2) and parse_policy("boi_only", sample).tail == (0, 0)
    assert parse_policy("eoi_only", sample).tail == (3, 4) and parse_policy("eoi_only", sample).head == (0, 0)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_every_value_that_it_has(name):
    policy = parse_policy(name)
    named = parse_named(name)
    every = [(setting, _text(getattr(policy, setting))) for setting in named.known]
    assert named.with_settings(every).make() == policy
    with pytest.raises(FrozenInstanceError):
        policy.positions = "absolute"


def _text(value):
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def test_a_policy_of_a_file(mine, monkeypatch, tmp_path):
    named = parse_named(f"{mine}:EveryOther(window=3,share=.25,whole=true,name=b)")
    policy = named.make(SampleConfig(window=5))
    assert (policy.window, policy.share, policy.whole, policy.name) == (3, 0.25, True, "b")
    monkeypatch.chdir(mine.parent)
    again = parse_policy("mine.py:EveryOther(window=3,share=.25,whole=true,name=b)")
    assert again == policy and type(again) is type(policy) and hash(again) == hash(policy)
    assert len(source_digest(named.kind)) == 16 and source_digest(Window) is None
    assert parse_policy("seedstory_jax.generation.policies:Window(window=2)") == Window(window=2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("windw", "did you mean 'window'"),
        ("window(", "write name"),
        ("window(windw=3)", "no setting 'windw': did you mean 'window'"),
        ("window(3)", "'3' is no setting"),
        ("window(window=)", "is no setting"),
        ("window(window=3,window=4)", "stands twice"),
        ("window(window=three)", "window=three cannot be; the default is window=8"),
        ("window(window=2.5)", "cannot be"),
        ("window(window=none)", "cannot be"),
        ("window(window=0)", "window=1 or more"),
        ("sink(start=-1)", "start=-1: a policy's numbers are 0 or more"),
        ("multimodal_sink(head=4)", "head=4 cannot be; the default is head=4:8"),
        ("multimodal_sink(head=4:8:2)", "head=4:8:2 cannot be"),
        ("sink(positions=left)", "unknown positions='left'"),
        ("window_recompute(recompute_bos=maybe)", "cannot be"),
        ("stride(every=0)", "every=0"),
        ("nowhere.py:Mine", "nowhere.py does not exist"),
        ("no.such.module:Mine", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_read(text, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_policy(text)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("EveryOthr", "did you mean 'EveryOther'"),
        ("NoPolicy", "no class derived from"),
        ("Bare", "give its setting 'size' a default"),
    ],
)
def test_a_file_without_such_a_policy(name, complaint, mine):
    with pytest.raises(UserError, match=complaint):
        parse_policy(f"{mine}:{name}")


def test_a_file_that_does_not_run(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        parse_policy(f"{tmp_path / 'broken.py'}:Mine")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("WrongDtype", r"WrongDtype breaks its promise at turn 0: keep_mask is int32\[1, 128\], not bool\[1, 128\]"),
        ("WrongShape", r"WrongShape .* at turn 0: keep_mask is bool\[1, 3\], not bool\[1, 128\]"),
        ("Looks", "Looks .* at turn 0: keep_mask has to be computed from arrays"),
        ("Greedy", r"Greedy breaks its promise at turn 3 of story 0: it holds 40 slots, slot_count\(5, 12\) said 37"),
    ],
)
def test_a_broken_promise(name, complaint, mine, story_model, tokenizer, image_features):
    policy = parse_policy(f"{mine}:{name}(window=2)")
    engine = StoryEngine(story_model, tokenizer, policy, GenerationConfig(length=5, max_text_tokens=6, allow_end=False))
    with pytest.raises(UserError, match=complaint):
        story = engine.start(image_features[0], "abc")
        for _ in range(4):
            story.next("abc")


def test_a_policy_of_ones_own_generates(mine, story_model, tokenizer, image_features):
    config = GenerationConfig(length=7, max_text_tokens=6, allow_end=False)
    story = StoryEngine(story_model, tokenizer, parse_policy(f"{mine}:EveryOther(window=1)"), config).start(
        image_features[0], "abc"
    )
    held = [set(story.next("ab").slots.turn.tolist()) - {-1} for _ in range(6)]
    assert held[-1] == {0, 2, 4, 5}
