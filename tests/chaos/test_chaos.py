"""Random harm is the same for the same seed, no harm is overlooked, and none changes a run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import storage
from pipeline.config import load_config
from pipeline.data.prepare.copying import copy_data_set
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.log import setup_logging
from pipeline.training.progress import Display, StepReport
from pipeline.training.run import check_run, execute
from tests.chaos.__main__ import main
from tests.chaos.comparison import differences, read_findings
from tests.chaos.faults import KINDS, STORAGE, draw_harms
from tests.chaos.processes import Start, send
from tests.chaos.report import total
from tests.chaos.rounds import Reference, Round, Setup, run_undisturbed, unfinished
from tests.chaos.tcp_relay import Gate
from tests.chaos.timeline import LogFollower, Position, Timeline
from tests.services.object_store import Bucket

LOCAL = [kind for kind in KINDS if kind != STORAGE]


# --- the choice ---------------------------------------------------------------------------------


def test_round_is_drawn_from_its_number_and_the_seed_alone():
    forward = [draw_harms(3, number, LOCAL) for number in range(1, 60)]
    backward = [draw_harms(3, number, LOCAL) for number in reversed(range(1, 60))]
    assert forward == backward[::-1]
    assert forward != [draw_harms(4, number, LOCAL) for number in range(1, 60)]
    assert len(set(forward)) == len(forward)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_as_many_rounds_as_kinds_see_every_kind(seed):
    kinds = list(KINDS)
    for cycle in range(3):
        numbers = range(1 + cycle * len(kinds), 1 + (cycle + 1) * len(kinds))
        seen = {harm.kind for number in numbers for harm in draw_harms(seed, number, kinds)}
        assert seen == set(kinds)


def test_harms_of_a_round_follow_the_course_of_the_run():
    rounds = [draw_harms(1, number, LOCAL) for number in range(1, 200)]
    assert {len(harms) for harms in rounds} == {1, 2, 3}
    for harms in rounds:
        places = [harm.place for harm in harms]
        assert places == sorted(places)
        for harm in harms:
            kind = KINDS[harm.kind]
            assert harm.victim in kind.victims and harm.moment in kind.moments
            assert harm.signal in kind.signals


# --- the comparison -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_run_config: Path, tmp_path_factory) -> Path:
    """The output of the tiny run."""
    output = tmp_path_factory.mktemp("finished") / "run"
    config = load_config(tiny_run_config, [f"output={output}", "optim.epochs=1"])
    world = World(0, 1, 0, torch.device("cpu"))
    local_rank = os.environ.get("LOCAL_RANK")
    execute(check_run(config, 1), world)
    if local_rank is None:
        os.environ.pop("LOCAL_RANK", None)
    return output


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that output, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def edit_results(output: Path, edit: Callable[[dict], None]) -> None:
    file = output / "results.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def compare(output: Path, wanted: Path) -> list[str]:
    return differences(read_findings(str(output)), read_findings(str(wanted)))


def test_run_that_only_took_longer_is_no_other(copied, finished):
    def slow_down(content):
        content["images_per_second"] = 0.001
        content["diagnostics"][1] |= {"train_seconds": 1e6, "test_seconds": 1e6}
        content["manifest"]["world_size"] = 64

    edit_results(copied, slow_down)
    file = copied / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    slow = [line | {"images_per_second": 0.1} if "loss" in line else line for line in lines]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in slow))
    assert any("loss" in line for line in lines)
    assert compare(copied, finished) == []


def test_every_single_bit_of_a_learned_tensor_counts(copied, finished):
    """must be told even from a value that compares as equal: 0.0 and -0.0"""
    file = copied / "tasks" / "task-001.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    tensors[name].view(-1)[3] = 0.0
    save_file(tensors, file)
    positive = read_findings(str(copied))
    tensors[name].view(-1)[3] = -0.0
    save_file(tensors, file)
    complaint = f"task-001.safetensors: {name} has other values"
    assert differences(read_findings(str(copied)), positive) == [complaint]
    assert compare(copied, finished) == [complaint]


def test_missing_and_surplus_tasks_and_tensors_are_named(copied, finished):
    tensors = load_file(copied / "tasks" / "task-000.safetensors")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors | {"surplus": torch.zeros(2)}, copied / "tasks" / "task-000.safetensors")
    (copied / "tasks" / "task-002.safetensors").rename(copied / "tasks" / "task-003.safetensors")
    assert sorted(compare(copied, finished)) == sorted(
        [
            f"task-000.safetensors: {lost} is missing",
            "task-000.safetensors: surplus is not wanted",
            "task-002.safetensors: missing",
            "task-003.safetensors: not wanted",
        ]
    )


@pytest.mark.parametrize(
    "key, edit",
    [
        ("accuracy_matrix", lambda content: content["accuracy_matrix"][2].__setitem__(0, 0.123)),
        ("diagnostics", lambda content: content["diagnostics"][1].update(modality_gap=0.5)),
        ("skipped_samples", lambda content: content["skipped_samples"].append({"key": "n1/3"})),
    ],
)
def test_another_result_is_named(copied, finished, key, edit):
    edit_results(copied, edit)
    (complaint,) = compare(copied, finished)
    assert complaint.startswith(f"results.json: {key} is ")


def test_lost_and_repeated_steps_are_named(copied, finished):
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join([*lines[:2], lines[1], *lines[2:]]))
    length, line = compare(copied, finished)
    assert length == f"metrics.jsonl: {len(lines) + 1} lines, wanted {len(lines)}"
    assert line.startswith("metrics.jsonl: line 3 is ")


def test_run_that_has_not_finished_cannot_pass(copied):
    edit_results(copied, lambda content: content.update(status="running"))
    with pytest.raises(DataError, match="holds a run that is running; wanted a finished run"):
        read_findings(str(copied))
    (copied / "results.json").unlink()
    with pytest.raises(DataError, match=r"holds no results\.json; wanted a finished run"):
        read_findings(str(copied))


def test_torn_learned_tensor_is_refused(copied):
    file = copied / "tasks" / "task-000.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match="cannot be understood"):
        read_findings(str(copied))


# --- where a run stands -------------------------------------------------------------------------


@pytest.fixture
def run_log(tmp_path: Path) -> Iterator[Path]:
    """A file that receives what a rank logs, as its launcher has it written."""
    log = tmp_path / "start.log"
    package = logging.getLogger("pipeline")
    kept = package.handlers[:], package.propagate, package.level
    setup_logging(0)
    handler = logging.FileHandler(log)  # pytest gives each phase of a test another stderr
    handler.setFormatter(package.handlers[0].formatter)
    package.handlers[:] = [handler]
    yield log
    handler.close()
    package.handlers[:], package.propagate = kept[:2]
    package.setLevel(kept[2])


def test_position_follows_what_the_run_shows(run_log):
    follower, display = LogFollower(run_log), Display(n_tasks=3, n_epochs=2, shown=True)
    display.expect(30)
    assert follower.position == Position(0, 0)
    display.step(StepReport(0, 0, 0, 1.0, 1e-3, 10.0, 0.1), done=1, task_steps=10)
    assert follower.position == Position(0, 1)
    display.step(StepReport(0, 1, 9, 1.0, 1e-3, 10.0, 0.1), done=10, task_steps=10)
    assert follower.position == Position(0, 10)
    assert follower.n_steps == 2
    display.scored(0, 0.5, [0.5])
    assert follower.position == Position(1, 0)


def test_tasks_that_a_start_only_repeats_do_not_count_as_passed(run_log):
    """must not take the table that a resumed run shows first for the end of those tasks"""
    follower, display = LogFollower(run_log), Display(n_tasks=3, n_epochs=2, shown=True)
    display.scored(0, 0.5, [0.5])
    display.scored(1, 0.5, [0.5, 0.5])
    assert follower.position == Position(0, 0)
    logging.getLogger("pipeline.training.trainer").info("going on at task %d, step %d", 3, 8)
    assert follower.position == Position(2, 7)
    assert follower.n_steps == 0
    display.scored(2, 0.5, [0.5, 0.5, 0.5])
    assert follower.position == Position(3, 0)


def test_fractions_reach_every_step_and_no_other():
    course = Timeline((2, 0, 3), (1.0, 1.0, 1.0), seconds=9.0, startup_seconds=1.0)
    places = [course.place(number / 100) for number in range(100)]
    assert sorted(set(places)) == [(0, 1), (0, 2), (2, 1), (2, 2), (2, 3)]
    assert places == sorted(places)
    assert [p for p in places if course.is_tested(p)][0] == (0, 2)


def test_half_written_snapshots_are_told_from_whole_ones(tmp_path):
    whole, half = tmp_path / "task-000-step-000003", tmp_path / "task-000-step-000006"
    for folder in (whole, half):
        folder.mkdir()
        (folder / "tensors.safetensors").touch()
    (whole / "state.json").touch()
    assert [Path(url).parent.name for url in unfinished(str(tmp_path))] == [half.name]
    (half / "state.json").touch()
    assert unfinished(str(tmp_path)) == set()
    (whole / ".state.json.x.part").touch()
    assert len(unfinished(str(tmp_path))) == 1


# --- processes ----------------------------------------------------------------------------------

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
if sys.argv[1] == "waits":
    child.wait()
"""  # noqa: E501


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """Starts a command that has nothing left afterwards."""
    started = []

    def begin(*command: str) -> Start:
        log = tmp_path / f"{len(started)}.log"
        started.append(Start(command, environment={"PATH": os.environ["PATH"]}, log=log))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


