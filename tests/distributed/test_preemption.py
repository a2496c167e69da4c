"""A run that a signal stops leaves a snapshot, no process, and status 75: start it again.

The runs are started as users start them. Signals go to one process or to many, as a person, a
batch system or a launcher sends them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config import Config, dump_config
from pipeline.distributed.preemption import STOP_SIGNALS, StopRequest, stop_signals_blocked
from pipeline.errors import Preempted
from pipeline.events import VARIABLE, read_events
from tests.chaos.comparison import RunContent, read_run
from tests.interruptions import changed, newest_snapshot, start_on_ranks
from tests.probes import Held
from tests.processes import command, left_after, marked
from tests.services.nodes import wait_until
from tests.services.object_store import free_ports
from tests.tiny import build_config
from tests.variants import VARIANTS

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "pipeline" / "train.py")
PROGRAMS = Path(sys.executable).parent
HELD = f"{Held.__module__}:{Held.__name__}"
MARK = "MARK_OF_THIS_RUN"
START_S = 200.0  # longest time for the start of two ranks on a busy machine


@pytest.fixture(scope="module")
def config(tiny_arch: str, tiny_shards: str) -> Config:
    """A run with loader workers that waits at a step, see :meth:`Command.begin`."""
    options = VARIANTS["anchors kept as learned"].options["tppt_vt"]
    return build_config(
        tiny_arch, tiny_shards, method={"name": HELD, "options": {HELD: options}},
        optim={"epochs": 8}, data={"workers": 1}, engine={"timeout_s": 10},
        snapshot={"every_steps": 5},
    )  # fmt: skip


@dataclass
class Command:
    """A command that trains in ``folder`` and can be started several times."""

    folder: Path
    config: Config
    words: list[str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def begin(self, words: list[str] | None = None, *, steps: int | None = None) -> None:
        """Start it; after so many steps of its task it waits for a signal."""
        hold = self.folder / "hold"
        hold.unlink(missing_ok=True)
        if steps is not None:
            hold.write_text(f"0 {steps}")
        (self.folder / "config.yaml").write_text(dump_config(self.config))
        self.starts += 1
        on_cpu = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        own = {MARK: self.mark, VARIABLE: str(self.event_file), Held.HOLD: str(hold)}
        environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "PYTHONPATH")}
        with open(self.log, "x") as log:
            self.process = subprocess.Popen(
                [*(words or self.words), "--config", "config.yaml"],
                cwd=self.folder,
                env=environment | on_cpu | own,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> Path:
        """The log of the latest start."""
        return self.folder / f"{self.starts}.log"

    @property
    def event_file(self) -> Path:
        """The events of the latest start."""
        return self.folder / f"{self.starts}.events.jsonl"

    @property
    def log_text(self) -> str:
        """The log of the latest start so far."""
        return self.log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events ``name`` of the latest start so far."""
        events, _ = read_events(self.event_file)
        return [event for event in events if event["event"] == name]

    def begin_and_wait(self, words: list[str] | None = None, *, steps: int) -> None:
        """Start it, and return once it has done so many steps and waits for a signal."""
        self.begin(words, steps=steps)
        wait_until(
            lambda: len(self.events("step")) >= steps or self.process.poll() is not None,
            timeout_s=START_S,
            every_s=0.05,
        )
        assert self.process.poll() is None, self.log_text[-4000:]
        assert len(self.events("step")) >= steps, self.log_text[-4000:]

    def resumed_at(self) -> str:
        """The snapshot from which the latest start continued."""
        (resumed,) = self.events("resumed")
        return snapshot_name(resumed["task"], resumed["step"])

    def last_step(self) -> str:
        """The name of a snapshot after the last step of the latest start."""
        last = self.events("step")[-1]
        return snapshot_name(last["task"], last["step"] + 1)

    def status(self) -> int:
        """The exit status, after waiting for the end."""
        return self.process.wait(START_S)

    def ranks(self) -> list[psutil.Process]:
        """The ranks in order, without launchers and loader workers."""
        found = {}
        for process in marked(MARK, self.mark):
            # Launchers have the same command line, and loader workers the same RANK.
            place = process.environ().get("RANK")
            if place is not None and f"{TRAIN} " in command(process):
                found[int(place)] = process
        return [found[rank] for rank in sorted(found)]

    def assert_leaves_nothing(self) -> None:
        """must end every process that it has started, at any depth"""
        assert left_after(MARK, self.mark, seconds=60) == []


def snapshot_name(task: int, steps: int) -> str:
    """The name of a snapshot after ``steps`` steps of a task."""
    return f"task-{task:03d}-step-{steps:06d}"


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Iterator[Command]:
    """The run under ``deepspeed`` on two ranks; every process ends with the test."""
    port = str(free_ports(1)[0])
    words = [str(PROGRAMS / "deepspeed"), "--num_accelerators", "2", "--master_port", port, TRAIN]
    command = Command(tmp_path, changed(config, output=str(tmp_path / "run")), words)
    yield command
    for process in marked(MARK, command.mark):
        process.kill()
    if command.process:
        command.process.wait(120)


