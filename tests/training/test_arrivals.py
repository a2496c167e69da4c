"""A finished run is given more classes and goes on from its last task: the stream never ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config import Config, dump_config
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.output.recovery import snapshot_folder
from pipeline.output.results import read_results
from pipeline.train import main
from tests.interruptions import StopAt, changed, dying_before_step, outcome, start
from tests.shards import CLASSES, draw_samples, overwrite_byte, store
from tests.tiny import build_config
from tests.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("one_clip")

VT = VARIANTS["anchors kept as learned"].model_dump()


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """The command sets up the log of its process, which here is the tests'."""
    package = logging.getLogger("pipeline")
    before = package.handlers[:], package.propagate, package.level
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


@dataclass(frozen=True)
class Arrival:
    """A run over the first three tasks, finished, and the one that has all five."""

    first: Config
    both: Config

    def task_files(self) -> dict[str, bytes]:
        """What each task of the run has learned."""
        folder = Path(self.first.output) / "tasks"
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def late_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five further classes, prepared by themselves."""
    folder = tmp_path_factory.mktemp("late")
    store(str(folder), draw_samples())
    return str(folder)


@pytest.fixture
def arrival(tiny_arch: str, tiny_shards: str, late_shards: str, tmp_path: Path) -> Arrival:
    first = build_config(
        tiny_arch, tiny_shards, output=str(tmp_path / "run"), method=VT,
        tasks={"class_order": "lamda"}, optim={"epochs": 1},
    )  # fmt: skip
    assert start(first)
    return Arrival(first, changed(first, data={"index": [tiny_shards, late_shards]}))


def test_classes_that_arrive_later_are_learned_as_if_known_from_the_start(arrival):
    """must touch nothing that was learned, and equal in all the run that had them from the start"""
    before = arrival.task_files()
    assert len(before) == 3
    first_rows = read_results(arrival.first.output).content()["accuracy_matrix"]

    with dying_before_step([5, 5, 2], 3):  # no step of a finished task is taken again
        assert start(arrival.both)
    after = arrival.task_files()
    assert [*after] == [f"task-{task:03d}.safetensors" for task in range(5)]
    assert {name: after[name] for name in before} == before

    results = read_results(arrival.both.output).content()
    assert results["status"] == "finished"
    assert [row[:3] for row in results["accuracy_matrix"][:3]] == first_rows
    assert {name for names in results["tasks"][3:] for name in names} == {*CLASSES}
    at_once = changed(arrival.both, output=f"{arrival.both.output}-at-once")
    assert start(at_once)
    outcome(arrival.both.output).assert_equals(outcome(at_once.output))


def test_prompts_that_are_tuned_on_go_on_from_where_they_were(
    tiny_arch, tiny_shards, late_shards, tmp_path
):
    """must hold where one tensor is learned by all tasks: each task's file keeps its own version"""
    first = build_config(
        tiny_arch, tiny_shards, output=str(tmp_path / "run"),
        method=VARIANTS["shared and tuned"].model_dump(), optim={"epochs": 1},
        tasks={"class_order": "natural"},
    )  # fmt: skip
    assert start(first)
    both = changed(first, data={"index": [tiny_shards, late_shards]})
    assert start(both)
    at_once = changed(both, output=str(tmp_path / "at-once"))
    assert start(at_once)
    outcome(both.output).assert_equals(outcome(at_once.output))


def test_later_tasks_can_be_interrupted_like_any(arrival):
    before = arrival.task_files()
    assert not start(arrival.both, StopAt(5))  # in the frozen features or before the first step
    assert not start(arrival.both, StopAt(9))
    assert start(arrival.both)
    assert {name: arrival.task_files()[name] for name in before} == before
    at_once = changed(arrival.both, output=f"{arrival.both.output}-at-once")
    assert start(at_once)
    outcome(arrival.both.output).assert_equals(outcome(at_once.output))


