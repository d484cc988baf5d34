import json

import numpy as np
import pytest

from seedstory_jax.parity.fixture import read_fixture
from seedstory_jax.parity.runner import run_fixture, table_row
from seedstory_jax.parity.sdxl import KINDS, sdxl_adapter

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 12],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": 10,
    "transformer_layers_per_block": [2, 1],
    "attention_head_dim": [1, 3],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 7,
}
VAE = {
    "latent_channels": 5,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [6, 12],
    "layers_per_block": 1,
    "norm_num_groups": 3,
    "scaling_factor": 0.3,
    "force_upcast": True,
}
PERCEIVER = {"dim": 24, "depth": 3, "dim_head": 8, "heads": 2, "num_queries": 5, "embedding_dim": 14}
PERCEIVER |= {"output1_dim": 3, "output2_dim": 7, "ff_mult": 2}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_published_numbers_come_out(fixtures_dir, kind):
    result = run_fixture(fixtures_dir / kind)
    assert result.ok, table_row(result)


def test_every_trainable_parameter_has_a_gradient(fixtures_dir, monkeypatch):
    monkeypatch.setattr("seedstory_jax.parity.sdxl._sampling", lambda *_: {})
    fixture = read_fixture(fixtures_dir / "sdxl_adapter")
    gradients = {name.removeprefix("train:grad:") for name in sdxl_adapter(fixture) if "grad" in name}
    assert set(fixture.config["trainable_params"]) <= gradients


def hooked(module, names):
    """Outputs of the named submodules, filled in when the module runs."""
    found = {}

    def keep(name):
        return lambda _, __, output: found.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    for name in names:
        module.get_submodule(name).register_forward_hook(keep(name))
    return found


def numbers(*shape, seed=1):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_unet_of_other_sizes(original, write_fixture):
    import torch

    diffusers = pytest.importorskip("diffusers")
    unet = original.randomise(diffusers.UNet2DConditionModel(**UNET))
    names = ["time_proj", "time_embedding", "add_embedding", "conv_in", "down_blocks.0", "down_blocks.0.attentions.0"]
    names += ["down_blocks.0.resnets.0", "down_blocks.1", "mid_block.resnets.1", "up_blocks.0", "up_blocks.1"]
    outputs = hooked(unet, [*names, "up_blocks.1.attentions.1"])
    inputs = {"sample": numbers(2, 4, 6, 10), "timestep": torch.tensor([3, 871])}
    inputs |= {"encoder_hidden_states": numbers(2, 3, 10, seed=2), "text_embeds": numbers(2, 7, seed=3)}
    inputs["time_ids"] = torch.tensor([[64.0, 96, 0, 8, 64, 64], [32, 32, 4, 0, 64, 64]])
    with torch.no_grad():
        added = {"text_embeds": inputs["text_embeds"], "time_ids": inputs["time_ids"]}
        sample = unet(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], added_cond_kwargs=added)
    outputs["sample"] = sample.sample
    assert len(outputs) == len(names) + 2
    result = run_fixture(write_fixture("sdxl_unet", outputs, UNET, inputs, weights=unet.state_dict()))
    assert result.ok, table_row(result)


def test_an_auto_encoder_of_other_sizes(original, write_fixture):
    import torch

    diffusers = pytest.importorskip("diffusers")
    vae = original.randomise(diffusers.AutoencoderKL(**VAE))
    names = [
        "encoder.conv_in",
        "encoder.down_blocks.0",
        "encoder.mid_block",
        "decoder.mid_block",
        "decoder.up_blocks.0",
    ]
    outputs = hooked(vae, names)
    inputs = {
        "image": numbers(1, 3, 12, 20),
        "eps": numbers(1, 5, 6, 10, seed=2),
        "latents": numbers(1, 5, 4, 6, seed=3),
    }
    with torch.no_grad():
        normal = vae.encode(inputs["image"]).latent_dist
        outputs["decoded"] = vae.decode(inputs["latents"] / 0.3).sample
    outputs |= {"moments": normal.parameters, "mean": normal.mean, "logvar": normal.logvar, "std": normal.std}
    outputs["latent_sample_scaled"] = (normal.mean + normal.std * inputs["eps"]) * 0.3
    result = run_fixture(write_fixture("sdxl_vae", outputs, VAE, inputs, weights=vae.state_dict()))
    assert result.ok, table_row(result)
    assert len(result.arrays) == len(names) + 6


