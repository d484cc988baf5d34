"""Parity of the SD-XL parts: UNet, VAE, perceiver, schedules, and the de-tokenizer's loss and sampling loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.convert.rules import export_tensors
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
from seedstory_jax.models.sdxl.perceiver import Perceiver, normalize_over_tokens
from seedstory_jax.models.sdxl.unet import UNet, sinusoidal_embedding
from seedstory_jax.models.sdxl.vae import VAE, sample_latents
from seedstory_jax.parity.fixture import Arrays, Fixture
from seedstory_jax.parity.modules import layer_of, loaded, module_outputs, under_jit
from seedstory_jax.parity.vision import build_vit


def nhwc(x: np.ndarray) -> jax.Array:
    """Published images into our layout."""
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def nchw(x: jax.Array) -> np.ndarray:
    """Our images (the last three axes) into the published layout."""
    return np.moveaxis(np.asarray(x), -1, -3)


def published_layout(outputs: Arrays) -> dict[str, np.ndarray]:
    """Modules' outputs as published: four-dimensional ones are images; of several (a block's skips) the first."""
    first = {name: value[0] if isinstance(value, tuple) else value for name, value in outputs.items()}
    return {name: nchw(value) if value.ndim == 4 else np.asarray(value) for name, value in first.items()}


def build_vae(fixture: Fixture) -> VAE:
    """The auto-encoder that a fixture describes, with its weights."""
    return loaded(VAE, vae_config_from_published(fixture.config), fixture, vae_rules())


def sdxl_unet(fixture: Fixture) -> Arrays:
    """The UNet with every block's output."""
    config, inputs = unet_config_from_published(fixture.config), fixture.inputs
    unet = loaded(UNet, config, fixture, unet_rules())
    timesteps = jnp.asarray(inputs["timestep"])
    others = (jnp.asarray(inputs[name]) for name in ("encoder_hidden_states", "text_embeds", "time_ids"))
    sample, inside = under_jit(unet, module_outputs, nhwc(inputs["sample"]), timesteps, *others)
    time_proj = sinusoidal_embedding(timesteps, config.block_out_channels[0])
    return published_layout({**inside, "time_proj": time_proj, "sample": sample})


def sdxl_vae(fixture: Fixture) -> Arrays:
    """Both ways through the auto-encoder, with every block's output."""
    vae, inputs = build_vae(fixture), fixture.inputs
    (mean, logvar), encoding = under_jit(vae, lambda vae, x: module_outputs(vae.encode, x), nhwc(inputs["image"]))
    latents = vae.unscale(nhwc(inputs["latents"]))
    decoded, decoding = under_jit(vae, lambda vae, x: module_outputs(vae.decode, x), latents)
    sampled = vae.scale(sample_latents(mean, logvar, nhwc(inputs["eps"])))
    ours = {"moments": encoding["quant_conv"], "mean": mean, "logvar": logvar, "std": jnp.exp(0.5 * logvar)}
    return published_layout({**encoding, **decoding, **ours, "latent_sample_scaled": sampled, "decoded": decoded})


def resampler_xl_v2(fixture: Fixture) -> Arrays:
    """The perceiver, layer by layer."""
    perceiver = loaded(Perceiver, perceiver_config_from_published(fixture.config), fixture, perceiver_rules())
    return under_jit(perceiver, _perceiver_steps, jnp.asarray(fixture.inputs["x"]))


def _perceiver_steps(perceiver: Perceiver, x: jax.Array) -> Arrays:
    (tokens, pooled), inside = module_outputs(perceiver, x)
    source, hidden, pool = inside["proj_in"], inside["norm_out"], perceiver.unet_attnpool
    latents = jnp.broadcast_to(perceiver.latents[...], (len(x), *perceiver.latents.shape[1:]))
    values = {"x_normalized": normalize_over_tokens(x), "after_proj_in": source, "hidden_embeds": hidden}
    for number in range(perceiver.config.depth):
        latents, parts = module_outputs(layer_of(perceiver.layers, number), source, latents)
        values |= {f"layer{number}_attn_out": parts["attn"], f"layer{number}_ff_out": parts["ff"]}
    all_tokens = pool.with_mean(hidden)
    return {
        **values,
        "latents_last": latents,
        "prompt_embeds": tokens,
        "pooled_prompt_embeds": pooled,
        "attnpool_all_tokens": pool.attend(all_tokens, all_tokens),  # in production the first alone is a query
    }


def schedulers(fixture: Fixture) -> Arrays:
    """Tables of Euler's method, one trajectory with given model outputs, and DDPM's noise."""
    config, inputs = fixture.config, fixture.inputs
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
    return values


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


def sdxl_adapter(fixture: Fixture) -> Arrays:
    """The de-tokenizer's training loss with all gradients, and its guided sampling, step by step."""
    config = detokenizer_config_from_published(fixture.config)
    detokenizer = loaded(Detokenizer, config, fixture, detokenizer_rules(), ignore=DETOKENIZER_IGNORED)
    return {**_training(detokenizer, fixture.inputs), **_sampling(detokenizer, fixture)}


def _training(detokenizer: Detokenizer, inputs: Arrays) -> Arrays:
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


def _sampling(detokenizer: Detokenizer, fixture: Fixture) -> Arrays:
    config, inputs, generate = fixture.config, fixture.inputs, fixture.config["generate"]
    vae = build_vae(fixture.sibling(config["vae_fixture"]))
    vit = build_vit(fixture.sibling(config["visual_encoder_fixture"]))
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


KINDS = {
    "sdxl_unet": sdxl_unet,
    "sdxl_vae": sdxl_vae,
    "resampler_xl_v2": resampler_xl_v2,
    "schedulers": schedulers,
    "sdxl_adapter": sdxl_adapter,
}
