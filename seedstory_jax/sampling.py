"""`sample.py`'s one function: from its flags to story folders."""

import argparse
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from seedstory_jax.config import Config, check, load_config, nearest, override
from seedstory_jax.data.images import open_image
from seedstory_jax.data.storystream import StoryDataset
from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies import POLICIES
from seedstory_jax.generation.sample import Request, sample, sample_many
from seedstory_jax.generation.story import StoryTeller
from seedstory_jax.report.library import UP, write_library
from seedstory_jax.report.storybook import write_storybook
from seedstory_jax.system import StorySystem, load

MODES = ("generate", "visualize")


def run_sampling(flags: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Tells what the flags ask for; 0, or 1 if some of many stories failed.

    Raises UserError, before a model is loaded, for flags that do not go together or files that cannot be read.
    """
    check_flags(flags)
    picture = None if flags.stories else open_image(flags.image)
    captions = read_captions(flags.captions) if flags.captions else ()
    system = load(flags.workdir, load_config(flags.config, overrides) if flags.config else None)
    if overrides and not flags.config:
        system = StorySystem(_overridden(system.config, overrides), system.workdir)
    teller = make_teller(system, flags)
    draw = None if flags.text_only else make_draw(system, flags)
    if flags.stories:
        dataset = StoryDataset(flags.stories, flags.image_root)
        counts = sample_many(
            teller,
            requests_of(system, dataset, flags),
            flags.out,
            batch=min(flags.batch, len(dataset)),
            draw=draw,
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
        image_features=system.encode([picture])[0],
        picture=None if flags.text_only else shown_picture(system, picture),
        captions=captions,
    )
    story = sample(teller, request, flags.out, draw=draw, mode=flags.mode)
    write_storybook(flags.out, story)
    early = "; the model ended the story there (--exact_length goes on)" if story["ending"] == "end" else ""
    print(f"{len(story['frames'])} sequences written to {flags.out / 'index.html'}{early}")
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    if flags.mode not in MODES:
        raise UserError(f"unknown mode {flags.mode!r}: {nearest(flags.mode, MODES)}")
    if flags.policy not in POLICIES:
        raise UserError(f"unknown policy {flags.policy!r}: {nearest(flags.policy, list(POLICIES))}")
    if flags.length < 1:
        raise UserError(f"--length={flags.length}: a story has at least 1 sequence")
    if flags.steps is not None and flags.steps < 1:
        raise UserError(f"--steps={flags.steps}: at least 1 denoising step")
    if flags.batch < 1:
        raise UserError(f"--batch={flags.batch}: tell at least 1 story at a time")
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
            raise UserError("--mode=visualize draws given captions: name their file with --captions=FILE")
    elif flags.image or flags.text or flags.captions:
        raise UserError("--stories brings its own beginnings; leave --image, --text and --captions out")


def read_captions(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--captions={path} cannot be read as text ({error})") from error
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise UserError(f"--captions={path} holds no caption: write one a line")
    return captions


def make_teller(system: StorySystem, flags: argparse.Namespace) -> StoryTeller:
    """The teller that the flags describe."""
    settings = {"positions": flags.positions}
    if flags.window is not None:
        settings["window"] = flags.window
    if flags.image_sink_cap is not None:
        settings["image_sink_cap"] = flags.image_sink_cap
    changes = {name: getattr(flags, name) for name in ("temperature", "top_p") if getattr(flags, name) is not None}
    changes |= {"at_limit": flags.at_limit, "allow_end": not flags.exact_length, "seed": flags.seed}
    changes["keep_features"] = not flags.text_only
    telling = system.telling(length=flags.length, **changes)
    teller = system.teller(flags.policy, telling, **settings)
    check_memory(teller, 1 if flags.stories is None else flags.batch)
    return teller


def check_memory(teller: StoryTeller, stories: int) -> None:
    """Raises UserError if the buffer of so many stories is larger than the device's memory, before it is asked for."""
    llama = teller.shape.config.llama
    slots = teller.slots()
    itemsize = jnp.dtype(teller.config.buffer_dtype or llama.dtype).itemsize
    needed = 2 * llama.num_layers * stories * slots * llama.num_kv_heads * llama.head_dim * itemsize
    memory = jax.local_devices()[0].memory_stats() or {}
    limit = memory.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > limit:
        raise UserError(
            f"--length={teller.config.length} under {teller.policy_name} needs {slots} slots for {stories} stories, "
            f"{needed / 1e9:,.0f} GB of {limit / 1e9:,.0f} GB; tell fewer at once or shorter ones, use --policy=window "
            "or bound --image_sink_cap"
        )


def make_draw(system: StorySystem, flags: argparse.Namespace):
    """(features, stories, frames) -> pixels, with the flags' steps and guidance."""

    def draw(features, stories, frames):
        return system.renderer.draw(
            features, stories, frames, seed=flags.seed, steps=flags.steps, guidance=flags.guidance
        )

    return draw


def shown_picture(system: StorySystem, picture) -> np.ndarray:
    """A given picture at the size of the drawn ones, uint8 [s s 3]."""
    return system.workspace.pixel_transform.pixels(picture)


def requests_of(system: StorySystem, dataset: StoryDataset, flags: argparse.Namespace) -> Iterator[Request | Exception]:
    """One request a story: its first picture and caption; with mode visualize its other captions too."""
    for number, story in enumerate(dataset.stories):
        try:
            picture = open_image(dataset.image_path(story, 0))
            yield Request(
                name=str(story.id),
                number=number,
                text=story.captions[0],
                image_features=system.encode([picture])[0],
                picture=None if flags.text_only else shown_picture(system, picture),
                captions=story.captions[1:] if flags.mode == "visualize" else (),
            )
        except UserError as fault:
            yield fault


def _overridden(config: Config, overrides: Mapping[str, str]) -> Config:
    for key, text in overrides.items():
        if not key.startswith("sample."):
            raise UserError(f"--config.{key}: without --config only sample.* keys can be changed")
        config = override(config, key, text)
    check(config)
    return config
