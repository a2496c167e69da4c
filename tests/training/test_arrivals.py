"""A finished run learns further classes from its last task on, as if known from the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config import Config, dump_config
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.output.recovery import snapshot_folder
from pipeline.output.results import read_results
from pipeline.train import main
from tests.chaos.comparison import read_run
from tests.interruptions import StopAt, changed, dying_before_step, start
from tests.shards import CLASSES, draw_samples, overwrite_byte, store
from tests.tiny import build_config
from tests.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("one_clip")

VT = VARIANTS["anchors kept as learned"].model_dump()


@dataclass(frozen=True)
class Extension:
    """A finished run over the first three tasks, and its extension to five tasks."""

    first: Config
    extended: Config

    def task_files(self) -> dict[str, bytes]:
        """The file of the learned tensors of each task."""
        folder = Path(self.first.output) / "tasks"
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def late_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second data set with five further classes."""
    folder = tmp_path_factory.mktemp("late")
    store(str(folder), draw_samples())
    return str(folder)


@pytest.fixture
def extension(tiny_arch: str, tiny_shards: str, late_shards: str, tmp_path: Path) -> Extension:
    first = build_config(
        tiny_arch, tiny_shards, output=str(tmp_path / "run"), method=VT,
        tasks={"class_order": "lamda"}, optim={"epochs": 1},
    )  # fmt: skip
    assert start(first)
    return Extension(first, changed(first, data={"index": [tiny_shards, late_shards]}))


def test_classes_that_arrive_later_are_learned_as_if_known_from_the_start(extension):
    """must change no learned tensor, and equal a run over all tasks in every figure"""
    before = extension.task_files()
    assert len(before) == 3
    first_rows = read_results(extension.first.output).content()["accuracy_matrix"]

    with dying_before_step([5, 5, 2], 3):  # finished tasks are not trained again
        assert start(extension.extended)
    after = extension.task_files()
    assert [*after] == [f"task-{task:03d}.safetensors" for task in range(5)]
    assert {name: after[name] for name in before} == before

    results = read_results(extension.extended.output).content()
    assert results["status"] == "finished"
    assert [row[:3] for row in results["accuracy_matrix"][:3]] == first_rows
    assert {name for names in results["tasks"][3:] for name in names} == {*CLASSES}
    at_once = changed(extension.extended, output=f"{extension.extended.output}-at-once")
    assert start(at_once)
    read_run(extension.extended.output).assert_equals(read_run(at_once.output))


def test_prompts_shared_by_all_tasks_continue_from_their_last_values(
    tiny_arch, tiny_shards, late_shards, tmp_path
):
    """must hold if all tasks train the same tensor: the file of each task keeps its version"""
    first = build_config(
        tiny_arch, tiny_shards, output=str(tmp_path / "run"),
        method=VARIANTS["shared and tuned"].model_dump(), optim={"epochs": 1},
        tasks={"class_order": "natural"},
    )  # fmt: skip
    assert start(first)
    extended = changed(first, data={"index": [tiny_shards, late_shards]})
    assert start(extended)
    at_once = changed(extended, output=str(tmp_path / "at-once"))
    assert start(at_once)
    read_run(extended.output).assert_equals(read_run(at_once.output))


def test_added_tasks_can_be_interrupted_too(extension):
    before = extension.task_files()
    # While frozen features are computed, or before the first step.
    assert not start(extension.extended, StopAt(5))
    assert not start(extension.extended, StopAt(9))
    assert start(extension.extended)
    assert {name: extension.task_files()[name] for name in before} == before
    at_once = changed(extension.extended, output=f"{extension.extended.output}-at-once")
    assert start(at_once)
    read_run(extension.extended.output).assert_equals(read_run(at_once.output))


def test_week_that_a_file_lists_becomes_one_task(extension, tiny_shards, late_shards, tmp_path):
    """must need no change of the command: the file with the indexes has grown"""
    file = tmp_path / "arrivals.yaml"
    file.write_text(f"- {tiny_shards}\n")
    config = changed(extension.first, data={"index": f"@{file}"}, tasks={"appended": "one_task"})
    assert start(config)
    before = extension.task_files()
    file.write_text(f"- {tiny_shards}\n- {late_shards}\n")
    assert start(config)
    after = extension.task_files()
    assert {name: after[name] for name in before} == before
    results = read_results(config.output).content()
    assert [len(names) for names in results["tasks"]] == [3, 3, 1, 5]
    at_once = changed(config, output=f"{config.output}-at-once")
    assert start(at_once)
    read_run(config.output).assert_equals(read_run(at_once.output))
    file.write_text(f"- {tiny_shards}\n")
    with pytest.raises(ConfigError, match="it has started 4 tasks, and these settings give 3"):
        start(config)


