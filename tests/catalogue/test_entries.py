"""The catalogue: every file is right in itself, and gives configurations that a run accepts."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from pipeline.benchmarks import main
from pipeline.catalogue.configuration import BACKBONES, configuration_text, sequence_text
from pipeline.catalogue.entry import ANY_LAYOUT, Benchmark, benchmark_names, read_benchmark
from pipeline.catalogue.sequences import SEQUENCES, own_sequence
from pipeline.config import Config, decisive_settings, load_config
from pipeline.errors import ConfigError
from pipeline.methods import parse_options
from pipeline.settings_file import parse_section
from pipeline.tasks import class_order
from pipeline.yaml_text import parse_yaml

PAGE = Path(__file__).parents[2] / "docs" / "BENCHMARKS.md"
NAMES = benchmark_names()
CLASSES = {
    "aircraft": 100,
    "caltech101": 101,
    "cars": 196,
    "cifar100": 100,
    "cub200": 200,
    "domainnet": 345,
    "dtd": 47,
    "eurosat": 10,
    "flowers102": 102,
    "food101": 101,
    "imagenet100": 100,
    "imagenet1k": 1000,
    "imagenet_a": 200,
    "imagenet_r": 200,
    "mnist": 10,
    "objectnet": 200,
    "pets": 37,
    "sun397": 397,
    "tiny_imagenet": 200,
    "ucf101": 101,
}


def letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


def test_benchmarks_have_the_published_numbers_of_classes():
    assert {name: read_benchmark(name).class_count for name in NAMES} == CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_names_of_classes_are_written_properly(name):
    """must differ for the text tower, which ignores case, and have spaces for underscores"""
    names = list(read_benchmark(name).classes.values())
    assert len({" ".join(unescape(each).lower().split()) for each in names}) == CLASSES[name]
    assert [each for each in names if "_" in each or each != " ".join(each.split())] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_folder_can_stand_for_two_classes(name):
    """must hold without case and signs, which a source may write in another way"""
    classes = read_benchmark(name).classes
    folders: dict[str, set[str]] = {}
    for folder, each in classes.items():
        for text in (folder, each):
            folders.setdefault(letters(text), set()).add(folder)
    assert [found for found in folders.values() if len(found) > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_facts_have_sources(name):
    entry = read_benchmark(name)
    known = entry.sources.keys() | ({"counts"} if "splits" in entry.sources else set())
    assert {"names", "templates", "counts", "licence"} <= known
    assert entry.url.startswith(("https://", "http://"))
    for template in entry.templates:
        assert template.count("{}") == 1 and template == template.strip()
    assert len(set(entry.templates)) == len(entry.templates)


@pytest.mark.parametrize("name", NAMES)
def test_protocols_are_what_their_names_say(name):
    """must be B<first classes>-<increment>, where B0 means that all tasks have one size"""
    for title, protocol in read_benchmark(name).protocols.items():
        initial, increment = map(int, re.fullmatch(r"B(\d+)-(\d+)", title).groups())
        assert (protocol.initial, protocol.increment) == (initial or increment, increment)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_are_accepted(name, tmp_path):
    file = tmp_path / "run.yaml"
    for (arch, weights), backbone in BACKBONES.items():
        for protocol in read_benchmark(name).protocols:
            file.write_text(configuration_text(name, arch, weights=weights, protocol=protocol))
            config = load_config(file)
            parse_options(config.method)
            assert (config.model.arch, config.model.weights) == (backbone, weights)
            assert config.data.index == f"data/{name}"


@pytest.mark.parametrize(
    ("name", "shipped"), [("imagenet_r", "configs/vitl_inr.yaml")], ids=["imagenet_r"]
)
def test_configuration_agrees_with_the_shipped_one(name, shipped):
    text = configuration_text(name, "L/14")
    made = parse_section(Config, parse_yaml(text, place="made"), place="made")
    assert decisive_settings(made) == decisive_settings(load_config(shipped))
    assert made.tasks == load_config(shipped).tasks


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_have_the_templates_of_each_benchmark(name, tmp_path):
    """must give each of them those of its entry, unless the source of the sequence has others"""
    sequence, file = SEQUENCES[name], tmp_path / "run.yaml"
    for arch, weights in BACKBONES:
        file.write_text(sequence_text(name, sequence, arch, weights=weights))
        config = load_config(file)
        assert config.data.index == [f"data/{each}" for each in sequence.benchmarks]
        assert (config.tasks.classes_per_task, config.tasks.known_classes) == ("all", "apart")
        assert config.evaluation.label_space == sequence.label_space
        found = [config.text.templates_of(k) for k in range(len(sequence.benchmarks))]
        for each, templates in zip(sequence.benchmarks, found, strict=True):
            other = sequence.templates.get(each)
            assert templates == ([*other] if other else read_benchmark(each).templates)


def test_orders_of_mtil_have_the_same_1201_classes():
    """must be 11 benchmarks of 1,201 classes, arXiv 2303.06628; X-TAIL leaves out CIFAR100"""
    first, second, x_tail = (SEQUENCES[name].benchmarks for name in ("mtil", "mtil-2", "x-tail"))
    assert sorted(first) == sorted(second) == sorted((*x_tail, "cifar100"))
    assert sum(read_benchmark(name).class_count for name in first) == 1201


def test_sequence_names_each_benchmark_once():
    with pytest.raises(ConfigError, match="named twice in pets, dtd, pets"):
        sequence_text("mine", own_sequence(("pets", "dtd", "pets")), "B/16")
    with pytest.raises(ConfigError, match="did you mean 'pets'"):
        sequence_text("mine", own_sequence(("pet", "dtd")), "B/16")


def test_imagenet_100_begins_with_the_first_classes_of_the_seed():
    """must be the classes of the permutation of seed 1993, as its authors draw them"""
    all_folders = list(read_benchmark("imagenet1k").classes)
    order = class_order("lamda", 1000, 1993)
    chosen = {all_folders[label] for label in order[:100]}
    assert set(read_benchmark("imagenet100").classes) == chosen
    assert sorted(all_folders) == all_folders


def test_unknown_names_are_refused_with_a_similar_one():
    with pytest.raises(ConfigError, match="did you mean 'cifar100'"):
        read_benchmark("cifar-100")
    with pytest.raises(ConfigError, match="'B0-7' is not a protocol of cub200; did you mean"):
        configuration_text("cub200", "B/16", protocol="B0-7")


def test_wrong_file_is_refused():
    """must name the key and the fault"""
    tree = read_benchmark("mnist").model_dump()
    tree["classes"]["9"] = "Eight "
    with pytest.raises(ConfigError, match="9 different names, not 10"):
        parse_section(Benchmark, tree, place="mnist")
    tree = read_benchmark("mnist").model_dump() | {"templates": ["a photo"]}
    with pytest.raises(ConfigError, match="'a photo' needs exactly one"):
        parse_section(Benchmark, tree, place="mnist")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "\nimagenet_r ImageNet-R 200 7 lamda rapf coda clap4clip B0-20 B100-20 "),
        (["imagenet_r"], "clap4clip: 200 classes, 24,000 training and 6,000 test images"),
        (["aircraft", "--classes"], "F-16A/B\tF-16A/B"),
        (["cub200", "--config", "B/16"], "classes_per_task: 20"),
        (["cub200", "--config", "L/14", "--protocol", "B100-20"], "initial_classes: 100"),
        (["x-tail"], "templates a photo of a {}."),
        (["pets", "dtd", "--config", "B/16"], "- - a photo of a {}, a type of pet."),
    ],
)
def test_command_shows_the_catalogue(capsys, words, shown):
    assert main(words) == 0
    assert shown in re.sub(" +", " ", capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        ["--classes"],
        ["cub200", "--weights", "openai"],
        ["pets", "dtd"],
        ["mtil", "--config", "B/16", "--protocol", "B0-5"],
    ],
)
def test_command_refuses_options_without_their_object(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


def test_page_shows_the_current_output(capsys):
    """must hold for the tables and for the configuration in docs/BENCHMARKS.md"""
    page = PAGE.read_text()
    layouts = {name: read_benchmark(name).layout for name in NAMES}
    rows = [f"| `{name}` | `{text}` |\n" for name, text in layouts.items() if text != ANY_LAYOUT]
    assert "".join(rows) in page
    for words in ([], ["imagenet_r", "--config", "B/16"]):
        assert main(words) == 0
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert "\n".join(lines) in page, f"tppt benchmarks {' '.join(words)}"
    assert main(["mtil"]) == 0
    _, heading, results = capsys.readouterr().out.partition("published results")
    assert heading + results in page and results.count("\n") > 5
