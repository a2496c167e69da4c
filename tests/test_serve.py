"""The serve command: its options and its refusals, each before the service starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.serve import main


@pytest.fixture
def unread_run(tmp_path: Path) -> Path:
    """A run that has a file of results, which none of these refusals reads."""
    (tmp_path / "results.json").touch()
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line of stderr of a command that ends with status 2."""
    assert main([str(option) for option in options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_port_in_use_is_refused_before_the_run_is_loaded(capsys, unread_run: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = refusal(capsys, "--run", unread_run, "--port", port)
    assert f"127.0.0.1:{port}: Address already in use; choose another --port" in found


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "::zz"])
def test_address_of_another_machine_is_refused(capsys, unread_run: Path, host):
    found = refusal(capsys, "--run", unread_run, "--host", host)
    assert "an address of this machine" in found


def test_folder_without_a_run_is_refused(capsys, tmp_path: Path):
    found = refusal(capsys, "--run", tmp_path, "--port", 0)
    assert str(tmp_path) in found and "results.json" in found
    assert "results.json" in refusal(capsys, "--run", tmp_path, "--port", 0, "--follow")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "gpu9"], "--device 'gpu9'"),
        (["--device", "cuda:99"], "--device 'cuda:99' cannot be used"),
        (["--device", "meta"], "--device 'meta' cannot be used"),
        (["--max-megapixels", "68"], "--max-megapixels 68"),
    ],
)
def test_impossible_option_is_refused(capsys, unread_run: Path, options, words):
    assert words in refusal(capsys, "--run", unread_run, "--port", 0, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--batch", "0"], ["--queue", "1.5"], ["--upload-timeout", "nan"], ["--batch-wait", "-1"],
        ["--max-upload-mb", "inf"], ["--follow", "--stage", "1"], ["--follow", "0"],
        ["--port", "x"], ["--port", "65536"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_option_is_a_usage_error(capsys, options):
    with pytest.raises(SystemExit) as ended:
        main(["--run", "x", *options])
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err
