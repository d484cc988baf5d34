"""What the story stage shows along the way: a few stories told from the training set's openings, as one picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from seedstory_jax.checkpoints.load import load_parameters
from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import STAGES, Config
from seedstory_jax.distributed import on_host
from seedstory_jax.errors import UserError
from seedstory_jax.features.cache import ImageEncodings
from seedstory_jax.features.run_data import RunData
from seedstory_jax.files import atomic_path
from seedstory_jax.generation.build import for_sampling, render_images
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import make_policy
from seedstory_jax.models.parameters import Parameters

STORIES, LENGTH = 3, 6
FRAME = 192  # pixels a side, as shown
LINE = 26  # letters of a caption in one line
LINES = 4


def story_preview(
    config: Config, run_data: RunData, features: ImageEncodings
) -> Callable[[Parameters, int, Path], None]:
    """Tells STORIES stories of LENGTH frames into step_<n>.png: captions, below pictures if a de-tokenizer is there."""
    openings = run_data.train.offsets[:-1][:STORIES]

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        own = {name: value for name, value in parameters.items() if name.startswith("story.")}
        model = build(config.model, "story", on_host(own))
        told = tell(config, run_data, model, features.host_values(features.read(openings)))
        if jax.process_index():
            return
        first = run_data.train.read(openings, run_data.pixel_transform)
        drawn = _drawn(config, run_data, told)
        rows = [
            [(first[number], run_data.train.stories[number].captions[0])]
            + [(None if drawn is None else drawn[number][turn], one.text) for turn, one in enumerate(story)]
            for number, story in enumerate(told)
        ]
        with atomic_path(folder / f"step_{step:06d}.png") as beside:
            sheet(rows).save(beside)

    return preview


def tell(config: Config, run_data: RunData, model, features: np.ndarray) -> list[list]:
    """The sequences that follow each opening, greedily."""
    model = for_sampling(model, dtype=model.config.llama.dtype)
    policy = make_policy("multimodal_sink", window=config.sample.window)
    telling = GenerationConfig(length=LENGTH, max_text_tokens=config.sample.max_text_tokens)
    engine = StoryEngine(model, run_data.tokenizer, policy, telling)
    stories = run_data.train.stories
    return [list(engine.start(seen, stories[number].captions[0])) for number, seen in enumerate(features)]


def _drawn(config: Config, run_data: RunData, told: Sequence[Sequence]) -> list[np.ndarray] | None:
    """Pictures of the told sequences with what an earlier stage trained; None where there is none."""
    try:
        parts = load_parameters(
            config.model,
            ("detokenizer", "vae", "vit"),
            run_data.workdir,
            seed=config.seed,
            stages=STAGES[: STAGES.index("story")],
        )
    except UserError:
        return None
    features = [[one.predicted_image_features for one in story] for story in told]
    return [render_images(config, parts, np.stack(story)) if story else np.empty(0) for story in features]


def sheet(rows: Sequence[Sequence[tuple[np.ndarray | None, str]]]) -> Image.Image:
    """Frames in lines, a story each, with their captions below."""
    height, text = FRAME, 12 * LINES + 8
    columns = max(map(len, rows))
    page = Image.new("RGB", (columns * (FRAME + 8), len(rows) * (height + text)), "white")
    draw = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        for x, (picture, caption) in enumerate(row):
            left, top = x * (FRAME + 8), y * (height + text)
            if picture is not None:
                page.paste(Image.fromarray(picture).resize((FRAME, FRAME), Image.Resampling.NEAREST), (left, top))
            words = caption.encode("ascii", "replace").decode()
            for number in range(LINES):
                draw.text((left, top + height + 12 * number), words[number * LINE : (number + 1) * LINE], fill="black")
    return page
