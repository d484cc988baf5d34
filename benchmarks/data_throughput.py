"""Stories a second of the data path, beside the per-sample work of the published torch datapipe: one JSON line.

    python benchmarks/data_throughput.py [--stories=24] [--workers=2] [--images=10]

Both read the same JPEGs (854 x 480, as StoryStream's) and make the same training sample: every picture squashed to 448
and normalised, the last one cropped to 1024 for the de-tokenizer, the captions tokenised. The published pipe opens the
target picture twice, goes through float tensors and tokenises on each visit; it is written out here with torch, as
torchvision's ToTensor and Normalize do it, and read by torch's DataLoader with as many workers as ours.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from seedstory_jax.data.images import CLIP_MEAN, CLIP_STD, ImageTransform, crop_offset, short_side_to
from seedstory_jax.data.pipeline import ExampleSource, Plan, batches
from seedstory_jax.data.sources import JsonlSource
from seedstory_jax.data.token_rows import SequenceConfig
from seedstory_jax.storystream.lines import write_jsonl
from seedstory_jax.toy.tokenizer import toy_tokenizer
from seedstory_jax.toy.world import caption_of, make_story, render_frame

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


class OurSamples(ExampleSource):
    """Training rows with pictures: each decoded once, both transforms of the target from the same pixels.

    Pictures stay uint8: the model's first operation makes floats of them on the device.
    """

    vit, pixels = ImageTransform("clip", 448), ImageTransform("sd", 1024)

    def __init__(self, source: JsonlSource, *args, **kwargs):
        super().__init__(source.stories, *args, **kwargs)
        self.source = source

    def read(self, choice) -> dict:
        """The row of one choice."""
        row = super().read(choice)
        opened = [self.source.picture(choice.story, turn) for turn in choice.turns]
        row["images"] = np.stack([self.vit.pixels(image) for image in opened])
        row["target"] = self.pixels.pixels(opened[-1])
        return row


class PublishedSamples:
    """What the published pipe does for a sample, as a torch dataset."""

    def __init__(self, path: Path, records: list[dict], tokenizer):
        import torch

        self.path, self.records, self.tokenizer, self.torch = path, records, tokenizer, torch
        self.mean, self.std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.records)

    def _to_tensor(self, image: Image.Image):
        return self.torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)

    def __getitem__(self, place: int) -> dict:
        record, images = self.records[place], []
        for name in record["images"]:
            image = Image.open(self.path.parent / name).convert("RGB")
            squashed = image.resize((448, 448), Image.Resampling.BILINEAR)
            images.append(self._to_tensor(squashed).sub_(self.mean).div_(self.std))
        target = Image.open(self.path.parent / record["images"][-1]).convert("RGB")
        width, height = short_side_to(*target.size, 1024)
        target = target.resize((width, height), Image.Resampling.BICUBIC)
        left, top = crop_offset(width, 1024), crop_offset(height, 1024)
        target = target.crop((left, top, left + 1024, top + 1024))
        image_text = "<img>" + "".join(f"<img_{number:05d}>" for number in range(64)) + "</img>"
        text = record["captions"][0] + image_text
        for caption in record["captions"][1:]:
            text += f"[INST]{caption}{image_text}"
        return {
            "images": self.torch.stack(images),
            "target": self._to_tensor(target).sub_(0.5).div_(0.5),
            "ids": self.torch.tensor(self.tokenizer.encode(text, add_special_tokens=False)),
        }


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=24)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()

    import torch
    from torch.utils.data import ConcatDataset, DataLoader
    from transformers import AutoTokenizer

    torch.set_num_threads(1)  # as in a loader's worker
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_stories(folder, flags.stories, flags.images)
        tokenizer = toy_tokenizer(folder / "tokenizer")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        theirs = PublishedSamples(path, records, AutoTokenizer.from_pretrained(str(folder / "tokenizer")))
        config = SequenceConfig(max_tokens=1024, max_images=flags.images)
        plan = Plan((flags.images,) * flags.stories, batch_size=1, max_turns=flags.images, turns={"whole": 1.0})
        ours = OurSamples(JsonlSource(path), tokenizer, plan, config)

        def published(workers: int, epochs: int) -> Iterator:
            options = {"num_workers": workers, "batch_size": None}  # a sample at a time, as ours
            return iter(DataLoader(ConcatDataset([theirs] * epochs), **options))

        loaders = {
            "published": published,
            "ours": lambda workers, epochs: batches(ours, steps=flags.stories * epochs, workers=workers),
        }
        seconds = {
            f"{name}, {workers} workers": timed(load(workers, 4), flags.stories)
            for workers in sorted({0, flags.workers})
            for name, load in loaders.items()
        }
        cpu = {name: cpu_of(samples, flags.stories) for name, samples in (("published", theirs), ("ours", ours))}
    rate = {name: flags.stories * flags.images / spent for name, spent in seconds.items()}
    result = {
        "benchmark": "data_throughput",
        "images_per_story": flags.images,
        "cores": os.cpu_count(),
        "images_per_s": {name: round(value, 1) for name, value in rate.items()},
        # What does not depend on who else is using the machine:
        "cpu_ms_per_image": {name: round(1e3 * spent / flags.images, 2) for name, spent in cpu.items()},
        "speedup": round(rate[f"ours, {flags.workers} workers"] / rate[f"published, {flags.workers} workers"], 2),
        "speedup_over_one_process": round(rate[f"ours, {flags.workers} workers"] / rate["published, 0 workers"], 2),
        "speedup_a_core": round(cpu["published"] / cpu["ours"], 2),
    }
    print(json.dumps(result))


def timed(loader: Iterator, samples: int) -> float:
    """Seconds of `samples` samples, as a mean over twice as many from the middle: buffers are full at both ends."""
    for _ in range(samples):
        next(loader)
    start = time.perf_counter()
    for _ in range(2 * samples):
        next(loader)
    return (time.perf_counter() - start) / 2


def cpu_of(samples, count: int) -> float:
    """Seconds of one core that a sample takes."""
    samples[0]
    start = time.process_time()
    for place in range(count):
        samples[place]
    return (time.process_time() - start) / count


if __name__ == "__main__":
    main()
