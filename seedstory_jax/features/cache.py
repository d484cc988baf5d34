"""What stages read of the frozen ViT and VAE: from a cache, or computed in the step as published.

Three kinds, each with its own transform of the picture: "squash" (the ViT's features of a picture squashed to a square:
stage 2 and sampling), "crop" (of its centre crop with the ratio kept: stages 1 and 3) and "moments" (the VAE's mean and
log variance of what is to be drawn; latents are sampled anew in each step). A cache is a folder with one array a kind,
rows by image name, stamped with a hash of the encoder's weights and of the transform.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from ml_dtypes import bfloat16

from seedstory_jax.checkpoints.parts import build
from seedstory_jax.config import Config
from seedstory_jax.data.array_cache import cached_array, digest, digest_arrays, open_array
from seedstory_jax.data.images import ImageTransform
from seedstory_jax.data.sources import JoinedSource, StorySource, image_name
from seedstory_jax.errors import UserError
from seedstory_jax.files import write_json
from seedstory_jax.models.parameters import Parameters

KINDS = ("squash", "crop", "moments")
CHUNK = 128  # pictures encoded at a time


class Encoder:
    """The frozen module behind one kind, and what it makes of a picture."""

    def __init__(self, config: Config, kind: str):
        if kind not in KINDS:
            raise UserError(f"unknown kind of features {kind!r}: choose from {', '.join(KINDS)}")
        self.config, self.kind = config, kind
        self.part = "vae" if kind == "moments" else "vit"

    @property
    def transform(self) -> ImageTransform:
        """What happens to a picture first."""
        model, resample = self.config.model, self.config.data.resample or None
        if self.kind == "moments":
            return ImageTransform("sd", model.image_size, None, resample)
        return ImageTransform("clip", model.vit.image_size, self.kind == "crop" or None, resample)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture's row: features [q d], or moments [h w 2 c]."""
        model = self.config.model
        if self.kind == "moments":
            side = model.image_size // model.vae.downscale
            return side, side, 2 * model.vae.latent_channels
        return model.vit.n_queries, model.vit.output_dim

    def weights(self, parameters: Mapping[str, Any]) -> Parameters:
        """The encoder's own among `parameters`."""
        return {name: value for name, value in parameters.items() if name.startswith(f"{self.part}.")}

    def stamp(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Hashes of what a row depends on beside the picture; the weights as bfloat16, which they may be stored in."""
        weights = {name: np.asarray(value).astype(bfloat16) for name, value in self.weights(parameters).items()}
        encoder = self.config.model.vae if self.part == "vae" else self.config.model.vit
        return {
            "weights": digest({"values": digest_arrays(weights), "encoder": repr(encoder)}),
            "transform": digest({"transform": repr(self.transform)}),
        }

    def encode(self, parameters: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
        """Rows [n ...] of pictures uint8 [n s s 3] (traceable)."""
        module = build(self.config.model, self.part, parameters)
        images = self.transform.normalise(pixels)
        if self.part == "vit":
            return module(images)
        return jnp.concatenate(module.encode(images), axis=-1)


@runtime_checkable
class ImageEncodings(Protocol):
    """Where a stage gets the rows of its pictures: `read` on the host, `values` of that inside the step."""

    encoder: Encoder
    weights: Parameters  # what `values` needs of the encoder

    def read(self, places: np.ndarray) -> np.ndarray:
        """What the batch carries of pictures at `places` (any shape). UserError for one that cannot be read."""
        ...

    def values(self, parameters: Mapping[str, Any], carried: jax.Array) -> jax.Array:
        """Features [*places q d] or moments [*places h w 2 c]."""
        ...

    def host_values(self, carried: np.ndarray) -> np.ndarray:
        """`values` outside a step, float32, on this process alone."""
        ...


class CachedEncodings:
    """Rows of caches, one for each source that was joined."""

    def __init__(self, encoder: Encoder, source: JoinedSource, folders: Sequence[Path]):
        self.encoder, self.weights, self.folders = encoder, {}, tuple(folders)
        self._files = [_read_index(folder, encoder.kind) for folder in folders]
        self._source, self._row = np.empty(source.offsets[-1], np.int16), np.empty(source.offsets[-1], np.int64)
        for number, (part, index) in enumerate(zip(source.sources, self._files, strict=True)):
            rows = {name: row for row, name in enumerate(index["images"])}
            names = _names(part)
            missing = [name for name in names if name not in rows]
            if missing:
                raise UserError(
                    f"{folders[number]} lacks {len(set(missing))} of the dataset's pictures, {missing[0]} for example; "
                    "make it anew with `seedstory data features` over all JSONL files"
                )
            begin = source.offsets[source.first_story[number]]
            self._source[begin : begin + len(names)] = number
            self._row[begin : begin + len(names)] = [rows[name] for name in names]

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        return [
            open_array(folder / index["file"], jnp.dtype(index["dtype"]))
            for folder, index in zip(self.folders, self._files)
        ]

    def read(self, places: np.ndarray) -> np.ndarray:
        """Stored rows [*places ...]."""
        flat = np.asarray(places).reshape(-1)
        found = np.empty((len(flat), *self.encoder.shape), self._arrays[0].dtype)
        for number, array in enumerate(self._arrays):
            here = self._source[flat] == number
            found[here] = array[self._row[flat[here]]]
        bad = np.isnan(found.reshape(len(flat), -1)[:, 0].astype(np.float32))
        if bad.any():
            place = flat[bad][0]
            name = self._files[self._source[place]]["images"][self._row[place]]
            raise UserError(f"{name} could not be read when its {self.encoder.kind} features were made")
        return found.reshape(*np.shape(places), *self.encoder.shape)

    def values(self, parameters: Mapping[str, Any], carried: jax.Array) -> jax.Array:
        """The rows as they are; the ViT's parameters are not asked for."""
        return carried.astype(jnp.float32) if self.encoder.kind == "moments" else carried

    def host_values(self, carried: np.ndarray) -> np.ndarray:
        """`values` outside a step, float32, on this process alone."""
        return carried.astype(np.float32)

    def __getstate__(self):  # a worker process maps the arrays itself
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}


