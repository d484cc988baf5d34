"""Fréchet distance between two sets of features. Called FID only where the features are Inception's."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from seedstory_jax.errors import UserError


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, with the unbiased covariances).

    Raises ValueError for fewer than two rows or different widths. With fewer rows than features the covariances are
    singular: the number is still defined, and biased upwards, so compare it only at equal numbers of pictures.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two [n, d] arrays of equal d with n >= 2, got {a.shape} and {b.shape}")
    centred = [x - x.mean(0) for x in (a, b)]
    scaled = [x / np.sqrt(len(x) - 1) for x in centred]
    overlap = _root_trace(*scaled)
    difference = a.mean(0) - b.mean(0)
    total = difference @ difference + (scaled[0] ** 2).sum() + (scaled[1] ** 2).sum() - 2 * overlap
    return float(max(total, 0.0))


def _root_trace(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """tr((A^T A B^T B)^(1/2)): the sum of the singular values of A B^T, by whichever matrix is smaller."""
    if min(len(a), len(b)) <= a.shape[1]:
        return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    values, vectors = np.linalg.eigh(a.T @ a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ (b.T @ b) @ root).clip(0)).sum())


def inception_fid(true: Sequence[np.ndarray], drawn: Sequence[np.ndarray], weights: Path, batch: int = 32) -> float:
    """FID by torchmetrics, with Inception's features from a local file.

    Args:
        true: pictures uint8[H W 3] of any size.
        drawn: the same.
        weights: a TorchScript module uint8 [b 3 299 299] -> [b 2048] (`.pt`), or torch-fidelity's `.pth`, for which
            torch-fidelity must be installed.
        batch: pictures at once.

    Raises UserError if the file or a library is missing.
    """
    torch, fid_class = _libraries()
    extractor = _inception(torch, weights)
    metric = fid_class(feature=extractor, normalize=False)
    metric.eval()
    for pictures, real in ((true, True), (drawn, False)):
        for start in range(0, len(pictures), batch):
            stack = np.stack([_resized(p) for p in pictures[start : start + batch]])
            metric.update(torch.from_numpy(stack.transpose(0, 3, 1, 2).copy()), real=real)
    return float(metric.compute())


def _libraries():
    try:
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise UserError(f"FID needs torch and torchmetrics ({error}): pip install 'seedstory_jax[eval]'") from None
    return torch, FrechetInceptionDistance


def _inception(torch, weights: Path):
    if not Path(weights).is_file():
        raise UserError(f"no Inception weights at {weights}: give a local TorchScript .pt or torch-fidelity's .pth")
    if Path(weights).suffix == ".pth":
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"{weights} needs torch-fidelity ({error}): pip install 'seedstory_jax[fid]', or give a .pt"
            ) from None
        inner = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
        return _first_of(torch, inner)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the Inception files people have are TorchScript
            return torch.jit.load(str(weights), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{weights} is no TorchScript module: {str(error).splitlines()[0]}") from None


def _first_of(torch, inner):
    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner
            self.num_features = 2048

        def forward(self, pictures):
            return self.inner(pictures)[0]

    return First().eval()


def _resized(picture: np.ndarray, side: int = 299) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
