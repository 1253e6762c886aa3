"""Weights from the Hugging Face Hub, at a pinned revision."""

from __future__ import annotations

import os
from pathlib import Path

from stt_cascade.weights.catalog import Spec
from stt_cascade.weights.errors import SourceError
from stt_cascade.weights.fetch import Progress, fetch, http_client, is_sound


def bring(spec: Spec, staging: Path, model: Path, progress: Progress) -> None:
    """Download the files of `spec` into `model`, each checked; unfinished ones wait in `staging`.

    Honours `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`.

    Raises:
        SourceError: huggingface_hub is missing or offline, or the Hub cannot be reached or refuses.
        OSError: the disk refused.
    """
    # huggingface_hub tells where a file lies and who asks. Its own download (2.4) is not used: it
    # throws a half file away when interrupted, and without network it retries for 20 s.
    try:
        from huggingface_hub import constants, get_token, hf_hub_url
    except ImportError as error:
        raise SourceError(
            "the Hub needs the extra tools: pip install '.[tools]' in a checkout of stt-cascade"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise SourceError("HF_HUB_OFFLINE is set")
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    endpoint = os.environ.get("HF_ENDPOINT")
    with http_client() as client:
        for file in spec.files:
            if is_sound(model / file.name, file.sha256):
                continue
            fetch(
                client,
                hf_hub_url(spec.repository, file.name, revision=spec.revision, endpoint=endpoint),
                model / file.name,
                part=staging / f"hub-{file.name}.part",
                size=file.size,
                sha256=file.sha256,
                progress=progress,
                headers=headers,
            )
