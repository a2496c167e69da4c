"""The sources of a run: configuration, data, backbone, packages and commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pipeline.config import Config
from pipeline.data.membership import Membership
from pipeline.output.identity import config_hash
from pipeline.output.protocol import protocol_of
from pipeline.tasks import Task
from pipeline.version import git_commit

_PACKAGES = ("torch", "torchvision", "deepspeed", "webdataset", "open_clip_torch", "fsspec", "s3fs")


def build_manifest(
    config: Config,
    *,
    tasks: Sequence[Task],
    index_sha256: str,
    membership: Membership | None = None,
    memberships: Sequence[Membership | None] = (),
    train_images: int | None = None,
    identity: Mapping[str, Any],
    ranks: int,
) -> dict[str, Any]:
    """Everything that is needed to reproduce the results, in plain JSON types.

    ``memberships`` are those of each of several indexes. ``train_images`` is the number of training
    images of the index, of all its classes.
    """
    settings = config.model_dump(mode="json")
    return {
        "config": settings,
        "config_sha256": config_hash(config),
        "class_order": [label for task in tasks for label in task.labels],
        "index_sha256": index_sha256,
        **({"membership": asdict(membership)} if membership else {}),
        **({"memberships": [m and asdict(m) for m in memberships]} if any(memberships) else {}),
        "train_images": train_images,
        "backbone_sha256": identity["backbone_sha256"],
        "identity": identity,
        "protocol": protocol_of(settings, identity["tasks"], identity["backbone_sha256"]),
        "packages": {name: version(name) for name in _PACKAGES},
        "git_commit": git_commit(),
        "world_size": ranks,
    }
