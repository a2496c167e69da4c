"""The README and the pages in docs/ are right: commands parse, files exist, settings are known."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline import prepare, tune
from pipeline.__main__ import find_commands
from pipeline.bench import __main__ as bench
from pipeline.bench.settings import load_bench_config
from pipeline.config import Config, load_config
from pipeline.methods import METHODS, parse_options
from pipeline.model.backbone import FrozenClip
from pipeline.settings_table import list_settings
from pipeline.sweep.config import load_sweep
from pipeline.train import parse_arguments
from tests.chaos import __main__ as chaos
from tests.tiny import build_context, draw_batch, tiny_tasks

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(TEXT)
PROSE = BLOCK.sub("", TEXT)
MAX_README_LINES = 250


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are given in the root of the repository."""
    monkeypatch.chdir(ROOT)


def commands() -> list[list[str]]:
    """The words of every command in every shell block, continuation lines joined."""
    lines: list[str] = []
    for language, text in BLOCKS:
        if language in ("bash", "sh", "console"):
            lines += text.replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in re.split(r"&&|;|\|", line))
    words = (shlex.split(part, comments=True) for part in parts)
    return [_as_module(each) for each in words if each]


def _as_module(words: list[str]) -> list[str]:
    """``tppt NAME`` as ``python -m pipeline.NAME``, which it is the same as."""
    program, *rest = words
    if Path(program).name != "tppt" or not rest or rest[0] not in find_commands():
        return words
    return ["python", "-m", f"pipeline.{rest[0]}", *rest[1:]]


def arguments_of(*programs: str) -> list[list[str]]:
    """The arguments of every command that starts one of ``programs``, without shell variables."""
    found = [
        [word for word in words[words.index(program) + 1 :] if "$" not in word]
        for words in commands()
        for program in programs
        if program in words
    ]
    assert found, f"no command starts {programs}"
    return found


def is_shipped(file: str) -> bool:
    """Whether a configuration is in the repository; an earlier command writes those in runs/."""
    return Path(file).parts[0] != "runs"


def anchors_of(page: Path) -> set[str]:
    """The link targets that the headings of a page make on GitHub."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_first_block_is_the_demo_and_second_the_tests():
    """must stay so: .ci/run executes the second"""
    demo, tests = (text.strip() for _, text in BLOCK.findall(README.read_text())[:2])
    assert demo.splitlines()[-1].endswith("-m pipeline.demo")
    assert "pytest" in tests
    for text in (demo, tests):
        assert "bash cluster/setup.sh" in text and (ROOT / "cluster/setup.sh").is_file()


def test_readme_stays_short():
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_every_module_that_is_run_exists():
    run = {words[words.index("-m") + 1] for words in commands() if "-m" in words}
    assert {"pipeline.demo", "pipeline.prepare", "pytest", "tests.chaos"} <= run
    assert [name for name in run if find_spec(name) is None] == []


def test_every_training_command_is_understood():
    """must name configurations that are shipped, settings that exist and methods that exist"""
    for words in arguments_of("pipeline/train.py", "pipeline.train"):
        options = parse_arguments(words)
        if is_shipped(options.config):
            parse_options(load_config(options.config, options.overrides).method)


def test_every_preparing_command_is_understood():
    for words in arguments_of("pipeline.prepare"):
        prepare._build_parser().parse_args(words)


def test_every_sweep_command_is_understood():
    for words in arguments_of("pipeline.tune"):
        options = tune.parse_arguments(words)
        load_sweep(options.config, options.overrides)


def test_every_benchmark_command_is_understood():
    for words in arguments_of("pipeline.bench"):
        options = bench.parse_arguments(words)
        for name in options.names:
            load_bench_config(name, options.config, options.overrides)


def test_every_fault_injection_command_is_understood():
    for words in arguments_of("tests.chaos"):
        options = chaos._parse(words)
        load_config(options.config, options.overrides)


def test_every_override_in_the_text_is_understood():
    """must hold for those in running text too: ``method.name=finetune optim.epochs=5``"""
    named = set(re.findall(r"`((?:[a-z_.]+=[\w./-]+ ?)+)`", PROSE)) - {"key=value"}
    assert named
    for overrides in named:
        load_config("configs/demo.yaml", overrides.split())


def test_every_setting_in_the_text_exists():
    keys = [each.key.split(".") for each in list_settings(Config) if "[" not in each.key]
    known = {".".join(key[:length]) for key in keys for length in range(1, len(key) + 1)}
    sections = "|".join({key[0] for key in keys if len(key) > 1})
    named = set(re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)[`:=]", PROSE))
    assert named and sorted(named - known) == []


def test_configuration_in_the_text_is_understood(tmp_path: Path):
    written = [text for language, text in BLOCKS if language == "yaml"]
    assert written
    for text in written:
        (tmp_path / "readme.yaml").write_text(text)
        parse_options(load_config(tmp_path / "readme.yaml").method)


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:pipeline|configs|cluster|docs|tests)/[\w./]+)`", PROSE))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_reading_order_and_way_to_the_loss_exist():
    """must name modules below pipeline/, and functions and methods of the package"""
    _, _, section = README.read_text().partition("\n## The code\n")
    way, order = section.strip().split("\n\n")[0].split("Read in this order")
    sources = [file.read_text() for file in (ROOT / "pipeline").rglob("*.py")]
    for owner, name in re.findall(r"`(\w+)\.(\w+)`", way):
        files = [file.read_text() for file in (ROOT / "pipeline").rglob(f"{owner}.py")]
        files += [
            text for text in sources if f"class {owner}(" in text or f"class {owner}:" in text
        ]
        assert any(f"def {name}(" in text for text in files), f"{owner}.{name}"
    modules = re.findall(r"`([\w/]+)`", order)
    assert modules
    assert [name for name in modules if not (ROOT / f"pipeline/{name}.py").is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    """must hold for links between pages, and for those to a heading"""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.is_file() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_tree_names_every_folder_of_the_package():
    tree = next(text for _, text in BLOCKS if "\npipeline/ " in text)
    named = re.findall(r"^  +([a-z_]+)/ ", tree, flags=re.MULTILINE)
    files = (ROOT / "pipeline").rglob("*.py")
    folders = {file.parent.name for file in files} - {"pipeline"}
    assert sorted(named) == sorted(folders)


def test_methods_in_the_table_exist():
    _, _, section = README.read_text().partition("\n## Methods\n")
    named = re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], flags=re.MULTILINE)
    assert {"zeroshot", "finetune", "tppt_v", "tppt_vt"} <= set(named) <= set(METHODS)


@pytest.mark.usefixtures("alone")
def test_example_of_a_method_learns(tiny_clip: FrozenClip):
    """must be a method whose every trained tensor gets a gradient"""
    (text,) = (text for language, text in BLOCKS if language == "python")
    names = {"__name__": "example"}
    exec(text, names)
    (example,) = (each for each in names.values() if getattr(each, "__module__", "") == "example")
    method = example(build_context(tiny_clip), example.Options())
    task = tiny_tasks()[0]
    method.begin_task(task)
    losses = method(*draw_batch(tiny_clip, task, 7))
    losses.total.backward()
    torch.testing.assert_close(losses.total, sum(losses.terms.values()))
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


def test_no_place_is_left_to_be_filled():
    assert re.findall(r"^[A-Z_]{4,}$", TEXT, flags=re.MULTILINE) == []
