"""Parity of the SD-XL parts: UNet, VAE, perceiver, schedules, and the de-tokenizer's loss and sampling loop."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.convert.rules import export_tensors, load_tensors
from seedstory_jax.convert.sdxl import (
    DETOKENIZER_IGNORED,
    detokenizer_config_from_published,
    detokenizer_rules,
    perceiver_config_from_published,
    perceiver_rules,
    scheduler_config_from_published,
    unet_config_from_published,
    unet_rules,
    vae_config_from_published,
    vae_rules,
)
from seedstory_jax.generation.render import (
    Condition,
    condition_on,
    guided_step,
    sampling_time_ids,
    zero_image_features,
)
from seedstory_jax.generation.scheduler import (
    SchedulerConfig,
    add_noise,
    alphas_cumprod,
    euler_schedule,
    euler_step,
    predicted_original,
    scale_model_input,
)
from seedstory_jax.models.sdxl.detokenizer import Detokenizer, denoising_error
from seedstory_jax.models.sdxl.perceiver import Perceiver
from seedstory_jax.models.sdxl.unet import UNet
from seedstory_jax.models.sdxl.vae import VAE, sample_latents
from seedstory_jax.parity.vision import build_vit

Arrays = Mapping[str, np.ndarray]


def nhwc(x: np.ndarray) -> jax.Array:
    """Published images into our layout."""
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def nchw(x: jax.Array) -> np.ndarray:
    """Our images (the last three axes) into the published layout."""
    return np.moveaxis(np.asarray(x), -1, -3)


def published_layout(values: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Four-dimensional values are images."""
    return {name: nchw(value) if value.ndim == 4 else np.asarray(value) for name, value in values.items()}


