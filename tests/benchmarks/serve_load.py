"""Measures the service under load, beside its classifier in a plain loop on the same images.

    python -m tests.benchmarks.serve_load --run runs/demo/tppt_vt
    python -m tests.benchmarks.serve_load --run runs/demo/tppt_vt --memory 10000

The images are drawn: 64 JPEG files of 500 × 375 pixels. The clients are threads of this process and
share its cores with the service.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psutil
from PIL import Image

_SIZE = (500, 375)
_N_IMAGES = 64
_CLIENTS = (1, 8, 64)
_HEADERS = {"Content-Type": "image/jpeg"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the measured table, or the memory over many requests; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve_load")
    parser.add_argument("--run", required=True, help="folder or URL of a run or an export")
    parser.add_argument("--requests", type=int, default=1000, help="per row (default: 1000)")
    parser.add_argument("--memory", type=int, metavar="N", help="show the memory over N requests")
    parser.add_argument("options", nargs="*", help="options of the service, after --")
    options = parser.parse_args(arguments)
    files = draw_images()
    if options.memory:
        with serving(options.run, options.options) as (port, process):
            _report_memory(port, process, files, options.memory)
        return 0
    print(f"{'':>14} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8}")
    _report("plain loop", call_in_loop(options.run, files, options.requests))
    with serving(options.run, options.options) as (port, _):
        send(port, files, n_clients=8, n_requests=100)
        for n_clients in _CLIENTS:
            seconds = send(port, files, n_clients=n_clients, n_requests=options.requests)
            _report(f"{n_clients} client{'s' * (n_clients > 1)}", seconds)
    return 0


def draw_images() -> list[bytes]:
    """JPEG files of smooth noise, about as large as photographs of this size."""
    draw = np.random.default_rng(7)
    files = []
    for _ in range(_N_IMAGES):
        coarse_HWC = draw.integers(0, 256, size=(47, 63, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse_HWC).resize(_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return files


@contextmanager
def serving(run: str, options: Sequence[str] = ()) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a service."""
    command = [sys.executable, "-m", "pipeline.serve", "--run", run, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            line = started.stdout.readline()
            yield int(line.rsplit(":", 1)[1]), psutil.Process(started.pid)
        finally:
            started.terminate()


def call_in_loop(run: str, files: Sequence[bytes], n_requests: int) -> tuple[float, list[float]]:
    """Seconds of all calls and of each: from an image file to its best classes, one by one."""
    from pipeline import load_classifier

    classifier = load_classifier(run)

    def classify(data: bytes) -> None:
        classifier.top(classifier.preprocess(Image.open(io.BytesIO(data)))[None], 5)

    for data in files[:20]:
        classify(data)
    started, each = time.perf_counter(), []
    for data in itertools.islice(itertools.cycle(files), n_requests):
        before = time.perf_counter()
        classify(data)
        each.append(time.perf_counter() - before)
    return time.perf_counter() - started, each


def send(
    port: int, files: Sequence[bytes], *, n_clients: int, n_requests: int
) -> tuple[float, list[float]]:
    """Seconds of all requests and of each, sent by clients that each wait for their answer."""
    each: list[float] = []
    waiting = iter(list(itertools.islice(itertools.cycle(files), n_requests)))

    def run_client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for data in waiting:
            before = time.perf_counter()
            connection.request("POST", "/predict", data, _HEADERS)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            each.append(time.perf_counter() - before)

    clients = [threading.Thread(target=run_client) for _ in range(n_clients)]
    started = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(each) == n_requests, "a client has failed"
    return time.perf_counter() - started, each


def _report(name: str, measured: tuple[float, list[float]]) -> None:
    seconds, each = measured
    median, slow = (1000 * float(np.quantile(each, q)) for q in (0.5, 0.99))
    print(f"{name:>14} {len(each) / seconds:>10.1f} {median:>8.1f} {slow:>8.1f}", flush=True)


def _report_memory(
    port: int, process: psutil.Process, files: Sequence[bytes], n_requests: int
) -> None:
    print(f"{'requests':>8} {'RSS MB':>8} {'files':>6} {'threads':>7}")
    for done in range(0, n_requests + 1, max(1, n_requests // 10)):
        usage = process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()
        print(f"{done:>8} {usage[0]:>8.1f} {usage[1]:>6} {usage[2]:>7}", flush=True)
        if done < n_requests:
            send(port, files, n_clients=8, n_requests=max(1, n_requests // 10))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
