"""What the story stage shows along the way: a few stories told from the training set's openings, as one picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from seedstory_jax.config import Config
from seedstory_jax.distributed import on_host
from seedstory_jax.errors import UserError
from seedstory_jax.generation.policies import policy_of
from seedstory_jax.generation.story import StoryTeller
from seedstory_jax.generation.telling import TellingConfig
from seedstory_jax.generation.weights import for_sampling
from seedstory_jax.models.parameters import Parameters
from seedstory_jax.training.detokenizer import draw_pictures
from seedstory_jax.training.feature_cache import Rows
from seedstory_jax.training.parts import build, load_parameters
from seedstory_jax.training.workspace import Workspace

STORIES, LENGTH = 3, 6
FRAME = 192  # pixels a side, as shown
LINE = 26  # letters of a caption in one line
LINES = 4


def story_preview(config: Config, workspace: Workspace, features: Rows) -> Callable[[Parameters, int, Path], None]:
    """Tells STORIES stories of LENGTH frames into step_<n>.png: captions, below pictures if a de-tokenizer is there."""
    openings = workspace.train.offsets[:-1][:STORIES]

    def preview(parameters: Parameters, step: int, folder: Path) -> None:
        own = {name: value for name, value in parameters.items() if name.startswith("story.")}
        model = build(config.model, "story", on_host(own))
        told = tell(config, workspace, model, features.host_values(features.read(openings)))
        if jax.process_index():
            return
        first = workspace.train.read(openings, workspace.pixel_transform)
        drawn = _drawn(config, workspace, told)
        rows = [
            [(first[number], workspace.train.stories[number].captions[0])]
            + [(None if drawn is None else drawn[number][turn], one.text) for turn, one in enumerate(story)]
            for number, story in enumerate(told)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step_{step:06d}.png"
        beside = path.with_suffix(".partial")
        sheet(rows).save(beside, "PNG")
        beside.replace(path)

    return preview


def tell(config: Config, workspace: Workspace, model, features: np.ndarray) -> list[list]:
    """The sequences that follow each opening, greedily."""
    model = for_sampling(model, dtype=model.config.llama.dtype)
    policy = policy_of(config.sample, "multimodal_sink")
    telling = TellingConfig(length=LENGTH, max_text_tokens=config.sample.max_text_tokens)
    teller = StoryTeller(model, workspace.tokenizer, policy, telling)
    stories = workspace.train.stories
    return [list(teller.start(seen, stories[number].captions[0])) for number, seen in enumerate(features)]


def _drawn(config: Config, workspace: Workspace, told: Sequence[Sequence]) -> list[np.ndarray] | None:
    """Pictures of the told sequences with what an earlier stage trained; None where there is none."""
    try:
        parts = load_parameters(
            config.model, ("detokenizer", "vae", "vit"), workspace.workdir, seed=config.seed, before="story"
        )
    except UserError:
        return None
    features = [[one.predicted_image_features for one in story] for story in told]
    return [draw_pictures(config, parts, np.stack(story)) if story else np.empty(0) for story in features]


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
