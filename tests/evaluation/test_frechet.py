import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.frechet import frechet_distance, inception_fid


def test_known_gaussians():
    # In one dimension it is (mean_a - mean_b)^2 + (std_a - std_b)^2.
    a = np.array([[1.0], [3.0], [5.0]])  # mean 3, std 2
    b = np.array([[10.0], [11.0], [12.0]])  # mean 11, std 1
    assert frechet_distance(a, b) == pytest.approx(8.0**2 + 1.0)


def test_rotation_translation_and_identity():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 5)) * [1, 2, 3, 4, 5]
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + np.array([3, 0, 4, 0, 0])) == pytest.approx(25)
    b = rng.normal(size=(100, 5))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_against_scipy_also_with_fewer_pictures_than_features():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    for rows in (300, 12):
        a, b = rng.normal(size=(rows, 20)) + 1, rng.normal(size=(rows + 3, 20)) * 2
        sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        values = linalg.eigvals(sa @ sb)
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb) - 2 * np.sqrt(values.real.clip(0)).sum()
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("a, b", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))])
def test_bad_shapes(a, b):
    with pytest.raises(ValueError):
        frechet_distance.__wrapped__(np.zeros(a), np.zeros(b))


@pytest.fixture
def pictures():
    rng = np.random.default_rng(2)
    true = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(12)]
    return true, [picture // 2 for picture in true]


def extractor(torch):
    class Means(torch.nn.Module):
        num_features: int

        def __init__(self):
            super().__init__()
            self.num_features = 12

        def forward(self, x):
            return x.float()[:, :, :296].reshape(x.shape[0], 3, 4, -1).mean(-1).reshape(x.shape[0], 12)

    return Means()


def test_fid_of_a_local_module_is_ours_on_its_features(tmp_path, pictures):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and the common Inception file is TorchScript
        torch.jit.script(extractor(torch)).save(tmp_path / "inception.pt")
    fid = inception_fid(*pictures, tmp_path / "inception.pt", batch=5)
    features = []
    for some in pictures:
        sized = [np.asarray(Image.fromarray(p).resize((299, 299), Image.Resampling.BILINEAR)) for p in some]
        with torch.no_grad():
            features.append(extractor(torch)(torch.tensor(np.stack(sized).transpose(0, 3, 1, 2))).numpy())
    assert fid == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert fid > 100


def test_fid_without_weights_or_with_others(tmp_path, pictures):
    pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    with pytest.raises(UserError, match="no Inception weights"):
        inception_fid(*pictures, tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"not a module")
    with pytest.raises(UserError, match="no TorchScript"):
        inception_fid(*pictures, tmp_path / "bad.pt")