def test_process_that_outlives_its_command_is_found_and_killed(start):
    command = start(sys.executable, "-c", PARENT, "leaves")
    other = start("sleep", "600")
    assert command.wait(60) == 0
    (orphan,) = command.wait_until_left(0.5)
    assert orphan.pid not in (os.getpid(), command._front.pid)
    command.kill()
    assert command.left() == []
    assert other.status is None


def test_command_with_its_children_is_killed_as_a_whole(start):
    command = start(sys.executable, "-c", PARENT, "waits")
    while "up" not in command.said:
        assert command.wait(0.1) is None
    assert len(command.left()) == 2
    command.kill()
    assert command.status == -signal.SIGKILL and command.left() == []


def test_signal_to_a_process_that_has_gone_is_no_fault(start):
    command = start("true")
    (front,) = command.launcher() or [command._front]
    command.wait(60)
    send([front], signal.SIGKILL)
    assert command.status == 0 and command.launcher() == []


@dataclass(frozen=True)
class Scripted(Setup):
    """Starts another command in the place of the training."""

    words: tuple[str, ...] = ()

    def start(self, name: str, number: int) -> Start:
        folder = self.logs / name
        folder.mkdir(exist_ok=True)
        environment = {"PATH": os.environ["PATH"]}
        return Start(self.words, environment=environment, log=folder / f"{number}.log")


