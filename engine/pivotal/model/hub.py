"""A model from the Hugging Face hub as a local folder: only the files it needs, never a pickle."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from pivotal.errors import ModelError
from pivotal.model.folder import INDEX, NETWORKS, choose_weights

logger = logging.getLogger(__name__)

_SMALL = (".json", ".txt")  # configs and vocabularies


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a hub model in the local cache, downloaded if need be.

    The `HF_*` environment is respected (token, cache, endpoint, offline). Raises ModelError if the
    model can't be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    offline = local_files_only or constants.HF_HUB_OFFLINE
    try:
        if offline:
            place = Path(snapshot_download(repository, revision=revision, local_files_only=True))
            logger.info("%s, revision %s, from the local cache", repository, place.name)
            return place
        info = HfApi().model_info(repository, revision=revision)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        wanted = needed(names, repository, variant)
        logger.info("fetching %s, revision %s: %s", repository, info.sha, ", ".join(wanted))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except ModelError:
        raise
    except Exception as error:  # the HTTP client's errors have no base that we could name
        reason = str(error).strip().split("\n")[0]
        if offline:
            raise ModelError(
                f"{repository!r} is no local folder, and as a hub model it is not in the local "
                "cache; download it first by loading it once with local_files_only=False and "
                "without HF_HUB_OFFLINE"
            ) from error
        raise ModelError(
            f"{repository!r} is no local folder, and the hub did not give it: {reason}"
        ) from error


def needed(names: Iterable[str], repository: str, variant: str | None) -> list[str]:
    """Which of a repository's files make the model. Raises ModelError if it is none we can run."""
    names = sorted(names)
    if INDEX not in names:
        raise ModelError(
            f"{repository} has no {INDEX}, so it is no model in diffusers' layout; single-file "
            "checkpoints and adapters can't be loaded this way"
        )
    wanted = [INDEX]
    for component in (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler"):
        inside = [name for name in names if name.startswith(f"{component}/")]
        own = [name for name in inside if name.count("/") == 1]
        wanted += [name for name in own if name.endswith(_SMALL) and ".index." not in name]
        if component in NETWORKS and own:
            files = [name.split("/")[1] for name in own]
            chosen = choose_weights(files, component, variant, repository)
            wanted += [f"{component}/{name}" for name in chosen]
    return wanted
