"""Preview of the story stage: a few stories generated from prompts of the training set, as one image."""

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
from seedstory_jax.generation.interface import GenerationConfig, Turn
from seedstory_jax.generation.policy_names import parse_policy
from seedstory_jax.models.parameters import Parameters

STORIES, LENGTH = 3, 6
FRAME = 192  # pixels a side, as shown
LINE = 26  # letters of a caption in one line
LINES = 4


def story_preview(
    config: Config, run_data: RunData, features: ImageEncodings
) -> Callable[[Parameters, int, Path], None]:
    """Writes STORIES stories of LENGTH turns to step_<n>.png: captions, below images if a de-tokenizer is there."""
    prompts = run_data.train.offsets[:-1][:STORIES]

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        own = {name: value for name, value in parameters.items() if name.startswith("story.")}
        model = build(config.model, "story", on_host(own))
        stories = generate(config, run_data, model, features.host_values(features.read(prompts)))
        if jax.process_index():
            return
        first = run_data.train.read(prompts, run_data.pixel_transform)
        images = _rendered(config, run_data, stories)
        rows = [
            [(first[number], run_data.train.stories[number].captions[0])]
            + [(None if images is None else images[number][i], turn.text) for i, turn in enumerate(story)]
            for number, story in enumerate(stories)
        ]
        with atomic_path(folder / f"step_{step:06d}.png") as beside:
            sheet(rows).save(beside)

    return preview


def generate(config: Config, run_data: RunData, model, features: np.ndarray) -> list[list[Turn]]:
    """The turns that follow each prompt, greedily."""
    model = for_sampling(model, dtype=model.config.llama.dtype)
    policy = parse_policy("multimodal_sink", config.sample)
    settings = GenerationConfig(length=LENGTH, max_text_tokens=config.sample.max_text_tokens)
    engine = StoryEngine(model, run_data.tokenizer, policy, settings)
    stories = run_data.train.stories
    return [list(engine.start(seen, stories[number].captions[0])) for number, seen in enumerate(features)]


def _rendered(config: Config, run_data: RunData, stories: Sequence[Sequence[Turn]]) -> list[np.ndarray] | None:
    """Images of the stories with what an earlier stage trained; None where there is none."""
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
    features = [[turn.predicted_image_features for turn in story] for story in stories]
    return [render_images(config, parts, np.stack(story)) if story else np.empty(0) for story in features]


def sheet(rows: Sequence[Sequence[tuple[np.ndarray | None, str]]]) -> Image.Image:
    """Images in lines, a story each, with their captions below."""
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