def outcome_of(config: Config, world_size: int, folder: Path) -> RunContent:
    """The outcome of an undisturbed run on ``world_size`` ranks."""
    alone = changed(config, output=str(folder / "undisturbed"), data={"workers": 0})
    assert start_on_ranks(world_size, alone, timeout_s=START_S)
    return read_run(alone.output)


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunContent:
    """The outcome of an undisturbed run on two ranks."""
    return outcome_of(config, 2, tmp_path_factory.mktemp("expected"))


def with_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def one_rank(run: Command) -> list[psutil.Process]:
    return run.ranks()[1:]


def all_ranks(run: Command) -> list[psutil.Process]:
    """With their loader workers, as a batch system does it."""
    return [each for rank in run.ranks() for each in with_children(rank)]


def front_process(run: Command) -> list[psutil.Process]:
    return [psutil.Process(run.process.pid)]


def inner_launcher(run: Command) -> list[psutil.Process]:
    (inner,) = {rank.ppid() for rank in run.ranks()}
    return [psutil.Process(inner)]


TORCHRUN = [str(PROGRAMS / "torchrun"), "--nproc-per-node", "2", TRAIN]
# Launcher, signal, the processes that get it, and the exit status of the command. Some cannot
# return 75: DeepSpeed's front process dies of both signals, its inner launcher turns SIGTERM into
# status 1, and torchrun always returns 1. The ranks stop in order nevertheless.
WAYS = [
    ("deepspeed", signal.SIGTERM, one_rank, 75),
    ("deepspeed", signal.SIGUSR2, all_ranks, 75),
    ("deepspeed", signal.SIGTERM, front_process, -signal.SIGTERM),
    ("deepspeed", signal.SIGTERM, inner_launcher, 1),
    ("torchrun", signal.SIGTERM, front_process, 1),
    ("deepspeed", signal.SIGINT, all_ranks, 75),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nine starts
def test_stopped_in_every_way_one_after_another(run, expected):
    """must end with the same bits after signals, after the loss of a rank, and with a frozen rank

    A signal costs no step: one snapshot is taken, and the next start resumes there.
    """
    before = None
    for way in WAYS:
        stop(run, *way)
        assert before is None or run.resumed_at() == before, way
        assert newest_snapshot(run.config) != before, way
        before = newest_snapshot(run.config)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        lose_a_rank(run, number)
    run.begin()
    assert run.status() == 0, run.log_text[-4000:]
    assert run.resumed_at() > before
    read_run(run.config.output).assert_equals(expected)
    run.assert_leaves_nothing()


def stop(run: Command, launcher: str, number: signal.Signals, victims: Any, status: int) -> None:
    """Start the run and stop it in one of the ``WAYS``."""
    way = f"{launcher}: {number.name} {victims.__name__}"
    run.begin_and_wait(TORCHRUN if launcher == "torchrun" else None, steps=3)
    for process in victims(run):
        process.send_signal(number)
    assert run.status() == status, f"{way}: {run.log_text[-4000:]}"
    run.assert_leaves_nothing()
    assert "Traceback" not in run.log_text or launcher == "torchrun", f"{way}: {run.log_text}"
    assert run.last_step() == newest_snapshot(run.config), way  # not a step is lost


def lose_a_rank(run: Command, number: signal.Signals) -> None:
    """Start the run and kill or freeze rank 1: rank 0 must report it, and the job must end."""
    run.begin_and_wait(steps=7)  # beyond a snapshot
    run.ranks()[1].send_signal(number)
    assert run.status() not in (0, 75), run.log_text[-4000:]
    errors = [line for line in run.log_text.splitlines() if line.startswith("error: rank 0 lost")]
    assert len(errors) == 1, run.log_text
    assert "start the same command again to continue" in errors[0]
    # A loader worker that was answering the killed rank fails in a thread of Python.
    tracebacks = re.findall(r'^Traceback .*\n +File "(.*)", line', run.log_text, re.MULTILINE)
    assert all(file.endswith("/resource_sharer.py") for file in tracebacks), run.log_text
    run.assert_leaves_nothing()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_process_without_a_launcher(run, tmp_path):
    """must end with 75 and one line, also if a signal comes while the program is being loaded"""
    run.words = [sys.executable, "-m", "pipeline.train"]
    for package in ("pipeline", "tests"):
        os.symlink(ROOT / package, run.folder / package)
    for number in (signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):  # SIGTERM comes below
        run.begin_and_wait(steps=2)
        for process in with_children(psutil.Process(run.process.pid)):  # as a terminal does it
            process.send_signal(number)
        assert run.status() == 75, run.log_text[-4000:]
        last = run.log_text.splitlines()[-1]
        assert last == f"error: stopped by {number.name}; start the same command again to continue"
        assert "Traceback" not in run.log_text
        assert run.last_step() == newest_snapshot(run.config)
        run.assert_leaves_nothing()
    before = newest_snapshot(run.config)
    run.begin()
    wait_until(lambda: listens(run.process.pid), timeout_s=START_S, every_s=0.01)
    run.process.send_signal(signal.SIGTERM)
    assert run.status() == 75, run.log_text[-4000:]
    assert run.events("step") == [] and newest_snapshot(run.config) == before
    run.begin()
    assert run.status() == 0, run.log_text[-4000:]
    read_run(run.config.output).assert_equals(outcome_of(run.config, 1, tmp_path))
    run.assert_leaves_nothing()


def test_second_ctrl_c_ends_at_once(run, monkeypatch):
    """must hold while the process waits in a library, here for a second rank"""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_ports(1)[0]))
    run.words = [sys.executable, "-m", "pipeline.train"]
    run.config = changed(run.config, engine={"timeout_s": 600})
    for package in ("pipeline", "tests"):
        os.symlink(ROOT / package, run.folder / package)
    run.begin()
    process = psutil.Process(run.process.pid)
    assert wait_until(process.net_connections, timeout_s=START_S)  # until it waits
    process.send_signal(signal.SIGINT)
    noted = "a second Ctrl-C ends at once"
    assert wait_until(lambda: noted in run.log_text, timeout_s=START_S)
    time.sleep(2)
    assert run.process.poll() is None
    process.send_signal(signal.SIGINT)
    assert run.status() == 130
    assert "Traceback" not in run.log_text
    run.assert_leaves_nothing()


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


