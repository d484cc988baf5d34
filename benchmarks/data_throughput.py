"""Stories a second of the data path, beside the per-sample work of the published torch datapipe: one JSON line.

    python benchmarks/data_throughput.py [--stories=24] [--workers=2] [--images=10]

Both read the same JPEGs (854 x 480, as StoryStream's) and make the same training sample: every picture squashed to 448
and normalised, the last one cropped to 1024 for the de-tokenizer, the captions tokenised. The published pipe opens the
target picture twice, goes through float tensors and tokenises on each visit; it is written out here with torch, as
torchvision's ToTensor and Normalize do it.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from seedstory_jax.data.images import CLIP_MEAN, CLIP_STD, ImageTransform, crop_offset, short_side_to
from seedstory_jax.data.pipeline import Plan, StoryRows, batches
from seedstory_jax.data.sequence import SequenceConfig
from seedstory_jax.data.sources import JsonlSource
from seedstory_jax.data.tokenizer import toy_tokenizer
from seedstory_jax.data.toy_world import caption_of, make_story, render_frame
from seedstory_jax.storystream.lines import write_jsonl

WIDTH, HEIGHT = 854, 480


def write_stories(folder: Path, stories: int, images: int) -> Path:
    """Toy stories with pictures of StoryStream's size and some grain, so that JPEG has work to do."""
    records = []
    for number in range(stories):
        frames = make_story(np.random.default_rng(number), "sunny")[:images]
        names = []
        for turn, facts in enumerate(frames):
            name = f"{number:04d}_{turn:02d}.jpg"
            picture = Image.fromarray(render_frame(facts)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            grain = np.random.default_rng([number, turn]).normal(0, 6, (HEIGHT, WIDTH, 3))
            Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)).save(
                folder / name, quality=90
            )
            names.append(name)
        records.append({"id": number, "images": names, "captions": [caption_of(facts) for facts in frames]})
    write_jsonl(folder / "stories.jsonl", records)
    return folder / "stories.jsonl"


class StoryPictures:
    """Our reader: each picture decoded once, both transforms of the target from the same pixels."""

    def __init__(self, source: JsonlSource):
        self.source = source
        self.vit, self.pixels = ImageTransform("clip", 448), ImageTransform("sd", 1024)

    def __call__(self, story: int, turns) -> np.ndarray:
        """uint8 squashed pictures; the model's first operation makes floats of them on the device."""
        opened = [self.source.picture(story, turn) for turn in turns]
        self.pixels.pixels(opened[-1])
        return np.stack([self.vit.pixels(image) for image in opened])


def published_sample(path: Path, record: dict, tokenizer) -> None:
    """What the published pipe does for one sample."""
    import torch

    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]

    def to_tensor(image: Image.Image) -> "torch.Tensor":
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)

    images = []
    for name in record["images"]:
        image = Image.open(path.parent / name).convert("RGB")
        squashed = image.resize((448, 448), Image.Resampling.BILINEAR)
        images.append(to_tensor(squashed).sub_(mean).div_(std))
    target = Image.open(path.parent / record["images"][-1]).convert("RGB")
    width, height = short_side_to(*target.size, 1024)
    target = target.resize((width, height), Image.Resampling.BICUBIC)
    left, top = crop_offset(width, 1024), crop_offset(height, 1024)
    to_tensor(target.crop((left, top, left + 1024, top + 1024))).sub_(0.5).div_(0.5)
    torch.stack(images)
    image_text = "<img>" + "".join(f"<img_{number:05d}>" for number in range(64)) + "</img>"
    text = record["captions"][0] + image_text
    for caption in record["captions"][1:]:
        text += f"[INST]{caption}{image_text}"
    tokenizer.encode(text, add_special_tokens=False)


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=24)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_stories(folder, flags.stories, flags.images)
        tokenizer = toy_tokenizer(folder / "tokenizer")

        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(1)  # a loader's worker has one
        theirs = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
        records = [json.loads(line) for line in path.read_text().splitlines()]
        published_sample(path, records[0], theirs)
        start, cpu = time.perf_counter(), time.process_time()
        for record in records:
            published_sample(path, record, theirs)
        published, published_cpu = time.perf_counter() - start, time.process_time() - cpu

        source = JsonlSource(path)
        config = SequenceConfig(max_tokens=1024, max_images=flags.images)
        plan = Plan((flags.images,) * flags.stories, batch_size=1, max_turns=flags.images, turns={"whole": 1.0})
        rows = StoryRows(source.stories, tokenizer, plan, config, StoryPictures(source), image_key="images")
        rows[0]
        cpu = time.process_time()
        for place in range(flags.stories):
            rows[place]
        ours_cpu = time.process_time() - cpu
        ours = {}
        for workers in sorted({0, flags.workers}):
            epochs = 2  # the first warms workers and the page cache up
            loader = batches(rows, steps=flags.stories * epochs, workers=workers)
            for _ in range(flags.stories * (epochs - 1)):
                next(loader)
            start = time.perf_counter()
            for _ in loader:
                pass
            ours[workers] = time.perf_counter() - start
    rate = {"published": flags.stories / published} | {f"workers_{n}": flags.stories / s for n, s in ours.items()}
    result = {
        "benchmark": "data_throughput",
        "images_per_story": flags.images,
        "cores": os.cpu_count(),
        "stories_per_s": {key: round(value, 2) for key, value in rate.items()},
        "images_per_s": {key: round(value * flags.images, 1) for key, value in rate.items()},
        # What does not depend on who else is using the machine:
        "cpu_ms_per_image": {
            "published": round(1e3 * published_cpu / flags.stories / flags.images, 2),
            "ours": round(1e3 * ours_cpu / flags.stories / flags.images, 2),
        },
        "speedup": round(rate[f"workers_{flags.workers}"] / rate["published"], 2),
        "speedup_in_process": round(rate["workers_0"] / rate["published"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