def test_higher_limit_goes_on_too(tiny_arch, tiny_shards, tmp_path):
    sections = {"method": VT, "optim": {"epochs": 1}}
    whole = build_config(tiny_arch, tiny_shards, output=str(tmp_path / "whole"), **sections)
    assert start(whole)
    for limit in (1, 2, None):
        config = changed(whole, output=str(tmp_path / "run"), tasks={"limit": limit})
        assert start(config)
        assert len(read_results(config.output).content()["accuracy_matrix"]) == (limit or 3)
    outcome(config.output).assert_equals(outcome(whole.output))


def test_command_goes_on_and_then_says_that_all_is_done(arrival, capsys, tmp_path):
    """must need nothing but the longer list in the same configuration"""
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(arrival.first))
    index = "data.index=[{}, {}]".format(*arrival.both.data.index)
    done = f"{arrival.first.output} is finished already: nothing to do\n"

    assert main(["--config", str(file)]) == 0 and capsys.readouterr().out == done
    assert main(["--config", str(file), index]) == 0 and capsys.readouterr().out == ""
    assert len(read_results(arrival.first.output).content()["tasks"]) == 5
    before = {f: f.stat().st_mtime_ns for f in Path(arrival.first.output).rglob("*")}
    assert main(["--config", str(file), index]) == 0 and capsys.readouterr().out == done
    assert {f: f.stat().st_mtime_ns for f in Path(arrival.first.output).rglob("*")} == before

    assert main(["--config", str(file)]) == 2  # what was learned is not forgotten again
    assert "it has begun 5 tasks, and these settings make 3" in capsys.readouterr().err


def test_index_that_was_learned_must_not_change(arrival, tiny_shards, late_shards, tmp_path):
    """must refuse another picture in an old class, and indexes in another order"""
    swapped = changed(arrival.both, data={"index": [late_shards, tiny_shards]})
    with pytest.raises(ConfigError, match="another run: the classes or their order differ in"):
        start(swapped)

    old = tmp_path / "old"
    store(str(old), draw_samples())
    config = changed(
        arrival.first, output=str(tmp_path / "old-run"), data={"index": str(old)},
        tasks={"class_order": "natural"},
    )  # fmt: skip
    assert start(config)
    store(str(old), draw_samples(data_seed=1))  # the same names and numbers of other pictures
    with pytest.raises(ConfigError, match="the pictures of task 1 are not those it was run with"):
        start(changed(config, data={"index": [str(old), tiny_shards]}))


def test_class_that_comes_twice_is_refused(arrival, tiny_shards):
    twice = changed(arrival.first, data={"index": [tiny_shards, tiny_shards]})
    with pytest.raises(DataError, match="class 'bell' is in more than one index; an appended"):
        start(twice)


def test_what_was_learned_is_needed_as_it_was(arrival):
    """must refuse a tensor file that was changed or is missing, not learn on from something else"""
    file = Path(arrival.first.output) / "tasks" / "task-001.safetensors"
    whole = file.read_bytes()
    overwrite_byte(str(file), len(whole) - 3)
    with pytest.raises(DataError, match="task-001.safetensors: is not the file that the run wrote"):
        start(arrival.both)
    file.unlink()
    with pytest.raises(StorageError, match="task-001.safetensors: there is no such file"):
        start(arrival.both)
    file.write_bytes(whole)
    metrics = Path(arrival.first.output) / "metrics.jsonl"
    metrics.write_text("".join(f"{line}\n" for line in metrics.read_text().splitlines()[:-2]))
    with pytest.raises(DataError, match=r"metrics.jsonl: holds \d+ lines, not the \d+ that it"):
        start(arrival.both)


def test_learned_tasks_are_not_overwritten_because_snapshots_are_missing(arrival, tmp_path):
    """must refuse to begin again where something was learned"""
    elsewhere = changed(arrival.both, snapshot={"folder": str(tmp_path / "elsewhere")})
    words = "run holds 3 learned tasks, and no snapshot lies in .*elsewhere; set snapshot.folder to"
    with pytest.raises(ConfigError, match=words):
        start(elsewhere)
    Path(snapshot_folder(arrival.first)).rename(tmp_path / "elsewhere")
    assert start(elsewhere)
