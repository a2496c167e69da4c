"""Weights are read without running code, and refused with a sentence if they cannot be used."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import WeightsError
from pipeline.model import weights as module
from pipeline.model.weights import blank_clip, load_clip, weights_place, weights_problem
from pipeline.model.weights_file import read_openai, weights_format
from tests.fuzz import count_refused
from tests.tiny import model_config, write_clip

CPU = torch.device("cpu")


@pytest.fixture
def named_arch(tmp_path: Path) -> str:
    """A tiny architecture that open_clip knows by name, with GELU and with QuickGELU."""
    folder = tmp_path / "archs"
    folder.mkdir()
    for name, extra in (("tiny-file", {}), ("tiny-file-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(model_config() | extra))
    open_clip.add_model_config(folder)
    return "tiny-file"


@pytest.fixture
def state(tiny_clip) -> dict[str, torch.Tensor]:
    return dict(tiny_clip.clip.state_dict())


class Archive(torch.nn.Module):
    """OpenAI's layout: the tensors of a state_dict and three numbers, as TorchScript."""

    def __init__(self, state: dict[str, torch.Tensor], *, numbers: bool = True) -> None:
        super().__init__()
        for name, value in state.items():
            owner: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            owner.register_buffer(last, value.clone())
        if numbers:
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(file: Path, state: dict[str, torch.Tensor]) -> None:
    torch.jit.script(Archive(state)).save(str(file))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_archive_that_openai_has_published_is_read(named_arch, state, tmp_path, monkeypatch):
    """must need the model with QuickGELU, and open no other TorchScript archive"""
    file = tmp_path / "ViT.pt"
    write_archive(file, state)
    assert "TorchScript" not in str(weights_problem(f"{named_arch}-quickgelu", str(file)))
    with pytest.raises(WeightsError, match=r"ViT.pt is a TorchScript archive.*set model"):
        load_clip(f"{named_arch}-quickgelu", str(file), device=CPU)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "_openai_hashes", lambda: {digest})
    clip = load_clip(f"{named_arch}-quickgelu", str(file), device=CPU)
    found = clip.clip.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    with pytest.raises(WeightsError, match="need QuickGELU, and tiny-file has GELU; use tiny"):
        load_clip(named_arch, str(file), device=CPU)


def test_hashes_of_openai_are_those_of_its_addresses():
    assert len(module._openai_hashes()) >= 4
    assert "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af" in (
        module._openai_hashes()
    )


def test_state_with_the_numbers_of_openai_needs_quickgelu(named_arch, state, tmp_path):
    numbers = {n: torch.tensor(7) for n in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state | numbers, tmp_path / "openai.pt")
    with pytest.raises(WeightsError, match="holds OpenAI's weights, which need QuickGELU"):
        load_clip(named_arch, str(tmp_path / "openai.pt"), device=CPU)
    clip = load_clip(f"{named_arch}-quickgelu", str(tmp_path / "openai.pt"), device=CPU)
    assert torch.equal(clip.clip.logit_scale, state["logit_scale"])


@pytest.mark.parametrize("suffix", ["", "-quickgelu"])
def test_file_of_unknown_activation_gives_a_warning(named_arch, state, tmp_path, caplog, suffix):
    save_file(state, tmp_path / "w.safetensors")
    load_clip(f"{named_arch}{suffix}", str(tmp_path / "w.safetensors"), device=CPU)
    other = "tiny-file" if suffix else "tiny-file-quickgelu"
    assert "does not say with which activation it was trained" in caplog.text
    assert caplog.text.rstrip().endswith(f"the other one is {other}")


@pytest.mark.parametrize("legacy", [False, True])
def test_file_of_pytorch_is_read(named_arch, state, tmp_path, legacy):
    file = tmp_path / "w.pt"
    content = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    clip = load_clip(named_arch, str(file), device=CPU)
    assert torch.equal(clip.clip.logit_scale, state["logit_scale"])


