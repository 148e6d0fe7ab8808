"""CLIP's score of a picture and a text, where its weights lie on this machine already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from pivotal.bench.errors import ResultsError
from pivotal.images import Pixels

MODEL = "openai/clip-vit-large-patch14"  # as PIE-Bench's code

Scorer = Callable[[Pixels, str], float]


def cached_clip() -> str | None:
    """The published weights in the hub's cache, as a folder to load from, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(MODEL, "model.safetensors")
    return str(Path(found).parent) if isinstance(found, str) else None


def clip_score(folder: str | Path) -> Scorer:
    """100 times the cosine of a picture's and a text's embeddings, 0 where that is negative.

    folder: a CLIP model and its processor as transformers writes them. Nothing is fetched, and only
    safetensors are read. Raises ResultsError for a folder that holds no such model.
    """
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{str(folder)!r} holds no CLIP model to score with: {error}") from error

    def score(picture: Pixels, text: str) -> float:
        given = processor(
            text=[text], images=Image.fromarray(picture), return_tensors="pt", truncation=True
        )
        with torch.no_grad():
            found = model(**given)
        cosine = torch.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * float(cosine.clamp(min=0))

    return score
