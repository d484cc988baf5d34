"""Archives that torch wrote, read without it; torch itself is the oracle."""

import collections
import io
import random
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from seedstory_jax.convert.torch_archive import TorchArchive
from seedstory_jax.errors import UserError

torch = pytest.importorskip("torch")


def numbers(tensor):
    wide = tensor.detach().contiguous()
    if wide.dtype == torch.bfloat16:
        return wide.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if wide.dtype == torch.float8_e4m3fn:
        return wide.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return wide.numpy()


def saved(path, value):
    torch.save(value, path)
    return path


def same(path, state, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # importing it would fail
        archive = TorchArchive(path)
    assert list(archive) == list(state)
    for name, tensor in state.items():
        wanted = numbers(tensor)
        assert archive.shape(name) == wanted.shape and archive.dtype(name) == wanted.dtype
        np.testing.assert_array_equal(archive[name], wanted, strict=True)
        assert not archive[name].flags.writeable


def test_every_dtype(tmp_path, monkeypatch):
    names = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"]
    names += ["int64", "int32", "int16", "int8", "uint8", "bool"]
    values = torch.arange(24).reshape(2, 3, 4)
    state = {name: values.to(getattr(torch, name)) for name in names}
    same(saved(tmp_path / "a.pt", state), state, monkeypatch)


def test_views_shared_storages_and_odd_shapes(tmp_path, monkeypatch):
    base = torch.randn(6, 8)
    state = {
        "transposed": base.T,
        "part": base[2:5, 1::3],
        "whole": base,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "expanded": torch.randn(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }
    same(saved(tmp_path / "a.bin", state), state, monkeypatch)


@pytest.mark.parametrize(
    "wrap", [dict, collections.OrderedDict, lambda s: {"state_dict": s}, lambda s: {"module": {"model": s}}]
)
def test_wrappers(tmp_path, monkeypatch, wrap):
    state = {"llm.a": torch.ones(3), "b": torch.zeros(2, 2)}
    same(saved(tmp_path / "a.pth", wrap(state)), state, monkeypatch)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_module_s_state(tmp_path, monkeypatch, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).bfloat16()
    torch.save(module.state_dict(), tmp_path / "a.pt", pickle_protocol=protocol)
    same(tmp_path / "a.pt", module.state_dict(), monkeypatch)


def test_any_damage_is_seen_or_changes_nothing(tmp_path):
    state = {f"layer.{i}": torch.randn(30, 20) for i in range(8)}
    good = saved(tmp_path / "good.bin", state).read_bytes()
    rng, seen = random.Random(0), 0
    for trial in range(120):
        data = bytearray(good)
        place = rng.randrange(len(data))
        if trial % 3 == 0:
            data[place : place + 512] = bytes(len(data[place : place + 512]))
        elif trial % 3 == 1:
            data[place] ^= 1 << rng.randrange(8)
        else:
            data = data[:place]
        (tmp_path / "bad.bin").write_bytes(data)
        try:
            archive = TorchArchive(tmp_path / "bad.bin")
            found = {name: archive[name] for name in archive}
        except UserError as error:
            assert "\n" not in str(error)
            seen += 1
        else:  # between the records
            assert list(found) == list(state)
            assert all(np.array_equal(found[name], state[name].numpy()) for name in state)
    assert seen > 90


def test_the_tensor_of_a_damaged_storage_is_named(tmp_path):
    path = saved(tmp_path / "a.bin", {"first": torch.ones(999), "second": torch.full((999,), 2.0)})
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(2).tobytes() * 4) + 1] ^= 1
    path.write_bytes(data)
    archive = TorchArchive(path)
    assert archive["first"].sum() == 999
    with pytest.raises(UserError, match=r"damaged: the numbers of second .* download it again"):
        archive["second"]


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Code()}, r"refused: it holds \w+.print beside tensors"),
        ({"a": torch.ones(2), "x": np.float32(1)}, "refused: it holds numpy"),
        (
            {"a": torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=True)},
            r"refused: it holds torch\.\S+ beside tensors",
        ),
        (torch.nn.Linear(2, 2), "refused"),
        (torch.ones(2), "holds a Tensor, not tensors by name"),
        ({"a": torch.ones(2), "step": 3}, "1 entries are no tensors: step"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "refused: a storage of the kind"),
    ],
)
def test_what_is_no_tensor(tmp_path, capsys, value, message):
    with pytest.raises(UserError, match=message) as error:
        TorchArchive(saved(tmp_path / "a.bin", value))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_files_of_other_kinds(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"written before torch 1\.6; load it with torch once and save it again"):
        TorchArchive(tmp_path / "old.bin")
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="a pointer of Git LFS"):
        TorchArchive(tmp_path / "pointer.bin")
    for content in (b"", b"<html>", b"PK"):
        (tmp_path / "other.bin").write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            TorchArchive(tmp_path / "other.bin")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/data.pkl", b"")
        archive.writestr("program/code/model.py", b"")
    with pytest.raises(UserError, match="no file of tensors"):
        TorchArchive(tmp_path / "program.pt")


def test_any_pickle_ends_in_one_line(tmp_path):
    """The list of tensors itself mutated, with right checksums around it: no crash, nothing outside a storage."""
    good = io.BytesIO()
    torch.save({f"a{i}": torch.arange(6.0).reshape(2, 3) for i in range(3)}, good)
    with zipfile.ZipFile(good) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    rng = random.Random(1)
    for _ in range(300):
        program = bytearray(records[name])
        for _ in range(rng.randint(1, 3)):
            program[rng.randrange(len(program))] = rng.randrange(256)
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            for record, content in records.items():
                archive.writestr(record, bytes(program) if record == name else content)
        try:
            archive = TorchArchive(tmp_path / "a.pt")
            for tensor in archive:
                archive[tensor].sum()
        except UserError as error:
            assert "\n" not in str(error)