class Runs:
    """An object whose unpickling would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def write_hostile(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Files of weights that cannot be used, and words of their refusals."""
    (folder / "empty.pt").write_bytes(b"")
    (folder / "junk.pt").write_bytes(b"174812789 is not a tensor")
    (folder / "page.safetensors").write_text("<!DOCTYPE html>")
    (folder / "code.pt").write_bytes(pickle.dumps(Runs(folder / "executed")))
    torch.save({"x": Runs(folder / "executed")}, folder / "code-in-zip.pt")
    torch.save(["a", "b"], folder / "list.pt")
    torch.save({"a": "text"}, folder / "text.pt")
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}})
    big = len(header).to_bytes(8, "little") + header.encode()
    (folder / "big.safetensors").write_bytes(big)
    save_file(state, folder / "cut.safetensors")
    content = (folder / "cut.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with zipfile.ZipFile(folder / "photos.pt", "w") as archive:
        archive.writestr("photo.jpg", b"")
    save_file({"other": torch.zeros(3)}, folder / "other.safetensors")
    shifted = state | {"text_projection": torch.zeros(2, 2)}
    save_file(shifted, folder / "shape.safetensors")
    return {
        "empty.pt": "neither a safetensors file nor one of PyTorch; give a safetensors file",
        "junk.pt": "neither a safetensors file nor one of PyTorch",
        "page.safetensors": "neither a safetensors file nor one of PyTorch",
        "code.pt": "holds more than tensors, or is damaged; give",
        "code-in-zip.pt": "holds more than tensors, or is damaged; give",
        "list.pt": "holds a list, not tensors by name",
        "text.pt": "holds no tensor as 'a'",
        "big.safetensors": "is damaged",
        "cut.safetensors": "is damaged",
        "bomb.pt": "is a compressed archive of 16,777,216 bytes",
        "photos.pt": "is a zip archive without weights",
        "other.safetensors": r"cannot be loaded into tiny-file: \d+ tensors missing \(first ",
        "shape.safetensors": r"cannot be loaded into tiny-file: .*text_projection.*; give weights",
    }


def test_hostile_file_is_refused_and_runs_nothing(named_arch, state, tmp_path):
    for name, words in write_hostile(tmp_path, state).items():
        with pytest.raises(WeightsError, match=words) as refusal:
            load_clip(named_arch, str(tmp_path / name), device=CPU)
        assert str(tmp_path / name) in str(refusal.value)
        assert "weights_only" not in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused_by_name(named_arch, state, tmp_path, value):
    state["visual.conv1.weight"] = state["visual.conv1.weight"].clone()
    state["visual.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    words = r"w.safetensors: 1 of \d+ values of visual.conv1.weight are not finite"
    with pytest.raises(WeightsError, match=words):
        load_clip(named_arch, str(tmp_path / "w.safetensors"), device=CPU)
    arch = write_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["text_projection"][1, 1] = value
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="1 of 418 values of text_projection are not finite"):
        load_clip(arch, None, device=CPU)


def test_random_weights_of_a_folder_are_random(tmp_path, tiny_clip):
    """must not come from the file, which may be missing"""
    arch = write_clip(tmp_path / "clip")
    assert load_clip(arch, None, device=CPU).sha256 == tiny_clip.sha256
    found = load_clip(arch, "random", device=CPU)
    assert found.sha256 != tiny_clip.sha256
    assert found.name == f"{arch}/random"
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    assert load_clip(arch, "random", device=CPU).sha256 == found.sha256


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("ViT-B-16-SigLIP", "image tower of ViT-B-16-SigLIP is .* package timm.*; choose a model"),
        ("roberta-ViT-B-32", "text tower of roberta-ViT-B-32 is roberta-base of the package trans"),
        ("ViT-L-14-CLIPA", "tokenizer of ViT-L-14-CLIPA is bert-base-uncased.*install it, or choo"),
    ],
)
def test_tower_of_another_package_is_refused_before_loading(arch, words, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=words):
        load_clip(arch, "random", device=CPU)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "open_clip_config.json is not JSON"),
        (b"[" * 100_000, "open_clip_config.json is not JSON"),
        (b"\xff", "open_clip_config.json is not JSON"),
        (b"[]", "open_clip_config.json has no section model_cfg"),
        (b'{"model_cfg": {"vision_cfg": {}}}', "has no section text_cfg; add it"),
        (b'{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}', "cannot be loaded"),
    ],
)
def test_damaged_configuration_of_a_folder_is_refused(tmp_path, content, words):
    arch = write_clip(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        load_clip(arch, None, device=CPU)


TAG = ("ViT-B-32-quickgelu", "openai")


class Found:
    size = 345_000_000


def answer(*outcomes: Any) -> Any:
    """A stand-in for the hub: the outcome of each call in turn, raised if it is an error."""
    left = list(outcomes)

    def call(*arguments: Any, **options: Any) -> Any:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return call


MISSING = module.EntryNotFoundError("404")


@pytest.mark.parametrize(
    ("cached", "outcomes", "place"),
    [
        (["/cache/file"], [], "on this disk"),
        ([None, None], [Found], "345.0 MB to download"),
        ([None, None], [MISSING, Found], "345.0 MB to download"),
        ([None, None], [OSError("no route"), Found], None),
        ([None, None], [MISSING, MISSING], None),
    ],
)
def test_weights_of_a_tag_are_found_or_refused_without_download(
    monkeypatch, cached, outcomes, place
):
    monkeypatch.setattr(module, "try_to_load_from_cache", answer(*cached))
    monkeypatch.setattr(module, "get_hf_file_metadata", answer(*outcomes))
    if place:
        assert weights_place(*TAG) == place
        return
    with pytest.raises(WeightsError, match="is not on this disk and cannot be fetched"):
        weights_place(*TAG)


def test_weights_of_a_file_or_folder_are_on_this_disk(tiny_arch, tmp_path):
    assert weights_place(tiny_arch, None) == "on this disk"
    assert weights_place("ViT-B-32", str(tmp_path / "w.pt")) == "on this disk"


def test_dry_run_reads_the_weights_themselves(tmp_path):
    """must refuse a weight that is not finite before any machine is asked for"""
    arch = write_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["text_projection"][1, 1] = torch.nan
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="of text_projection are not finite"):
        blank_clip(arch, None)
    assert blank_clip(arch).n_parameters == blank_clip(arch, "random").n_parameters


