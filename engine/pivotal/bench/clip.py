"""CLIP's score of a picture and a text, where its weights lie on this machine already."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image

from pivotal.images import Pixels

MODEL = "openai/clip-vit-large-patch14"  # as PIE-Bench's code


def local_clip_score() -> Callable[[Pixels, str], float] | str:
    """100 times the cosine of picture and text, or the reason why it is not measured.

    Nothing is fetched, and only safetensors are read.
    """
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(MODEL, "model.safetensors"), str):
        return f"the weights of {MODEL} are not on this machine"
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(MODEL, local_files_only=True, use_safetensors=True).eval()
        processor = CLIPProcessor.from_pretrained(MODEL, local_files_only=True)
    except (OSError, ValueError) as error:
        return f"{MODEL} can't be read: {error}"

    def score(picture: Pixels, text: str) -> float:
        given = processor(
            text=[text], images=Image.fromarray(picture), return_tensors="pt", truncation=True
        )
        with torch.no_grad():
            found = model(**given)
        cosine = torch.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * float(cosine.clamp(min=0))

    return score