STREAM = """
import sys, time
from pipeline.data.index import read_index
from pipeline.data.plan import Layout
from pipeline.data.stream import ShardSource, eval_stream
from pipeline.data.transforms import build_transform

if __name__ == "__main__":
    index = read_index(sys.argv[1])
    batches = eval_stream(
        ShardSource(index), index.select("train", [0]), batch_size=1, layout=Layout(workers=1),
        transform=build_transform("clip", 21),
    )
    next(batches)
    print("up", flush=True)
    time.sleep(300)
"""


def test_loader_workers_end_with_the_rank_that_was_killed(tiny_shards, tmp_path):
    """must hold although their parent is a server process that gets no signal"""
    (tmp_path / "stream.py").write_text(STREAM)
    mark, words = uuid.uuid4().hex, [sys.executable, "stream.py", tiny_shards]
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT)}
    rank = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert rank.stdout.readline() == "up\n"
        assert len(marked(MARK, mark)) > 2
        rank.kill()
        rank.wait(120)
        assert left_after(MARK, mark, seconds=60) == []
    finally:
        for process in marked(MARK, mark):
            process.kill()


@pytest.fixture
def request_of_this_process() -> Iterator[StopRequest]:
    """A request that listens in this process; its handlers are removed afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop = StopRequest()
    stop.listen()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_noted_and_nothing_else_happens(request_of_this_process, number):
    stop = request_of_this_process
    stop.raise_if_requested()
    assert not stop.is_made
    signal.raise_signal(number)
    assert stop.is_made
    with pytest.raises(Preempted, match=f"stopped by {number.name}; start the same command again"):
        stop.raise_if_requested()
    assert Preempted.exit_status == 75


CLOSED_TERMINAL = """
import os, sys, time
from pipeline.distributed.preemption import StopRequest
os.open(os.ttyname(0), os.O_RDWR)  # now the terminal of this session
stop = StopRequest()
stop.listen()
print("up", flush=True)
while not stop.is_made:
    time.sleep(0.01)
print("nobody reads this", flush=True)
print("nor this", file=sys.stderr, flush=True)
sys.exit(75)
"""


def test_closed_terminal_is_a_request_to_stop():
    """must hold although nothing more can be written to it"""
    master, terminal = os.openpty()
    words = [sys.executable, "-c", CLOSED_TERMINAL]
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    child = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **streams)
    os.close(terminal)
    with open(master, "rb", buffering=0) as screen:
        assert screen.readline() == b"up\r\n"
    assert child.wait(60) == 75  # closing the screen is what a lost ssh session does


def test_nohup_keeps_a_process_from_that_request(request_of_this_process):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request_of_this_process.listen()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN


def test_request_names_the_option_that_continues(request_of_this_process):
    stop = StopRequest(how_to_continue="start it with --resume")
    stop.listen()
    signal.raise_signal(signal.SIGUSR2)
    with pytest.raises(Preempted, match="stopped by SIGUSR2; start it with --resume"):
        stop.raise_if_requested()


def test_children_of_the_block_ignore_stop_signals(request_of_this_process):
    """must survive signals to the entire job, while this process still gets them"""
    words = [sys.executable, "-c", "print('up', flush=True); input(); print('down')"]
    pipe = subprocess.PIPE
    with stop_signals_blocked():
        child = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
    assert child.stdout.readline() == "up\n"
    for number in STOP_SIGNALS:
        child.send_signal(number)
    assert child.communicate("\n", timeout=60)[0] == "down\n" and child.returncode == 0
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Preempted):
        request_of_this_process.raise_if_requested()
