"""A valid snapshot exists wherever the writer is interrupted, and a damaged one is never read.

The tests damage files as disks, networks and killed processes do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pipeline import storage
from pipeline.distributed.world import World
from pipeline.errors import DataError, DivergenceError, StorageError, TakenOverError
from pipeline.output.ownership import Ownership
from pipeline.output.snapshots import Snapshot, SnapshotWriter, read_latest
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.ranks import run_ranks
from tests.services.object_store import Bucket
from tests.tiny import build_config

TENSORS = "tensors.safetensors"
STATE = {"identity": {"settings": {"seed": 1}}, "seconds": 1 / 3, "nested": {7: "Grüße"}}


def draw(task: int, step: int) -> Snapshot:
    """A snapshot with other tensors at each step; one of them is a scalar."""
    generator = torch.Generator().manual_seed(1000 * task + step)
    prompt = torch.randn(3, 5, generator=generator)
    moments = {"prompt.exp_avg": prompt * 1e-30, "step": torch.tensor(float(step))}
    return Snapshot.take(task, step, {"learned": {"prompt": prompt}, "moments": moments}, STATE)


def write(folder: str, *snapshots: Snapshot) -> None:
    writer = SnapshotWriter(folder)
    for snapshot in snapshots:
        writer.write(snapshot, files_first={})
    writer.wait()
    writer.close()


def assert_same(found: Snapshot | None, wanted: Snapshot) -> None:
    assert found is not None
    assert (found.task, found.step) == (wanted.task, wanted.step)
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and found.tensors[name].equal(tensor), name
    # JSON turns every key into text
    state = json.loads(json.dumps(wanted.state))
    assert {key: found.state[key] for key in state} == state


def files(folder: str) -> list[str]:
    """Every file of a folder of snapshots, by snapshot and name."""
    return ["/".join(url.split("/")[-2:]) for url in storage.list_files(folder)]


def names(folder: str) -> set[str]:
    """The snapshots with at least one file in a folder."""
    return {file.partition("/")[0] for file in files(folder)}


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of each kind of storage."""
    if request.param == "disk":
        return str(tmp_path / "snapshots")
    if request.param == "memory":
        return f"memory://{tmp_path.name}/snapshots"
    bucket: Bucket = request.getfixturevalue("bucket")
    return f"{bucket.url}/snapshots"


def test_snapshot_is_read_as_written_to_the_bit(folder):
    assert read_latest(folder) is None
    write(folder, draw(0, 100))
    assert_same(read_latest(folder), draw(0, 100))
    found = read_latest(folder)
    assert found.group("learned").keys() == {"prompt"}
    assert found.group("moments").keys() == {"prompt.exp_avg", "step"}


def test_only_the_last_two_snapshots_are_kept(folder):
    """must sort by number, as names with a million steps or more do not sort as text"""
    taken = [draw(0, 0), draw(0, 999_999), draw(0, 1_000_000), draw(998, 3), draw(1000, 2)]
    for count, snapshot in enumerate(taken, start=1):
        write(folder, snapshot)
        assert_same(read_latest(folder), snapshot)
        kept = {each.name for each in taken[max(0, count - 2) : count]}
        assert names(folder) == kept and len(files(folder)) == 2 * len(kept)
    if storage.is_local(folder):
        assert len(list(Path(folder).iterdir())) == 2, "empty folders are left behind"


def test_files_are_safetensors_and_json(tmp_path):
    """must contain no pickle, which can run code when it is read"""
    folder = str(tmp_path / "snapshots")
    write(folder, draw(0, 1))
    assert files(folder) == [f"{draw(0, 1).name}/{name}" for name in ("state.json", TENSORS)]
    marker, tensors = (tmp_path / "snapshots" / name for name in files(folder))
    assert json.loads(marker.read_text())["state"]["seconds"] == 1 / 3
    header_size = int.from_bytes(tensors.read_bytes()[:8], "little")
    assert json.loads(tensors.read_bytes()[8 : 8 + header_size])["learned/prompt"]["dtype"] == "F32"


