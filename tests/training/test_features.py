"""Frozen features are computed once, found again, and the same on every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.index import Selection, read_index
from pipeline.data.plan import Layout
from pipeline.data.stream import Batch, ShardSource, eval_stream
from pipeline.data.transforms import build_transform
from pipeline.distributed.world import World
from pipeline.model.weights import load_clip
from pipeline.training.features import FrozenFeatures, FrozenStore
from tests.ranks import run_ranks
from tests.tiny import IMAGE_SIZE

SQUASH, CLIP = (build_transform(name, IMAGE_SIZE) for name in ("squash", "clip"))


@pytest.fixture
def selection(tiny_shards: str) -> Selection:
    return read_index(tiny_shards).select("test", [4, 0, 6])


def stream(
    selection: Selection, transform=SQUASH, world: World | None = None, batch_size: int = 4
) -> Iterator[Batch]:
    layout = Layout(world.rank, world.world_size) if world else Layout()
    source = ShardSource(selection.index)
    return eval_stream(source, selection, transform, batch_size=batch_size, layout=layout)


def once(batches: Iterator[Batch]) -> Callable[[], Iterator[Batch]]:
    """A share that can be streamed once; a second time is a fault."""
    shares = [batches]
    return lambda: shares.pop()


def test_features_are_those_of_the_images(alone, tiny_clip, selection):
    found = FrozenStore(tiny_clip, alone, None).get(selection, SQUASH, once(stream(selection)))
    (whole,) = stream(selection, batch_size=99)
    expected = tiny_clip.encode_image(whole.image_BCHW)
    assert torch.equal(found.sample_S, whole.sample_B) and torch.equal(found.label_S, whole.label_B)
    torch.testing.assert_close(found.features.pooled_BV, expected.pooled_BV)
    torch.testing.assert_close(found.features.joint_BE, expected.joint_BE)
    assert not found.features.joint_BE.requires_grad


def test_features_are_found_by_their_sample_numbers(alone, tiny_clip, selection):
    frozen = FrozenStore(tiny_clip, alone, None).get(selection, SQUASH, once(stream(selection)))
    rows = torch.tensor([3, 0, 5, 3])
    found = frozen.of(frozen.sample_S[rows])
    assert torch.equal(found.joint_BE, frozen.features.joint_BE[rows])
    assert torch.equal(found.pooled_BV, frozen.features.pooled_BV[rows])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_hold_each_row_once(alone, tiny_clip, selection, world_size):
    frozen = FrozenStore(tiny_clip, alone, None).get(selection, SQUASH, once(stream(selection)))
    shares = [frozen.rows(slice(rank, None, world_size)) for rank in range(world_size)]
    rows = torch.cat([features.joint_BE for features, _ in shares])
    labels = torch.cat([label_B for _, label_B in shares])
    assert len(rows) == len(selection)
    assert sorted(map(tuple, rows.tolist())) == sorted(
        map(tuple, frozen.features.joint_BE.tolist())
    )
    assert labels.bincount().tolist() == frozen.label_S.bincount().tolist()


def test_sample_that_could_not_be_used_is_left_out(alone, tiny_clip, selection):
    def without_the_second() -> Iterator[Batch]:
        for batch in stream(selection, batch_size=1):
            if batch.sample_B[0] != selection.sample_S[1]:
                yield batch

    frozen = FrozenStore(tiny_clip, alone, None).get(selection, SQUASH, without_the_second)
    assert len(frozen.sample_S) == len(frozen.label_S) == len(selection) - 1
    assert selection.sample_S[1] not in frozen.sample_S
    (whole,) = stream(selection, batch_size=99)
    expected_E = tiny_clip.encode_image(whole.image_BCHW).joint_BE[2]
    torch.testing.assert_close(frozen.of(whole.sample_B[2:3]).joint_BE[0], expected_E)


def test_what_was_computed_is_kept(alone, tiny_clip, selection):
    store, share = FrozenStore(tiny_clip, alone, None), once(stream(selection))
    first = store.get(selection, SQUASH, share)
    assert store.get(selection, SQUASH, share) is first


def no_stream() -> Iterator[Batch]:
    raise AssertionError("the features are known already")


def test_what_was_computed_is_found_by_another_run(alone, tiny_arch, selection, tmp_path: Path):
    folder = str(tmp_path / "features")

    def new_store() -> FrozenStore:
        return FrozenStore(load_clip(tiny_arch, None, device=alone.device), alone, folder)

    first = new_store().get(selection, SQUASH, once(stream(selection)))
    again = new_store().get(selection, SQUASH, no_stream)
    for name in ("sample_S", "label_S"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for before, after in zip(first.features, again.features, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("n_bytes", [0, 5, 300])
def test_damaged_file_is_made_again(alone, tiny_clip, selection, tmp_path: Path, caplog, n_bytes):
    def get() -> FrozenFeatures:
        store = FrozenStore(tiny_clip, alone, str(tmp_path))
        return store.get(selection, SQUASH, once(stream(selection)))

    first = get()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:n_bytes])
    assert torch.equal(get().features.joint_BE, first.features.joint_BE)
    assert file.read_bytes() == whole and f"{file}: is damaged; these" in caplog.text


def read_on_ranks(world: World, arch: str, index: str, folder: str) -> torch.Tensor:
    selection = read_index(index).select("test", [4, 0, 6])
    clip = load_clip(arch, None, device=world.device)
    store = FrozenStore(clip, world, f"{folder}/{world.rank}")  # rank 0 has its file
    share = once(stream(selection, world=world))
    return store.get(selection, SQUASH, share).features.joint_BE


def test_file_that_one_node_lacks_is_made_again(
    alone, tiny_clip, tiny_arch, tiny_shards, selection, tmp_path
):
    """must not leave the ranks that have it waiting, where each node has its own folder"""
    store = FrozenStore(tiny_clip, alone, str(tmp_path / "0"))
    expected = store.get(selection, SQUASH, once(stream(selection))).features.joint_BE
    for found in run_ranks(read_on_ranks, 2, tiny_arch, tiny_shards, str(tmp_path)):
        torch.testing.assert_close(found, expected)


def test_other_weights_pixels_or_samples_are_not_confused(
    alone, tiny_clip, tiny_custom_clip, selection, tmp_path: Path
):
    """must compute anew: stale features would silently spoil every later number"""
    folder, computed = str(tmp_path), []
    fewer = selection.index.select("test", [4, 0])
    cases = [
        (tiny_clip, selection, SQUASH), (tiny_clip, selection, CLIP),
        (tiny_custom_clip, selection, SQUASH), (tiny_clip, fewer, SQUASH),
    ]  # fmt: skip
    for clip, samples, transform in cases:

        def share(samples=samples, transform=transform) -> Iterator[Batch]:
            computed.append(1)
            return stream(samples, transform)

        FrozenStore(clip, alone, folder).get(samples, transform, share)
    assert len(computed) == len(cases) == len(list(tmp_path.iterdir()))


def freeze_on_ranks(world: World, arch: str, index: str, folder: str | None) -> dict[str, Any]:
    selection = read_index(index).select("test", [4, 0, 6])
    clip = load_clip(arch, None, device=world.device)
    store = FrozenStore(clip, world, folder)
    frozen: FrozenFeatures = store.get(selection, SQUASH, once(stream(selection, world=world)))
    fetched = FrozenStore(clip, world, folder).get(
        selection, SQUASH, no_stream if folder else once(stream(selection, world=world))
    )
    assert torch.equal(fetched.features.joint_BE, frozen.features.joint_BE)
    return {"sample": frozen.sample_S, "joint": frozen.features.joint_BE}


def test_every_rank_has_all_features(alone, tiny_clip, tiny_arch, tiny_shards, selection, tmp_path):
    expected = FrozenStore(tiny_clip, alone, None).get(selection, SQUASH, once(stream(selection)))
    for answer in run_ranks(freeze_on_ranks, 3, tiny_arch, tiny_shards, str(tmp_path)):
        assert torch.equal(answer["sample"], expected.sample_S)
        torch.testing.assert_close(answer["joint"], expected.features.joint_BE)
