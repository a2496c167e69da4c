"""The page of a run: its figures are those of the files, and what is missing is said."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.run_report.page import N_CONFUSIONS, N_EXAMPLES, N_MISTAKES, write_report
from pipeline.storage import read_text
from tests.pages.parsing import ParsedPage
from tests.pages.test_page import ODD, SHOWN
from tests.run_report.made_runs import large_run, run_on_shards, write_run
from tests.services.browser import Browser


def render(output: str) -> str:
    """The page of one run."""
    target = "memory://run-report/page.html"
    write_report([output], target)
    return read_text(target)


@pytest.fixture
def run(tiny_shards, tmp_path: Path) -> str:
    """A finished run over the tiny shards."""
    return write_run(tmp_path / "run", *run_on_shards(tiny_shards))


def rows_of(page: str, caption: str) -> list[list[str]]:
    """The cells of the body of the table with that caption."""
    body = page.split(f">{caption}</caption>")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]]


def change_results(output: str, **changes) -> dict:
    """Replace fields of ``results.json``; None removes one. Returns its content."""
    file = Path(output) / "results.json"
    content = json.loads(file.read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content))
    return content


def test_figures_are_those_of_the_results(run):
    results = json.loads((Path(run) / "results.json").read_text())
    page = render(run)
    matrix = rows_of(page, "Accuracy on each task (columns) after each task (rows), in per cent")
    assert [row[1:] for row in matrix] == [
        ["" if value is None else f"{100 * value:.1f}" for value in row]
        for row in results["accuracy_matrix"]
    ]
    stages = rows_of(page, "Accuracy and forgetting after each task, in per cent")
    micro = [f"{100 * value:.1f}" for value in results["stage_accuracy"]["micro"]]
    assert [row[3] for row in stages] == micro
    assert stages[-1][5] == f"{100 * results['forgetting']:.1f}"
    words = ParsedPage(page).words
    for name in ("average_incremental_accuracy", "last_accuracy", "forgetting"):
        assert f"{100 * results[name]:.1f} %" in words
    assert "37,248" in words and "812 images/s" in words and "backbone sha256 bb" in words


def test_what_is_not_learned_is_shown_beside_what_is(run):
    n_tasks = len(json.loads((Path(run) / "results.json").read_text())["tasks"])
    accuracy = [0.811, *[None] * (n_tasks - 1), 0.622]
    held_out = {"index": "s3://data/pets", "sha256": "a", "classes": 37, "images": 9}
    damaged = {"shard": "t.tar", "key": "k3", "reason": "is damaged"}
    figures = {"average_over_matrix": 0.5, "last_over_tasks": 0.5, "forward_transfer": -0.033}
    change_results(
        run,
        retention=[held_out | {"accuracy": accuracy, "skipped_samples": [damaged]}],
        transfer=figures | {"transfer": 0.444},
    )
    words = ParsedPage(render(run)).words
    assert "zero-shot on pets 62.2 % never learned, 37 classes; 81.1 % before task 1" in words
    assert "transfer 44.4 % forward transfer -3.3 %" in words
    assert "sample k3 in t.tar of pets: is damaged" in words


def test_anchors_are_shown_before_learning_and_now(run):
    content = json.loads((Path(run) / "results.json").read_text())
    page = render(run)
    rows = rows_of(page, "Anchors and features after each task")
    first, *_, last = content["diagnostics"]
    assert rows[-1][1:4] == [
        f"{last[name]:.3f}"
        for name in ("anchor_cosine", "frozen_anchor_cosine", "cosine_to_frozen")
    ]
    [closest] = rows_of(
        page, "The closest pairs of anchors, now and before: those of which the cosine is highest"
    )
    names = [name for task in content["tasks"] for name in task]
    assert closest == [f"{names[0]} – {names[-1]}", "0.750", "0.125", "-0.625"]
    assert "The shares of 10 pairs in steps of 0.05, from -0.05 to 0.90" in page


def test_classes_are_sorted_by_accuracy_with_that_of_the_stage_that_learned_them(run):
    results = json.loads((Path(run) / "results.json").read_text())
    shown = rows_of(render(run), "Accuracy of each class, the lowest first")
    names = [name for task in results["tasks"] for name in task]
    by_class, last = results["class_accuracies"], results["class_accuracies"][-1]
    assert sorted(row[0] for row in shown) == sorted(names)
    assert [float(row[4]) for row in shown] == sorted(round(100 * value, 1) for value in last)
    for name, task, images, first, now, change in shown:
        number = names.index(name)
        assert images == str(results["class_images"][number])
        assert first == f"{100 * by_class[int(task) - 1][number]:.1f}"
        assert now == f"{100 * last[number]:.1f}"
        assert float(change) == pytest.approx(float(now) - float(first), abs=0.11)


def test_images_are_the_test_images_with_an_alternative_text(run):
    found = ParsedPage(render(run))
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert 0 < len(images) <= N_MISTAKES + N_CONFUSIONS * N_EXAMPLES
    for image in images:
        kind, data = image["src"].split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (29, 23)
        assert re.fullmatch(r"test image of [a-z ]+, classified as [a-z ]+", image["alt"])


def test_same_files_give_the_same_bytes(run):
    assert render(run) == render(run)


def test_every_table_has_a_caption_and_headings_of_rows_and_columns(run):
    page = render(run)
    tables = page.split("<table")[1:]
    assert len(tables) > 5
    for table in tables:
        assert "<caption" in table and 'scope="col"' in table and 'scope="row"' in table


def test_run_of_an_older_version_says_what_it_lacks(run):
    (Path(run) / "predictions.jsonl").unlink()
    (Path(run) / "metrics.jsonl").unlink()
    content = change_results(run, class_accuracies=None, class_images=None, anchor_cosines=None)
    kept = [
        {key: value for key, value in stage.items() if "frozen" not in key}
        for stage in content["diagnostics"]
    ]
    change_results(run, diagnostics=kept)
    words = ParsedPage(render(run)).words
    assert "which kept no figure of the anchors before learning" in words
    assert "an older version of the program, which kept no accuracy of single classes" in words
    assert words.count("The run kept no predictions of single images") == 2
    assert "No optimizer step was logged" in words
    assert "<img" not in render(run)


def test_running_run_shows_its_tasks_so_far(tiny_shards, tmp_path):
    found = ParsedPage(
        render(write_run(tmp_path / "run", *run_on_shards(tiny_shards, learned=2), n_steps=1))
    )
    assert "▶ Running. 2 of 3 tasks are learned and tested" in found.words
    assert "7 classes in 3 tasks" in found.words
    assert "over 6 classes after task 2" in found.words
    assert "img" in [tag for tag, _ in found.tags]


def test_predictions_of_another_test_are_not_shown(run):
    file = Path(run) / "predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[1:]))
    assert "predictions.jsonl is not that of the last test" in ParsedPage(render(run)).words
    file.write_text("{}\n")
    words = ParsedPage(render(run)).words
    assert "The predictions of single images cannot be read: " in words and "line 1" in words


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"index": "memory://nowhere"}, "cannot read memory://nowhere/index.json"),
        ({"index": None}, "results.json names no index"),
    ],
)
def test_images_that_cannot_be_read_are_left_out_with_a_sentence(run, change, reason):
    content = json.loads((Path(run) / "results.json").read_text())
    content["manifest"]["config"]["data"] |= change
    change_results(run, manifest=content["manifest"])
    found = ParsedPage(render(run))
    assert f"The images cannot be shown: {reason}" in found.words
    assert "img" not in [tag for tag, _ in found.tags]
    assert "most frequent pairs" in found.words


def test_images_are_found_by_the_settings_in_the_output(run, tiny_shards):
    """must not depend on the working folder, as a relative place in results.json does"""
    content = json.loads((Path(run) / "results.json").read_text())
    content["manifest"]["config"]["data"]["index"] = "some/shards"
    change_results(run, manifest=content["manifest"])
    assert "The images cannot be shown" in render(run)
    (Path(run) / "config.yaml").write_text(f"data: {{index: {tiny_shards}}}\n")
    assert "The images cannot be shown" not in render(run) and "<img" in render(run)


def test_images_of_an_index_that_was_changed_are_not_shown(run):
    content = json.loads((Path(run) / "results.json").read_text())
    change_results(run, manifest={**content["manifest"], "index_sha256": "other"})
    assert (
        "The images cannot be shown: the index was changed since" in ParsedPage(render(run)).words
    )


def test_names_are_text_whatever_they_hold(tiny_shards, tmp_path):
    """must have the same elements as a harmless page, and show the names"""
    names = [f"{ODD} {number}" for number in range(7)]
    plain = write_run(tmp_path / "plain", *run_on_shards(tiny_shards))
    odd = write_run(tmp_path / "odd", *run_on_shards(tiny_shards, names, method=ODD))
    harmless, found = ParsedPage(render(plain)), ParsedPage(render(odd))
    kept = [
        [tag for tag, _ in page.tags if tag not in ("title", "text")] for page in (harmless, found)
    ]
    assert kept[0] == kept[1]
    assert f"{' '.join(SHOWN.split())} 3" in found.words
    assert ODD not in render(odd)


def test_skipped_samples_and_tuning_are_shown(run):
    change_results(
        run,
        skipped_samples=[{"shard": "s.tar", "key": "k7", "reason": "is damaged"}],
        tuning={
            "protocol": "oracle_sequence", "sweep": "sweeps/x", "trials": 3,
            "note": "tuned on the evaluation sequence",
        },
    )  # fmt: skip
    words = ParsedPage(render(run)).words
    assert "sample k7 in s.tar: is damaged" in words
    assert "⚠ tuned on the evaluation sequence" in words and "sweep sweeps/x" in words


def test_secrets_of_urls_are_not_shown(run):
    content = json.loads((Path(run) / "results.json").read_text())
    content["manifest"]["config"]["output"] = "s3://user:hunter2@bucket/run?token=hunter2"
    content["manifest"]["config"]["data"]["index"] = ["memory://a:hunter2@x/y?sig=hunter2"]
    change_results(run, manifest=content["manifest"])
    assert "hunter2" not in render(run)


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no results.json; give the output of a run"):
        write_report([str(tmp_path)], str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("config", [{}, {"data": 7}, {"model": {"arch": ["x"]}}, {"name": {}}])
def test_manifest_of_another_form_is_shown_or_refused(run, config):
    content = json.loads((Path(run) / "results.json").read_text())
    change_results(run, manifest={**content["manifest"], "config": config})
    try:
        assert "The images cannot be shown" in render(run)
    except DataError as error:
        assert "the manifest in results.json is damaged" in str(error)


@pytest.mark.parametrize("loss", ["NaN", "Infinity"])
@pytest.mark.parametrize("steps", ["some", "all"])
def test_skipped_steps_whose_loss_is_not_finite_have_no_place_in_the_chart(run, loss, steps):
    """must hold for their terms, too: the run continues with optim.on_nonfinite_loss=skip"""
    log = Path(run) / "metrics.jsonl"
    lines = list(map(json.loads, log.read_text().splitlines()))
    for line in [line for line in lines if line["kind"] == "step"][:: 1 if steps == "all" else 3]:
        line |= {"loss": float(loss), "terms": dict.fromkeys(line["terms"], float(loss))}
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = render(run)
    assert "Loss by optimizer step" in page and not re.search(r"\b(nan|inf)\b", page)


def test_broken_metrics_are_refused_with_their_line(run):
    (Path(run) / "metrics.jsonl").write_text('{"kind": "stage"}\n{"kind": "step"}\n')
    with pytest.raises(DataError, match="metrics.jsonl: line 2 is not a step"):
        render(run)


# In a browser.


def test_page_shows_everything_without_a_request_or_a_complaint(
    run, browser: Browser, tmp_path: Path
):
    file = tmp_path / "report.html"
    write_report([run], str(file))
    paper = {}
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            browser.emulate(width=width, scheme=scheme)
            browser.open(file)
            assert (browser.requests(), browser.complaints()) == ([file.as_uri()], [])
            wide = browser.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert not wide, "wide parts scroll within the page"
        paper[scheme] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper["light"] != paper["dark"]
    browser.emulate()
    broken = "[...document.images].filter(each => !each.naturalWidth).length"
    assert browser.evaluate(broken) == 0
    headings = browser.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
    assert headings.count("H1") == 1 and headings[0] == "H1"
    targets = "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector("
    assert browser.evaluate(f"{targets}a.getAttribute('href'))).length") == 0
    assert browser.print().startswith(b"%PDF")


def test_shaded_figures_can_be_read(run, browser: Browser, tmp_path: Path):
    """must have a contrast of at least 4.5 to their cell in both schemes (WCAG 2.2, 1.4.3)"""
    file = tmp_path / "report.html"
    write_report([run], str(file))
    shades = "".join(f'<b class="shade{number}">0</b>' for number in range(9))
    text = file.read_text().replace("<main>", f"<main><p id='shades'>{shades}</p>")
    file.write_text(text)
    colours = "[...document.querySelectorAll('#shades b')].map(each => getComputedStyle(each))"
    for scheme in ("light", "dark"):
        browser.emulate(scheme=scheme)
        browser.open(file)
        found = browser.evaluate(f"{colours}.map(each => [each.color, each.backgroundColor])")
        assert all(contrast(*pair) >= 4.5 for pair in found), found
    browser.emulate()


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two opaque colours, as WCAG defines it."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of ``rgb(r, g, b)``."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_large_run_is_a_page_of_a_few_megabytes(tmp_path: Path):
    output = write_run(tmp_path / "run", *large_run(100, 10, 5))
    page = render(output)
    assert len(page) < 3_000_000
    assert len(rows_of(page, "Accuracy of each class, the lowest first")) == 1000
    assert page.count("<details>") >= 5, "long tables are folded"
