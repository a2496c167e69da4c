"""Every shipped configuration works unchanged, and its header describes it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config import Config, dump_config, load_config
from pipeline.data.index import format_index
from pipeline.data.shard import Segment, Shard
from pipeline.methods import METHODS, parse_options
from pipeline.model.weights import weights_problem
from pipeline.output.identity import config_hash
from pipeline.train import parse_arguments
from pipeline.training.checked_run import check_run
from pipeline.training.engine import layout_problem

ROOT = Path(__file__).parents[1]
FILES = sorted(set((ROOT / "configs").glob("*.yaml")) - set((ROOT / "configs").glob("tune_*.yaml")))
# Classes and tasks of the data set of each.
SEQUENCES = {
    "demo": (20, 5),
    "miniclip_tinar": (100, 10),
    "miniclip_tinb": (100, 10),
    "vitb16_cifar100": (100, 10),
    "vitl_inr": (200, 10),
    "vitl_inr_tppt_ridge": (200, 10),
}
HASHES = {
    "demo": "18f656e29392b1e33f772e20fa803f555747e3740d798398c197ae0a94d77181",
    "miniclip_tinar": "35c25bd695a294008a9287b648cf9683a4806b96b073d56843bab322c5e07156",
    "miniclip_tinb": "04dc6bd115809adc35f8d7757011b025fc8af613f3b3408e9eb1bca08142d3b5",
    "vitb16_cifar100": "e5b2a693462881e8bd65ed6384d58d441ce910824339c7c91f44ffb7804a1a49",
    "vitl_inr": "5930083fcc930dc2ef9da55348a6f3325a3ed50bed0fa8b41f55adbf52ec37b2",
    "vitl_inr_tppt_ridge": "7ef1b0f33e1624d17c07b5eeb6280757b4c946d7be5057d0c25208e09b6cdf0f",
}
pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in a configuration start at the root of the checkout."""
    monkeypatch.chdir(ROOT)


def header(file: Path) -> dict[str, str]:
    """The comment at the top of a file: its description, and the text after each ``Name:``."""
    parts, name = {"": ""}, ""
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line[1:].strip().removesuffix("\\")
        if found := re.match(r"(Data|Run|Cost|Expect): *(.*)", text):
            name, text = found.groups()
        parts[name] = f"{parts.get(name, '')} {text}".strip()
    return parts


def test_header_gives_command_cost_and_expectation(file):
    parts = header(file)
    assert len(parts[""]) > 20, "a description"
    assert parts.keys() == {"", "Data", "Run", "Cost", "Expect"}
    assert re.search(r"\d|not measured", parts["Cost"]), parts["Cost"]
    assert re.search(r"README|\d|not measured", parts["Expect"]), parts["Expect"]


def test_command_in_the_header_runs_this_file(file):
    launcher, *words = shlex.split(header(file)["Run"])
    script = words.index("pipeline/train.py")
    assert launcher == "deepspeed" and (ROOT / words[script]).is_file()
    options = parse_arguments(words[script + 1 :])
    assert options.config == f"configs/{file.name}"
    parse_options(load_config(options.config, options.overrides).method)


def test_settings_agree_with_each_other(file):
    config = load_config(file)
    parse_options(config.method)
    assert config.name == file.stem
    assert config.output.startswith("runs/") and config.name.split("_")[0] in config.output
    for world_size in (1, 2, 4, 8):
        assert layout_problem(config, world_size) is None


def test_hash_of_the_settings_never_changes(file):
    """must hold so that a run started with an earlier version can be continued"""
    assert config_hash(load_config(file)) == HASHES[file.stem]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_chosen(file, method):
    config = load_config(file, [f"method.name={method}"])
    assert parse_options(config.method) is not None


def test_dump_reads_back_to_the_same_value(file, tmp_path):
    config = load_config(file)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_backbone_exists(file):
    """must have weights of the right activation; a local folder may be absent here"""
    config = load_config(file)
    if config.model.arch.startswith("local-dir:../"):
        folder = ROOT / config.model.arch.removeprefix("local-dir:")
        if not folder.is_dir():
            pytest.skip(f"{folder} is not part of the repository")
    assert weights_problem(config.model.arch, config.model.weights) is None


def write_index(folder: Path, n_classes: int) -> str:
    """An index with one image per class and split, without the images."""
    shards = [
        Shard(f"{split}.tar", split, n_classes, n_classes, "", "", segments)
        for split in ("train", "test")
        for segments in [tuple(Segment(label, 1, label, 1, "") for label in range(n_classes))]
    ]
    names = [f"class {label}" for label in range(n_classes)]
    (folder / "index.json").write_bytes(format_index(names, names, shards))
    for shard in shards:
        (folder / shard.name).write_bytes(bytes(shard.bytes))
        (folder / shard.table_name).touch()
    return str(folder)


def test_run_fits_its_data_set(file, tmp_path, tiny_arch):
    """must pass every check before the ranks meet, for 1 and for 8 ranks"""
    n_classes, n_tasks = SEQUENCES[file.stem]
    overrides = [f"data.index={write_index(tmp_path, n_classes)}"]
    if load_config(file).model.arch.startswith("local-dir:../"):
        overrides.append(f"model.arch={tiny_arch}")  # the real one may be absent
    for world_size in (1, 8):
        run = check_run(load_config(file, overrides), world_size)
        assert [len(task.labels) for task in run.tasks] == [n_classes // n_tasks] * n_tasks


def test_configuration_is_as_specified(file):
    """must be the experiment for which the file was written"""
    config: Config = load_config(file)
    specified = {
        "vitl_inr": ("ViT-L-14-quickgelu", "openai", 20, "lamda"),
        "vitl_inr_tppt_ridge": ("ViT-L-14-quickgelu", "openai", 20, "lamda"),
        "vitb16_cifar100": ("ViT-B-16-quickgelu", "openai", 10, "lamda"),
        "miniclip_tinar": ("local-dir:../shared/assets/miniclip", None, 10, "natural"),
        "miniclip_tinb": ("local-dir:../shared/assets/miniclip", None, 10, "natural"),
        "demo": ("local-dir:pipeline/demo/clip", None, 4, "lamda"),
    }
    if file.stem not in specified:
        pytest.skip("not specified")
    arch, weights, per_task, order = specified[file.stem]
    assert (config.model.arch, config.model.weights) == (arch, weights)
    assert (config.tasks.classes_per_task, config.tasks.class_order) == (per_task, order)
    assert config.tasks.order_seed == 1993 and config.tasks.limit is None
    assert config.evaluation.split == "test"
    assert config.data.index.startswith("s3://") == file.stem.startswith("vitl_inr")
