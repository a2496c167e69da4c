"""A run from kept activations has the bits of a run from pixels, and looks at each image once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.data.batch as batch_module
from pipeline.config import Config
from pipeline.data.index import Selection
from pipeline.distributed.world import read_world
from pipeline.model.backbone import FrozenClip
from pipeline.training.activations import ActivationStore
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.chaos.comparison import RunContent, read_run
from tests.interruptions import start_on_ranks
from tests.shards import draw_samples, store
from tests.tiny import TEST_IMAGES, TRAIN_IMAGES, build_config, draw_images

N_IMAGES = sum(TRAIN_IMAGES) + sum(TEST_IMAGES)


def configure(arch: str, index: str, output: Path, **data: Any) -> Config:
    """A run with prompts from block 1 on."""
    options = {"visual_prompts": {"first_layer": 1, "components": 3, "length": 2}}
    return build_config(
        arch,
        index,
        output=str(output),
        data={"index": index, "global_batch": 8, "eval_batch": 5, "workers": 0, **data},
        method={"name": "tppt_v", "options": {"tppt_v": options}},
        engine={"micro_batch": 4},
        optim={"epochs": 2, "gradient_clipping": 0.0},
    )


def learn(config: Config) -> RunContent:
    """The outcome of a run in this process."""
    execute(check_run(config, 1), read_world({}))
    return read_run(config.output)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads may decide the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def looks(monkeypatch) -> dict[str, int]:
    """How many images are decoded, and how many pass the blocks below the first prompts."""
    counts = {"decoded": 0, "encoded": 0}
    decode, encode = batch_module.decode_sample, FrozenClip.lower_blocks

    def counting_decode(*record: Any, **expected: Any) -> Any:
        counts["decoded"] += 1
        return decode(*record, **expected)

    def counting_encode(clip: FrozenClip, image_BCHW: torch.Tensor, n_blocks: int) -> Any:
        counts["encoded"] += sum(bool(image.any()) for image in image_BCHW)  # without blank ones
        return encode(clip, image_BCHW, n_blocks)

    monkeypatch.setattr(batch_module, "decode_sample", counting_decode)
    monkeypatch.setattr(FrozenClip, "lower_blocks", counting_encode)
    return counts


def test_run_from_kept_activations_has_the_bits_of_a_run_from_pixels(
    tiny_arch, tiny_shards, tmp_path, looks
):
    """must hold in training, in the frozen features and in tests, with each image looked at once"""
    expected = learn(configure(tiny_arch, tiny_shards, tmp_path / "pixels"))
    assert looks["decoded"] > 2 * N_IMAGES
    looks.update(decoded=0, encoded=0)
    cache = str(tmp_path / "cache")
    kept = configure(tiny_arch, tiny_shards, tmp_path / "kept", feature_cache=cache)
    learn(kept).assert_equals(expected)
    assert looks == {"decoded": N_IMAGES, "encoded": N_IMAGES}
    again = configure(tiny_arch, tiny_shards, tmp_path / "again", feature_cache=cache)
    learn(again).assert_equals(expected)
    assert looks == {"decoded": N_IMAGES, "encoded": N_IMAGES}, "another run found all of them"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_file_is_made_again(tiny_arch, tiny_shards, tmp_path, looks, damage):
    cache = tmp_path / "cache"
    first = learn(configure(tiny_arch, tiny_shards, tmp_path / "a", feature_cache=str(cache)))
    file = sorted(cache.glob("activations/*/*.bin"))[0]
    good = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        bad = good[:-9] if damage == "truncate" else good[:100] + b"!" + good[101:]
        file.write_bytes(bad)
    looks.update(decoded=0)
    again = learn(configure(tiny_arch, tiny_shards, tmp_path / "b", feature_cache=str(cache)))
    again.assert_equals(first)
    assert 0 < looks["decoded"] < N_IMAGES and file.read_bytes() == good


def test_without_room_the_run_is_the_same_and_says_so_once(
    tiny_arch, tiny_shards, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    expected = learn(configure(tiny_arch, tiny_shards, tmp_path / "pixels"))
    caplog.clear()
    cache = {"feature_cache": str(tmp_path / "cache"), "activation_limit_gb": 1e-6}
    found = learn(configure(tiny_arch, tiny_shards, tmp_path / "full", **cache))
    found.assert_equals(expected)
    lines = [line for line in caplog.messages if "are not kept" in line]
    assert lines and all("has no room for it (data.activation_limit_gb)" in line for line in lines)
    assert len(lines) == len(set(lines)) and not list(tmp_path.glob("cache/activations/*/*.bin"))


def test_selection_with_an_unusable_sample_is_not_kept(tiny_arch, tmp_path, caplog):
    """must replace it as a run from pixels does, also where a later run finds the cache"""
    caplog.set_level(logging.INFO)
    index = str(tmp_path / "shards")
    store(index, draw_samples(), damaged={"ant/003": b"", "cat/007": b"torn"})
    skip = {"on_bad_sample": "skip", "bad_sample_budget": 2}
    tasks = {"tasks": {"class_order": "natural", "classes_per_task": 2}}
    caches = {"pixels": None, "kept": str(tmp_path / "cache"), "again": str(tmp_path / "cache")}
    found = []
    for name, cache in caches.items():
        config = configure(tiny_arch, index, tmp_path / name, feature_cache=cache, **skip)
        found.append(learn(config.model_copy(update=tasks_of(config, tasks))))
    found[1].assert_equals(found[0])
    found[2].assert_equals(found[0])
    assert any("unusable samples" in line for line in caplog.messages)


def tasks_of(config: Config, sections: dict[str, Any]) -> dict[str, Any]:
    return {"tasks": config.tasks.model_copy(update=sections["tasks"])}


def test_ranks_share_the_work_and_the_bits(tiny_arch, tiny_shards, tmp_path):
    one = configure(tiny_arch, tiny_shards, tmp_path / "1")
    two = configure(tiny_arch, tiny_shards, tmp_path / "2", feature_cache=str(tmp_path / "cache"))
    for world_size, config in ((1, one), (2, two)):
        assert start_on_ranks(world_size, config)
    read_run(two.output).assert_equals(read_run(one.output))


def test_other_runs_make_room_the_longest_unused_first(tiny_arch, tiny_shards, tmp_path):
    cache = tmp_path / "cache"
    learn(configure(tiny_arch, tiny_shards, tmp_path / "a", feature_cache=str(cache)))
    first = {folder.name for folder in cache.glob("activations/*")}
    used = sum(file.stat().st_size for file in cache.glob("activations/*/*.bin"))
    limit = {"activation_limit_gb": used * 1.1 / 1e9, "eval_transform": "squash"}
    limit["train_transform"] = "squash"
    learn(configure(tiny_arch, tiny_shards, tmp_path / "b", feature_cache=str(cache), **limit))
    left = {folder.name for folder in cache.glob("activations/*")}
    assert len(left - first) == len(first) > len(left & first)
    total = sum(file.stat().st_size for file in cache.glob("activations/*/*.bin"))
    assert total <= used * 1.1


def test_tokens_of_an_image_do_not_depend_on_the_images_beside_it(tiny_clip, alone):
    """must hold for every place in a batch, or kept activations would change the last bits"""
    store = ActivationStore(tiny_clip, alone, first_layer=2, folder=None, limit_bytes=0)
    image_BCHW = draw_images(37)
    together_BSV = store.encode(image_BCHW)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(store.encode(image_BCHW[order]), together_BSV[order])
    for n_images in (1, 2, 3, 5, 16, 17):
        assert torch.equal(store.encode(image_BCHW[:n_images]), together_BSV[:n_images])
    assert not together_BSV.requires_grad


def test_file_that_another_run_removes_before_it_is_mapped_is_no_error(
    tiny_arch, tiny_shards, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    expected = learn(configure(tiny_arch, tiny_shards, tmp_path / "pixels"))
    opened = ActivationStore._open

    def open_late(store: ActivationStore, folder: Path, selection: Selection) -> Any:
        shutil.rmtree(folder)
        return opened(store, folder, selection)

    monkeypatch.setattr(ActivationStore, "_open", open_late)
    cache = str(tmp_path / "cache")
    found = learn(configure(tiny_arch, tiny_shards, tmp_path / "late", feature_cache=cache))
    found.assert_equals(expected)
    assert any("cannot be mapped" in line for line in caplog.messages)