def test_higher_limit_of_tasks_continues_too(tiny_arch, tiny_shards, tmp_path):
    sections = {"method": VT, "optim": {"epochs": 1}}
    unlimited = build_config(tiny_arch, tiny_shards, output=str(tmp_path / "all"), **sections)
    assert start(unlimited)
    for limit in (1, 2, None):
        config = changed(unlimited, output=str(tmp_path / "run"), tasks={"limit": limit})
        assert start(config)
        assert len(read_results(config.output).content()["accuracy_matrix"]) == (limit or 3)
    read_run(config.output).assert_equals(read_run(unlimited.output))


def test_command_continues_and_then_reports_that_the_run_is_finished(extension, capsys, tmp_path):
    """must need no change of the configuration but the longer list of indexes"""
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(extension.first))
    index = "data.index=[{}, {}]".format(*extension.extended.data.index)
    done = f"{extension.first.output} is finished already: nothing to do\n"

    assert main(["--config", str(file)]) == 0 and capsys.readouterr().out == done
    assert main(["--config", str(file), index]) == 0 and capsys.readouterr().out == ""
    assert len(read_results(extension.first.output).content()["tasks"]) == 5
    before = {f: f.stat().st_mtime_ns for f in Path(extension.first.output).rglob("*")}
    assert main(["--config", str(file), index]) == 0 and capsys.readouterr().out == done
    assert {f: f.stat().st_mtime_ns for f in Path(extension.first.output).rglob("*")} == before

    assert main(["--config", str(file)]) == 2  # learned tasks cannot be removed
    error = capsys.readouterr().err
    assert "it has started 5 tasks, and these settings give 3; take data.index and tasks" in error
    last_start = str(Path(extension.first.output) / "config.yaml")  # the place that it names
    assert main(["--config", last_start]) == 0 and capsys.readouterr().out == done


def test_index_of_learned_tasks_must_not_change(extension, tiny_shards, late_shards, tmp_path):
    """must refuse other images in an old class, and the indexes in another order"""
    swapped = changed(extension.extended, data={"index": [late_shards, tiny_shards]})
    with pytest.raises(ConfigError, match="another run: the classes or their order differ in"):
        start(swapped)

    old = tmp_path / "old"
    store(str(old), draw_samples())
    config = changed(
        extension.first, output=str(tmp_path / "old-run"), data={"index": str(old)},
        tasks={"class_order": "natural"},
    )  # fmt: skip
    assert start(config)
    store(str(old), draw_samples(data_seed=1))  # the same keys and counts, other images
    with pytest.raises(ConfigError, match="the images of task 1 differ from those of the run"):
        start(changed(config, data={"index": [str(old), tiny_shards]}))


def test_class_in_two_indexes_is_refused(extension, tiny_shards):
    twice = changed(extension.first, data={"index": [tiny_shards, tiny_shards]})
    with pytest.raises(DataError, match="class 'red fox' is in more than one index; set tas"):
        start(twice)


def test_changed_or_missing_file_of_a_learned_task_is_refused(extension):
    """must hold for learned tensors and for the metrics"""
    file = Path(extension.first.output) / "tasks" / "task-001.safetensors"
    content = file.read_bytes()
    overwrite_byte(str(file), len(content) - 3)
    with pytest.raises(DataError, match="task-001.safetensors: is not the file that the run wrote"):
        start(extension.extended)
    file.unlink()
    with pytest.raises(StorageError, match="task-001.safetensors: there is no such file"):
        start(extension.extended)
    file.write_bytes(content)
    metrics = Path(extension.first.output) / "metrics.jsonl"
    metrics.write_text("".join(f"{line}\n" for line in metrics.read_text().splitlines()[:-2]))
    with pytest.raises(DataError, match=r"metrics.jsonl: has \d+ lines, and had \d+ when the"):
        start(extension.extended)


def test_learned_tasks_are_not_overwritten_because_snapshots_are_missing(extension, tmp_path):
    """must refuse to start from the beginning in an output with learned tasks"""
    elsewhere = changed(extension.extended, snapshot={"folder": str(tmp_path / "elsewhere")})
    words = "run holds 3 learned tasks, but no snapshot is in .*elsewhere; set snapshot.folder to"
    with pytest.raises(ConfigError, match=words):
        start(elsewhere)
    Path(snapshot_folder(extension.first)).rename(tmp_path / "elsewhere")
    assert start(elsewhere)
