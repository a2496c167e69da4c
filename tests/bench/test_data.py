"""The streams are measured on equal work, and the start on a large data set as a run starts."""

from __future__ import annotations

import json

from pipeline.bench.__main__ import main
from pipeline.bench.large_index import start_together, write_large
from pipeline.bench.plain_webdataset import stream_plain
from pipeline.bench.settings import load_bench_config
from pipeline.data.index import read_index
from pipeline.data.transforms import build_transform


def test_streams_are_measured(tiny_arch, tmp_path):
    file = tmp_path / "speed.json"
    words = [
        "data", f"model.arch={tiny_arch}", "model.weights=null", "bench.repeats=1",
        "bench.warmup=0", "bench.streams=[[24,16,40]]", "bench.large=[0,1,1]",
        f"bench.url={tmp_path / 'store'}", "--json", str(file),
    ]  # fmt: skip
    assert main(words) == 0
    content = json.loads(file.read_text())["benchmarks"]["data"]
    assert content["not_measured"] is None
    found = {figure["name"]: figure["value"] for figure in content["figures"]}
    label = "24 to 16 pixels"
    plain, ours = found[f"{label}: local, webdataset alone"], found[f"{label}: local"]
    ratio = found[f"{label}: local against webdataset"]
    assert abs(ratio - ours / plain) < 1e-9 * ratio
    assert f"{label}: our cache against bytes alone" in found


def test_start_on_a_large_data_set_is_measured(tiny_arch, tmp_path):
    write_large(tmp_path, shards=20, samples=40, classes=40)
    words = [
        f"data.index={tmp_path}", f"model.arch={tiny_arch}", "model.weights=null",
        "tasks.classes_per_task=4", f"data.cache.folder={tmp_path / 'cache'}",
    ]  # fmt: skip
    seconds, size = start_together(load_bench_config("data", None, words), ranks=1)
    assert seconds > 0 and size > 0


def test_webdataset_alone_reads_every_sample(tiny_shards):
    index = read_index(tiny_shards)
    shards = [shard for shard in index.shards if shard.split == "train"]
    images = stream_plain([s.url for s in shards], build_transform("clip", 16), batch=4)
    assert images == sum(shard.samples for shard in shards)


def test_large_data_set_has_every_class_in_both_splits(tmp_path):
    write_large(tmp_path, shards=20, samples=50, classes=40)
    index = read_index(str(tmp_path))
    assert sum(shard.samples for shard in index.shards) == 1000
    assert min(index.count("train").values()) > 0 and min(index.count("test").values()) > 0
    selection = index.select("train", [7])
    assert all(key.startswith("00007/") for key in selection.keys)
    assert max(segment.samples for shard in index.shards for segment in shard.segments) <= 80
