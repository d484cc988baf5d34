"""CLIP score (Hessel et al. 2021) by transformers' CLIP from a local folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seedstory_jax.errors import UserError

WEIGHT = 100.0  # torchmetrics' scale; the paper of CLIPScore has 2.5


class ClipScore:
    """max(0, 100 · cosine) of picture and text. `folder` is a saved CLIP with its processor; nothing is downloaded."""

    def __init__(self, folder: Path):
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"{folder} is no CLIP folder: it needs config.json, the weights, tokenizer and processor")
        try:
            import torch
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise UserError(
                f"CLIP score needs torch and transformers ({error}): pip install 'seedstory_jax[eval]'"
            ) from None
        self._torch = torch
        try:
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is no CLIP folder: {str(error).splitlines()[0]}") from None

    def __call__(self, pictures: Sequence[np.ndarray], texts: Sequence[str], batch: int = 16) -> list[float]:
        """A score for every picture uint8[H W 3] with its text; texts are cut to CLIP's context."""
        scores: list[float] = []
        limit = self.model.config.text_config.max_position_embeddings
        for start in range(0, len(texts), batch):
            inputs = self.processor(
                text=list(texts[start : start + batch]),
                images=list(pictures[start : start + batch]),
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=limit,
            )
            with self._torch.no_grad():
                found = self.model(**inputs)
            image, text = (x / x.norm(dim=-1, keepdim=True) for x in (found.image_embeds, found.text_embeds))
            scores += (WEIGHT * (image * text).sum(-1)).clamp(min=0).tolist()
        return scores