@pytest.fixture
def scripted(tiny_run_config: Path, tmp_path: Path) -> Callable[..., Scripted]:
    config = load_config(tiny_run_config)
    return partial(Scripted, str(tiny_run_config), (), config, str(tmp_path), tmp_path, 2, None)


@pytest.fixture
def reference(finished: Path) -> Reference:
    course = Timeline((1, 1, 1), (0.0, 0.0, 0.0), seconds=1.0, startup_seconds=0.0)
    return Reference(course, read_findings(str(finished)), limit_s=0.2)


def test_start_that_never_ends_is_a_hang_and_no_equal_run(scripted, reference):
    harms = draw_harms(1, 1, ["SIGKILL one rank"])
    outcome = Round(scripted(("sleep", "600")), reference, 1, harms).run()
    assert outcome.statuses == [None] * 3 and outcome.hangs == 3 and not outcome.is_good
    assert "wanted a finished run" in outcome.differences[0]
    assert total([outcome]).hangs == 3


@pytest.mark.parametrize("status", [0, 1, 75])
def test_start_that_ends_too_early_by_itself_is_a_failure(scripted, reference, status):
    """must hold for status 0 as well, if the run has not finished"""
    setup = scripted(("sh", "-c", f"echo 'error: no idea'; exit {status}"))
    outcome = Round(setup, reference, 1, ()).run()
    assert outcome.failures[0] == f"start 1: status {status}: error: no idea"
    assert outcome.statuses == [status] * 3 and not outcome.is_good


def test_undisturbed_run_that_fails_is_the_end(scripted):
    """must be said at once: nothing could be compared with it"""
    with pytest.raises(DataError, match=r"ended with status 2; mend what .*1\.log says: error: no"):
        run_undisturbed(scripted(("sh", "-c", "echo 'error: no idea'; exit 2")))