def test_a_perceiver_of_other_sizes(original, write_fixture):
    perceiver = original.randomise(original.Perceiver(**PERCEIVER))
    x = numbers(2, 9, 14)
    outputs = perceiver.steps(x)
    result = run_fixture(write_fixture("resampler_xl_v2", outputs, PERCEIVER, {"x": x}, weights=perceiver.state_dict()))
    assert result.ok, table_row(result)
    assert len(result.arrays) == 7 + 2 * 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of numpy, in diffusers
def test_schedules_of_other_lengths(fixtures_dir, write_fixture):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = json.loads((fixtures_dir / "schedulers" / "config.json").read_text())
    config |= {"steps_listed": [4, 7], "trajectory_steps": 4}
    settings = {name: value for name, value in config["scheduler_config"].items() if value is not None}
    euler = diffusers.EulerDiscreteScheduler.from_config(settings)
    outputs = {"alphas_cumprod": euler.alphas_cumprod}
    for steps in config["steps_listed"]:
        euler.set_timesteps(steps)
        outputs |= {f"timesteps_{steps}": euler.timesteps, f"sigmas_{steps}": euler.sigmas}
        outputs[f"init_noise_sigma_{steps}"] = euler.init_noise_sigma
    inputs = {"noise": numbers(1, 2, 3, 5), "model_outputs": numbers(4, 1, 2, 3, 5, seed=2)}
    euler.set_timesteps(4)
    latents = outputs["traj_initial"] = inputs["noise"] * euler.init_noise_sigma
    rows = {"scaled_model_inputs": [], "prev_samples": [], "pred_original": []}
    for output, timestep in zip(inputs["model_outputs"], euler.timesteps):
        rows["scaled_model_inputs"].append(euler.scale_model_input(latents, timestep))
        step = euler.step(output, timestep, latents)
        latents = step.prev_sample
        rows["prev_samples"].append(latents)
        rows["pred_original"].append(step.pred_original_sample)
    outputs |= {f"traj_{name}": torch.stack(values) for name, values in rows.items()}
    inputs |= {"add_noise_samples": numbers(3, 2, 2, 2, seed=3), "add_noise_noise": numbers(3, 2, 2, 2, seed=4)}
    inputs["add_noise_timesteps"] = torch.tensor([0, 500, 999])
    ddpm = diffusers.DDPMScheduler.from_config(settings)
    noise = (inputs["add_noise_samples"], inputs["add_noise_noise"], inputs["add_noise_timesteps"])
    outputs["ddpm_add_noise"] = ddpm.add_noise(*noise)
    result = run_fixture(write_fixture("schedulers", outputs, config, inputs))
    assert result.ok, table_row(result)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of numpy, in diffusers
