"""A run that a signal stops leaves one snapshot, no process, and a status that says: start again.

The runs are started as users start them; signals go to one process or to many, as a person, a
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

import psutil
import pytest

from pipeline.config import Config, dump_config
from pipeline.distributed.preemption import STOP_SIGNALS, StopRequest, stop_signals_blocked
from pipeline.distributed.world import World
from pipeline.errors import Preempted
from tests.interruptions import Outcome, changed, newest_snapshot, outcome, start
from tests.processes import command, left_after, marked
from tests.ranks import run_ranks
from tests.services.nodes import wait_until
from tests.services.object_store import free_ports
from tests.tiny import build_config
from tests.variants import VARIANTS

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "pipeline" / "train.py")
PROGRAMS = Path(sys.executable).parent
MARK = "MARK_OF_THIS_RUN"
PATIENCE_S = 200.0  # for a start of two ranks on a machine that is busy with other things


@pytest.fixture(scope="module")
def config(tiny_arch: str, tiny_shards: str) -> Config:
    """A run with loader workers that takes long enough to be stopped at will."""
    return build_config(
        tiny_arch, tiny_shards, method=VARIANTS["anchors kept as learned"].model_dump(),
        optim={"epochs": 20}, data={"workers": 1}, engine={"timeout_s": 10},
        snapshot={"every_steps": 20},
    )  # fmt: skip


@dataclass
class Command:
    """A command that trains in ``folder``, started anew each time."""

    folder: Path
    config: Config
    words: list[str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def begin(self, words: list[str] | None = None) -> None:
        """Start it, and return once it has done a few steps."""
        (self.folder / "config.yaml").write_text(dump_config(self.config))
        self.starts += 1
        on_cpu = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "PYTHONPATH")}
        with open(self.log, "x") as log:
            self.process = subprocess.Popen(
                [*(words or self.words), "--config", "config.yaml"],
                cwd=self.folder,
                env=environment | on_cpu | {MARK: self.mark},
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> Path:
        """What the present start says."""
        return self.folder / f"{self.starts}.log"

    @property
    def said(self) -> str:
        """Everything that it has said."""
        return self.log.read_text()

    def steps(self) -> int:
        """How many steps this start has done."""
        return len(re.findall(r" step \d+/", self.said))

    def wait_for_steps(self, count: int) -> None:
        """Return as soon as it has done so many."""
        wait_until(
            lambda: self.steps() >= count or self.process.poll() is not None,
            timeout_s=PATIENCE_S,
            every_s=0.05,
        )
        assert self.process.poll() is None and self.steps() >= count, self.said[-4000:]

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(PATIENCE_S)

    def ranks(self) -> list[psutil.Process]:
        """Its ranks in order, without launchers and loader workers."""
        found = {}
        for process in marked(MARK, self.mark):
            # Launchers say the same words, and loader workers have the same RANK.
            place = process.environ().get("RANK")
            if place is not None and f"{TRAIN} " in command(process):
                found[int(place)] = process
        return [found[rank] for rank in sorted(found)]

    def assert_leaves_nothing(self) -> None:
        """must end every process that it has started, its own children's children too"""
        assert left_after(MARK, self.mark, seconds=60) == []


@pytest.fixture
def begun(config: Config, tmp_path: Path) -> Iterator[Command]:
    """The run under ``deepspeed`` on two ranks; it is ended afterwards, however the test went."""
    port = str(free_ports(1)[0])
    words = [str(PROGRAMS / "deepspeed"), "--num_accelerators", "2", "--master_port", port, TRAIN]
    run = Command(tmp_path, changed(config, output=str(tmp_path / "run")), words)
    yield run
    for process in marked(MARK, run.mark):
        process.kill()
    if run.process:
        run.process.wait(30)


def undisturbed(world: World, config: Config) -> bool:
    return start(config, world=world)


def find(config: Config, world_size: int, folder: Path) -> Outcome:
    """What an undisturbed run on so many ranks finds."""
    alone = changed(config, output=str(folder / "undisturbed"), data={"workers": 0})
    ranks = run_ranks(undisturbed, world_size, alone, collective_s=None, timeout_s=PATIENCE_S)
    assert all(ranks)
    return outcome(alone.output)


