"""Untrusted files of a run are refused with a sentence; none is run.

Their hashes are right: damage of disks and networks is in ``test_snapshots``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.output.learned import load_method, read_learned
from pipeline.output.recovery import recover, snapshot_folder
from pipeline.output.results import read_results
from pipeline.output.snapshots import read_latest
from tests.fuzz import count_refused
from tests.interruptions import StopAt, changed, newest_snapshot, start
from tests.tiny import build_config
from tests.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("one_clip")

WIDTH = 19  # of the embeddings of the tiny CLIP
VT = VARIANTS["anchors kept as learned"].model_dump()
BIG = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}})


@pytest.fixture(scope="module")
def half_way(tiny_arch, tiny_shards, tmp_path_factory) -> Config:
    """A run that was stopped in its second task."""
    output = str(tmp_path_factory.mktemp("half") / "run")
    config = build_config(tiny_arch, tiny_shards, output=output, method=VT, optim={"epochs": 1})
    assert not start(config, StopAt(15))
    assert "task-001-step-000000" < newest_snapshot(config) < "task-002"
    return config


@pytest.fixture
def interrupted(half_way: Config, tmp_path: Path) -> Config:
    """A copy of that run."""
    shutil.copytree(half_way.output, tmp_path / "run")
    return changed(half_way, output=str(tmp_path / "run"))


Edit = Callable[[dict[str, Any], dict[str, Tensor]], object]


def only_marker(config: Config) -> Path:
    """The marker of the newest snapshot, after the other one was removed."""
    for marker in sorted(Path(snapshot_folder(config)).rglob("state.json")):
        if marker.parent.name != newest_snapshot(config):
            shutil.rmtree(marker.parent)
    (marker,) = Path(snapshot_folder(config)).rglob("state.json")
    return marker


def write_state(marker: Path, state: object) -> None:
    """Replace the state, with its right hash."""
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    marker.write_text(json.dumps({"sha256": digest, "state": state}))


def rewrite(config: Config, edit: Edit) -> None:
    """Change state and tensors of the newest snapshot, and make its hashes right again."""
    marker = only_marker(config)
    file = marker.with_name("tensors.safetensors")
    state, tensors = json.loads(marker.read_text())["state"], load_file(file)
    edit(state, tensors)
    file.write_bytes(save(tensors))
    state["tensors_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    write_state(marker, state)


def first(tensors: dict[str, Tensor], group: str) -> str:
    return next(name for name in sorted(tensors) if name.startswith(f"{group}/"))


def put(group: str, tensor: Tensor) -> Edit:
    """Replace the first tensor of a group."""
    return lambda state, tensors: tensors.update({first(tensors, group): tensor})


HOSTILE: dict[str, tuple[Edit, str]] = {
    "NaN": (put("learned", torch.full((3,), torch.nan)), "every snapshot is damaged"),
    "another shape": (put("learned", torch.zeros(3)), r"the stored tensor .* has shape \[3\]"),
    "a shape that fits by repetition": (put("learned", torch.zeros(1)), "has shape .1."),
    "another type": (put("learned", torch.zeros(1, dtype=torch.int64)), "of torch.int64"),
    "moments of another shape": (put("moments", torch.zeros(3)), "stored optimizer state"),
    "a moment less": (lambda s, t: t.pop(first(t, "moments")), "stored optimizer state"),
    "a path as a name": (
        lambda s, t: t.update({"moments/../../evil": torch.zeros(1)}),
        "stored optimizer state ../../evil",
    ),
    "means of no class": (put("class_means", torch.zeros(0, WIDTH)), "class_means of task 1 has"),
    "means of another width": (put("class_means", torch.zeros(2, 7)), "class_means of task 1 has"),
    "means of whole numbers": (
        put("class_means", torch.zeros(2, WIDTH, dtype=torch.int64)),
        "class_means of task 1 has",
    ),
    "no means": (lambda s, t: t.pop(first(t, "class_means")), "does not record 1 learned tasks"),
    "another position": (lambda s, t: s.update(step=999), "every snapshot is damaged"),
    "a position of text": (lambda s, t: s.update(step="../.."), "every snapshot is damaged"),
    "no schema": (lambda s, t: s.pop("schema"), "has schema None, this version reads 1"),
    "no identity": (lambda s, t: s.pop("identity"), "its state is damaged .identity: "),
    "identity without a method": (
        lambda s, t: s["identity"]["settings"].pop("method"),
        "its state is damaged .identity.settings.method: ",
    ),
    "no results": (lambda s, t: s.update(results=[]), "its state is damaged .results: "),
    "stage without counts": (
        lambda s, t: s["results"]["stages"][0].pop("correct"),
        "its state is damaged .results.stages.0.correct: ",
    ),
    "a path as a hash": (
        lambda s, t: s.update(learned_sha256=["../../evil"]),
        "its state is damaged .learned_sha256.0: ",
    ),
    "hashes of more tasks": (
        lambda s, t: s.update(learned_sha256=["0" * 64] * 3),
        "does not record 1 learned tasks",
    ),
    "hash of another file": (
        lambda s, t: s.update(learned_sha256=["0" * 64]),
        "task-000.safetensors: is not the file that the run wrote",
    ),
    "a sample that is no number": (
        lambda s, t: s.update(skipped_samples={"x": {}}),
        "its state is damaged .skipped_samples.x.*: ",
    ),
    "lines below zero": (lambda s, t: s.update(metrics_lines=-1), "damaged .metrics_lines: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_snapshot_of_somebody_else_is_refused(interrupted, name):
    edit, words = HOSTILE[name]
    rewrite(interrupted, edit)
    before = {f: f.read_bytes() for f in (Path(interrupted.output) / "tasks").iterdir()}
    with pytest.raises(PipelineError, match=words) as refused:
        start(interrupted)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    assert {f: f.read_bytes() for f in (Path(interrupted.output) / "tasks").iterdir()} == before


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b"\xff", b"[]", b'{"sha256": 1, "state": NaN}', b'{"state": {}}'],
)
def test_marker_that_is_no_state_is_refused(interrupted, content):
    for marker in Path(snapshot_folder(interrupted)).rglob("state.json"):
        marker.write_bytes(content)
    with pytest.raises(PipelineError, match="every snapshot is damaged"):
        start(interrupted)


def as_file(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a safetensors file"),
        (as_file(BIG), "is not a safetensors file"),
        (as_file("[" * 99_999), "is not a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{", "is not a safetensors file"),
        (save({"../../evil": torch.full((2,), torch.inf)}), "'../../evil' holds values that are"),
    ],
    ids=["empty", "10^9 elements", "deep", "long header", "infinite"],
)
def test_task_file_of_somebody_else_is_refused(tmp_path, content, words):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task-000.safetensors").write_bytes(content)
    for sha256 in (None, hashlib.sha256(content).hexdigest()):
        with pytest.raises(PipelineError, match=words):
            read_learned(str(tmp_path), 0, sha256)


def edit_results(config: Config, edit: Callable[[dict[str, Any]], object]) -> None:
    file = Path(config.output) / "results.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


RESULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more rows than tasks": (
        lambda r: r.update(accuracy_matrix=[[0.5]] * 9),
        "not those of 9 learned of 3 tasks",
    ),
    "impossible counts": (lambda r: r["counts"].update(correct=[[10**9]]), "are not possible"),
    "counts of other tasks": (lambda r: r["counts"].update(correct=[[1, 2]]), "of 1 tasks"),
    "another class order": (lambda r: r["manifest"].update(class_order=[]), "class_order has an"),
    "a number as text": (lambda r: r.update(forgetting="much"), "forgetting: Input should be"),
    "more hashes": (lambda r: r.update(learned_sha256=[None] * 7), "learned_sha256 has more"),
    "identity without settings": (
        lambda r: r["manifest"]["identity"].pop("settings"),
        "manifest.identity is damaged .settings: Field required",
    ),
    "tasks that are numbers": (lambda r: r.update(tasks=7), "tasks: Input should be a valid array"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_somebody_else_are_refused(interrupted, name):
    edit, words = RESULTS[name]
    edit_results(interrupted, edit)
    with pytest.raises(PipelineError, match=words):
        start(interrupted)


def test_configuration_of_somebody_else_is_refused(interrupted):
    edit_results(interrupted, lambda r: r["manifest"]["config"].update(optim={"epochs": "many"}))
    with pytest.raises(PipelineError, match=r"manifest.config: optim.epochs: .*found 'many'"):
        load_method(interrupted.output)


def test_tensor_of_another_shape_is_refused_when_a_method_is_loaded(interrupted):
    file = Path(interrupted.output) / "tasks" / "task-000.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file(tensors | {name: torch.zeros(10, 10, 10)}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit_results(interrupted, lambda r: r.update(learned_sha256=[digest]))
    with pytest.raises(PipelineError, match=r"the stored tensor .* has shape \[10, 10, 10\]"):
        load_method(interrupted.output)


@pytest.mark.parametrize("content", ["[" * 100_000, "", "\x00", '{"schema": 1e999}', "[]"])
def test_text_that_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(PipelineError, match="does not hold results of schema 2"):
        read_results(str(tmp_path))


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "results.json"])
def test_damaged_bytes_end_in_a_sentence_or_a_value(interrupted, name):
    """must raise nothing but a PipelineError, whatever the bytes of the file are"""
    only_marker(interrupted)
    file = next(Path(interrupted.output).rglob(name))

    def read(data: bytes) -> None:
        file.write_bytes(data)
        if name == "results.json":
            read_results(interrupted.output)
        else:
            read_latest(snapshot_folder(interrupted))

    assert count_refused(name, file.read_bytes(), read, default=60, seed=7)


@pytest.mark.parametrize("name", ["state", "tensors"])
def test_damaged_snapshot_with_right_hashes_ends_in_a_sentence_or_a_value(interrupted, name):
    """must be checked beyond the hashes, which an attacker can make right"""
    marker = only_marker(interrupted)
    file = marker.with_name("tensors.safetensors")
    tensors, state = file.read_bytes(), json.loads(marker.read_text())["state"]

    def read(data: bytes) -> None:
        changed = state
        if name == "tensors":
            file.write_bytes(data)
            changed = state | {"tensors_sha256": hashlib.sha256(data).hexdigest()}
        else:
            try:
                changed = json.loads(data)
            except ValueError:
                changed = data.decode(errors="replace")
        write_state(marker, changed)
        recovered = recover(interrupted, state["identity"])
        assert recovered is not None
        recovered.class_means(WIDTH)

    good = tensors if name == "tensors" else json.dumps(state).encode()
    assert count_refused(f"{name} with right hashes", good, read, default=60)


def test_damaged_task_file_of_unknown_hash_ends_in_a_sentence_or_a_value(interrupted):
    file = Path(interrupted.output) / "tasks" / "task-000.safetensors"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        assert read_learned(interrupted.output, 0, None) is not None

    assert count_refused("task file", file.read_bytes(), read, default=60, seed=8)
