"""Class prompts as the text tower reads them: token ids, not yet cut to its context."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip

from pipeline.errors import WeightsError

_LOCAL = "local-dir:"
_CONTEXT_LENGTH = 77  # open_clip's default


def token_ids(arch: str, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each text, start and end tokens included, however long it is.

    A tokenizer that is not open_clip's own gives them as it cuts and pads them.

    Raises:
        WeightsError: the tokenizer cannot be loaded.
    """
    tokenizer = _tokenizer(arch)
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return [(start, *tokenizer.encode(text), end) for text in texts]
    return [tuple(row.tolist()) for row in tokenizer(list(texts))]


def context_length(arch: str) -> int:
    """The most tokens that the text tower of ``arch`` takes, start and end tokens included."""
    if arch.startswith(_LOCAL):
        file = Path(arch.removeprefix(_LOCAL)) / "open_clip_config.json"
        model = json.loads(file.read_bytes())["model_cfg"]
    else:
        model = open_clip.get_model_config(arch) or {}
    return int(model.get("text_cfg", {}).get("context_length", _CONTEXT_LENGTH))


@lru_cache(maxsize=4)
def _tokenizer(arch: str) -> Any:
    try:
        return open_clip.get_tokenizer(arch)
    except Exception as error:  # a tokenizer of another package may be downloaded
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"model.arch: the tokenizer of {arch} cannot be loaded: {reason}; choose another model"
        ) from error
