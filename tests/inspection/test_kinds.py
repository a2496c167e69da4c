"""What is complete is found so, and each missing or changed file is named, for every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data.index import format_index, read_index
from pipeline.errors import DataError
from pipeline.export import main as export
from pipeline.inspection.tables import findings_table
from pipeline.output.results import read_results
from pipeline.sweep.trial_table import TrialTable
from pipeline.text import print_wide
from tests.shards import overwrite_byte


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def shards(tiny_shards: str, tmp_path: Path) -> Path:
    """A copy of the tiny data set."""
    return Path(shutil.copytree(tiny_shards, tmp_path / "shards"))


def test_finished_run_is_complete(finished_run, look):
    found, results = look(finished_run), read_results(str(finished_run))
    assert results is not None and (found.kind, found.state) == ("run", "complete")
    assert found.facts["last_accuracy"] == results.last_accuracy
    assert found.facts["protocol_sha256"] == results.protocol.sha256
    by_name = {part.name: part for part in found.parts}
    for task, sha256 in enumerate(results.learned_sha256 or ()):
        part = by_name[f"tasks/task-{task:03d}.safetensors"]
        assert part.sha256 == sha256 and part.bytes == (finished_run / part.name).stat().st_size
    json.dumps(found.content())


def test_same_run_elsewhere_is_found_alike(finished_run, look):
    """must hold for storage without folders, and where a file of the run is named"""
    for file in filter(Path.is_file, finished_run.rglob("*")):
        name = file.relative_to(finished_run).as_posix()
        storage.write_atomically(f"memory://inspect/run/{name}", file.read_bytes())
    here, there = look(finished_run), look("memory://inspect/run/results.json")
    assert there.place == "memory://inspect/run"
    assert (here.parts, here.facts, here.state) == (there.parts, there.facts, there.state)


@pytest.mark.parametrize(
    "name", ["tasks/task-001.safetensors", "metrics.jsonl", "config.yaml", "predictions.jsonl"]
)
def test_missing_file_of_a_run_is_named(run, look, name):
    (run / name).unlink()
    assert look(run).state == "damaged" and look(run).faults == [f"{name} is missing"]


def test_changed_file_of_a_run_is_named(run, look):
    overwrite_byte(str(run / "tasks" / "task-001.safetensors"), -1)
    (fault,) = look(run).faults
    assert fault.startswith("tasks/task-001.safetensors has another content")
    (run / "metrics.jsonl").write_text('{"kind": "stage"}\ntorn')
    assert "metrics.jsonl has another text than JSON in line 2" in look(run).faults


@pytest.mark.parametrize("config", [{}, {"model": {"arch": 7}}])
def test_damaged_manifest_of_a_run_is_named(run, look, config):
    content = json.loads((run / "results.json").read_text())
    content["manifest"]["config"] = config
    (run / "results.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="the manifest in results.json is damaged"):
        look(run)


def test_interrupted_run_is_unfinished_and_has_a_snapshot_to_continue_from(interrupted_run, look):
    found = look(interrupted_run)
    assert (found.state, found.stage) == ("unfinished", "1 of 3 tasks learned")
    assert any(part.name.startswith("snapshots/task-001-step-") for part in found.parts)


def test_run_without_a_usable_snapshot_cannot_continue(interrupted_run, look, tmp_path):
    copy = Path(shutil.copytree(interrupted_run, tmp_path / "run"))
    for marker in copy.glob("snapshots/*/state.json"):
        marker.write_bytes(marker.read_bytes()[:-1])
    found = look(copy)
    assert found.faults == ["snapshots has no complete snapshot, so the run cannot continue"]
    assert sum("torn" in (part.note or "") for part in found.parts) == 2


def test_run_before_its_first_result_is_unfinished(interrupted_run, look, tmp_path):
    for name in ("owner.json", "config.yaml"):
        shutil.copy(interrupted_run / name, tmp_path)
    found = look(tmp_path)
    assert (found.kind, found.state, found.facts["method"]) == ("run", "unfinished", "tppt_vt")


def test_snapshot_is_complete_or_torn(interrupted_run, look, tmp_path):
    copy = Path(shutil.copytree(interrupted_run / "snapshots", tmp_path / "snapshots"))
    *_, newest = sorted(copy.iterdir())
    found = look(newest)
    assert (found.kind, found.state) == ("snapshot", "complete")
    assert found.facts["tasks_learned"] == 1 and found.facts["method"] == "tppt_vt"
    (newest / "state.json").unlink()
    assert look(newest).state == "damaged" and "state.json is missing" in look(newest).faults[0]
    assert look(copy).state == "complete"  # of two, one can be used


def test_data_set_is_complete(tiny_shards, look):
    found, index = look(tiny_shards, full=True), read_index(tiny_shards)
    assert (found.kind, found.state) == ("data set", "complete")
    assert found.facts["index_sha256"] == index.sha256 and found.facts["train_images"] == 44
    assert len(found.parts) == 2 * len(index.shards)


def test_missing_shard_and_other_size_are_found_without_reading(shards, look, monkeypatch):
    first, second, *_ = read_index(str(shards)).shards
    (shards / first.name).unlink()
    (shards / second.table_name).unlink()
    with open(shards / second.name, "ab") as file:
        file.write(b"more")
    monkeypatch.setattr("pipeline.inspection.data_set.hash_file", None)
    sizes = f"has {second.bytes + 4:,} bytes, and the index records {second.bytes:,}"
    assert look(shards).faults == [
        f"{first.name} is missing",
        f"{second.name} {sizes}",
        f"{second.table_name} is missing",
    ]


def test_changed_byte_of_a_shard_is_found_by_reading(shards, look):
    shard, *_ = read_index(str(shards)).shards
    overwrite_byte(str(shards / shard.name), 600)
    assert look(shards).state == "complete"
    (fault,) = look(shards, full=True).faults
    assert fault.startswith(f"{shard.name} has another content than the index records")


def test_data_set_that_is_being_prepared_is_unfinished(tmp_path, look):
    (tmp_path / "unfinished.json").write_text("{}")
    assert look(tmp_path).state == "unfinished"


def test_sweep_is_complete_once_its_best_settings_are_written(tmp_path, look, finished_run):
    settings = {"metric": "last_accuracy", "protocol": "first_task"}
    (tmp_path / "sweep.json").write_text(json.dumps(settings))
    table = TrialTable(str(tmp_path), "last_accuracy")
    assert look(tmp_path).stage == "no trial yet"
    table.begin(0, {"optim.epochs": 2})
    table.end(0, "failed", reason="refused", device_hours=0.5)
    assert look(tmp_path).state == "unfinished"
    (tmp_path / "best.yaml").write_text("seed: 1\n")
    found = look(tmp_path)
    assert (found.state, found.stage, found.facts["device_hours"]) == ("complete", "1 failed", 0.5)


def test_export_is_compared_with_its_hashes(finished_run, tmp_path, look, capsys):
    out = tmp_path / "export"
    assert export(["--run", str(finished_run), "--out", str(out)]) == 0
    found = look(out / "export.json")
    assert (found.kind, found.state, found.facts["stage"]) == ("export", "complete", 3)
    overwrite_byte(str(out / "classifier.safetensors"), -1)
    (fault,) = look(out).faults
    assert fault.startswith("classifier.safetensors has another content than was recorded")
    record = json.loads((out / "export.json").read_text())
    (out / "export.json").write_text(json.dumps({**record, "files": {"../shards/x": "0" * 64}}))
    assert look(out).faults == ["../shards/x is not the name of a file in the export"]


@pytest.mark.parametrize("name", ["sweep.json", "results.json", "index.json", "export.json"])
def test_file_of_another_content_is_refused(tmp_path, look, name):
    (tmp_path / name).write_text('{"metric": ["last_accuracy"], "schema": "?"}')
    with pytest.raises(DataError, match=f"{name}: "):
        look(tmp_path)


def test_names_cannot_control_the_terminal(tmp_path, look, capsys):
    data = format_index(["\x1b[2Jfox"], ["n1"], [])
    (tmp_path / "index.json").write_bytes(data)
    print_wide(findings_table(look(tmp_path)))
    assert "\\x1b[2Jfox" in capsys.readouterr().out


def test_folder_of_runs_is_refused_with_their_names(finished_run, look):
    with pytest.raises(DataError, match="is no data set, run, .*; give one of its folders: .*fin"):
        look(finished_run.parent)
    with pytest.raises(DataError, match="nowhere: there is no such folder or file"):
        look("nowhere")
