"""Configs: what a person writes (ml_collections, dotted flags) becomes nested frozen dataclasses.

Every model's config is defined beside its class and defaults to the published size; the sections below join them and
add what training and sampling need. An unknown key is an error. Sizes, not classes, tell the toy from the real model.
"""

import ast
import dataclasses
import functools
import importlib.util
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from seedstory_jax.errors import UserError, nearest
from seedstory_jax.limits import (
    AboveZero,
    BelowOne,
    Floating,
    Limit,
    Natural,
    NonNegative,
    OneOf,
    Positive,
    Seed,
    check_limits,
    check_value,
    marked_hints,
)
from seedstory_jax.models.qwen_vit import QwenViTConfig
from seedstory_jax.models.sdxl.detokenizer import DetokenizerConfig
from seedstory_jax.models.sdxl.noise_schedule import SchedulerConfig
from seedstory_jax.models.sdxl.vae import VAEConfig
from seedstory_jax.models.story_mllm import StoryMLLMConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The four parts of the system (design: visual tokenizer, story MLLM, de-tokenizer, pixels)."""

    vit: QwenViTConfig = QwenViTConfig()
    story: StoryMLLMConfig = StoryMLLMConfig()
    detokenizer: DetokenizerConfig = DetokenizerConfig()
    vae: VAEConfig = VAEConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    image_size: Positive = 1024  # side of the drawn pictures, pixels
    base: str = ""  # folder of converted weights, or "smollm2" (convert.smollm2); "" starts from random ones
    # Storage dtype of weights that the running stage does not train.
    frozen_dtype: Floating = "bfloat16"


Axis = Annotated[int, Limit(at_least=1, otherwise=-1)]


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what the others leave."""

    data: Axis = -1  # devices that share a batch's rows
    fsdp: Axis = 1  # devices that share a batch's rows and split weights and optimizer between them
    tensor: Axis = 1  # devices that split every layer between them


@dataclass(frozen=True)
class ToyWorldConfig:
    """The generated cartoon that stands in for a dataset; `stories = 0` means that the folder must exist."""

    stories: Natural = 0  # training stories to generate
    validation_stories: Natural = 0  # held-out stories to generate
    series: Annotated[int, Limit(at_least=0, at_most=1)] = 0  # which of the two casts the stories have


@dataclass(frozen=True)
class DataConfig:
    """Where stories come from.

    folder: StoryStream files, a TFDS folder, or several with commas between; "" is the toy world in the workdir.
    weights: share of the rows that each folder gets, by default as many as it has; an epoch is each folder's own.
    features: where stages get the frozen ViT's features and the VAE's moments: "workdir" computes them once into the
        workdir, "online" in every step (as published), else the folder that `storystream features` wrote (one for each
        `folder`, with commas between).
    features_dtype: in which "workdir" keeps them.
    workers: processes that read batches ahead (0: threads); batches are the same for any number.
    tokenizer: folder or file of the tokenizer; "" is the base's own, or one made of the toy world's captions.
    """

    folder: str = ""
    weights: tuple[AboveZero, ...] = ()
    features: str = "workdir"
    features_dtype: Floating = "float32"
    workers: Natural = 0
    tokenizer: str = ""
    toy_world: ToyWorldConfig = ToyWorldConfig()
    resample: str = ""  # pictures' resampling instead of the published one; "box" gives enlarged pixel art back exactly
    max_bad: Natural = 100  # unreadable stories replaced before a run stops


