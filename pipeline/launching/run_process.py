"""One training run as a child process: ``deepspeed pipeline/train.py`` on given devices.

- It sees its devices only, has a port that no other run on this host has, and ends, with all its
  processes, when it is stopped or when the process that started it is no longer there.
- What an earlier start has left running on this host is ended first: two launches of one run never
  write to the same output.
- The launcher's exit status is not believed: killed, it may well return 0. A run is finished if its
  results say so.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import storage
from pipeline.config import Config, dump_config
from pipeline.errors import Preempted
from pipeline.output.results import read_results

_ROOT = Path(__file__).resolve().parents[2]
_GRACE_S = 60.0  # how long ranks may take over their last snapshot
_TAIL_BYTES = 20_000  # of the log, to find the reason of a failure in
_LAUNCHER_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
_SAID = re.compile(r"^error: (.+)$", re.MULTILINE)
_RAISED = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", re.M)
_LOST = "lost contact with the others"


@dataclass(frozen=True)
class Devices:
    """What one node gives to a run."""

    ranks: int
    gpus: tuple[int, ...] = ()  # their numbers on the node; none: the ranks are cores
    threads: int = 1  # of each rank


@dataclass(frozen=True)
class Place:
    """A node's part in a run: the devices of every node, which of them this is, where they meet."""

    nodes: tuple[Devices, ...]
    node: int
    address: str
    port: int

    @property
    def devices(self) -> Devices:
        """Those of this node."""
        return self.nodes[self.node]


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``reason`` is None if it finished."""

    reason: str | None
    lost: bool = False  # through no fault of its settings: the same command goes on


class RunProcess:
    """The launched run of a configuration on this node; ``place`` says with which devices."""

    def __init__(self, config: Config, place: Place) -> None:
        self._config = config
        digest = hashlib.sha256(config.output.encode()).hexdigest()[:16]
        self._folder = _private_folder(f"{digest}-{place.node}")
        self._file = self._folder / "config.yaml"
        _end_processes(list(_processes_of(self._file)))
        self._file.write_text(dump_config(config))
        self._log = self._folder / f"node-{place.node}.log"
        command = launch_command(self._file, place, hostfile=self._folder / "hostfile")
        (self._folder / "hostfile").write_text(hostfile(place))
        tether = [
            sys.executable,
            "-I",
            str(_ROOT / "pipeline/launching/end_with_parent.py"),
            str(os.getpid()),
        ]
        with open(self._log, "ab") as log:  # behind what a lost launch has left
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*tether, *command],
                env=launch_environment(os.environ, place.devices),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_running(self) -> bool:
        """Whether the launcher is still there."""
        return self._process.poll() is None

    def end(self) -> Ended:
        """How the run ended; all its processes on this node are gone once this returns."""
        status = self._process.wait()
        _end_processes(list(_processes_of(self._file)))
        tail = self._tail()
        results = read_results(self._config.output)
        finished = results is not None and results.is_finished
        return how_it_ended(status, tail, finished=finished)

    def stop(self) -> None:
        """Ask the ranks for a snapshot, and return once every process of the run has gone."""
        if self.is_running():
            _end_processes(_ranks(self._process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)  # the launcher notices within a second
        if self.is_running():
            self._process.kill()
            self._process.wait()
        _end_processes(list(_processes_of(self._file)))

    def keep_log(self, url: str) -> None:
        """Move what the run has said to ``url``, behind what earlier launches have said.

        Raises:
            StorageError: it cannot be written.
        """
        before = storage.read_bytes(url) if storage.exists(url) else b""
        said = storage.scrub(self._log.read_text(errors="replace")).encode()
        storage.write_atomically(url, before + said)
        shutil.rmtree(self._folder)

    def _tail(self) -> str:
        with open(self._log, "rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return storage.scrub(log.read().decode(errors="replace"))


def launch_command(config: Path, place: Place, *, hostfile: Path) -> list[str]:
    """The words that start this node's ranks; ``--num_gpus`` would ignore which GPUs are ours."""
    command = [str(Path(sys.executable).with_name("deepspeed"))]
    if len(place.nodes) > 1:
        command += ["--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(place.node)]
        command += ["--master_addr", place.address]
        if place.devices.gpus:
            command += ["--include", "@".join(_slots(n, d) for n, d in enumerate(place.nodes))]
    elif place.devices.gpus:
        command += ["--include", f"localhost:{_numbers(place.devices)}"]
    else:
        command += ["--num_accelerators", str(place.devices.ranks)]
    command += ["--master_port", str(place.port)]
    return [*command, str(_ROOT / "pipeline" / "train.py"), "--config", str(config)]


def hostfile(place: Place) -> str:
    """The nodes of a run as the launcher reads them; a slot's number is a GPU's number."""
    slots = (max(d.gpus) + 1 if d.gpus else d.ranks for d in place.nodes)
    return "".join(f"node-{number} slots={count}\n" for number, count in enumerate(slots))


def launch_environment(environment: Mapping[str, str], devices: Devices) -> dict[str, str]:
    """The environment of a run: of another launcher and of Ray nothing is left in it."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCHER_OWN and not name.startswith(("RAY_", "TUNE_"))
    }
    kept["OMP_NUM_THREADS"] = str(devices.threads)
    if devices.gpus:
        kept["CUDA_VISIBLE_DEVICES"] = _numbers(devices)
    else:
        kept |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return kept


def how_it_ended(status: int, tail: str, *, finished: bool) -> Ended:
    """What the launcher's exit ``status`` and the end of the log mean."""
    if finished:
        return Ended(None)
    said, raised = _SAID.findall(tail), _RAISED.findall(tail)
    if status == Preempted.exit_status:
        return Ended(said[-1] if said else "stopped by a signal", lost=True)
    if said:
        return Ended(said[-1], lost=_LOST in said[-1])
    if raised and status == 1:
        return Ended(raised[-1])
    if status == 1 or status == 2:
        lines = tail.strip().splitlines()
        return Ended(f"exit status {status}: {lines[-1] if lines else 'nothing was said'}")
    return Ended(f"a process of the run was killed (the launcher ended with {status})", lost=True)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A TCP port that is free, and that no other run on this host is given within the block."""
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        lock = open(_private_folder("ports") / str(port), "w")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        lock.close()
    with lock:  # closing it, or the end of this process, gives the port back
        yield port


def _private_folder(name: str) -> Path:
    """A folder on this host that is found again by its name, and is nobody else's."""
    base = Path(tempfile.gettempdir()) / f"tppt-sweep-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    owner = base.stat(follow_symlinks=False)
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise PermissionError(f"{base} is not private to this user; remove it, or set TMPDIR")
    folder = base / name
    folder.mkdir(exist_ok=True)
    return folder


def _processes_of(config: Path) -> Iterator[psutil.Process]:
    """Every process on this host that was started with this configuration file."""
    for process in psutil.process_iter(["cmdline"]):
        if str(config) in (process.info["cmdline"] or ()) and process.pid != os.getpid():
            yield process


def _ranks(tether: int) -> list[psutil.Process]:
    """The ranks of a run: below its tether, deepspeed's front process and its launcher."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [psutil.Process(tether)]
    for _ in range(3):
        found = [child for process in found for child in _children(process)]
    return found


def _children(process: psutil.Process) -> Sequence[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children()
    return []


def _end_processes(processes: list[psutil.Process]) -> None:
    """Ask politely, wait for a last snapshot, then kill, children included."""
    family = processes + [
        child for process in processes for child in _descendants(process) if child not in processes
    ]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_S)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _numbers(devices: Devices) -> str:
    return ",".join(map(str, devices.gpus))


def _slots(node: int, devices: Devices) -> str:
    return f"node-{node}:{_numbers(devices)}"