def unset(make: Callable[[nnx.Rngs], nnx.Module]) -> Any:
    """A module whose parameters are shapes only, to be loaded: drawing them first would take the longest."""
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def under_jit(module: nnx.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(module, *arguments)` as one program; run operation by operation it would compile each of them."""
    graph, state = nnx.split(module)
    return jax.jit(lambda state, *arguments: function(nnx.merge(graph, state), *arguments))(state, *arguments)


def recording(module: Callable[..., Any], *arguments: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
    """A module's (or method's) value, and what it records on the way."""
    values: dict[str, jax.Array] = {}
    return module(*arguments, values.__setitem__), values


def build_vae(config: Mapping[str, Any], weights: Arrays) -> VAE:
    """The auto-encoder that a fixture's config describes, with its weights."""
    vae = unset(lambda rngs: VAE(vae_config_from_published(config), rngs=rngs))
    load_tensors(vae, weights, vae_rules(), what="sdxl_vae")
    return vae


def sdxl_unet(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """The UNet with every block's output."""
    unet = unset(lambda rngs: UNet(unet_config_from_published(config), rngs=rngs))
    load_tensors(unet, weights, unet_rules(), what=folder.name)
    others = (jnp.asarray(inputs[name]) for name in ("timestep", "encoder_hidden_states", "text_embeds", "time_ids"))
    sample, values = under_jit(unet, recording, nhwc(inputs["sample"]), *others)
    return published_layout({**values, "sample": sample})


def sdxl_vae(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Both ways through the auto-encoder, with every block's output."""
    vae = build_vae(config, weights)
    (mean, logvar), encoding = under_jit(vae, lambda vae, x: recording(vae.encode, x), nhwc(inputs["image"]))
    latents = vae.unscale(nhwc(inputs["latents"]))
    decoded, decoding = under_jit(vae, lambda vae, x: recording(vae.decode, x), latents)
    drawn = vae.scale(sample_latents(mean, logvar, nhwc(inputs["eps"])))
    ours = {"mean": mean, "logvar": logvar, "std": jnp.exp(0.5 * logvar), "latent_sample_scaled": drawn}
    return published_layout({**encoding, **decoding, **ours, "decoded": decoded})


def resampler_xl_v2(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """The perceiver, layer by layer."""
    perceiver = unset(lambda rngs: Perceiver(perceiver_config_from_published(config), rngs=rngs))
    load_tensors(perceiver, weights, perceiver_rules(), what=folder.name)
    (tokens, pooled), values = under_jit(perceiver, recording, jnp.asarray(inputs["x"]))
    values |= {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
    return {name: np.asarray(value) for name, value in values.items()}


def schedulers(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Tables of Euler's method, one trajectory with given model outputs, and DDPM's noise."""
    ours = scheduler_config_from_published(config["scheduler_config"])
    values: dict[str, Any] = {"alphas_cumprod": alphas_cumprod(ours)}
    for steps in config["steps_listed"]:
        schedule = euler_schedule(ours, steps)
        values[f"timesteps_{steps}"] = schedule.timesteps[:steps]
        values[f"sigmas_{steps}"] = schedule.sigmas[: steps + 1]
        values[f"init_noise_sigma_{steps}"] = schedule.initial_sigma
    values |= _trajectory(ours, config["trajectory_steps"], inputs)
    values["ddpm_add_noise"] = add_noise(
        ours,
        jnp.asarray(inputs["add_noise_samples"]),
        jnp.asarray(inputs["add_noise_noise"]),
        jnp.asarray(inputs["add_noise_timesteps"]),
    )
    return {name: np.asarray(value) for name, value in values.items()}


def _trajectory(config: SchedulerConfig, steps: int, inputs: Arrays) -> dict[str, np.ndarray]:
    schedule = euler_schedule(config, steps)
    latents = initial = jnp.asarray(inputs["noise"]) * schedule.initial_sigma
    rows: dict[str, list[jax.Array]] = {"scaled_model_inputs": [], "pred_original": [], "prev_samples": []}
    for step in range(steps):
        sigma, next_sigma = (jnp.asarray(x) for x in schedule.sigmas[step : step + 2])
        output = jnp.asarray(inputs["model_outputs"][step])
        rows["scaled_model_inputs"].append(scale_model_input(latents, sigma))
        rows["pred_original"].append(predicted_original(config, output, latents, sigma))
        latents = euler_step(config, output, latents, sigma, next_sigma)
        rows["prev_samples"].append(latents)
    stacked = {f"traj_{name}": np.stack([np.asarray(x) for x in values]) for name, values in rows.items()}
    return {"traj_initial": np.asarray(initial), **stacked}


def sdxl_adapter(folder: Path, config: Mapping[str, Any], inputs: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """The de-tokenizer's training loss with all gradients, and its guided sampling, step by step."""
    detokenizer = unset(lambda rngs: Detokenizer(detokenizer_config_from_published(config), rngs=rngs))
    load_tensors(detokenizer, weights, detokenizer_rules(), ignore=DETOKENIZER_IGNORED, what=folder.name)
    return {
        **_training(detokenizer, inputs),
        **_sampling(folder.parent, detokenizer, config, inputs),
    }


def _training(detokenizer: Detokenizer, inputs: Arrays) -> dict[str, np.ndarray]:
    latents, noise = nhwc(inputs["noisy_latents"]), nhwc(inputs["noise"])
    timesteps, features, time_ids = (jnp.asarray(inputs[name]) for name in ("timesteps", "image_embeds", "time_ids"))
    graph, state = nnx.split(detokenizer)

    @jax.jit
    def run(state: Any) -> tuple[jax.Array, jax.Array, Any]:
        def loss_of(state: Any) -> tuple[jax.Array, jax.Array]:
            prediction = nnx.merge(graph, state)(latents, timesteps, features, time_ids)
            return denoising_error(prediction, noise), prediction

        (loss, prediction), gradients = jax.value_and_grad(loss_of, has_aux=True)(state)
        return loss, prediction, gradients

    loss, prediction, gradients = run(state)
    named = export_tensors(nnx.merge(graph, gradients), detokenizer_rules())
    return {
        "train:total_loss": np.asarray(loss),
        "train:noise_pred": nchw(prediction),
        **{f"train:grad:{name}": gradient for name, gradient in named.items()},
    }


def _sampling(
    fixtures: Path, detokenizer: Detokenizer, config: Mapping[str, Any], inputs: Arrays
) -> dict[str, np.ndarray]:
    generate = config["generate"]
    vae = _beside(fixtures, config["vae_fixture"], build_vae)
    vit = _beside(fixtures, config["visual_encoder_fixture"], build_vit)
    zero_features = under_jit(vit, lambda vit: zero_image_features(vit, generate["input_image_size"]))
    features = jnp.concatenate([zero_features, jnp.asarray(inputs["generate_image_embeds"])])
    both = under_jit(detokenizer.perceiver, condition_on, features)
    negative = jax.tree.map(lambda rows: rows[:1], both)
    condition = jax.tree.map(lambda rows: rows[1:], both)

    scheduler = scheduler_config_from_published(config["scheduler_config"])
    schedule = euler_schedule(scheduler, generate["num_inference_steps"])
    guidance = jnp.asarray(generate["guidance_scale"], jnp.float32)
    latents = nhwc(inputs["generate_latents"]) * schedule.initial_sigma
    time_ids = sampling_time_ids(latents.shape[0], generate["height"], generate["width"])
    first_input = scale_model_input(latents, jnp.asarray(schedule.sigmas[0]))
    graph, state = nnx.split(detokenizer.unet)

    @jax.jit
    def step(state: Any, index: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        unet = nnx.merge(graph, state)
        return guided_step(unet, scheduler, schedule, index, latents, condition, negative, guidance, time_ids)

    trajectory, raw = [], []
    for index in range(generate["num_inference_steps"]):
        latents, rows = step(state, jnp.asarray(index), latents)
        trajectory.append(latents)
        raw.append(rows)
    decoded = under_jit(vae, lambda vae, latents: vae.decode(vae.unscale(latents)), latents)
    return {
        "gen:vit_features_of_zero_image": np.asarray(zero_features),
        **_named(condition, "gen:prompt_embeds", "gen:pooled_prompt_embeds"),
        **_named(negative, "gen:negative_prompt_embeds", "gen:negative_pooled_prompt_embeds"),
        "gen:latents_after_step": nchw(jnp.stack(trajectory)),
        "gen:image": np.asarray(jnp.clip(decoded / 2 + 0.5, 0, 1)),
        "gen:decoded_before_clamp": nchw(decoded),
        "gen:first_unet_sample": np.repeat(nchw(first_input), 2, axis=0),
        "gen:first_unet_time_ids": np.repeat(np.asarray(time_ids), 2, axis=0),
        "gen:first_unet_text_embeds": np.concatenate([negative.pooled, condition.pooled]),
        "gen:first_noise_pred": nchw(raw[0]),
    }


def _named(condition: Condition, tokens: str, pooled: str) -> dict[str, np.ndarray]:
    return {tokens: np.asarray(condition.tokens), pooled: np.asarray(condition.pooled)}


def _beside(fixtures: Path, name: str, build: Any) -> Any:
    from safetensors.numpy import load_file

    config = json.loads((fixtures / name / "config.json").read_text())
    return build(config, load_file(fixtures / name / "weights.safetensors"))


KINDS = {
    "sdxl_unet": sdxl_unet,
    "sdxl_vae": sdxl_vae,
    "resampler_xl_v2": resampler_xl_v2,
    "schedulers": schedulers,
    "sdxl_adapter": sdxl_adapter,
}