# --- the gate -----------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that answers each connection's first bytes in upper case."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.sendall(client.recv(100).upper())

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"hello")
        return b"".join(iter(lambda: client.recv(100), b""))


def test_gate_passes_all_refuses_while_shut_and_passes_again(echo):
    with Gate("127.0.0.1", echo) as gate:
        assert ask(gate.port) == b"HELLO"
        with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as open_before:
            shutting = threading.Thread(target=gate.shut, args=(1.0,))
            shutting.start()
            assert open_before.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):
            ask(gate.port)
        shutting.join()
        assert ask(gate.port) == b"HELLO"
    with pytest.raises(ConnectionRefusedError):
        ask(gate.port)


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--harm", STORAGE], "needs data or output at s3://"),
        (["--ranks", "3"], "global_batch"),
        (["optim.epoch=1"], "did you mean 'epochs'?"),
        (["data.index=nowhere"], "nowhere"),
    ],
)
def test_impossible_task_is_refused_in_a_sentence(
    tiny_run_config, tmp_path, capsys, arguments, complaint
):
    output = tmp_path / "chaos"
    assert main(["--config", str(tiny_run_config), "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and complaint in error
    assert not output.exists()


def test_output_of_earlier_rounds_is_not_written_over(tiny_run_config, tmp_path, capsys):
    (tmp_path / "chaos.json").write_text("{}")
    assert main(["--config", str(tiny_run_config), "--output", str(tmp_path)]) == 2
    assert "is not empty; choose another, or remove it" in capsys.readouterr().err


def run_chaos(config: Path, output: str, report: Callable[[], str], *arguments: str) -> dict:
    """The content of ``chaos.json`` after rounds without any fault."""
    status = main(["--config", str(config), "--output", output, *arguments])
    content = json.loads(report())
    assert status == 0, json.dumps(content["rounds"], indent=1)
    sums = content["total"]
    assert not sums["differences"] and not sums["hangs"] and not sums["orphans"]
    return content


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_runs_end_as_the_undisturbed_run(tiny_run_config, tmp_path):
    """must hold for a writer that dies within a snapshot, and for a launcher that is lost"""
    output = tmp_path / "chaos"
    kinds = ("during a snapshot", "SIGKILL launcher")
    content = run_chaos(
        tiny_run_config,
        str(output),
        (output / "chaos.json").read_text,
        *(word for kind in kinds for word in ("--harm", kind)),
        *("--rounds", "2", "--seed", "16", "snapshot.every_steps=1"),  # a seed of one harm a round
    )
    assert content["kinds"]["during a snapshot"]["on_time"] == 1
    assert content["kinds"]["SIGKILL launcher"]["harms"] == 1
    assert content["total"]["restarts"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["launcher", "inner_launcher"])
def test_launcher_that_dies_before_its_ranks_look_for_it_takes_them_along(
    tiny_run_config, tmp_path, victim
):
    """must leave no run behind that no one could stop, though the ranks never saw their launcher"""
    config = load_config(tiny_run_config)
    setup = Setup(str(tiny_run_config), (), config, str(tmp_path), tmp_path, ranks=2)
    start = setup.start("run", 1)
    try:
        seen = start.inner_launcher if victim == "launcher" else start.ranks
        while not seen():
            assert start.wait(0.01) is None, start.said
        send(getattr(start, victim)(), signal.SIGKILL)
        assert start.wait_until_left(180) == []
    finally:
        start.kill()
    assert "step 1/" not in start.said
    assert not Path(setup.run_output("run"), "results.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_outlasts_a_storage_that_refuses(
    tiny_run_config, tiny_shards: str, bucket: Bucket, tmp_path
):
    """must go on by itself when data and output lie in an object store that is away for seconds"""
    index = copy_data_set(tiny_shards, f"{bucket.url}/shards").url
    output = f"{bucket.url}/chaos"
    content = run_chaos(
        tiny_run_config,
        output,
        lambda: storage.read_text(f"{output}/chaos.json"),
        *("--harm", STORAGE, "--rounds", "1", f"data.index={index}"),
    )
    assert content["kinds"][STORAGE]["harms"] == 1
    assert content["total"]["restarts"] == 0
