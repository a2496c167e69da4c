"""Before a run, the room in /dev/shm is compared with the batches of the loader workers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.data import shared_memory
from pipeline.data.shared_memory import check_shared_memory
from pipeline.distributed.world import ranks_on_this_node
from pipeline.errors import ConfigError


def check(room: int, monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda folder: room)
    values = {"workers": 2, "batch_images": 64, "image_size": 224, "ranks": 4}
    check_shared_memory(**{**values, **changes})


BATCH = 64 * 3 * 224 * 224  # a multiple of the page size
NEEDED = 20 * BATCH + 8 * (1 << 16)


def test_batches_that_just_fit_are_accepted(monkeypatch):
    check(NEEDED, monkeypatch)
    check(0, monkeypatch, workers=0)


def test_batches_that_do_not_fit_are_refused_with_the_arithmetic(monkeypatch):
    with pytest.raises(ConfigError) as caught:
        check(NEEDED - 1, monkeypatch)
    assert str(caught.value) == (
        "/dev/shm has 193.2 MB free, and the loader workers need 193.2 MB: 4 ranks × (2 workers × "
        "2 + 1) batches × 64 images of 3 × 224 × 224 bytes, and 65.5 kB per worker; set "
        "data.workers=0, lower data.workers or data.eval_batch, or give the container more, e.g. "
        "docker run --shm-size=8g or --ipc=host"
    )


@pytest.mark.parametrize("room", [1 << 26, 0])
def test_a_container_of_docker_is_refused_for_a_large_batch(monkeypatch, room):
    """must see its 64 MB as too little for 256 images of 336 pixels"""
    with pytest.raises(ConfigError, match="data.workers=0"):
        check(room, monkeypatch, ranks=1, batch_images=256, image_size=336)


def test_system_without_shared_memory_is_not_checked(tmp_path):
    check_shared_memory(
        workers=9, batch_images=9999, image_size=999, ranks=9, folder=tmp_path / "none"
    )


def test_ranks_of_this_node_come_from_the_launcher():
    assert ranks_on_this_node({}, 8) == 8
    assert ranks_on_this_node({"LOCAL_WORLD_SIZE": "4"}, 8) == 4
    assert ranks_on_this_node({"LOCAL_SIZE": "2"}, 8) == 2
    assert ranks_on_this_node({"SLURM_STEP_NUM_NODES": "2"}, 8) == 4
    assert ranks_on_this_node({"LOCAL_WORLD_SIZE": "x", "SLURM_STEP_NUM_NODES": "x"}, 8) == 8


def test_room_is_that_of_the_folder():
    assert shared_memory.free_bytes(Path("/")) > 0
    shown = subprocess.run(["df", "--output=avail", "-B1", "/"], capture_output=True, text=True)
    if shutil.which("df") and shown.returncode == 0:
        wanted = int(shown.stdout.split()[-1])
        assert abs(shared_memory.free_bytes(Path("/")) - wanted) < 1 << 30
