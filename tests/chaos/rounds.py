"""A round: start the command, do it harm, start it again until it has finished, compare."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import DataError, PipelineError
from pipeline.output.recovery import snapshot_folder
from pipeline.output.results import read_results
from tests.chaos.comparison import Findings, differences, read_findings
from tests.chaos.faults import Harm
from tests.chaos.processes import Process, Start, describe, free_port, freeze, send
from tests.chaos.tcp_relay import Gate
from tests.chaos.timeline import LogFollower, Position, Timeline, read_timeline

_TRAIN = Path(__file__).resolve().parents[2] / "pipeline" / "train.py"
_POLL_S = 0.02
_SNAPSHOT_POLL_S = 0.002  # half-written files exist for milliseconds
_BOUNDARY_S = 0.5  # how long after a test the start of the next task is "a boundary"
_ATTEMPTS = 3  # starts that may hang, or fail without any harm, before a round is given up
_GRACE_S = 15.0  # how long what is left of a start may take to end
# Without a launcher a rank ends by itself, after the present step and a snapshot, or in a minute
# (distributed.preemption). It looks every half second, which may be many steps of a small model.
_GRACE_LOST_S = 80.0
_STEPS_LOST = 40


@dataclass(frozen=True)
class Setup:
    """What is started, and where its outputs and logs go."""

    file: str
    overrides: tuple[str, ...]
    config: Config  # resolved from the two
    output: str  # folder or URL of all rounds
    logs: Path
    ranks: int
    gate: Gate | None = None

    def start(self, name: str, number: int) -> Start:
        """Start the run ``name`` for the ``number``-th time (from 1)."""
        folder = self.logs / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(Path(sys.executable).with_name("deepspeed")),
            *("--num_accelerators", str(self.ranks), "--master_port", str(free_port())),
            *(str(_TRAIN), "--config", self.file, *self.overrides),
            f"output={self.run_output(name)}",
            f"snapshot.folder={self.snapshots(name)}",
            f"data.cache.folder={folder / 'cache'}",
        ]
        log = folder / f"start-{number}.log"
        return Start(command, environment=self._environment(), log=log)

    def run_output(self, name: str) -> str:
        """Where the run ``name`` goes."""
        return storage.join(self.output, name, "run")

    def snapshots(self, name: str) -> str:
        """Where its snapshots go; no two runs may share them."""
        shared = self.config.snapshot.folder
        own = self.config.model_copy(update={"output": self.run_output(name)})
        return storage.join(shared, name) if shared else snapshot_folder(own)

    def forget_cache(self, name: str) -> None:
        """Free the disk of what was only fetched."""
        shutil.rmtree(self.logs / name / "cache", ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        # With another number of threads sums would be rounded in another order.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if not torch.cuda.is_available():
            environment["DS_ACCELERATOR"] = "cpu"
        if self.gate:
            environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self.gate.port}"
        return environment


@dataclass
class Blow:
    """What came of one harm."""

    harm: Harm
    start: int  # the number of the start that it was done to, from 1
    position: Position | None = None  # when it was done; None: the run had ended before
    n_steps: int = 0  # which that start had done by then
    on_time: bool = False  # whether it fell into the moment that it was meant for
    status: int | None = None  # of the start; None: it goes on, or was killed because it hung
    seconds: float = 0.0  # from the harm to the end of that start
    broke: bool = False  # whether the run had to be started again
    hung: bool = False
    orphans: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What came of one round."""

    number: int
    blows: list[Blow] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)  # of all starts; None: it hung
    failures: list[str] = field(default_factory=list)  # of starts that no harm was done to
    differences: list[str] = field(default_factory=list)
    hangs: int = 0
    orphans: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether the run ended as the undisturbed one, with nothing left over on the way."""
        return not (self.failures or self.differences or self.hangs or self.orphans)


@dataclass(frozen=True)
class Reference:
    """The undisturbed run."""

    course: Timeline
    findings: Findings
    limit_s: float  # a start that goes on for longer, or for longer after a harm, hangs


def run_undisturbed(setup: Setup) -> Reference:
    """Run the command once without any harm.

    Raises:
        DataError: it fails.
    """
    name = "undisturbed"
    start = setup.start(name, 1)
    try:
        while start.wait(60) is None:
            pass
    finally:
        start.kill()
    if start.status:
        raise DataError(
            f"the undisturbed run ended with status {start.status}; mend what {start.log} says: "
            f"{_last_words(start)}"
        )
    setup.forget_cache(name)
    output, seconds = setup.run_output(name), start.seconds
    limit_s = 10 * seconds + 2 * setup.config.engine.timeout_s + 120  # on a machine that is busy
    return Reference(read_timeline(output, seconds), read_findings(output), limit_s)


class Round:
    """One round; ``run`` it once."""

    def __init__(
        self, setup: Setup, reference: Reference, number: int, harms: tuple[Harm, ...]
    ) -> None:
        self._setup = setup
        self._reference = reference
        self._harms = list(harms)
        self._name = f"round-{number:03d}"
        self._outcome = Outcome(number)

    def run(self) -> Outcome:
        """Start, harm and start again until the run has finished; nothing is left running."""
        begun, outcome = time.monotonic(), self._outcome
        while not self._is_over() and len(outcome.failures) + outcome.hangs < _ATTEMPTS:
            start = self._setup.start(self._name, len(outcome.statuses) + 1)
            try:
                self._attend(start)
            finally:
                start.kill()
        outcome.blows += [Blow(harm, len(outcome.statuses)) for harm in self._harms]
        outcome.differences = self._compare()
        outcome.seconds = time.monotonic() - begun
        self._setup.forget_cache(self._name)
        return outcome

    def _is_over(self) -> bool:
        """Whether the last start said that it has finished, and has.

        ``deepspeed`` ends with status 0, too, when a signal has killed its inner launcher.
        """
        return self._outcome.statuses[-1:] == [0] and self._is_finished()

    def _is_finished(self) -> bool:
        try:
            results = read_results(self._setup.run_output(self._name))
        except PipelineError:
            return False
        return results is not None and results.is_finished

    def _attend(self, start: Start) -> None:
        """Harm one start, as often as it bears it, and see how it ends."""
        outcome, number = self._outcome, len(self._outcome.statuses) + 1
        blow = None
        while self._harms and (blow is None or blow.harm.victim == "storage"):
            next_blow = Blow(self._harms[0], number)
            if not self._strike(start, next_blow):
                break
            blow = next_blow
            outcome.blows.append(blow)
            self._harms.pop(0)
        struck = time.monotonic()
        status = start.wait(self._reference.limit_s)
        if status is None:
            outcome.hangs += 1
            start.kill()
        outcome.statuses.append(status)
        orphans = self._orphans(start, blow)
        outcome.orphans += len(orphans)
        is_unharmed = blow is None or blow.harm.victim == "storage"
        if is_unharmed and status is not None and not self._is_over():
            outcome.failures.append(f"start {number}: status {status}: {_last_words(start)}")
        if blow:
            blow.status, blow.hung, blow.orphans = status, status is None, orphans
            blow.seconds, blow.broke = time.monotonic() - struck, not self._is_over()

    def _orphans(self, start: Start, blow: Blow | None) -> list[str]:
        """What a start that has ended left running for too long."""
        victim = blow.harm.victim if blow else None
        if victim not in ("launcher", "inner launcher"):
            return [describe(process) for process in start.wait_until_left(_GRACE_S)]
        left = [describe(process) for process in start.wait_until_left(_GRACE_LOST_S)]
        follower = LogFollower(start.log)
        end = follower.position
        n_more = follower.n_steps - blow.n_steps
        if n_more > _STEPS_LOST:
            left.append(f"ranks that did {n_more} steps more, to {end}, without their {victim}")
        return left

    def _strike(self, start: Start, blow: Blow) -> bool:
        """Do a harm at its moment; False if the start has ended before."""
        harm, follower = blow.harm, LogFollower(start.log)
        if not self._wait_for_moment(start, follower, harm):
            return False
        victims = self._victims(start, harm)
        blow.position, blow.n_steps = follower.position, follower.n_steps
        blow.on_time = self._is_on_time(harm, blow.position)
        if harm.victim == "storage":
            self._setup.gate.shut(harm.outage_s)
            return True
        send(victims, signal.Signals[harm.signal])
        return bool(victims)

    def _victims(self, start: Start, harm: Harm) -> list[Process]:
        ranks = start.ranks()
        match harm.victim:
            case "rank":
                # A snapshot is written by rank 0 alone.
                chosen = 0 if harm.moment == "snapshot" else int(harm.rank * self._setup.ranks)
                return ranks[chosen : chosen + 1]
            case "ranks":
                return ranks
            case "launcher":
                return start.launcher()
            case "inner launcher":
                return start.inner_launcher()
            case _:
                return start.left()

    def _wait_for_moment(self, start: Start, follower: LogFollower, harm: Harm) -> bool:
        """Return True as soon as it has come, False if the start ends or hangs before."""
        until = time.monotonic() + self._reference.limit_s
        delay, is_over = harm.delay, True
        while is_over:
            while not self._has_come(start, follower, harm):
                if start.status is not None or time.monotonic() > until:
                    return False
                time.sleep(_POLL_S)
            if harm.moment == "snapshot":
                return self._catch_snapshot(start, until)
            time.sleep(delay * self._duration_s(harm, follower.position))
            # A test or a boundary may be over by now: there is one more after each task.
            delay, is_over = delay / 2, not self._is_on_time(harm, follower.position)
        return start.status is None

    def _has_come(self, start: Start, follower: LogFollower, harm: Harm) -> bool:
        course, position = self._reference.course, follower.position
        match harm.moment:
            case "start" if harm.victim in ("launcher", "inner launcher"):
                return bool(start.inner_launcher())
            case "start":
                return len(start.ranks()) == self._setup.ranks
            case "evaluation":
                return position.task >= course.task(harm.place) and course.is_tested(position)
            case "boundary":
                return position.task > course.task(harm.place) and position.step == 0
            case _:
                return position >= course.place(harm.place)

    def _duration_s(self, harm: Harm, position: Position) -> float:
        """How long the moment that has come lasts."""
        course = self._reference.course
        match harm.moment:
            case "start":
                return course.startup_seconds
            case "evaluation":
                return course.test_seconds[position.task]
            case "boundary":
                return _BOUNDARY_S
            case _:
                return course.seconds / max(1, sum(course.n_steps))

    def _is_on_time(self, harm: Harm, position: Position) -> bool:
        match harm.moment:
            case "evaluation":
                return self._reference.course.is_tested(position)
            case "boundary":
                return position.step == 0
            case _:
                return True

    def _catch_snapshot(self, start: Start, until: float) -> bool:
        """Freeze rank 0 while it writes; it wakes only to die."""
        folder = self._setup.snapshots(self._name)
        before = unfinished(folder)
        writer = start.ranks()[:1]
        while writer and start.status is None and time.monotonic() < until:
            if unfinished(folder) - before and freeze(writer[0]):
                if unfinished(folder) - before:
                    return True
                send(writer, signal.SIGCONT)
            time.sleep(_SNAPSHOT_POLL_S)
        return False

    def _compare(self) -> list[str]:
        try:
            found = read_findings(self._setup.run_output(self._name))
        except PipelineError as error:
            return [str(error)]
        return differences(found, self._reference.findings)


def unfinished(folder: str) -> set[str]:
    """The files in a folder of snapshots that tell of one half written."""
    files = storage.list_files(folder)
    whole = {file.rpartition("/")[0] for file in files if file.endswith("/state.json")}
    return {f for f in files if f.endswith(".part") or f.rpartition("/")[0] not in whole}


def _last_words(start: Start) -> str:
    lines = [line for line in start.said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]