def edit_sizes(arch: str, section: str, **sizes: object) -> None:
    file = Path(arch.removeprefix("local-dir:")) / "open_clip_config.json"
    content = json.loads(file.read_text())
    model = content["model_cfg"]
    (model[section] if section else model).update(sizes)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_cfg", "width", 10**9),
        ("vision_cfg", "layers", -1),
        ("vision_cfg", "image_size", [32, 10**12]),
        ("vision_cfg", "patch_size", 0),
        ("text_cfg", "vocab_size", 1.5),
        ("text_cfg", "context_length", "77"),
        ("text_cfg", "heads", True),
        ("", "embed_dim", 1 << 40),
    ],
)
@pytest.mark.parametrize("weights", [None, "random"])
def test_impossible_size_is_refused_before_a_model_is_made(tmp_path, section, key, value, weights):
    arch = write_clip(tmp_path / "clip")
    edit_sizes(arch, section, **{key: value})
    problem = weights_problem(arch, weights)
    assert problem and "\n" not in problem
    assert f"{key} is {value}, and a whole number from 1 to" in problem
    with pytest.raises(WeightsError):
        load_clip(arch, weights, device=CPU)


def test_model_that_its_weights_cannot_fill_is_refused(tmp_path):
    arch = write_clip(tmp_path / "clip")
    edit_sizes(arch, "vision_cfg", width=8192, layers=24)
    assert re.search(
        r"about 19,\d+,\d+,\d+ parameters, and the weights", weights_problem(arch, None)
    )
    edit_sizes(arch, "vision_cfg", width=16384, layers=256)
    assert "at most 50,000,000,000 are loaded" in weights_problem(arch, "random")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "old.pt"])
def test_damaged_file_is_refused_or_read(named_arch, state, tmp_path, suffix):
    """must raise nothing but a WeightsError, whatever the bytes of the file are"""
    small = {name: value for name, value in state.items() if value.numel() < 400}
    file = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(small, file)
    else:
        torch.save(small, file, _use_new_zipfile_serialization=suffix == "pt")

    def read(data: bytes) -> None:
        file.write_bytes(data)
        weights_format(file)
        read_openai(file, set())

    assert count_refused(f"weights, {suffix}", file.read_bytes(), read, default=40)
