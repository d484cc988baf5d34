"""What `seedstory sample` runs: from its flags to story folders."""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax import outputs
from seedstory_jax.checkpoints.readers import fingerprint
from seedstory_jax.config import Config, SampleConfig, check, load_config, nearest, override, to_dict
from seedstory_jax.data.images import digest, open_image
from seedstory_jax.data.storystream import StoryDataset, caption_lines
from seedstory_jax.errors import UserError
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.policy_names import parse_policy
from seedstory_jax.generation.story_files import GivenTurn, Request, write_many, write_one
from seedstory_jax.limits import check_value, marked_hints
from seedstory_jax.pipeline import StoryPipeline, load
from seedstory_jax.report.library import UP, write_library
from seedstory_jax.report.storybook import write_storybook

MODES = ("generate", "visualize")


def run_sampling(flags: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Generates what the flags ask for; returns 0, or 1 if some of many stories failed.

    Raises UserError, before a model is loaded, for flags that do not go together or files that cannot be read.
    """
    check_flags(flags)
    check_out(flags)
    image = None if flags.stories else open_image(flags.image)
    captions = read_captions(flags.captions) if flags.captions else ()
    pipeline = load(flags.workdir, load_config(flags.config, overrides) if flags.config else None)
    if overrides and not flags.config:
        pipeline = StoryPipeline(_overridden(pipeline.config, overrides), pipeline.workdir)
    engine = make_engine(pipeline, flags)
    render = None if flags.text_only else make_render(pipeline, flags)
    if flags.stories:
        dataset = StoryDataset(flags.stories, flags.image_root)
        counts = write_many(
            engine,
            requests_of(pipeline, dataset, flags),
            flags.out,
            identity=identity_of(pipeline, flags),
            batch=min(flags.batch, len(dataset)),
            render=render,
            mode=flags.mode,
            after=partial(write_storybook, up=UP),
        )
        page = write_library(flags.out)
        print(f"{counts['written']} stories written to {page}, {counts['skipped']} were there, ", end="")
        print(f"{counts['failed']} failed" + (f" (see {flags.out / 'errors.jsonl'})" if counts["failed"] else ""))
        return 1 if counts["failed"] else 0
    request = Request(
        name=flags.out.name,
        number=0,
        text=flags.text,
        image_features=pipeline.encode([image])[0],
        image=None if flags.text_only else shown_image(pipeline, image),
        captions=captions,
    )
    story = write_one(engine, request, flags.out, render=render, mode=flags.mode)
    write_storybook(flags.out, story)
    early = "; the model ended the story there (--exact_length goes on)" if story["ending"] == "end" else ""
    print(f"{len(story['frames'])} turns written to {flags.out / 'index.html'}{early}")
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    if flags.mode not in MODES:
        raise UserError(f"unknown mode {flags.mode!r}: {nearest(flags.mode, MODES)}")
    parse_policy(flags.policy)
    if flags.length < 1:
        raise UserError(f"--length={flags.length}: a story has at least 1 turn")
    hints = marked_hints(SampleConfig)
    for name in ("steps", "guidance", "window", "temperature", "top_p"):
        if getattr(flags, name) is not None:
            check_value(hints[name], getattr(flags, name), f"--{name}", getattr(SampleConfig, name))
    if flags.batch < 1:
        raise UserError(f"--batch={flags.batch}: generate at least 1 story at a time")
    if flags.exact_length and flags.at_limit == "stop":
        raise UserError("--at_limit=stop may end a story early, --exact_length may not: leave one out")
    if flags.stories is None:
        if not flags.image or flags.text is None:
            raise UserError(
                "a story begins with --image=FILE and --text=CAPTION (or give many with --stories=FILE.jsonl)"
            )
        if not flags.text.strip():
            raise UserError("--text is empty; give the first caption, one sentence")
        if flags.mode == "visualize" and not flags.captions:
            raise UserError("--mode=visualize renders given captions: name their file with --captions=FILE")
    elif flags.image or flags.text or flags.captions:
        raise UserError("--stories brings its own prompts; leave --image, --text and --captions out")


def check_out(flags: argparse.Namespace) -> None:
    """Raises UserError if files that the story would be written over are not those of an earlier one."""
    if flags.out.exists() and not flags.out.is_dir():
        raise UserError(f"--out={flags.out} is no folder: name another place to write")
    if flags.stories is None:
        there = [path for path in flags.out.glob("frame_*.png") if re.fullmatch(r"frame_[0-9]{4,9}", path.stem)]
        written = [path for path in there if int(path.stem[6:]) < flags.length and not flags.text_only]
        outputs.claim(flags.out / "story.json", *written, by="sample")
        outputs.claim(flags.out / "index.html", by="report")


def identity_of(pipeline: StoryPipeline, flags: argparse.Namespace) -> dict[str, Any]:
    """What shapes many stories besides how they are generated: the weights, and how images are rendered."""
    rendering = {"text_only": flags.text_only, "seed": flags.seed, "steps": flags.steps, "guidance": flags.guidance}
    return {
        "checkpoint": fingerprint(pipeline.workdir, pipeline.config.sample.checkpoint),
        "model": to_dict(pipeline.config.model),
        "sample": to_dict(pipeline.config.sample),
        "rendering": rendering,
    }


def read_captions(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank."""
    try:
        return caption_lines(path)
    except UserError as error:
        raise UserError(f"--captions={error}") from None


def make_engine(pipeline: StoryPipeline, flags: argparse.Namespace) -> StoryEngine:
    """Engine that the flags describe."""
    settings = {"positions": flags.positions}
    if flags.window is not None:
        settings["window"] = flags.window
    if flags.image_sink_cap is not None:
        settings["image_sink_cap"] = flags.image_sink_cap
    changes = {name: getattr(flags, name) for name in ("temperature", "top_p") if getattr(flags, name) is not None}
    changes |= {"at_limit": flags.at_limit, "allow_end": not flags.exact_length, "seed": flags.seed}
    changes["keep_features"] = not flags.text_only
    config = pipeline.generation_config(length=flags.length, **changes)
    engine = pipeline.engine(flags.policy, config, **settings)
    check_memory(engine, 1 if flags.stories is None else flags.batch)
    return engine


def check_memory(engine: StoryEngine, stories: int) -> None:
    """Raises UserError if the buffer of so many stories is larger than the device's memory, before it is allocated."""
    llama = engine.spec.config.llama
    slots = engine.slots()
    itemsize = jnp.dtype(engine.config.buffer_dtype or llama.dtype).itemsize
    needed = 2 * llama.num_layers * stories * slots * llama.num_kv_heads * llama.head_dim * itemsize
    memory = jax.local_devices()[0].memory_stats() or {}
    limit = memory.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > limit:
        raise UserError(
            f"--length={engine.config.length} under {engine.policy_name} needs {slots} slots for {stories} stories, "
            f"{needed / 1e9:,.0f} GB of {limit / 1e9:,.0f} GB; generate fewer at once or shorter ones, use "
            "--policy=window or bound --image_sink_cap"
        )


def make_render(pipeline: StoryPipeline, flags: argparse.Namespace):
    """(features, stories, turns) -> images, with the flags' steps and guidance."""

    def render(features, stories, turns):
        return pipeline.renderer.render(
            features, stories, turns, seed=flags.seed, steps=flags.steps, guidance=flags.guidance
        )

    return render


def shown_image(pipeline: StoryPipeline, image) -> np.ndarray:
    """A given image at the size of the rendered ones, uint8 [s s 3]."""
    return pipeline.run_data.pixel_transform.pixels(image)


def requests_of(
    pipeline: StoryPipeline, dataset: StoryDataset, flags: argparse.Namespace
) -> Iterator[Request | Exception]:
    """One request a story: its given turns (the first one, as a rule); with mode visualize its other captions too."""
    for number, story in enumerate(dataset.stories):
        try:
            images = [dataset.picture(story, turn) for turn in range(story.given)]
            turns = [
                GivenTurn(text, features, None if flags.text_only else shown_image(pipeline, image), digest(image))
                for text, features, image in zip(story.captions, pipeline.encode(images), images, strict=False)
            ]
            captions = (*story.captions[story.given :], *story.continuation) if flags.mode == "visualize" else ()
            yield Request.of(str(story.id), number, turns, captions)
        except UserError as fault:
            yield fault


def _overridden(config: Config, overrides: Mapping[str, str]) -> Config:
    for key in overrides:
        if not key.startswith("sample."):
            raise UserError(f"--config.{key}: without --config only sample.* keys can be changed")
    config = override(config, overrides)
    check(config)
    return config
