"""The command that writes pages about runs: which file it writes, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.report import main
from tests.pages.parsing import ParsedPage
from tests.run_report.made_runs import run_on_shards, write_run
from tests.services.browser import Browser
from tests.tiny import build_config


@pytest.fixture
def runs(tiny_shards: str, tmp_path: Path) -> dict[str, str]:
    """Two runs of one method with other seeds, and one of another method."""
    written = {}
    for name, method, seed, learned in (
        ("vt-1", "tppt_vt", 1, 3), ("vt-2", "tppt_vt", 2, 3), ("zero-1", "zeroshot", 1, 3),
        ("part", "tppt_vt", 3, 2),
    ):  # fmt: skip
        results, predictions = run_on_shards(tiny_shards, learned=learned, method=method)
        method_settings = {"name": method}
        config = build_config("local-dir:clip", tiny_shards, method=method_settings, seed=seed)
        manifest = results.manifest.model_copy(update={"config": config.model_dump(mode="json")})
        accuracy = {"average_incremental_accuracy": {"vt-1": 0.4, "vt-2": 0.6}.get(name, 0.25)}
        changed = results.model_copy(update={"manifest": manifest, **accuracy})
        written[name] = write_run(tmp_path / name, changed, predictions)
    return written


def test_page_of_one_run_lies_in_its_output(runs, capsys):
    assert main([runs["vt-1"]]) == 0
    page = Path(runs["vt-1"]) / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert ParsedPage(page.read_text()).words.startswith("tppt_vt on ")
    assert main([runs["part"], "--out", f"{runs['part']}/other.html"]) == 0
    assert "Running." in (Path(runs["part"]) / "other.html").read_text()


def test_page_of_several_runs_has_means_and_differences_over_equal_seeds(runs, tmp_path):
    file = tmp_path / "page.html"
    outputs = [runs["vt-1"], runs["vt-2"], runs["zero-1"], runs["vt-1"]]
    assert main([*outputs, "--out", str(file), "--baseline", "zeroshot"]) == 0
    words = ParsedPage(file.read_text()).words
    assert words.startswith("Comparison of 3 runs highest average accuracy 50.0 ± 14.1 % tppt_vt")
    assert "tppt_vt 1, 2 50.0 ± 14.1 +15.0" in words, "the difference is that of seed 1"
    assert "Classes against zeroshot" in words and "All 3 runs" in words
    by_run = tmp_path / "by_run.html"
    assert main([*outputs, "--out", str(by_run), "--baseline", runs["zero-1"]]) == 0
    assert by_run.read_bytes() == file.read_bytes()


def test_page_of_several_runs_lies_in_the_working_folder(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([runs["vt-1"], runs["zero-1"]]) == 0
    assert "Δ" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "options", "problem"),
    [
        (["vt-1"], ["--baseline", "zeroshot"], "--baseline and --over compare runs; give two"),
        (["vt-1", "part"], [], "holds a run that is running; a finished run is wanted"),
        (["vt-1", "zero-1"], ["--baseline", "zerosho"], "did you mean 'zeroshot'?"),
        ([], ["memory://nothing"], "memory://nothing: holds no results.json"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(runs, names, options, problem, capsys):
    assert main([*(runs[name] for name in names), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1


def test_comparison_in_a_browser(runs, browser: Browser, tmp_path):
    file = tmp_path / "page.html"
    main([*(runs[name] for name in ("vt-1", "vt-2", "zero-1")), "--out", str(file)])
    for width, scheme in ((1280, "light"), (390, "dark")):
        browser.emulate(width=width, scheme=scheme)
        browser.open(file)
        assert (browser.requests(), browser.complaints()) == ([file.as_uri()], [])
        assert not browser.evaluate("document.documentElement.scrollWidth > innerWidth")
    browser.emulate()
    browser.click("tr[data-item] td")
    chosen = "[...document.querySelectorAll('.on')].map(each => each.tagName)"
    assert sorted(browser.evaluate(chosen)) == ["TR", "g"], "a row and its line"


def test_help_does_not_load_the_libraries_that_read_images():
    code = (
        "import sys; from pipeline.report import _build_parser; _build_parser().format_help(); "
        "sys.exit(str([name for name in ('torch', 'PIL', 'jinja2') if name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stderr == "[]\n"
