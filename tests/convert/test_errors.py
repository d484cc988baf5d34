"""Damaged, foreign and misnamed downloads: one clear error each, and nothing left behind."""

import json
import shutil

import numpy as np
import pytest

from seedstory_jax.config import ModelConfig
from seedstory_jax.convert.__main__ import main
from seedstory_jax.convert.importing import import_model
from seedstory_jax.convert.rules import WeightsError
from seedstory_jax.convert.tensor_files import Outgoing, SafetensorsFile, Tensors, weight_files, write_safetensors
from seedstory_jax.convert.verifying import verify_model
from seedstory_jax.errors import UserError


def fails(source, out, config, **options):
    """The one-line reason; nothing may be left beside `out`."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError) as error:
        import_model(source, out, config, **options)
    assert sorted(out.parent.iterdir()) == before
    return str(error.value)


@pytest.fixture
def vae(published, tmp_path):
    """A copy of the VAE's folder to be damaged, its weight file, and a place for the result."""
    shutil.copytree(published.root / "stable-diffusion-xl-base-1.0" / "vae", tmp_path / "in" / "vae")
    (tmp_path / "out").mkdir()
    return tmp_path / "in", tmp_path / "in" / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "out" / "model"


def rewrite(file, change):
    tensors = {name: np.array(value) for name, value in SafetensorsFile(file).items()}
    change(tensors)
    write_safetensors(file, {n: Outgoing(v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()})


def test_a_truncated_safetensors_file(published, vae):
    source, file, out = vae
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in fails(source, out, published.config)
    file.write_bytes(file.read_bytes()[:6])
    assert "truncated" in fails(source, out, published.config)


def test_a_file_that_is_no_safetensors(published, vae):
    source, file, out = vae
    file.write_bytes((40).to_bytes(8, "little") + b"<html>" * 20)
    assert "header cannot be read" in fails(source, out, published.config)


def test_misnamed_and_wrongly_shaped_tensors_come_in_one_error(published, vae):
    source, file, out = vae

    def change(tensors):
        tensors["decoder.conv_in.wait"] = tensors.pop("decoder.conv_in.weight")
        tensors["quant_conv.bias"] = tensors["quant_conv.bias"][:-1]

    rewrite(file, change)
    message = fails(source, out, published.config)
    assert "1 missing, 1 unexpected, 1 wrongly shaped" in message
    assert "missing: vae: decoder.conv_in.weight" in message
    assert "unexpected: vae: decoder.conv_in.wait" in message
    assert "wrongly shaped: vae: quant_conv.bias is [7], wanted [8]" in message


def test_a_long_list_of_complaints_is_cut_and_counted(published, vae):
    source, file, out = vae
    rewrite(file, lambda tensors: [tensors.pop(name) for name in list(tensors)[:30]])
    with pytest.raises(WeightsError) as error:
        import_model(source, out, published.config)
    assert len(error.value.missing) == 30
    assert str(error.value).count("\n") == 21
    assert "missing: ... and 10 more" in str(error.value)


def test_a_pickle_with_code_is_refused_and_does_not_run(published, tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (marker.write_text, ("code ran",))

    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    torch.save({"llm.x": Code()}, tmp_path / "in" / "pytorch_model.bin")
    assert "refused" in fails(tmp_path / "in", tmp_path / "out" / "model", published.config)
    assert not marker.exists()


@pytest.mark.parametrize("cut", [100, 5000])
def test_a_truncated_bin_file(published, tmp_path, cut):
    pytest.importorskip("torch")
    data = (published.root / "agent" / "pytorch_model.bin").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(data[:-cut])
    message = fails(tmp_path / "in", tmp_path / "out" / "model", published.config)
    assert "damaged" in message


def test_a_bin_file_with_one_bit_flipped(published, tmp_path):
    """The names are read well; the numbers are not those of the archive's CRC."""
    data = bytearray((published.root / "agent" / "pytorch_model.bin").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(data)
    message = fails(tmp_path / "in", tmp_path / "out" / "model", published.config)
    assert "damaged: the numbers of" in message and "\n" not in message


def test_a_bin_file_that_holds_no_tensors(published, tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    torch.save({"llm.a": torch.zeros(2), "step": 3}, tmp_path / "in" / "pytorch_model.bin")
    assert "no tensors: step" in fails(tmp_path / "in", tmp_path / "out" / "model", published.config)


def test_a_missing_shard(published, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(published.root / "Llama-2-7b-hf", source)
    (tmp_path / "out").mkdir()
    next(source.glob("model-00002-of-*")).unlink()
    assert "is missing, though" in fails(source, tmp_path / "out" / "model", published.config)
    (source / "model.safetensors.index.json").unlink()
    assert "shards of model are there" in fails(source, tmp_path / "out" / "model", published.config)


def test_an_agent_checkpoint_without_its_base(published, tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.load(published.root / "agent" / "pytorch_model.bin", weights_only=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    torch.save({n: v for n, v in whole.items() if "lora" in n or "resampler" in n}, tmp_path / "in" / "agent.bin")
    message = fails(tmp_path / "in", tmp_path / "out" / "model", published.config)
    assert "missing: story: llm.base_model.model.model.embed_tokens.weight" in message


def test_two_agents_ask_for_a_choice(published, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(published.root / "agent", tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    message = fails(tmp_path / "in", tmp_path / "out" / "model", published.config)
    assert "first" in message
    assert "--agent=" in message


def test_a_config_of_another_model(published, vae):
    source, _, out = vae
    other = ModelConfig()
    message = fails(source, out, other)
    assert "model.vae.block_out_channels is (128, 256, 512, 512), vae/config.json says" in message


@pytest.mark.parametrize("what", ["empty", "absent"])
def test_nothing_to_convert(published, tmp_path, what):
    (tmp_path / "out").mkdir()
    if what == "empty":
        (tmp_path / "in").mkdir()
    assert ("nothing to convert" if what == "empty" else "no folder") in fails(
        tmp_path / "in", tmp_path / "out" / "model", published.config
    )


def test_an_existing_result_and_an_unknown_dtype_are_refused(published, vae):
    source, _, out = vae
    assert "unknown dtype" in fails(source, out, published.config, dtype="float12")
    out.mkdir()
    assert "exists" in fails(source, out, published.config)


def test_a_run_that_breaks_off_leaves_nothing(published, vae, monkeypatch):
    source, _, out = vae
    monkeypatch.setattr("seedstory_jax.convert.importing.write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_model(source, out, published.config)
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_is_seen_before_the_first_byte(published, vae, monkeypatch):
    source, _, out = vae
    usage = shutil.disk_usage(out.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert "are free there" in fails(source, out, published.config)


def test_verify_wants_a_converted_model_and_says_what_is_missing(published, vae):
    source, file, out = vae
    with pytest.raises(UserError, match=r"no manifest\.json"):
        verify_model(source, source)
    import_model(source, out, published.config)
    shutil.rmtree(out / "vae" / "quant_conv.bias")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    complaints = [c for verdict in verify_model(out, source) for c in verdict.complaints]
    assert any("quant_conv.bias: missing" in complaint for complaint in complaints)
    assert any("contents changed since the import" in complaint for complaint in complaints)
    assert any("bytes differ" in complaint for complaint in complaints)


def test_a_name_in_two_files_is_refused(tmp_path):
    ones = {"a": Outgoing((2,), np.dtype("f4"), lambda: np.ones(2))}
    for name in ("x", "y"):
        write_safetensors(tmp_path / f"{name}.safetensors", ones)
    files = [SafetensorsFile(tmp_path / f"{name}.safetensors") for name in ("x", "y")]
    with pytest.raises(UserError, match="tensor a stands in"):
        Tensors(files)


def test_what_lies_beside_weights_is_not_taken_for_them(tmp_path):
    for name in ("training_args.bin", "pytorch_model.bin", "model.fp16.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert [path.name for path in weight_files(tmp_path)] == ["model.fp16.safetensors"]
    (tmp_path / "model.fp16.safetensors").unlink()
    assert [path.name for path in weight_files(tmp_path)] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inport"], "did you mean 'import'"),
        (["import", "--source=a", "--out=b", "--config=none.py"], "config file 'none.py' not found"),
        (["export", "--workdir=none", "--out=b", "--parts=unets"], "did you mean 'unet'"),
        (["export", "--workdir=none", "--out=b"], "no folder 'none'"),
        (["verify", "none", "--source=x", "--dtpye=1"], "unknown flag '--dtpye'"),
    ],
)
def test_what_was_typed_wrongly_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_the_three_commands(published, tmp_path, capsys, monkeypatch):
    """As a user types them, with a config file."""
    import seedstory_jax.config as configs

    text = json.dumps({"model": configs.to_dict(published.config)})
    (tmp_path / "config.py").write_text(f"import json\ndef get_config():\n    return json.loads({text!r})\n")
    source = f"--source={published.root}"
    assert main(["import", source, f"--out={tmp_path / 'm'}", f"--config={tmp_path / 'config.py'}"]) == 0
    assert "story" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "m"), source]) == 0
    assert main(["export", f"--workdir={tmp_path / 'm'}", f"--out={tmp_path / 'e'}", "--parts=adapter,vae"]) == 0
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["adapter", "vae"]
    shutil.rmtree(tmp_path / "m" / "vae")
    assert main(["verify", str(tmp_path / "m"), source]) == 1