@dataclass(frozen=True)
class OptimizerConfig:
    """Warm-up and cosine decay; the defaults are the published story stage's."""

    name: Annotated[str, OneOf(("adamw", "muon"))] = "adamw"  # Muon takes the matrices and leaves the rest to AdamW
    learning_rate: NonNegative = 1e-4  # peak, which the warm-up ends at
    b1: BelowOne = 0.9  # decay of AdamW's mean of gradients
    b2: BelowOne = 0.98  # decay of AdamW's mean of squared gradients
    eps: AboveZero = 1e-6  # added to AdamW's denominator
    weight_decay: NonNegative = 0.05  # share of a weight taken off in a step, times the learning rate
    warmup_steps: Natural = 100  # steps of linear warm-up
    final_fraction: Annotated[float, Limit(at_least=0, at_most=1)] = 0.05  # of the peak learning rate at the last step
    clip_norm: AboveZero = 1.0  # largest norm of all gradients together; larger ones are scaled down to it
    accumulation: Positive = 1  # micro-batches a step
    adam_scale: NonNegative = 1.0  # learning rate of what Muon leaves to AdamW, in shares of the matrices'


@dataclass(frozen=True)
class StageConfig:
    """What every stage has."""

    steps: Natural = 0  # optimizer steps; 0 passes over the stage
    batch_size: Positive = 8  # rows or pictures a step, over all devices and micro-batches
    trainable: str = "released"  # set of parameters that train: "released", "paper" or "all" (training.trainable)
    init_from: str = "previous"  # "previous" stages of the workdir, "none" (random), or another workdir
    save_every: Positive = 500  # steps between checkpoints
    keep: Positive = 2  # checkpoints
    log_every: Positive = 1  # has no effect: every step has its line in metrics.jsonl
    preview_every: Natural = 0  # pictures along the way; 0 draws them at the end only
    # Steps between losses on the held-out stories; the best one's checkpoint is kept; 0 never.
    eval_every: Natural = 0
    eval_batches: Positive = 8  # batches of held-out stories in such a loss
    # At a loss or gradient that is not finite: "stop" the run, or "skip" the step.
    on_nonfinite: Annotated[str, OneOf(("stop", "skip"))] = "stop"
    max_skipped: Positive = 20  # steps that "skip" passes over in a row before the run stops after all
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclass(frozen=True)
class VAEStageConfig(StageConfig):
    """Stage `vae`, for models that begin with nothing: reconstruction plus a light KL term."""

    trainable: str = "all"
    kl_weight: NonNegative = 1e-6  # of the KL term beside the reconstruction's error


@dataclass(frozen=True)
class ViTStageConfig(StageConfig):
    """Stage `vit`, for models that begin with nothing: features from which latents and words can be read."""

    trainable: str = "all"
    words_weight: NonNegative = 0.3  # of the bag-of-words loss beside the latents' mean squared error


@dataclass(frozen=True)
class StoryStageConfig(StageConfig):
    """Stage 2, the story model."""

    # The last turn of a random prefix (published), or "all" turns of a row at once.
    supervise: Annotated[str, OneOf(("last", "all"))] = "last"
    response_apart: bool = True  # tokenise the learned turn apart, as published (data.token_rows.SequenceConfig)
    max_length: Positive = 1280  # tokens a row; longer ones are left out and counted
    max_turns: Positive = 10  # turns a row
    # How a row's turns are chosen: data.token_rows.choose_turns; "window+opening" mixes evenly.
    turns: Annotated[str, OneOf(("whole", "prefix", "window", "opening"), joined="+")] = "prefix"
    feature_noise: NonNegative = 0.0  # standard deviation, relative to the features', on the images that are read
    position_offset: Natural = 0  # largest random shift of a row's positions
    dropout: bool = True  # LoRA's
    pack: bool = False  # several samples a row, each seeing itself alone


@dataclass(frozen=True)
class AdaptStageConfig(StageConfig):
    """Stage 3, the de-tokenizer on the story model's regressed features."""

    images_per_row: Positive = 1  # regressed pictures of a row to draw; above 1 with story.supervise = "all" only