@pytest.fixture(scope="module")
def wanted(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What an undisturbed run on two ranks finds."""
    return find(config, 2, tmp_path_factory.mktemp("wanted"))


def all_below(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def of_one_rank(run: Command) -> list[psutil.Process]:
    return run.ranks()[1:]


def of_all_ranks(run: Command) -> list[psutil.Process]:
    """With their loader workers, as a batch system does it."""
    return [each for rank in run.ranks() for each in all_below(rank)]


def of_the_front(run: Command) -> list[psutil.Process]:
    return [psutil.Process(run.process.pid)]


def of_the_inner_launcher(run: Command) -> list[psutil.Process]:
    (inner,) = {rank.ppid() for rank in run.ranks()}
    return [psutil.Process(inner)]


TORCHRUN = [str(PROGRAMS / "torchrun"), "--nproc-per-node", "2", TRAIN]
# Who is sent what, and with which status the command that was typed ends. A process that a signal
# kills cannot say 75: DeepSpeed's front process dies of both signals; its inner launcher turns
# SIGTERM into status 1; torchrun says 1 whatever its ranks say. The ranks stop in order even so.
WAYS = [
    ("deepspeed", signal.SIGTERM, of_one_rank, 75),
    ("deepspeed", signal.SIGUSR2, of_all_ranks, 75),
    ("deepspeed", signal.SIGTERM, of_the_front, -signal.SIGTERM),
    ("deepspeed", signal.SIGTERM, of_the_inner_launcher, 1),
    ("torchrun", signal.SIGTERM, of_the_front, 1),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # six starts
def test_stopped_in_every_way_one_after_another(begun, wanted):
    """must snapshot once each time, go on there with the next start, and find the very same"""
    stood_at = None
    for launcher, number, victims, status in WAYS:
        way = f"{launcher}: {number.name} {victims.__name__}"
        begun.begin(TORCHRUN if launcher == "torchrun" else None)
        begun.wait_for_steps(3)
        for process in victims(begun):
            process.send_signal(number)
        assert begun.status() == status, f"{way}: {begun.said[-4000:]}"
        begun.assert_leaves_nothing()
        assert "Traceback" not in begun.said or launcher == "torchrun", f"{way}: {begun.said}"
        stands_at = newest_snapshot(begun.config)
        assert stands_at != stood_at, way
        if stood_at:
            assert goes_on_at(begun.said) == stood_at, way
        assert last_step(begun.said) == stands_at, way  # not a step is lost
        stood_at = stands_at
    begun.begin()
    assert begun.status() == 0, begun.said[-4000:]
    assert goes_on_at(begun.said) == stood_at
    outcome(begun.config.output).assert_equals(wanted)
    begun.assert_leaves_nothing()


def goes_on_at(said: str) -> str:
    """The snapshot that a start says it goes on from."""
    task, step = re.search(r"going on at task (\d+), step (\d+)", said).groups()
    return f"task-{int(task) - 1:03d}-step-{int(step) - 1:06d}"


def last_step(said: str) -> str:
    """The snapshot that would be taken after the last step that a start has told of."""
    task, step = re.findall(r"task (\d+)/\d+ epoch .* step (\d+)/", said)[-1]
    return f"task-{int(task) - 1:03d}-step-{int(step):06d}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_process_without_a_launcher(begun, tmp_path):
    """must say 75 for both signals, also for one that comes while the program is being loaded"""
    begun.words = [sys.executable, "-m", "pipeline.train"]
    begun.config = changed(begun.config, optim={"epochs": 8})
    os.symlink(ROOT / "pipeline", begun.folder / "pipeline")
    for number in STOP_SIGNALS:
        begun.begin()
        begun.wait_for_steps(2)
        for process in all_below(psutil.Process(begun.process.pid)):
            process.send_signal(number)
        assert begun.status() == 75, begun.said[-4000:]
        assert f"error: stopped by {number.name}; start the same command again" in begun.said
        begun.assert_leaves_nothing()
    stood_at = newest_snapshot(begun.config)
    begun.begin()
    wait_until(lambda: listens(begun.process.pid), timeout_s=PATIENCE_S, every_s=0.01)
    begun.process.send_signal(signal.SIGTERM)
    assert begun.status() == 75, begun.said[-4000:]
    assert begun.steps() == 0 and newest_snapshot(begun.config) == stood_at
    begun.begin()
    assert begun.status() == 0, begun.said[-4000:]
    outcome(begun.config.output).assert_equals(find(begun.config, 1, tmp_path))
    begun.assert_leaves_nothing()


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lost_ranks_end_the_job_and_lose_little(begun, wanted):
    """must give the reason on the first rank's log, soon, and go on from the last snapshot"""
    for number, limit_s in ((signal.SIGKILL, 45), (signal.SIGSTOP, 10 + 75)):
        begun.begin()
        begun.wait_for_steps(23)  # beyond a snapshot
        begun.ranks()[1].send_signal(number)
        struck = time.monotonic()
        status = begun.status()
        assert time.monotonic() - struck < limit_s  # DeepSpeed gives a hanging rank 30 s to end
        assert status not in (0, 75), begun.said[-4000:]
        said = [line for line in begun.said.splitlines() if line.startswith("error: rank 0 lost")]
        assert len(said) == 1 and "start the same command again to go on" in said[0], begun.said
        assert "Traceback" not in begun.said
        begun.assert_leaves_nothing()
    begun.begin()
    assert begun.status() == 0, begun.said[-4000:]
    outcome(begun.config.output).assert_equals(wanted)


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
    """must hold although they are children of a server, and are told nothing"""
    (tmp_path / "stream.py").write_text(STREAM)
    mark, words = uuid.uuid4().hex, [sys.executable, "stream.py", tiny_shards]
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT)}
    rank = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert rank.stdout.readline() == "up\n"
        assert len(marked(MARK, mark)) > 2
        rank.kill()
        rank.wait(30)
        assert left_after(MARK, mark, seconds=60) == []
    finally:
        for process in marked(MARK, mark):
            process.kill()


@pytest.fixture
def heard() -> Iterator[StopRequest]:
    """A request that listens in this process, which hears as before afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop = StopRequest()
    stop.listen()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_noted_and_nothing_else_happens(heard, number):
    heard.raise_if_requested()
    signal.raise_signal(number)
    with pytest.raises(Preempted, match=f"stopped by {number.name}; start the same command again"):
        heard.raise_if_requested()
    assert Preempted.exit_status == 75


def test_children_of_the_block_are_deaf(heard):
    """must not die of what is sent to the whole job, and leave this process hearing"""
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
        heard.raise_if_requested()