def test_a_detokenizer_of_other_sizes(original, write_fixture, fixtures_dir):
    """Loss, gradients and guided sampling, with the VAE and ViT of their own fixtures."""
    import torch
    import torch.nn.functional as F

    diffusers = pytest.importorskip("diffusers")
    sizes = {"image_size": 16, "patch_size": 4, "width": 12, "layers": 1, "heads": 2, "mlp_ratio": 2.0}
    sizes |= {"n_queries": 9, "output_dim": 128}
    vit = original.randomise(original.ViT(**sizes))
    vae = original.randomise(diffusers.AutoencoderKL(**VAE | {"latent_channels": 4}), seed=1)
    write_fixture("small_vit", {}, sizes, weights=vit.state_dict())
    write_fixture("small_vae", {}, VAE | {"latent_channels": 4}, weights=vae.state_dict())
    parts = torch.nn.ModuleDict(
        {
            "unet": diffusers.UNet2DConditionModel(**UNET),
            "resampler": original.Perceiver(**PERCEIVER | {"embedding_dim": 128}),
        }
    )
    unet, perceiver = original.randomise(parts, seed=2).values()
    scheduler = json.loads((fixtures_dir / "sdxl_adapter" / "config.json").read_text())["scheduler_config"]
    generate = {"height": 16, "width": 24, "guidance_scale": 3.0, "num_inference_steps": 2, "input_image_size": 16}
    config = {"unet": UNET, "resampler": PERCEIVER | {"embedding_dim": 128}, "generate": generate}
    config |= {"scheduler_config": scheduler, "vae_fixture": "small_vae", "visual_encoder_fixture": "small_vit"}
    inputs = {"noisy_latents": numbers(2, 4, 4, 6), "noise": numbers(2, 4, 4, 6, seed=2)}
    inputs |= {"timesteps": torch.tensor([5, 700]), "image_embeds": numbers(2, 9, 128, seed=3)}
    inputs |= {"time_ids": torch.tensor([[64, 96, 0, 8, 64, 64]] * 2)}
    inputs |= {"generate_image_embeds": numbers(1, 9, 128, seed=4), "generate_latents": numbers(1, 4, 8, 12, seed=5)}

    def predicted(latents, timesteps, tokens, pooled, time_ids):
        added = {"text_embeds": pooled, "time_ids": time_ids}
        return unet(latents, timesteps, tokens, added_cond_kwargs=added).sample

    prediction = predicted(
        inputs["noisy_latents"], inputs["timesteps"], *perceiver(inputs["image_embeds"]), inputs["time_ids"]
    )
    loss = F.mse_loss(prediction, inputs["noise"])
    loss.backward()
    outputs = {"train:total_loss": loss, "train:noise_pred": prediction}
    gradients = {name: value.grad for name, value in parts.named_parameters()}
    shown = [name for name in gradients if "_proj" in name and "k_proj.bias" not in name]  # a softmax ignores that bias
    outputs |= {f"train:grad:{name}": gradients[name] for name in shown}

    with torch.no_grad():
        zeros = outputs["gen:vit_features_of_zero_image"] = vit.steps(torch.zeros(1, 3, 16, 16))["output"]
        tokens, pooled = perceiver(torch.cat([zeros, inputs["generate_image_embeds"]]))
        outputs |= {"gen:negative_prompt_embeds": tokens[:1], "gen:negative_pooled_prompt_embeds": pooled[:1]}
        outputs |= {"gen:prompt_embeds": tokens[1:], "gen:pooled_prompt_embeds": pooled[1:]}
        euler = diffusers.EulerDiscreteScheduler.from_config({k: v for k, v in scheduler.items() if v is not None})
        euler.set_timesteps(2)
        latents, trajectory = inputs["generate_latents"] * euler.init_noise_sigma, []
        time_ids = torch.tensor([[16.0, 24, 0, 0, 16, 24]] * 2)
        for number, timestep in enumerate(euler.timesteps):
            scaled = euler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1)
            rows = predicted(scaled, timestep, tokens, pooled, time_ids)
            if number == 0:
                outputs |= {"gen:first_unet_sample": scaled, "gen:first_noise_pred": rows}
                outputs |= {"gen:first_unet_time_ids": time_ids, "gen:first_unet_text_embeds": pooled}
            latents = euler.step(rows[:1] + 3.0 * (rows[1:] - rows[:1]), timestep, latents).prev_sample
            trajectory.append(latents)
        outputs["gen:latents_after_step"] = torch.stack(trajectory)
        decoded = outputs["gen:decoded_before_clamp"] = vae.decode(latents / 0.3).sample
        outputs["gen:image"] = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    folder = write_fixture("sdxl_adapter", outputs, config, inputs, weights=parts.state_dict())
    result = run_fixture(folder)
    assert result.ok, table_row(result)
    assert np.ptp(outputs["gen:image"].numpy()) > 0.1
