"""Pretrained vision networks that compare pictures: what is installed, and what lies in --weights=DIR.

    DIR/dino/        a Hugging Face folder of DINO or DINOv2, such as facebook/dinov2-base
    DIR/clip/        one of CLIP, such as openai/clip-vit-large-patch14
    DIR/csd/         one file of CSD's weights: model.safetensors of yuxi-liu-wired/CSD, or csd_vit-large.pth, which
                     ViStoryBench downloads
    DIR/aesthetic/   a folder of SigLIP (google/siglip-so400m-patch14-384), and aesthetic_predictor_v2_5.pth in it

Nothing is downloaded. EfficientNet-Lite0 is there without any of it where its package is installed (`efficientnet`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from seedstory_jax.convert.tensor_files import open_file, weight_files
from seedstory_jax.errors import UserError
from seedstory_jax.evaluation.efficientnet import EfficientNetFeatures, installed_weights

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Pictures uint8 [h w 3] -> vectors float [n d], or [n 1+q d]: the whole picture, then its parts."""

BATCH = 8
NETWORKS = ("dino", "clip", "csd", "aesthetic")


def find_encoders(weights: Path | None = None) -> dict[str, Encode]:
    """Every encoder that is at hand, by name: `imagenet` from its package, `dino`, `clip` and `csd` from a folder.

    Raises UserError for a folder that holds none of them, and for weights that are broken or need a missing library.
    """
    encoders: dict[str, Encode] = {"imagenet": EfficientNetFeatures()} if installed_weights() else {}
    if weights is not None:
        if not any((weights / name).is_dir() for name in NETWORKS):
            raise UserError(
                f"--weights={weights} holds none of {', '.join(NETWORKS)}: docs/benchmarks.md says what each is"
            )
        makers = {"dino": Dino, "clip": ClipPictures, "csd": Csd}
        encoders |= {name: make(weights / name) for name, make in makers.items() if (weights / name).is_dir()}
    return encoders


def find_aesthetic(weights: Path | None = None) -> "Aesthetic | None":
    """The aesthetic predictor, None where its folder is not there."""
    return Aesthetic(weights / "aesthetic") if weights is not None and (weights / "aesthetic").is_dir() else None


class _Network(ABC):
    """A torch model of transformers with its image processor, from a local folder."""

    def __init__(self, folder: Path, name: str):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError(f"{folder} needs torch and transformers ({error}): pip install torch") from None
        self.torch = torch
        try:
            self.model = getattr(transformers, name).from_pretrained(folder, local_files_only=True).eval()
            self.processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} is no folder of such a network: {str(error).splitlines()[0]}") from None

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for start in range(0, len(pictures), BATCH):
            inputs = self.processor(images=list(pictures[start : start + BATCH]), return_tensors="pt")
            with self.torch.no_grad():
                rows.append(self.encode(inputs["pixel_values"]).float().numpy())
        return np.concatenate(rows)

    @abstractmethod
    def encode(self, pixels):
        """Pixels [n 3 h w] -> features."""


class Dino(_Network):
    """DINO's last hidden state [n 1+q d]: the class token, then a vector a patch."""

    def __init__(self, folder: Path):
        super().__init__(folder, "AutoModel")

    def encode(self, pixels):
        """Register tokens, which some of these models have between the two, are left out."""
        states = self.model(pixel_values=pixels).last_hidden_state
        registers = getattr(self.model.config, "num_register_tokens", 0) or 0
        return self.torch.cat([states[:, :1], states[:, 1 + registers :]], 1)


class ClipPictures(_Network):
    """CLIP's embedding of a picture [n d]."""

    def __init__(self, folder: Path):
        super().__init__(folder, "CLIPVisionModelWithProjection")

    def encode(self, pixels):
        """The projected embedding, as it is compared with texts."""
        return self.model(pixel_values=pixels).image_embeds