@dataclass(frozen=True)
class SampleConfig:
    """Drawing and decoding defaults of `sample.py`."""

    steps: Positive = 50  # denoising steps of a picture
    guidance: float = 7.5  # guidance scale; 1 draws with the condition alone
    batch_size: Positive = 8  # frames a device draws at a time
    max_text_tokens: Positive = 128  # of one caption
    window: Positive = 8  # newest sequences that window policies keep
    head: tuple[Natural, ...] = (4, 8)  # tokens of an evicted picture that the sink keeps before and from `<img>`
    tail: tuple[Natural, ...] = (8, 4)  # tokens that it keeps before `</img>`, and from there on
    temperature: NonNegative = 0.0  # 0 is greedy, as published
    top_p: Annotated[float, Limit(above=0, at_most=1)] = 1.0  # nucleus: share of the probability that is sampled from
    # "int8" stores the LLM's projections in eight bits; "" in the model's compute dtype.
    weights: Annotated[str, OneOf(("", "int8"))] = ""
    # Or "best": of stages that were evaluated, what did best on held-out stories.
    checkpoint: Annotated[str, OneOf(("newest", "best"))] = "newest"


@dataclass(frozen=True)
class WatchConfig:
    """Where numbers go beside metrics.jsonl and TensorBoard."""

    wandb_project: str = ""  # project of Weights & Biases, which needs the package wandb; "" sends nothing


@dataclass(frozen=True)
class Config:
    """One run: which model, which data, which stages, on which mesh."""

    seed: Seed = 0  # of weights, batches and noise
    stages: tuple[str, ...] = ("detokenizer", "story", "adapt")  # stages to train, in this order
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    vae: VAEStageConfig = VAEStageConfig()
    vit: ViTStageConfig = ViTStageConfig()
    detokenizer: StageConfig = StageConfig()
    story: StoryStageConfig = StoryStageConfig()
    adapt: AdaptStageConfig = AdaptStageConfig()
    sample: SampleConfig = SampleConfig()
    watch: WatchConfig = WatchConfig()


# The stages' sections in the order of training: a later stage goes on from what an earlier one trained.
STAGES = tuple(
    name
    for name, hint in typing.get_type_hints(Config).items()
    if isinstance(hint, type) and issubclass(hint, StageConfig)
)
# Keys of earlier versions; an error for one of them names the new one.
RENAMED = {
    "tokenizer": "the sections vae and vit (tokenizer.vae_steps is vae.steps, tokenizer.steps is vit.steps, and so on)",
}


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """The (nested) dataclass `cls` from a mapping; raises UserError for an unknown key or a value of another type."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        where = f"{path}{key}"
        if key not in hints:
            raise UserError(_unknown_key(where, key, list(hints)))
        arguments[key] = _coerce(hints[key], value, where)
    return _construct(cls, cls, arguments, path)


def _construct(make: Callable[..., T], cls: type[T], arguments: Mapping[str, Any], path: str) -> T:
    """`make(**arguments)` of the dataclass `cls`; limits come first, since what sizes make together divides by them."""
    hints, defaults = marked_hints(cls), {field.name: field.default for field in dataclasses.fields(cls)}
    for key, value in arguments.items():
        check_value(hints[key], value, f"{path}{key}", defaults[key])
    try:
        return make(**arguments)
    except ValueError as error:
        raise UserError(f"config section {path.rstrip('.') or cls.__name__!r}: {error}") from error


def _unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    if where.partition(".")[0] in RENAMED:
        return f"config key {where!r} is of an earlier version: now {RENAMED[where.partition('.')[0]]}"
    return f"unknown config key {where!r}: {nearest(key, known)}"


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        same = [option for option in options if type(value) is option]  # bool | int: as it was given
        return _coerce((same or [option for option in options if option is not type(None)])[0], value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"config key {where!r} is a section with keys, not {value!r}; set {where}.<key>=...")
        return from_dict(hint, value, f"{where}.")
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part]
        inner = typing.get_args(hint)[0]
        return tuple(_coerce(inner, part, where) for part in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str) and type(value) is not hint:
        raise UserError(f"config key {where!r} takes {hint.__name__}, not {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain nested dicts and lists, as JSON keeps it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def override(config: T, overrides: Mapping[str, str], path: str = "") -> T:
    """`config` with dotted keys set to what texts say, each read in the type of the field it replaces.

    A section is made once, of all its new values together, so that those which depend on each other can change.
    """
    hints = typing.get_type_hints(type(config))
    values: dict[str, Any] = {}
    inside: dict[str, dict[str, str]] = {}
    for key, text in overrides.items():
        head, _, rest = key.partition(".")
        if head not in hints:
            raise UserError(_unknown_key(f"{path}{key}", head, list(hints)))
        if rest:
            inside.setdefault(head, {})[rest] = text
        else:
            values[head] = _coerce(hints[head], _read(hints[head], text), f"{path}{key}")
    for head, changes in inside.items():
        section = values.get(head, getattr(config, head))
        if not dataclasses.is_dataclass(section):
            raise UserError(f"config key {path + head!r} has no key {next(iter(changes))!r}: its value is {section!r}")
        values[head] = override(section, changes, f"{path}{head}.")
    return _construct(functools.partial(dataclasses.replace, config), type(config), values, path)


def _read(hint: Any, text: str) -> Any:
    """What an override's text says where a value of type `hint` is wanted."""
    if hint is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return str(text) if isinstance(value, (int, str)) and typing.get_origin(hint) is tuple else value


