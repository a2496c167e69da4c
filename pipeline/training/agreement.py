"""All ranks of a run have the same settings, images and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.distributed.collectives import gather_objects, raise_on_all_ranks
from pipeline.errors import ConfigError
from pipeline.settings_file import flatten
from pipeline.text import shorten
from pipeline.training.checked_run import Run

# Settings that may differ: places, which the hashes of their content stand for, the use of a
# machine, and what rank 0 alone writes.
_OF_A_NODE: dict[str, Any] = {
    "data": {"index", "workers", "feature_cache", "activation_limit_gb", "cache"},
    "model": {"arch", "weights"},
    "engine": {"timeout_s"},
    "snapshot": {"folder"},
    "evaluation": {"held_out"},
    **dict.fromkeys(("name", "output", "log_every", "report", "loggers", "tuning"), True),
}


def check_agreement(run: Run, backbone_sha256: str) -> None:
    """Check that every rank was started with the same settings and files; a collective call.

    Nodes may have other copies of the configuration, the index or the weights. Their ranks would
    wait for each other, or learn a mixture that no configuration describes.

    Raises:
        ConfigError: a rank has another value than rank 0.
    """
    first, *others = gather_objects(_shared(run, backbone_sha256))
    with raise_on_all_ranks():
        for rank, its in enumerate(others, start=1):
            for name in sorted(first | its):
                if first.get(name) != its.get(name):
                    raise ConfigError(
                        f"{name} is {_show(first, name)} on rank 0 and {_show(its, name)} on rank "
                        f"{rank}; start every rank with the same settings, shards and weights"
                    )


def _shared(run: Run, backbone_sha256: str) -> dict[str, Any]:
    """What must be equal on all ranks, by name."""
    config = run.config
    return {
        **flatten(config.model_dump(mode="json", exclude=_OF_A_NODE)),
        "the use of data.feature_cache": config.data.feature_cache is not None,
        "the SHA-256 of data.index": run.index.sha256,
        "the SHA-256 of evaluation.held_out": [each.index.sha256 for each in run.held_out],
        "the SHA-256 of the backbone": backbone_sha256,
    }


def _show(values: Mapping[str, Any], name: str) -> str:
    return shorten(repr(values.get(name)))
