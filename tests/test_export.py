"""The export command: one run of it in every form, its refusals, and the upload."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

from pipeline import load_classifier, storage
from pipeline.errors import DataError
from pipeline.export import main
from pipeline.exporting import hub
from pipeline.exporting.check import check_scores
from pipeline.output.results import finished_results
from tests.tiny import draw_images

TOKEN = "hf_secretsecretsecret"


@pytest.fixture(scope="module")
def exported(learned_run: Path, tmp_path_factory) -> tuple[Path, str]:
    """The export of a run in every form, verified on its test images, and what was printed."""
    out = tmp_path_factory.mktemp("exports") / "run"
    command = ["--run", str(learned_run), "--out", str(out), "--onnx", "--torch-export", "--verify"]
    with redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    return out, printed.getvalue()


def refusal(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line of stderr of a command that ends with status 2."""
    assert main([str(option) for option in options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_every_form_has_the_accuracy_of_the_run(exported, learned_run):
    out, printed = exported
    results = finished_results(str(learned_run))
    correct, images = sum(results.counts.correct[-1]), sum(results.counts.images[-1])
    lines = printed.splitlines()
    assert lines[0].startswith(f"{images} test images; the run had {100 * correct / images:.2f} %")
    for line, form in zip(
        lines[1:5],
        ["run", "classifier.safetensors", "classifier.pt2", "classifier.onnx"],
        strict=True,
    ):
        assert line.split()[0] == form
        assert f"  {correct:,} correct, 0 predicted otherwise" in line
    assert [Path(line.split()[0]).parent for line in lines[5:]] == [out] * (len(lines) - 5)
    assert {Path(line.split()[0]).name for line in lines[5:]} == {
        file.name for file in out.iterdir()
    }


def test_onnx_file_describes_itself_and_takes_any_number_of_images(exported, learned_run):
    file = exported[0] / "classifier.onnx"
    classifier = load_classifier(str(learned_run))
    about = {each.key: json.loads(each.value) for each in onnx.load(file).metadata_props}
    assert tuple(about["classes"]) == classifier.classes
    assert tuple(about["task_of_class"]) == classifier.task_of_class
    assert about["image_size"] == classifier.image_size
    assert about["preprocessing"][0] == "convert to RGB"
    session = onnxruntime.InferenceSession(file)
    for n_images in (1, 2, 3, 7):
        image_BCHW = draw_images(n_images, seed=n_images)
        logits_BC, probability_BC = session.run(None, {"image": image_BCHW.numpy()})
        np.testing.assert_allclose(logits_BC, classifier(image_BCHW), atol=1e-4)
        np.testing.assert_allclose(probability_BC, classifier.probabilities(image_BCHW), atol=1e-5)


def test_card_has_the_figures_and_fields_for_licences(exported, learned_run):
    card = (exported[0] / "README.md").read_text()
    results = finished_results(str(learned_run))
    assert ModelCard(card).data.to_dict()["pipeline_tag"] == "image-classification"
    assert f"| average over all tasks | {100 * results.average_incremental_accuracy:.2f} |" in card
    assert "- this model: *fill in*" in card and "Must not be used for" in card
    assert "| 1 | kite, red fox, bell |" in card
    assert str(learned_run) not in card


def test_export_is_replaced_only_with_the_option(exported, learned_run, capsys, tmp_path):
    out = exported[0]
    assert "holds an export already; give --force" in refusal(
        capsys, "--run", learned_run, "--out", out
    )
    (tmp_path / "thesis.tex").write_text("all my work")
    assert "holds files and no export.json" in refusal(
        capsys, "--run", learned_run, "--out", tmp_path, "--force"
    )
    assert (tmp_path / "thesis.tex").exists()


def test_torn_export_is_none_and_is_written_again(learned_run, tmp_path, capsys, monkeypatch):
    out, write = tmp_path / "out", storage.write_atomically

    def fail_at_the_card(url: str, data: bytes) -> None:
        if url.endswith("README.md"):
            raise KeyboardInterrupt
        write(url, data)

    monkeypatch.setattr(storage, "write_atomically", fail_at_the_card)
    assert main(["--run", str(learned_run), "--out", str(out)]) != 0
    monkeypatch.undo()
    assert (out / "classifier.safetensors").exists() and not (out / "export.json").exists()
    assert main(["--run", str(learned_run), "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md", "anchors.safetensors", "classifier.safetensors", "export.json", "load.py",
    ]  # fmt: skip
    assert load_classifier(str(out)).stage == 3


def test_export_of_an_early_stage_at_a_url(learned_run, capsys):
    out = "memory://exports/early"
    assert main(["--run", str(learned_run), "--stage", "1", "--out", out]) == 0
    image_BCHW = draw_images(3)
    found, run = load_classifier(out), load_classifier(str(learned_run), 1)
    assert found.classes == run.classes and len(found.classes) == 3
    torch.testing.assert_close(found(image_BCHW), run(image_BCHW), rtol=0, atol=1e-5)


def test_other_images_are_refused(learned_run, tiny_shards, tmp_path, capsys):
    content = json.loads((Path(tiny_shards) / "index.json").read_text())
    content["classes"][4]["name"] = content["classes"][4]["folder"] = "other"
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text(json.dumps(content))
    command = ["--run", learned_run, "--out", tmp_path / "out", "--verify", tmp_path / "index"]
    assert "has 'other' as class 4, and the run has 'kite'" in refusal(capsys, *command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_package_is_named_with_its_command(
    name, learned_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    found = refusal(capsys, "--run", learned_run, "--out", tmp_path / "out", "--onnx")
    assert f"needs the package {name}" in found
    assert "pip install onnx onnxruntime onnxscript" in found


def test_form_with_other_scores_is_refused():
    def run(image_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.eye(7)[: len(image_BCHW)]

    check_scores(run, {"classifier.pt2": run}, 21)
    others = {"classifier.pt2": lambda image_BCHW: run(image_BCHW) + 1e-3}
    with pytest.raises(DataError, match="classifier.pt2: its scores differ .* by 0.001 on 1 "):
        check_scores(run, others, 21)


@pytest.mark.parametrize(
    "options",
    [[], ["--onnx", "--push", "a/b"], ["--verify", "--push", "a/b"], ["--run", "x", "--private"]],
    ids=" ".join,
)
def test_nothing_to_do_is_a_usage_error(options, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), *options])
    assert ended.value.code == 2


@dataclass
class Uploads:
    """What the network calls of the hub were given; they are not made."""

    repositories: list[tuple[str, bool]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    failure: Exception | None = None


@pytest.fixture
def uploads(monkeypatch) -> Uploads:
    found = Uploads()

    def create_repo(api, repo_id, *, private, exist_ok):
        if found.failure:
            raise found.failure
        found.repositories.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(api, *, repo_id, folder_path, allow_patterns, commit_message):
        names = [file.name for file in Path(folder_path).iterdir()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            found.files[name] = (Path(folder_path) / name).read_bytes()

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return found


def test_push_uploads_the_files_of_the_export_alone(exported, uploads, tmp_path, capsys):
    out = shutil.copytree(exported[0], tmp_path / "out")
    (out / "notes.txt").write_text("not for others")
    assert main(["--out", str(out), "--push", "me/flowers", "--private"]) == 0
    (out / "notes.txt").unlink()
    printed = capsys.readouterr()
    assert printed.out == "uploaded to https://huggingface.co/me/flowers\n"
    assert uploads.repositories == [("me/flowers", True)]
    assert uploads.files == {file.name: file.read_bytes() for file in out.iterdir()}
    assert TOKEN not in printed.out + printed.err


def test_push_that_fails_is_one_sentence_without_the_token(exported, uploads, capsys):
    uploads.failure = OSError(f"403 Forbidden\nauthorization: Bearer {TOKEN}")
    found = refusal(capsys, "--out", exported[0], "--push", "me/flowers")
    assert "cannot upload to me/flowers: OSError (403 Forbidden)" in found
    assert TOKEN not in found


def test_push_without_a_login_is_refused_before_the_export(
    learned_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    out = tmp_path / "out"
    found = refusal(capsys, "--run", learned_run, "--out", out, "--push", "me/flowers")
    assert "run `hf auth login`, or set HF_TOKEN" in found and not out.exists()


@pytest.mark.parametrize("name", ["flowers", "a/b/c", "me/fl owers", "me/.."])
def test_push_to_no_repository_is_refused(name, exported, uploads, capsys):
    assert "give USER/REPOSITORY, with letters" in refusal(
        capsys, "--out", exported[0], f"--push={name}"
    )


def test_push_of_nothing_is_refused(tmp_path, uploads, capsys):
    assert "holds no export; give --run" in refusal(capsys, "--out", tmp_path, "--push", "me/x")