# Installed, the configs lie inside the package; in a checkout at its root, which is their only copy.
CONFIGS = next(filter(Path.is_dir, (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")))


def config_file(name: str) -> Path:
    """The file of a config, by path or by the name of one that comes with the package; raises UserError without one."""
    if "/" not in name and not name.endswith(".py"):
        names = [file.stem for file in CONFIGS.glob("*.py")]
        if name not in names:
            raise UserError(f"unknown config {name!r}: choose from {', '.join(sorted(names))}, or give a file's path")
        return CONFIGS / f"{name}.py"
    if not Path(name).is_file():
        raise UserError(f"config file {name!r} not found; by name, from anywhere: --config=toy")
    return Path(name)


def load_config(path: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Runs `get_config()` of a config, "toy", "file.py" or "file.py:argument", and applies dotted overrides.

    Raises UserError if the name is unknown, the file is missing or broken, or a key unknown.
    """
    name, _, argument = str(path).partition(":")
    file = config_file(name)
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {name!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"config file {name!r} does not run: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {name!r} has no get_config()")
    values = module.get_config(argument) if argument else module.get_config()
    values = values.to_dict() if hasattr(values, "to_dict") else values
    config = override(from_dict(Config, values), overrides or {})
    check(config)
    return config


def check(config: Config) -> None:
    """Raises UserError for values outside their limits, and for stages, modes and sizes that do not fit together."""
    check_limits(config)
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}: {nearest(stage, STAGES)}")
    model = config.model
    features = model.vit.output_dim
    sizes = {
        "model.story.input_resampler.kv_dim": model.story.input_resampler.kv_dim,
        "model.story.output_resampler.embed_dim": model.story.output_resampler.embed_dim,
        "model.detokenizer.perceiver.embedding_dim": model.detokenizer.perceiver.embedding_dim,
    }
    for name, size in sizes.items():
        if size != features:
            raise UserError(f"{name} is {size}, but model.vit.output_dim is {features}; the features' sizes must agree")
    for name in ("head", "tail"):
        counts = getattr(config.sample, name)
        if len(counts) != 2:
            raise UserError(f"sample.{name} is {counts!r}; two counts are wanted, tokens before and from the mark")
    adapt = config.adapt
    if adapt.batch_size % adapt.images_per_row:
        raise UserError(
            f"adapt.images_per_row {adapt.images_per_row} does not divide adapt.batch_size {adapt.batch_size}"
        )
    if adapt.images_per_row > 1 and config.story.supervise == "last":
        raise UserError("adapt.images_per_row is above 1, but rows have one target: set story.supervise=all")


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """ "key: old -> new" for every leaf in which two config dicts differ."""
    rows = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += differing_keys(a, b, f"{path}{key}.")
        elif a != b:
            rows.append(f"{path}{key}: {a!r} -> {b!r}")
    return rows
