"""Import from published formats, compare with the torch models, export, load again with peft and diffusers."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.load import read_parameters
from seedstory_jax.checkpoints.parts import PARTS
from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.convert.exporting import export_model
from seedstory_jax.convert.importing import import_model
from seedstory_jax.convert.verifying import verify_model
from seedstory_jax.models.parameters import abstract_parameters

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    return out, import_model(published.root, out, published.config)


@pytest.fixture(scope="module")
def exported(published, converted, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "published"
    export_model(converted[0], out)
    return out


def load(folder, config, name):
    module_def, abstract = abstract_parameters(PARTS[name](config))
    return module_def.build(read_parameters(StoreReader(folder / name), abstract, "here"))


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-5


def test_the_story_model_computes_what_peft_computes(published, converted):
    story = load(converted[0], published.config, "story")
    ids = np.random.default_rng(0).integers(0, published.config.story.llama.vocab_size, (2, 7))
    with torch.no_grad():
        wanted = published.agent(input_ids=torch.from_numpy(ids)).logits
    position = jnp.broadcast_to(jnp.arange(7), (2, 7))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((7, 7), bool)), (2, 7, 7))
    logits = story.llama.logits(story.llama(story.llama.embed(jnp.asarray(ids)), position, mask))
    close(logits[..., : wanted.shape[-1]], wanted)


def test_the_unet_computes_what_diffusers_computes(published, converted):
    # The de-tokenizer checkpoint was laid over SD-XL: its to_k are the base's plus one.
    detokenizer = load(converted[0], published.config, "detokenizer")
    rng = np.random.default_rng(0)
    latents, tokens = rng.normal(size=(2, 4, 8, 8)).astype("f"), rng.normal(size=(2, 5, 24)).astype("f")
    pooled, ids = rng.normal(size=(2, 16)).astype("f"), rng.integers(0, 99, (2, 6))
    state = published.unet.state_dict()
    try:
        published.unet.load_state_dict({k: v + 1 if ".to_k." in k else v for k, v in state.items()})
        with torch.no_grad():
            wanted = published.unet(
                torch.from_numpy(latents),
                torch.tensor([3, 500]),
                torch.from_numpy(tokens),
                added_cond_kwargs={"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(ids)},
            ).sample
    finally:
        published.unet.load_state_dict({k: v - 1 if ".to_k." in k else v for k, v in state.items()})
    ours = detokenizer.unet(
        jnp.asarray(latents).transpose(0, 2, 3, 1), jnp.array([3, 500]), jnp.asarray(tokens), jnp.asarray(pooled),
        jnp.asarray(ids),
    )  # fmt: skip
    close(ours.transpose(0, 3, 1, 2), wanted)


def test_the_vae_computes_what_diffusers_computes(published, converted):
    vae = load(converted[0], published.config, "vae")
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype("f")
    with torch.no_grad():
        wanted = published.vae.decode(torch.from_numpy(latents)).sample
    close(vae.decode(jnp.asarray(latents).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), wanted)


def test_verify_agrees_and_the_manifest_says_where_it_came_from(published, converted):
    folder, manifest = converted
    verdicts = {verdict.module: verdict for verdict in verify_model(folder, published.root)}
    assert all(not verdict.complaints for verdict in verdicts.values())
    assert all(verdict.compared for verdict in verdicts.values())
    assert set(verdicts) == {"files", "vit", "story", "detokenizer", "vae"}
    files = {file["name"]: file for source in manifest["sources"] for file in source["files"]}
    agent = files["agent/pytorch_model.bin"]
    assert agent["size"] == (published.root / "agent" / "pytorch_model.bin").stat().st_size
    assert len(agent["sha256"]) == 64
    assert manifest["modules"]["story"]["fresh"] == []
    assert manifest["scheduler_config"]["timestep_spacing"] == "leading"


def test_verify_finds_one_changed_number(published, tmp_path):
    out, source = tmp_path / "model", published.root / "stable-diffusion-xl-base-1.0" / "vae"
    import_model(source, out, published.config)
    chunk = next((out / "vae" / "decoder.conv_in.kernel").glob("[0-9]*"))
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(bytes(data))
    complaints = [c for verdict in verify_model(out, source, checksums=False) for c in verdict.complaints]
    assert complaints == ["decoder.conv_in.weight: 1 of " + complaints[0].split(" of ")[1]]


def test_import_of_the_export_is_the_same_to_the_bit(published, converted, exported, tmp_path):
    import_model(exported, tmp_path / "again", published.config)
    for name in ("vit", "story", "detokenizer", "vae"):
        first, second = StoreReader(converted[0] / name), StoreReader(tmp_path / "again" / name)
        assert first.names == second.names
        for path in first.names:
            np.testing.assert_array_equal(first.read(path), second.read(path), strict=True)


def test_transformers_and_peft_load_the_adapter(published, exported):
    import peft
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.LlamaForCausalLM.from_pretrained(exported / "llama")
        model = peft.PeftModel.from_pretrained(base, exported / "adapter").eval()
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, published.config.story.llama.vocab_size, (1, 9)))
    with torch.no_grad():
        close(model(input_ids=ids).logits.numpy(), published.agent(input_ids=ids).logits)


def test_diffusers_loads_the_folders(published, exported):
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = diffusers.UNet2DConditionModel.from_pretrained(exported / "unet")
        vae = diffusers.AutoencoderKL.from_pretrained(exported / "vae")
        scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(exported / "scheduler")
    for name, value in published.vae.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value)
    for name, value in published.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value + 1 if ".to_k." in name else value)
    assert scheduler.config.steps_offset == published.config.scheduler.steps_offset


def test_the_agent_has_its_published_names(published, exported):
    from safetensors.torch import load_file

    ours = load_file(exported / "agent" / "model.safetensors")
    theirs = torch.load(published.root / "agent" / "pytorch_model.bin", weights_only=True)
    theirs = {name: value for name, value in theirs.items() if "original_module" not in name}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_bfloat16_halves_the_size_and_rounds(published, converted, tmp_path):
    manifest = import_model(published.root / "agent", tmp_path / "half", published.config, dtype="bfloat16")
    assert manifest["modules"]["story"]["bytes"] * 2 == converted[1]["modules"]["story"]["bytes"]
    wide, half = StoreReader(converted[0] / "story"), StoreReader(tmp_path / "half" / "story")
    path = "llama.layers.mlp.up_proj.kernel"
    np.testing.assert_array_equal(half.read(path), wide.read(path).astype(half.dtype(path)))
    assert not [c for verdict in verify_model(tmp_path / "half", published.root / "agent") for c in verdict.complaints]


def test_a_base_model_alone_leaves_the_rest_fresh(published, tmp_path):
    manifest = import_model(published.root / "Llama-2-7b-hf", tmp_path / "base", published.config)
    fresh = manifest["modules"]["story"]["fresh"]
    assert list(manifest["modules"]) == ["story"]
    assert all("lora" in path or "resampler" in path for path in fresh)
    rows = json.loads((published.root / "Llama-2-7b-hf" / "config.json").read_text())["vocab_size"]
    table = StoreReader(tmp_path / "base" / "story").read("llama.embed_tokens.embedding")
    np.testing.assert_allclose(table[rows], table[:rows].mean(0), rtol=1e-5, atol=1e-7)
    assert not table[published.config.story.llama.vocab_size :].any()


def test_what_was_trained_alone_goes_over_the_base(published, converted, tmp_path):
    whole = torch.load(published.root / "agent" / "pytorch_model.bin", weights_only=True)
    trained = {name: value for name, value in whole.items() if ".default." in name or "resampler" in name}
    trained |= {name: value for name, value in whole.items() if "embed_tokens" in name or "lm_head" in name}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Llama-2-7b-hf").symlink_to(published.root / "Llama-2-7b-hf")
    torch.save(trained, tmp_path / "in" / "trained.bin")
    import_model(tmp_path / "in", tmp_path / "model", published.config)
    first, second = StoreReader(converted[0] / "story"), StoreReader(tmp_path / "model" / "story")
    for path in first.names:
        np.testing.assert_array_equal(first.read(path), second.read(path), strict=True)


def test_an_agent_in_shards_is_one_source(published, converted, tmp_path):
    whole = torch.load(published.root / "agent" / "pytorch_model.bin", weights_only=True)
    (tmp_path / "in").mkdir()
    for i in (0, 1):
        part = dict(list(whole.items())[i::2])
        torch.save(part, tmp_path / "in" / f"pytorch_model-0000{i + 1}-of-00002.bin")
    manifest = import_model(tmp_path / "in", tmp_path / "model", published.config)
    assert [source["kind"] for source in manifest["sources"]] == ["agent"]
    assert manifest["modules"]["story"]["fresh"] == []


def test_newer_peft_names_are_read_as_well(published, converted, tmp_path):
    whole = torch.load(published.root / "agent" / "pytorch_model.bin", weights_only=True)
    newer = {f"llm.{name}": value for name, value in published.agent.state_dict().items()}
    assert any("base_layer" in name for name in newer)
    torch.save({**newer, **{k: v for k, v in whole.items() if "resampler" in k}}, tmp_path / "newer.bin")
    chosen = {"agent": [tmp_path / "newer.bin"]}  # taken instead of the one that --source holds
    import_model(published.root / "agent", tmp_path / "model", published.config, chosen=chosen)
    first, second = StoreReader(converted[0] / "story"), StoreReader(tmp_path / "model" / "story")
    for path in first.names:
        np.testing.assert_array_equal(first.read(path), second.read(path), strict=True)


def test_half_precision_downloads_and_qwen_vl_chat(published, converted, tmp_path):
    """The fp16 variant of SD-XL; the image encoder inside Qwen-VL-Chat's shards, bfloat16."""
    from safetensors.torch import save_file

    half = tmp_path / "downloads"
    for part in ("unet", "vae"):
        (half / part).mkdir(parents=True)
        config = published.root / "stable-diffusion-xl-base-1.0" / part / "config.json"
        (half / part / "config.json").write_text(config.read_text())
        state = {name: value.half() for name, value in getattr(published, part).state_dict().items()}
        save_file(state, half / part / "diffusion_pytorch_model.fp16.safetensors")
    vit = torch.load(published.root / "QwenViT" / "qwen_vit_G.pt", weights_only=True)
    names = [f"transformer.visual.{name}" for name in vit]
    qwen = half / "Qwen-VL-Chat"
    qwen.mkdir()
    v = published.config.vit
    visual = dict(image_size=v.image_size, patch_size=v.patch_size, width=v.width, layers=v.layers, heads=v.heads,
                  mlp_ratio=v.mlp_ratio, n_queries=v.n_queries, output_dim=v.output_dim)  # fmt: skip
    (qwen / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": visual}))
    shards = [dict(zip(names[::2], list(vit.values())[::2])), dict(zip(names[1::2], list(vit.values())[1::2]))]
    shards[0]["transformer.h.0.attn.c_attn.weight"] = torch.zeros(3, 3)
    index = {}
    for i, shard in enumerate(shards, 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: value.bfloat16() for name, value in shard.items()}, qwen / file)
        index |= dict.fromkeys(shard, file)
    (qwen / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    manifest = import_model(half, tmp_path / "model", published.config)
    assert manifest["modules"]["vit"]["dtypes"] == ["bfloat16"]
    assert manifest["modules"]["vae"]["dtypes"] == ["float16"]
    assert all(path.startswith("perceiver.") for path in manifest["modules"]["detokenizer"]["fresh"])
    first, second = StoreReader(converted[0] / "vit"), StoreReader(tmp_path / "model" / "vit")
    for path in first.names:
        np.testing.assert_array_equal(second.read(path), first.read(path).astype(second.dtype(path)))


def test_restore_goes_onto_a_mesh(published, converted):
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    path = "encoder.conv_in.kernel"
    shape = StoreReader(converted[0] / "vae").shape(path)
    abstract = {path: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)}
    restored = read_parameters(StoreReader(converted[0] / "vae"), abstract, "here")
    assert list(restored) == [path]
    assert restored[path].sharding == sharding
    assert restored[path].dtype == jnp.bfloat16


def test_the_exported_parts_draw_in_diffusers_pipeline_at_their_own_size(published, tmp_path):
    """Without height and width: the size comes from the configs, not from SD 1.5's default of 64 latents."""
    import diffusers

    config = dataclasses.replace(published.config, image_size=24)
    side = 24 // config.vae.downscale
    import_model(published.root / "stable-diffusion-xl-base-1.0", tmp_path / "model", config)
    export_model(tmp_path / "model", tmp_path / "out", parts=("unet", "vae", "scheduler"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionXLPipeline(
            unet=diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet"),
            vae=diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae"),
            scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path / "out" / "scheduler"),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        (latents,) = pipeline(
            prompt_embeds=torch.zeros(1, 5, 24),
            pooled_prompt_embeds=torch.zeros(1, 16),
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="latent",
        ).images
    assert tuple(latents.shape) == (4, side, side)
    assert json.loads((tmp_path / "out" / "vae" / "config.json").read_text())["sample_size"] == 24
