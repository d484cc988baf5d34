"""Rules that new code falls under by itself: who opens pictures and files of data, who removes, who speaks to hosts."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seedstory_jax"

# What only some files may do, and which: whoever needs it elsewhere calls those.
RULES = {
    "a picture is decoded by data.images alone (training's log reads pictures that it drew)": (
        r"Image\.open\(",
        {"data/images.py", "training/watch.py", "training/metrics.py"},
    ),
    "a file that data names is read by data.names alone": (
        r"\.read_bytes\(",
        {
            "data/names.py",
            "data/slow_tokenizer.py",  # of a folder that the user names
            "generation/policy_names.py",  # a program that the user names
            "convert/sources.py",  # a published folder's files, by names of its own
            "storystream/build/subtitles.py",  # beside a video that the user names
            "storystream/build/pipeline.py",  # pictures that were opened before
        },
    ),
    "hosts are spoken to by chat_client alone": (
        r"urllib\.request|http\.client|import (openai|requests|httpx|aiohttp|socket)\b",
        {"chat_client.py"},
    ),
    "what a command may write over is decided in outputs.py (converted folders are new ones)": (
        r'open\("wb?"',
        {"storystream/lines.py", "convert/tensor_files.py"},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_nothing_else_does_it(rule):
    pattern, allowed = RULES[rule]
    found = {
        path.relative_to(PACKAGE).as_posix()
        for folder in ("data", "storystream", "evaluation", "report", "generation", "convert", "training", ".")
        for path in (PACKAGE / folder).glob("*.py" if folder == "." else "**/*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }
    assert found <= allowed, f"{sorted(found - allowed)}: {rule}"