class OnlineEncodings:
    """The batch carries pictures; the frozen encoder runs in the step."""

    def __init__(self, encoder: Encoder, source: JoinedSource, parameters: Mapping[str, Any]):
        self.encoder, self.source, self.weights = encoder, source, encoder.weights(parameters)

    def read(self, places: np.ndarray) -> np.ndarray:
        """Pictures uint8 [*places s s 3]."""
        pixels = self.source.read(np.asarray(places).reshape(-1), self.encoder.transform)
        return pixels.reshape(*np.shape(places), *pixels.shape[1:])

    def values(self, parameters: Mapping[str, Any], carried: jax.Array) -> jax.Array:
        """What the encoder makes of them."""
        rows = self.encoder.encode(parameters, carried.reshape(-1, *carried.shape[-3:]))
        return rows.reshape(*carried.shape[:-3], *rows.shape[1:])

    def host_values(self, carried: np.ndarray) -> np.ndarray:
        """`values` outside a step, float32, on this process alone."""
        rows = jax.jit(self.values)(self.weights, carried)
        return np.asarray(rows, np.float32)

    def __getstate__(self):  # read in worker processes, which need no weights
        return {**self.__dict__, "weights": {}}


def write_cache(
    encoder: Encoder,
    parameters: Mapping[str, Any],
    source: StorySource,
    folder: Path,
    *,
    dtype: str,
    max_bad: int = 100,
    pictures: np.ndarray | None = None,
) -> np.ndarray:
    """Encodes every picture of a source once: `folder/KIND-<hash>.npy` and `folder/KIND.json`, which names its rows.

    A run that was stopped goes on; a cache that is there is read. `pictures`: all of the source's, uint8 [n s s 3], as
    the encoder's transform leaves them, if they are at hand. A picture that cannot be read leaves a row of NaN, with a
    warning; UserError if there are more than `max_bad`.
    """
    joined = JoinedSource([source])
    places: dict[str, int] = {}
    for place, name in enumerate(_names(source)):
        places.setdefault(name, place)
    names, where = list(places), np.fromiter(places.values(), np.int64)
    stamp = encoder.stamp(parameters)
    weights = {name: jnp.asarray(value) for name, value in encoder.weights(parameters).items()}
    encode = jax.jit(partial(_encoded, encoder))
    bad: list[str] = []

    def readable(first: int, stop: int) -> tuple[np.ndarray, list[int]]:
        pixels = np.zeros((CHUNK, encoder.transform.size, encoder.transform.size, 3), np.uint8)
        if pictures is not None:
            pixels[: stop - first] = pictures[where[first:stop]]
            return pixels, []
        try:
            pixels[: stop - first] = joined.read(where[first:stop], encoder.transform)
            return pixels, []
        except UserError:  # one of them: which?
            failed = []
            for number, place in enumerate(where[first:stop]):
                try:
                    pixels[number] = joined.read([place], encoder.transform)[0]
                except UserError as error:
                    failed.append(number)
                    bad.append(str(error))
            return pixels, failed

    def produce(first: int, stop: int) -> np.ndarray:
        pixels, failed = readable(first, stop)
        if len(bad) > max_bad:
            raise UserError(f"{len(bad)} pictures cannot be read, {max_bad} are allowed (max_bad); the last: {bad[-1]}")
        rows = np.array(encode(weights, pixels)[: stop - first], np.float32)
        rows[failed] = np.nan
        return rows

    key = {**stamp, "images": names, "dtype": dtype}
    shape = (len(names), *encoder.shape)
    array = cached_array(folder, encoder.kind, key, shape, jnp.dtype(dtype), produce, chunk=CHUNK)
    if bad:
        warnings.warn(f"{len(bad)} pictures cannot be read and have no features; the first: {bad[0]}", stacklevel=2)
    facts = {"file": Path(array.filename).name, **stamp, "dtype": dtype, "shape": shape, "images": names}
    write_json(folder / f"{encoder.kind}.json", facts)
    return array


def check_cache(encoder: Encoder, parameters: Mapping[str, Any], folder: Path, command: str) -> None:
    """Raises UserError, with both hashes and the command that mends it, if other weights or pixels made the cache."""
    index, stamp = _read_index(folder, encoder.kind), encoder.stamp(parameters)
    for what, wanted in stamp.items():
        if index[what] != wanted:
            raise UserError(
                f"the {encoder.kind} features in {folder} are stale: their {encoder.part}'s {what} has the hash "
                f"{index[what]}, this run's {wanted}; make them anew with: {command}"
            )


def _read_index(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / f"{kind}.json"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {kind} features ({path.name} is missing); make them with "
            f"`seedstory data features ... --out={folder} --kinds={kind}`"
        )
    return json.loads(path.read_text())


def _names(source: StorySource) -> list[str]:
    stories = source.stories
    return [image_name(stories, number, turn) for number in range(len(stories)) for turn in range(len(stories[number]))]


def _encoded(encoder: Encoder, parameters: Parameters, pixels: jax.Array) -> jax.Array:
    return encoder.encode(parameters, pixels).astype(jnp.float32)
