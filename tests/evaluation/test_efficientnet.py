"""EfficientNet-Lite0 against torch, and its weights read without torch."""

import pickle

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation import efficientnet

torch = pytest.importorskip("torch")
F = torch.nn.functional


def random_state() -> dict:
    """Weights under the published names, of random values that neither fade nor amplify rounding."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5

    def norm(name, width):
        for kind in ("weight", "bias", "running_mean"):
            state[f"{name}.{kind}"] = (torch.rand(width, generator=generator) + (kind == "weight")) / 2
        state[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    width, block = 32, 0
    for expansion, channels, kernel, _, repeats in efficientnet.STAGES:
        for _ in range(repeats):
            name, inner = f"_blocks.{block}", width * expansion
            if expansion > 1:
                conv(f"{name}._expand_conv", inner, width, 1, 1)
                norm(f"{name}._bn0", inner)
            conv(f"{name}._depthwise_conv", inner, 1, kernel, kernel)
            norm(f"{name}._bn1", inner)
            conv(f"{name}._project_conv", channels, inner, 1, 1)
            norm(f"{name}._bn2", channels)
            width, block = channels, block + 1
    conv("_conv_head", efficientnet.WIDTH, width, 1, 1)
    norm("_bn1", efficientnet.WIDTH)
    return state


def features(state, x):
    """The network again in torch, with TensorFlow's padding written out."""

    def conv(x, name, stride=1, groups=1):
        kernel = state[f"{name}.weight"].shape[-1]
        total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
        x = F.pad(x, [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2])
        return F.conv2d(x, state[f"{name}.weight"], stride=stride, groups=groups)

    def norm(x, name):
        values = [state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values, eps=1e-3)

    x, block, width = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0")), 0, 32
    for expansion, channels, _, first_stride, repeats in efficientnet.STAGES:
        for repeat in range(repeats):
            name, stride = f"_blocks.{block}", 1 if repeat else first_stride
            y = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0")) if expansion > 1 else x
            y = F.relu6(norm(conv(y, f"{name}._depthwise_conv", stride, y.shape[1]), f"{name}._bn1"))
            y = norm(conv(y, f"{name}._project_conv"), f"{name}._bn2")
            x = x + y if stride == 1 and width == channels else y
            block, width = block + 1, channels
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(file as torch wrote it before 1.6, state)."""
    path, state = tmp_path_factory.mktemp("lite") / "lite.pth", random_state()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path, state


def test_weights_are_read_without_torch(saved, tmp_path):
    path, state = saved
    found = efficientnet.read_torch(path)
    assert found.keys() == state.keys()
    assert all(np.array_equal(found[name], value.numpy()) for name, value in state.items())
    turned = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(8.0)[2:5]}
    torch.save(turned, tmp_path / "views.pth", _use_new_zipfile_serialization=False)
    found = efficientnet.read_torch(tmp_path / "views.pth")
    assert found["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["b"].tolist() == [2, 3, 4]


def test_features_are_torch_s(saved):
    path, state = saved
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]
    found = efficientnet.EfficientNetFeatures(path)(pictures)
    pixels = torch.from_numpy(np.stack([efficientnet.prepare(picture) for picture in pictures]).transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = features(state, pixels.contiguous()).numpy()
    assert found.shape == (3, 1280) and 0.01 < expected.std() < 10
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    assert efficientnet.EfficientNetFeatures(path)([]).shape == (0, 1280)


def test_no_code_runs_and_damage_is_told(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("evil",))

    path, _ = saved
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    (tmp_path / "evil.pth").write_bytes(head + pickle.dumps(Evil(), 2))
    with pytest.raises(UserError, match=r"names __builtin__\.print, which is no tensor"):
        efficientnet.read_torch(tmp_path / "evil.pth")
    (tmp_path / "torn.pth").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as tensors"):
        efficientnet.read_torch(tmp_path / "torn.pth")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="holds no EfficientNet-Lite0"):
        efficientnet.EfficientNetFeatures(tmp_path / "other.pth")


@pytest.mark.skipif(efficientnet.installed_weights() is None, reason="the package of weights is not installed")
def test_the_installed_weights_tell_pictures_apart():
    """A picture is nearer to itself enlarged than to another one."""
    y, x = np.mgrid[0:96, 0:96]
    disc = np.where(((x - 48) ** 2 + (y - 48) ** 2 < 900)[..., None], (220, 60, 40), (250, 250, 245)).astype(np.uint8)
    stripes = np.where((x % 12 < 6)[..., None], (20, 90, 40), (200, 220, 60)).astype(np.uint8)
    large = disc.repeat(3, 0).repeat(3, 1)
    a, b, c = efficientnet.EfficientNetFeatures()([disc, large, stripes])

    def cosine(u, v):
        return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    assert cosine(a, b) > 0.8 > 0.6 > cosine(a, c)
