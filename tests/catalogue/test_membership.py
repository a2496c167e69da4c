"""The split of a benchmark stays with its data: in the index, in results, on every page."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import asdict

import pytest

from pipeline import storage
from pipeline.data.index import format_index, parse_index
from pipeline.data.joining import join_indexes
from pipeline.data.membership import Membership, hash_membership
from pipeline.errors import DataError
from pipeline.output.manifest import build_manifest
from pipeline.output.results import RunManifest
from pipeline.prepare import main
from tests.shards import draw_samples, store
from tests.tiny import build_config

MEMBERSHIP = Membership("imagenet_r", "coda", "0" * 64)
IMAGES = [(split, "ant", f"{n}.jpg") for split in ("train", "test") for n in range(5)]


def test_hash_depends_on_the_membership_alone():
    """must be equal in any order, and another one if a single image changes its split"""
    shuffled = random.Random(1).sample(IMAGES, len(IMAGES))
    assert hash_membership(shuffled) == hash_membership(IMAGES)
    moved = [("test", *IMAGES[0][1:]), *IMAGES[1:]]
    renamed = [("train", "bee", "0.jpg"), *IMAGES[1:]]
    assert len({hash_membership(each) for each in (IMAGES, moved, renamed, IMAGES[1:])}) == 4


def test_hash_is_that_of_the_documented_lines():
    """must be what `sort | sha256sum` gives, so that others can compute it"""
    known = "55c33d0f452dfda4bc1f0fcc8c5272abb8037a43689c28615e01d977b162b71e"
    assert hash_membership([("train", "ant", "1.jpg"), ("test", "ant", "2.jpg")]) == known


def test_index_keeps_the_membership_and_a_join_has_each():
    index = store(f"memory://{uuid.uuid4().hex}", draw_samples())
    content = format_index(index.class_names, index.class_folders, index.shards, None, MEMBERSHIP)
    named = parse_index(index.url, content)
    assert named.membership == MEMBERSHIP and index.membership is None
    assert named.with_closed("test").membership == MEMBERSHIP
    assert named.sha256 != index.sha256
    joined = join_indexes([index, named], known_classes="allow")
    assert joined.membership is None and joined.memberships == (None, MEMBERSHIP)


@pytest.mark.parametrize(
    "bad", ["coda", {"benchmark": "cub200"}, {**asdict(MEMBERSHIP), "split": 3}, [1]]
)
def test_membership_of_another_form_is_refused(bad):
    index = store(f"memory://{uuid.uuid4().hex}", draw_samples())
    content = json.loads(format_index(index.class_names, index.class_folders, index.shards))
    with pytest.raises(DataError, match="is not an index of shards"):
        parse_index(index.url, json.dumps({**content, "membership": bad}).encode())


def test_results_name_the_benchmark_and_its_split():
    """must be an additional value: results of other data have the same keys as before"""
    config = build_config("local-dir:clip", "shards")
    identity = {"tasks": [], "backbone_sha256": ""}
    facts = {"tasks": (), "index_sha256": "0", "identity": identity, "ranks": 1}
    content = json.loads(json.dumps(build_manifest(config, membership=MEMBERSHIP, **facts)))
    assert RunManifest.model_validate(content).membership == MEMBERSHIP
    joined = build_manifest(config, memberships=(None, MEMBERSHIP), **facts)
    assert RunManifest.model_validate(joined).benchmarks == [None, MEMBERSHIP]
    without = build_manifest(config, memberships=(None, None), **facts)
    assert content.keys() - without.keys() == {"membership"}
    assert RunManifest.model_validate(without).membership is None


def test_copy_keeps_the_membership(tmp_path):
    index = store(str(tmp_path / "a"), draw_samples())
    content = format_index(index.class_names, index.class_folders, index.shards, None, MEMBERSHIP)
    storage.write_atomically(str(tmp_path / "a/index.json"), content)
    assert main(["copy", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert (tmp_path / "b/index.json").read_bytes() == content
