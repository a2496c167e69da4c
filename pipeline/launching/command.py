"""The command and the environment that start the ranks of a run on one node.

place = on_this_host(visible_devices(2), port)
command = launch_command("configs/demo.yaml", place, overrides=["output=runs/a"], quiet=True)
environment = launch_environment(os.environ, place.devices)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import events

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
# Variables of another launcher around this one; its ranks are not the ranks of this run.
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Devices:
    """The devices of one node that a run may use."""

    ranks: int
    gpus: tuple[int, ...] | None = ()  # numbers on the node; (): CPU cores; None: as they are found
    threads: int | None = 1  # of each rank; None: as the environment says


@dataclass(frozen=True)
class Place:
    """A node's part in a run: the devices of every node, the number of this node, the meeting."""

    nodes: tuple[Devices, ...]
    node: int
    address: str  # of node 0
    port: int  # on node 0, see ports.reserved_port

    @property
    def devices(self) -> Devices:
        """The devices of this node."""
        return self.nodes[self.node]


def on_this_host(devices: Devices, port: int) -> Place:
    """The place of a run that has this host alone."""
    return Place((devices,), 0, "localhost", port)


def visible_devices(ranks: int, *, threads: int | None = None) -> Devices:
    """``ranks`` of the GPUs that this process can use, or as many CPU cores if there are none."""
    import torch  # a sweep's command needs it much later, and it is slow to import

    return Devices(ranks, None if torch.cuda.is_available() else (), threads)


def launch_command(
    config: Path | str,
    place: Place,
    *,
    overrides: Sequence[str] = (),
    hostfile: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """The command that starts this node's ranks of the run in the file ``config``.

    ``overrides`` are ``key=value`` words. ``hostfile`` is a file with :func:`hostfile_text`, for
    several nodes only. ``quiet`` silences the launcher, not the ranks.
    """
    command = [str(Path(sys.executable).with_name("deepspeed"))]
    if len(place.nodes) > 1:
        command += ["--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(place.node)]
        command += ["--master_addr", place.address]
        if place.devices.gpus:
            command += ["--include", "@".join(_slots(n, d) for n, d in enumerate(place.nodes))]
    elif place.devices.gpus:  # --num_gpus would take the first GPUs of the node
        command += ["--include", f"localhost:{_numbers(place.devices)}"]
    else:
        command += ["--num_accelerators", str(place.devices.ranks)]
    command += ["--master_port", str(place.port)]
    if quiet:
        command.append("--quiet")
    return [*command, str(TRAIN), "--config", str(config), *overrides]


def hostfile_text(place: Place) -> str:
    """The nodes of a run as ``deepspeed --hostfile`` reads them; a slot's number is a GPU's."""
    slots = (max(d.gpus) + 1 if d.gpus else d.ranks for d in place.nodes)
    return "".join(f"node-{number} slots={count}\n" for number, count in enumerate(slots))


def launch_environment(
    environment: Mapping[str, str], devices: Devices, *, event_file: Path | None = None
) -> dict[str, str]:
    """``environment`` for a run on ``devices``, without variables of other launchers and of Ray.

    The ranks append their events (:mod:`pipeline.events`) to ``event_file``, if one is given.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name not in (*_LAUNCHER_VARIABLES, events.VARIABLE)
        and not name.startswith(("RAY_", "TUNE_"))
    }
    if event_file:
        kept[events.VARIABLE] = str(event_file)
    if devices.threads is not None:
        kept["OMP_NUM_THREADS"] = str(devices.threads)
    if devices.gpus:
        kept["CUDA_VISIBLE_DEVICES"] = _numbers(devices)
    elif devices.gpus is not None:
        kept |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return kept


def _numbers(devices: Devices) -> str:
    return ",".join(map(str, devices.gpus or ()))


def _slots(node: int, devices: Devices) -> str:
    return f"node-{node}:{_numbers(devices)}"