def damaged_copies(data: bytes) -> list[bytes]:
    """Damaged copies of a content: cut short, extended, zeroed, or with one flipped bit."""
    places = {0, 1, 7, 8, 9, len(data) // 3, len(data) // 2, len(data) - 9, len(data) - 1}
    flipped = (data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for at in sorted(places))
    return [*(data[:place] for place in sorted(places)), data + b"\0", *flipped, b"\0" * len(data)]


@pytest.mark.parametrize("name", ["state.json", TENSORS])
def test_damaged_snapshot_is_never_read(tmp_path, name):
    """must read the previous snapshot, and raise if that is damaged too"""
    folder = str(tmp_path / "snapshots")
    write(folder, draw(1, 10), draw(1, 20))
    file = tmp_path / "snapshots" / draw(1, 20).name / name
    data = file.read_bytes()
    damages = [content for content in damaged_copies(data) if content != data]
    assert len(damages) == 20
    for content in damages:
        file.write_bytes(content)
        assert_same(read_latest(folder), draw(1, 10))
    file.unlink()
    assert_same(read_latest(folder), draw(1, 10))

    file.write_bytes(damages[5])
    (tmp_path / "snapshots" / draw(1, 10).name / TENSORS).write_bytes(b"")
    with pytest.raises(DataError, match="snapshots: every snapshot is damaged; restore the folder"):
        read_latest(folder)


@pytest.mark.parametrize("key", ["task", "step", "seconds"])
def test_changed_state_is_never_read(tmp_path, key):
    """must detect a change that leaves valid JSON"""
    write(str(tmp_path), draw(1, 10), draw(1, 20))
    file = tmp_path / draw(1, 20).name / "state.json"
    content = json.loads(file.read_text())
    content["state"][key] = 3
    file.write_text(json.dumps(content))
    assert_same(read_latest(str(tmp_path)), draw(1, 10))


def test_snapshot_of_another_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr("pipeline.output.snapshots.SCHEMA", 99)
        write(str(tmp_path), draw(0, 1))
    with pytest.raises(DataError, match="has schema 99, this version reads 1; finish the run with"):
        read_latest(str(tmp_path))


class Died(BaseException):
    """The process ended here, without any handler."""


@pytest.fixture
def dies_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``dies_before(n)``: from now on the process dies before its ``n + 1``-th change of a file."""
    changes = {name: getattr(storage, name) for name in ("write_atomically", "remove")}

    def limit(count: int) -> None:
        left = [count]

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def attempt(*arguments: Any, **options: Any) -> Any:
                if not left[0]:
                    raise Died
                left[0] -= 1
                return change(*arguments, **options)

            return attempt

        for name, change in changes.items():
            monkeypatch.setattr(storage, name, counted(change))

    return limit


HISTORIES = {
    "first": ([], draw(0, 0)),
    "third": ([draw(0, 1), draw(0, 2)], draw(0, 3)),
    "same again": ([draw(0, 1)], draw(0, 1)),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_writer_that_dies_anywhere_leaves_a_valid_snapshot(tmp_path, dies_before, history):
    """must leave the newest valid snapshot until the new one is complete"""
    before, new = HISTORIES[history]
    died = 0
    while died >= 0:
        folder = str(tmp_path / str(died))
        dies_before(1000)
        write(folder, *before)
        dies_before(died)
        try:
            write(folder, new)
            died = -1
        except Died:
            found, died = read_latest(folder), died + 1
            if before or found:
                assert_same(found, new if found.name == new.name else before[-1])
        dies_before(1000)
        write(folder, new)  # the next start takes the snapshot again
        assert_same(read_latest(folder), new)
        assert len(names(folder)) <= 2


def test_marker_is_written_last(tmp_path, dies_before):
    for count, written in ((1, set()), (2, {TENSORS}), (3, {TENSORS, "state.json"})):
        folder = tmp_path / str(count)
        dies_before(count)  # the first change removes the marker, which does not exist yet
        try:
            write(str(folder), draw(0, 1))
        except Died:
            assert count < 3
        assert {file.name for file in folder.rglob("*.*")} == written
        assert (read_latest(str(folder)) is not None) == (count == 3)


def test_damaged_snapshot_is_replaced_without_a_trace(tmp_path):
    """must also delete the partial files of a killed writer"""
    folder = str(tmp_path)
    write(folder, draw(0, 1), draw(0, 2))
    (tmp_path / draw(0, 2).name / TENSORS).write_bytes(b"torn")
    (tmp_path / "task-000-step-000009").mkdir()
    (tmp_path / "task-000-step-000009" / ".tensors.safetensors.x.part").write_bytes(b"half")
    write(folder, draw(0, 2))
    assert_same(read_latest(folder), draw(0, 2))
    assert names(folder) == {draw(0, 1).name, draw(0, 2).name}
    assert len(list(tmp_path.iterdir())) == 2


def test_later_changes_do_not_reach_a_snapshot(tmp_path):
    """must hold although the file is written in the background, while training continues"""
    prompt, hashes = torch.ones(3), ["a"]
    snapshot = Snapshot.take(0, 1, {"learned": {"prompt": prompt}}, {"hashes": hashes})
    prompt.zero_()
    hashes.append("b")
    write(str(tmp_path), snapshot)
    found = read_latest(str(tmp_path))
    assert found.group("learned")["prompt"].equal(torch.ones(3))
    assert found.state["hashes"] == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_snapshot_of_values_that_are_not_finite_is_refused(value):
    prompt = torch.zeros(2, 3)
    prompt[1, 2] = value
    words = r"task 2, step 7: learned/prompt holds values that are not finite; no snapshot was"
    with pytest.raises(DivergenceError, match=words):
        Snapshot.take(1, 7, {"learned": {"prompt": prompt}}, {})


def test_first_files_are_complete_before_the_snapshot(tmp_path, dies_before):
    writer, url = SnapshotWriter(str(tmp_path / "snapshots")), str(tmp_path / "metrics.jsonl")
    dies_before(1)
    writer.write(draw(0, 1), files_first={url: b"a line\n"})
    with pytest.raises(Died):
        writer.wait()
    assert storage.read_bytes(url) == b"a line\n"
    assert read_latest(str(tmp_path / "snapshots")) is None


def test_failed_write_is_raised_at_the_next_write(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    writer = SnapshotWriter(str(tmp_path / "file" / "snapshots"))
    writer.write(draw(0, 1), files_first={})
    with pytest.raises(StorageError, match="cannot write .*file/snapshots"):
        writer.write(draw(0, 2), files_first={})
    writer.wait()  # an error is raised once
    writer.close()


def test_start_that_was_taken_over_writes_no_snapshot(tmp_path):
    """must write neither the snapshot nor the files before it"""
    owner, url = Ownership(str(tmp_path)), str(tmp_path / "metrics.jsonl")
    owner.take()
    writer = SnapshotWriter(str(tmp_path), owner.raise_if_taken_over)
    writer.write(draw(0, 1), files_first={})
    writer.wait()
    Ownership(str(tmp_path)).take()
    writer.write(draw(0, 2), files_first={url: b"a line\n"})
    with pytest.raises(TakenOverError):
        writer.wait()
    writer.close()
    assert_same(read_latest(str(tmp_path)), draw(0, 1))
    assert not storage.exists(url)


def error_of(world: World, arch: str, index: str, folder: Path, every_steps: int) -> str:
    """The error of a rank in a run whose snapshots cannot be written."""
    snapshot = {"folder": str(folder / "full" / "snapshots"), "every_steps": every_steps}
    write_atomically = storage.write_atomically

    def write_or_fail(url: str, data: bytes) -> None:
        if "full/snapshots" in url:
            raise StorageError(f"cannot write {url}: no space")
        write_atomically(url, data)

    config = build_config(
        arch, index, output=str(folder / "run"), method={"name": "finetune"}, snapshot=snapshot
    )
    with patch.object(storage, "write_atomically", write_or_fail):
        with pytest.raises(StorageError) as caught:
            execute(check_run(config, world.world_size), world)
    return str(caught.value)


@pytest.mark.parametrize("every_steps", [2, 1000], ids=["in training", "at the end of a task"])
def test_failed_write_ends_every_rank(tiny_arch, tiny_shards, tmp_path, every_steps):
    """must not leave the other ranks waiting for the rank that writes"""
    answers = run_ranks(
        error_of, 2, tiny_arch, tiny_shards, tmp_path, every_steps, collective_s=None
    )
    assert answers[0] == answers[1]
    assert "rank 0: cannot write" in answers[0] and "full/snapshots" in answers[0]


def test_tensors_keep_their_type_and_shape(tmp_path):
    tensors: dict[str, Tensor] = {
        "half": torch.ones(2, dtype=torch.bfloat16),
        "double": torch.full((2, 2), 1 / 3, dtype=torch.float64),
        "view": torch.arange(6.0).view(2, 3).T,
    }
    snapshot = Snapshot.take(0, 1, {"learned": tensors}, {})
    write(str(tmp_path), snapshot)
    assert_same(read_latest(str(tmp_path)), snapshot)
