"""Local networks as columns, each against its own code at a tiny size."""

import numpy as np
import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.evaluation import pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (24, 30, 3), dtype=np.uint8) for _ in range(9)]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def processor(folder, kind="CLIPImageProcessor"):
    getattr(transformers, kind)(
        size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return transformers.AutoImageProcessor.from_pretrained(folder)


def pixels(process):
    return process(images=PICTURES, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    transformers.Dinov2Model(config).save_pretrained(root / "dino")
    config = transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, projection_dim=4)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(root / "clip")
    transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SIZES, image_size=16, patch_size=8)
    ).save_pretrained(root / "aesthetic")
    processor(root / "dino")
    processor(root / "clip")
    processor(root / "aesthetic", "SiglipImageProcessor")
    head = torch.nn.Sequential(
        *(m for a, b in ((16, 8), (8, 1)) for m in (torch.nn.Linear(a, b), torch.nn.Dropout(0.5)))
    )
    torch.save(
        {f"scoring_head.{name}": v for name, v in head.state_dict().items()}, root / "aesthetic" / "aesthetic.pth"
    )
    tower = Tower()
    (root / "csd").mkdir()
    state = {f"module.backbone.{name}": value for name, value in tower.state_dict().items()}
    style = torch.randn(128, 6)
    torch.save({**state, "module.last_layer_style": style}, root / "csd" / "csd_vit-large.pth")
    return root, tower.eval(), style, head.eval()


class Tower(torch.nn.Module):
    """CLIP's picture tower under OpenAI's names: class token, learned positions, pre-norm blocks, quick GELU."""

    def __init__(self, width=128, layers=2, patch=8, side=16):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.randn(width))
        self.positional_embedding = torch.nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0])


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(width, 40), "c_proj": torch.nn.Linear(40, width)})

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


def test_every_network_is_found(weights, monkeypatch):
    monkeypatch.setattr(pretrained, "installed_weights", lambda: None)
    root, *_ = weights
    assert list(pretrained.find_encoders(root)) == ["dino", "clip", "csd"] and pretrained.find_encoders() == {}
    assert pretrained.find_aesthetic() is None


def test_csd_is_its_tower_and_projection(weights):
    from seedstory_jax.data.images import CLIP_MEAN, CLIP_STD

    root, tower, style, _ = weights
    found = pretrained.Csd(root / "csd")(PICTURES)
    from PIL import Image

    small = [np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BICUBIC), np.float32) for p in PICTURES]
    x = torch.from_numpy(((np.stack(small) / 255 - CLIP_MEAN) / CLIP_STD).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        expected = (tower(x) @ style).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert found.shape == (9, 6) and found.std() > 0.1


def test_dino_and_clip(weights):
    root, *_ = weights
    model = transformers.Dinov2Model.from_pretrained(root / "dino").eval()
    with torch.no_grad():
        states = model(pixel_values=pixels(processor(root / "dino"))).last_hidden_state.numpy()
    np.testing.assert_allclose(pretrained.Dino(root / "dino")(PICTURES), states, atol=1e-5)
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(root / "clip").eval()
    with torch.no_grad():
        embeds = model(pixel_values=pixels(processor(root / "clip"))).image_embeds.numpy()
    np.testing.assert_allclose(pretrained.ClipPictures(root / "clip")(PICTURES), embeds, atol=1e-5)


def test_the_aesthetic_head(weights):
    root, _, _, head = weights
    model = transformers.SiglipVisionModel.from_pretrained(root / "aesthetic").eval()
    process = transformers.AutoImageProcessor.from_pretrained(root / "aesthetic")
    with torch.no_grad():
        pooled = model(pixel_values=pixels(process)).pooler_output
        expected = head(pooled / pooled.norm(dim=-1, keepdim=True))[:, 0].numpy()
    np.testing.assert_allclose(pretrained.find_aesthetic(root)(PICTURES), expected, atol=1e-5)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="holds none of dino, clip, csd, aesthetic"):
        pretrained.find_encoders(tmp_path)
    for name in ("dino", "csd", "aesthetic"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is no folder of such a network"):
        pretrained.Dino(tmp_path / "dino")
    with pytest.raises(UserError, match="holds no weights"):
        pretrained.Csd(tmp_path / "csd")
    torch.save({"a": torch.zeros(1)}, tmp_path / "csd" / "x.pth")
    with pytest.raises(UserError, match="holds no CSD"):
        pretrained.Csd(tmp_path / "csd")
