"""The `features` sub-command: a trained or converted ViT's features of every picture of a dataset, as one array."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seedstory_jax import cli
from seedstory_jax.errors import UserError

CHUNK = 64


def write_features(source: Path, workdir: Path, out: Path, *, image_root: Path | None = None, keep_ratio: bool = False):
    """Encode every picture with the ViT of a workdir: `out/features-*.npy` float32[n q d], and `out/index.json`.

    Row i is picture i of `StoryDataset.image_paths()`; index.json says the file and where each story begins. A run that
    was stopped goes on. keep_ratio: a centre crop instead of the squash, as the de-tokenizer's stages see a picture.
    Raises UserError if the workdir holds no trained ViT.
    """
    import jax

    from seedstory_jax.config import Config, from_dict
    from seedstory_jax.data.array_cache import cached_array, digest_arrays
    from seedstory_jax.data.images import ImageTransform
    from seedstory_jax.data.sources import open_source
    from seedstory_jax.models.parameters import Parameters
    from seedstory_jax.training.parts import build, load_parameters

    saved = workdir / "config.json"
    if not saved.is_file():
        raise UserError(f"{workdir} is no workdir of train.py: it has no config.json")
    config = from_dict(Config, json.loads(saved.read_text()))
    parameters = load_parameters(config.model, ("vit",), workdir, seed=config.seed)
    transform = ImageTransform("clip", config.model.vit.image_size, keep_ratio=keep_ratio)
    stories = open_source(source, image_root)
    places = [(number, turn) for number, story in enumerate(stories.stories) for turn in range(len(story))]

    @jax.jit
    def encode(parameters: Parameters, images: jax.Array) -> jax.Array:
        return build(config.model, "vit", parameters)(images)

    def produce(first: int, stop: int) -> np.ndarray:
        images = np.zeros((CHUNK, transform.size, transform.size, 3), np.float32)
        for row, (story, turn) in enumerate(places[first:stop]):
            images[row] = transform(stories.picture(story, turn))
        return np.asarray(encode(parameters, images))[: stop - first]

    vit = config.model.vit
    key = {
        "weights": digest_arrays(jax.device_get(parameters)),
        "transform": repr(transform),
        "images": [list(story.images) for story in stories.stories],
        "source": str(source),
    }
    shape = (len(places), vit.n_queries, vit.output_dim)
    features = cached_array(out, "features", key, shape, np.float32, produce, chunk=CHUNK)
    index = {
        "file": Path(features.filename).name,
        "stories": [{"id": story.id, "images": len(story)} for story in stories.stories],
    }
    beside = out / "index.json.partial"
    beside.write_text(json.dumps(index, indent=1) + "\n")
    beside.replace(out / "index.json")
    return features


def main(arguments: Sequence[str]) -> int:
    """Run the sub-command."""
    parser = cli.Parser(prog="python -m seedstory_jax.storystream features", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help="JSONL, a folder of it, or a TFDS folder")
    parser.add_argument("--workdir", type=Path, required=True, help="a run of train.py whose ViT is used")
    parser.add_argument("--out", type=Path, required=True, help="folder for the array and its index")
    parser.add_argument("--image_root", type=Path, help="what image paths are relative to")
    parser.add_argument("--keep_ratio", action="store_true", help="crop instead of squash")
    flags, _ = parser.parse_strictly(arguments)
    features = write_features(
        flags.source, flags.workdir, flags.out, image_root=flags.image_root, keep_ratio=flags.keep_ratio
    )
    print(f"features {list(features.shape)} in {features.filename}")
    return 0