class Csd:
    """CSD's style vector [n 768] (Somepalli et al. 2024): CLIP ViT-L/14 with a projection trained for style."""

    def __init__(self, folder: Path):
        try:
            import torch
            from transformers import CLIPVisionConfig, CLIPVisionModel
        except ImportError as error:
            raise UserError(f"{folder} needs torch and transformers ({error}): pip install torch") from None
        files = weight_files(folder) or sorted(folder.glob("*.pth"))
        if not files:
            raise UserError(f"{folder} holds no weights: put CSD's .safetensors or .pth there")
        self.torch = torch
        state = {name.removeprefix("module."): value for name, value in open_file(files[0]).items()}
        try:
            width, _, patch, _ = state["backbone.conv1.weight"].shape
            self.style = torch.from_numpy(np.array(state["last_layer_style"], np.float32))
            self.side = patch * round((len(state["backbone.positional_embedding"]) - 1) ** 0.5)
            layers = 1 + max(int(name.split(".")[3]) for name in state if ".resblocks." in name)
            inner = len(state["backbone.transformer.resblocks.0.mlp.c_fc.weight"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{files[0]} holds no CSD: {error}") from None
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            image_size=self.side,
            patch_size=patch,
        )
        self.model = CLIPVisionModel(config).eval()
        prefix = "vision_model." if any(name.startswith("vision_model.") for name in self.model.state_dict()) else ""
        renamed = {prefix + name: torch.from_numpy(value) for name, value in clip_names(state)}
        missing, _ = self.model.load_state_dict(renamed, strict=False)
        missing = [name for name in missing if "position_ids" not in name]
        if missing:
            raise UserError(f"{files[0]} holds no CSD: {missing[0]} is missing")

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Style vectors of pictures squashed to the tower's size, as ViStoryBench does."""
        from seedstory_jax.data.images import ImageTransform

        transform = ImageTransform("clip", size=self.side, resample="bicubic")
        rows = []
        for start in range(0, len(pictures), BATCH):
            batch = np.stack([_transformed(transform, picture) for picture in pictures[start : start + BATCH]])
            with self.torch.no_grad():
                pixels = self.torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
                rows.append((self.model(pixel_values=pixels).pooler_output @ self.style).numpy())
        return np.concatenate(rows)


class Aesthetic(_Network):
    """Aesthetic predictor v2.5: SigLIP's embedding through five linear layers; about 1 to 10, 5.5 and more is good."""

    def __init__(self, folder: Path):
        super().__init__(folder, "SiglipVisionModel")
        files = sorted(folder.glob("aesthetic*.pth")) + sorted(folder.glob("aesthetic*.safetensors"))
        if not files:
            raise UserError(f"{folder} lacks the head: put aesthetic_predictor_v2_5.pth there")
        state = {
            name: self.torch.from_numpy(np.array(value, np.float32)) for name, value in open_file(files[0]).items()
        }
        names = sorted((name for name in state if name.endswith(".weight")), key=lambda name: int(name.split(".")[-2]))
        self.layers = [(state[name], state[name.replace("weight", "bias")]) for name in names]

    def encode(self, pixels):
        """Scores [n]."""
        x = self.model(pixel_values=pixels).pooler_output
        x = x / x.norm(dim=-1, keepdim=True)
        for weight, bias in self.layers:
            x = x @ weight.T + bias
        return x[:, 0]


def clip_names(state):
    """(name in transformers, array) of a picture tower under OpenAI's names, those with `backbone.` in front."""
    for name, value in state.items():
        if not name.startswith("backbone."):
            continue
        name, value = name.removeprefix("backbone."), np.array(value, np.float32)
        if name in TOWER:
            yield TOWER[name], value
        elif name.startswith("transformer.resblocks."):
            _, _, layer, rest = name.split(".", 3)
            base = f"encoder.layers.{layer}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, rows in zip("qkv", np.split(value, 3)):
                    yield f"{base}.self_attn.{part}_proj.{kind}", rows
            else:
                part, kind = rest.rsplit(".", 1)
                yield f"{base}.{LAYER[part]}.{kind}", value


TOWER = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _transformed(transform, picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(transform(Image.fromarray(picture)), np.float32)
