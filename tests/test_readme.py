"""What the README tells a reader to type, write or open is there and is understood."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline import prepare
from pipeline.config import load_config
from pipeline.methods import METHODS, parse_options
from pipeline.train import parse_arguments

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in the root of the repository."""
    monkeypatch.chdir(ROOT)


def commands() -> list[list[str]]:
    """Every command of every shell block, its continuation lines joined, in words."""
    lines: list[str] = []
    for language, text in BLOCKS:
        if language in ("bash", "sh", "console"):
            lines += text.replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in re.split(r"&&|;|\|", line))
    words = (shlex.split(part, comments=True) for part in parts)
    return [each for each in words if each]


def test_first_block_is_the_demo_and_second_the_tests():
    """must stay so: the machine that checks every change runs the second"""
    demo, tests = (text.strip() for _, text in BLOCKS[:2])
    assert demo.splitlines()[-1].endswith("-m pipeline.demo")
    assert "pytest" in tests
    for text in (demo, tests):
        assert "bash cluster/setup.sh" in text and (ROOT / "cluster/setup.sh").is_file()


def test_every_module_that_is_run_exists():
    run = {words[words.index("-m") + 1] for words in commands() if "-m" in words}
    assert {"pipeline.demo", "pipeline.prepare", "pytest"} <= run
    assert [name for name in run if find_spec(name) is None] == []


def test_every_training_command_is_understood():
    """must name configurations that are shipped, keys that exist and methods that there are"""
    started = [words for words in commands() if "pipeline/train.py" in words]
    started += [words for words in commands() if "pipeline.train" in words]
    assert started
    for words in started:
        script = next(w for w in ("pipeline/train.py", "pipeline.train") if w in words)
        options = parse_arguments([w for w in words[words.index(script) + 1 :] if "$" not in w])
        if Path(options.config).parts[0] == "runs":  # an earlier command writes that one
            continue
        parse_options(load_config(options.config, options.overrides).method)


def test_every_preparing_command_is_understood():
    started = [words for words in commands() if "pipeline.prepare" in words]
    assert started
    for words in started:
        prepare._build_parser().parse_args(words[words.index("pipeline.prepare") + 1 :])


def test_every_override_in_the_text_is_understood():
    """must hold for those in running text too: ``method.name=finetune optim.epochs=5``"""
    named = set(re.findall(r"`((?:[a-z_.]+=[\w./-]+ ?)+)`", PROSE)) - {"key=value"}
    assert named
    for overrides in named:
        load_config("configs/demo.yaml", overrides.split())


def test_configuration_in_the_text_is_one(tmp_path: Path):
    written = [text for language, text in BLOCKS if language == "yaml"]
    assert written
    for text in written:
        (tmp_path / "readme.yaml").write_text(text)
        parse_options(load_config(tmp_path / "readme.yaml").method)


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:pipeline|configs|cluster|tests)/[\w./]+)`", PROSE))
    missing = [name for name in named if not (ROOT / name).exists()]
    modules = [name for name in missing if (ROOT / f"{name}.py").exists()]
    assert sorted(set(missing) - set(modules)) == []


def test_every_module_stands_in_the_tree():
    tree = next(text for _, text in BLOCKS if "\npipeline/\n" in text)
    modules = (path for path in (ROOT / "pipeline").rglob("*.py") if "demo" not in path.parts)
    missing = [
        path.name for path in modules
        if path.stem != "__init__" and not re.search(rf"\b{path.stem}\b", tree)
    ]  # fmt: skip
    gone = [
        name for name in re.findall(r"\b(\w+\.py)\b", tree)
        if not list((ROOT / "pipeline").rglob(name))
    ]  # fmt: skip
    assert (missing, gone) == ([], [])


def test_every_method_is_described():
    described = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", PROSE, flags=re.MULTILINE)
    assert set(METHODS) <= set(described)


def test_no_place_is_left_to_be_filled():
    assert re.findall(r"^[A-Z_]{4,}$", TEXT, flags=re.MULTILINE) == []
