import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from seedstory_jax.data.images import ImageTransform
from seedstory_jax.data.pipeline import ExampleSource, Plan, batches
from seedstory_jax.data.sources import JoinedSource, JsonlSource, PictureReader, open_source, pack_images
from seedstory_jax.data.storystream import as_path
from seedstory_jax.data.token_rows import SequenceConfig
from seedstory_jax.errors import UserError
from seedstory_jax.storystream.__main__ import main
from seedstory_jax.storystream.lines import write_jsonl
from seedstory_jax.storystream.stats import stats
from seedstory_jax.storystream.validate import check_image
from seedstory_jax.toy.tokenizer import toy_tokenizer
from seedstory_jax.toy.world import build_toy_world, parse_caption, render_frame

SMALL = ImageTransform("clip", 64, resample="box")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_toy_world(
        tmp_path_factory.mktemp("world") / "toy", series="sunny", num_train=4, num_val=1, seed=0, processes=1
    )


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    pytest.importorskip("array_record")
    out = tmp_path_factory.mktemp("packed")
    write_jsonl(out / "train.jsonl", pack_images(JsonlSource(folder / "train.jsonl").dataset, out, images_per_shard=50))
    return out / "train.jsonl"


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    from seedstory_jax.data.tfds_builder import story_stream

    builder = story_stream(source=folder, data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare()
    assert builder.info.splits["val"].num_examples == 1
    return builder.data_path


def check(source):
    """Every picture is the one that its caption describes, also in a copy of the source."""
    assert len(source.stories) == 4
    for story, turn in ((0, 0), (3, 29), (1, 7)):
        facts = parse_caption(source.stories[story].captions[turn])
        for reader in (
            PictureReader(source, SMALL, normalise=False),
            pickle.loads(pickle.dumps(PictureReader(source, SMALL, normalise=False))),
        ):
            assert (reader(story, [turn])[0] == render_frame(facts)).all()


def test_files(folder):
    check(open_source(folder / "train.jsonl"))


def test_array_record(packed):
    check(open_source(packed))
    source = open_source(packed)
    with pytest.raises(UserError, match="has 20 records, the story names '99'"):
        source._shards.read("images-00002.array_record#99")
    with pytest.raises(UserError, match="a shard that is not there"):
        source._shards.read("images-00009.array_record#0")


@pytest.mark.filterwarnings("ignore")  # what TFDS warns about on its way is not ours
def test_tfds(prepared):
    check(open_source(prepared))
    check(open_source(prepared))  # from the kept index
    with pytest.raises(UserError, match="no split 'test': choose from train, val"):
        open_source(prepared, split="test")


@pytest.mark.filterwarnings("ignore")
def test_tfds_refuses(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from seedstory_jax.data.tfds_builder import SUBSETS, story_stream

    assert set(SUBSETS) == {"george", "rabbids", "the_land", "folder"}
    with pytest.raises(UserError, match="unknown subset 'peppa': choose from george"):
        story_stream(source=tmp_path, name="peppa", data_dir=tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        story_stream(source=tmp_path / "none", data_dir=tmp_path, name="george").download_and_prepare()


def test_object_store(folder, monkeypatch):
    """An address goes through epath; a store in memory stands for the bucket."""
    epath = pytest.importorskip("etils.epath")
    from etils.epath import backend, gpath

    class Bucket:
        def __init__(self):
            self.local = backend.os_backend

        def __getattr__(self, name):
            real = getattr(self.local, name)
            return lambda path, *args, **kwargs: real(str(path).replace("gs://bucket", str(folder)), *args, **kwargs)

    monkeypatch.setattr(gpath._GPath, "_backend", property(lambda self: Bucket()))
    assert isinstance(as_path("gs://bucket"), epath.Path)
    check(open_source("gs://bucket/train.jsonl"))
    check(open_source(folder / "train.jsonl", "gs://bucket"))


@pytest.fixture
def broken(tmp_path):
    """Stories of two pictures: a good one, and then in turn whatever a reader may not stumble over."""
    Image.new("RGB", (140, 140)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    names = ["good.png", "pipe.png", "folder.png", "loop.png", "out.png", "empty.png", "text.png", "none.png"]
    names += ["no.array_record#0", "good.png#1", "folder.png/x.png", "x" * 3000]
    stories = [{"id": n, "images": ["good.png", name], "captions": ["a", "b"]} for n, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    return tmp_path, len(names)


@pytest.mark.filterwarnings("ignore")
def test_every_reader_passes_over_the_same_pictures(broken, tmp_path_factory):
    root, count = broken
    source = open_source(root)
    for story in range(count):
        assert (check_image(root, source.stories[story].images[1])[0] is None) == (story == 0)
        for read in (source.picture, JoinedSource([source]).picture):
            if story == 0:
                assert read(story, 1).size == (140, 140)
                continue
            with pytest.raises(UserError) as error:
                read(story, 1)
            assert "\n" not in str(error.value)
    tokenizer = toy_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer")
    plan = Plan((2,) * count, batch_size=4, max_turns=2)
    config = SequenceConfig(num_image_tokens=2, max_tokens=60, max_images=2)
    rows = ExampleSource(source.stories, tokenizer, plan, config, {"images": PictureReader(source, SMALL)})
    assert all(row["images"].shape == (4, 2, 64, 64, 3) for row in batches(rows, steps=6))
    assert 0 not in rows.bad and len(rows.bad) > 3
    assert stats(root)["unreadable_images"] == count - 1
    pytest.importorskip("array_record")
    out = tmp_path_factory.mktemp("packed") / "out"
    assert main(["pack", str(root), f"--out={out}"]) == 0
    (line,) = (out / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == 0 and open_source(out).picture(0, 1).size == (140, 140)
    with pytest.raises(UserError, match="more than the 2 allowed"):
        list(pack_images(source.dataset, tmp_path_factory.mktemp("p"), max_bad=2))


def test_a_missing_picture_is_one_line(folder, tmp_path):
    source = open_source(folder / "train.jsonl", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        source.picture(0, 0)


@pytest.mark.filterwarnings("ignore")
def test_one_loader_over_all(folder, packed, prepared, tmp_path):
    tokenizer = toy_tokenizer(tmp_path / "tokenizer")
    config = SequenceConfig(num_image_tokens=2, max_tokens=120, max_images=3)
    seen = []
    for path in (folder / "train.jsonl", packed, prepared):
        source = open_source(path)
        plan = Plan(tuple(map(len, source.stories)), batch_size=2, max_turns=3)
        rows = ExampleSource(source.stories, tokenizer, plan, config, {"images": PictureReader(source, SMALL)})
        batch = next(batches(rows, steps=1))
        assert batch["images"].shape == (2, 3, 64, 64, 3) and batch["images"].dtype == np.float32
        seen.append(batch)
    assert (seen[0]["images"] == seen[1]["images"]).all()
