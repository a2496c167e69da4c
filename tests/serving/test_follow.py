"""A run that learns on while it is served, and the end of the service."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path

from tests.serving.service import Service, draw_image, encode, serving, wait_for

FILE = encode(draw_image(3))


class Client:
    """Sends one image again and again, and keeps the stages that answered."""

    def __init__(self, service: Service) -> None:
        self.stages: list[int] = []
        self._service = service
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            answer = self._service.predict(FILE, "?top=9")
            stage = answer.json["stage"] if answer.status == 200 else -answer.status
            n_classes = len(answer.json.get("top", ()))
            self.stages.append(stage if n_classes == {1: 3, 3: 7}.get(stage) else -n_classes)


def replace(source: Path, target: Path) -> None:
    """Replace a file as a run does, in one step."""
    part = target.with_name("part")
    shutil.copyfile(source, part)
    part.replace(target)


def test_later_stage_replaces_the_served_one_without_a_lost_request(
    first_task: Path, learned: Path, tmp_path: Path
):
    """must hold beside requests, after a state that cannot be loaded, until SIGTERM"""
    run = tmp_path / "run"
    shutil.copytree(first_task, run)
    log = tmp_path / "log"
    with serving(run, log, "--follow", "0.2") as service:
        with Client(service) as one, Client(service) as other:
            wait_for(lambda: len(one.stages) > 2)
            (run / "results.json").write_text("{")
            wait_for(lambda: service.metric('tppt_reloads_total{result="failed"}') >= 1)
            for file in (learned / "tasks").iterdir():
                replace(file, run / "tasks" / file.name)
            replace(learned / "results.json", run / "results.json")
            wait_for(lambda: one.stages[-1] == other.stages[-1] == 3)
        for client in (one, other):
            assert client.stages == sorted(client.stages) and set(client.stages) == {1, 3}
        assert service.metric("tppt_model_stage") == 3
        assert_ends_in_order(service)
    assert "stage 1 stays in use" in log.read_text()
    assert "Traceback" not in log.read_text()


def assert_ends_in_order(service: Service) -> None:
    """must finish the upload that has begun, refuse new connections, and end with status 0"""
    with service.begin_upload(FILE, 10) as begun:
        wait_for(lambda: service.metric("tppt_queue_images") == 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses_connections(service))
        assert service.process.poll() is None
        begun.sendall(FILE[10:])
        assert begun.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert service.process.wait(120) == 0


def refuses_connections(service: Service) -> bool:
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return True
    return False
