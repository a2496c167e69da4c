"""The structure of the package, read from its source: nothing here imports what it examines.

A new module, method, command or benchmark needs no change here. A new folder needs a row in
``MAY_IMPORT``, and a heavy library a row in ``DOORS``.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The modules of a folder may import each other and those of the folders in its row. `base` are the
# modules directly in pipeline/, except `commands`: those of them that a user starts.
MAY_IMPORT = {
    folder: set(row.split())
    for folder, row in {
        "base": "",
        "distributed": "base",
        "data": "base distributed",
        "catalogue": "base",
        "data.prepare": "base data catalogue",
        "model": "base",
        "classifiers": "base model",
        "methods": "base model classifiers",
        "output": "base distributed data model classifiers methods",
        "loggers": "base",
        "training": "base distributed data model classifiers methods output loggers run_report",
        "inference": "base data data.prepare model classifiers methods output",
        "serving": "base data inference",
        "exporting": "base data model classifiers methods output inference",
        "launching": "base output",
        "sweep": "base distributed data model methods output training launching",
        "inspection": "base data data.prepare model output sweep inference",
        "pages": "base",
        "run_report": "base data output pages",
        "reporting": "base catalogue output sweep pages",
        "commands": "base distributed data data.prepare classifiers methods output "
        "inference serving exporting inspection training launching sweep reporting run_report "
        "catalogue",
        "demo": "base data.prepare launching reporting commands",
        "bench": "base distributed data data.prepare model classifiers methods output training "
        "launching",
    }.items()
}

# A heavy or replaceable library is imported by these modules and no other.
DOORS = {
    "argcomplete": "cli completion",
    "av": "data.prepare.video_file",
    "deepspeed": "training.engine",
    "fsspec": "storage",
    "jinja2": "pages.page",
    "mlflow": "loggers.mlflow",
    "huggingface_hub": "exporting.hub model.weights",
    "open_clip": "exporting.load model.backbone model.blocks model.tokens model.weights",
    "optuna": "sweep.searcher",
    "psutil": "distributed.launcher_watch launching.*",
    "pillow_heif": "data.upright",
    "pyarrow": "data.prepare.parquet_source",
    "prometheus_client": "serving.metrics",
    "ray": "sweep.actor sweep.ray_cluster sweep.recorder sweep.searcher sweep.sweep",
    "starlette": "serve serving.*",
    "tenacity": "retry",
    "uvicorn": "serving.server",
    "wandb": "loggers.wandb_file loggers.weights_and_biases",
    "webdataset": "bench.plain_webdataset data.decoding data.prepare.writer",
    "yaml": "yaml_text",
    # A pickle can run code. This module refuses everything in it except arrays and plain values.
    "pickle": "data.prepare.cifar_source",
}

# Tools of maintainers, not part of the package.
TOOLS = ("tests/benchmarks", "tests/chaos", "tests/demo_clip")

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module by its name below pipeline/; "" is the package itself."""
    root = ROOT / "pipeline"
    return {
        ".".join(
            part for part in file.relative_to(root).with_suffix("").parts if part != "__init__"
        ): ast.parse(file.read_text())
        for file in sorted(root.rglob("*.py"))
    }


@cache
def modules_and_tools() -> dict[str, ast.Module]:
    """The syntax tree of every module of the package and of the tools, by its file."""
    return {
        file.relative_to(ROOT).as_posix(): ast.parse(file.read_text())
        for folder in ("pipeline", *TOOLS)
        for file in sorted((ROOT / folder).rglob("*.py"))
        if not file.name.startswith("test_")
    }


@cache
def folders() -> dict[str, ast.Module]:
    """The syntax tree of the __init__ of every folder below pipeline/."""
    files = (ROOT / "pipeline").rglob("*.py")
    names = {".".join(file.relative_to(ROOT / "pipeline").parts[:-1]) for file in files} - {""}
    return {name: modules()[name] for name in sorted(names)}


def folder_of(name: str) -> str:
    """The row of ``MAY_IMPORT`` that holds for a module."""
    if name in folders():
        return name
    if not name:  # what a user imports
        return "commands"
    folder, _, _ = name.rpartition(".")
    return folder or ("commands" if is_started(modules()[name]) else "base")


def is_started(tree: ast.Module) -> bool:
    """Whether a user starts the module."""
    return any(isinstance(node, ast.If) and "__name__" in names_in(node.test) for node in tree.body)


def names_in(node: ast.AST) -> set[str]:
    """Every name that is used in ``node``."""
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, also inside its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each module of the package that a module imports."""
    for line, full_name in imported_names(tree):
        first, *rest = full_name.split(".")
        while rest and ".".join(rest) not in modules():
            rest.pop()
        if first == "pipeline":
            yield line, ".".join(rest)


def definitions(node: ast.AST) -> Iterator[ast.stmt]:
    """Every function and class defined in ``node``, at any depth."""
    for child in ast.walk(node):
        if isinstance(child, DEFINITIONS):
            yield child


def public_definitions(tree: ast.Module) -> Iterator[tuple[int, str, ast.AST]]:
    """Line, name and node of each public class, public method and public function."""
    for node in tree.body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield node.lineno, node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, DEFINITIONS) and not method.name.startswith("_"):
                    yield method.lineno, f"{node.name}.{method.name}", method


def cycle_in(graph: dict[str, Iterable[str]]) -> list[str]:
    """The nodes of one cycle of ``graph``, or nothing if it has no cycle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_through_others():
    graph = {
        name: {target for _, target in imported_modules(tree) if target != name}
        for name, tree in modules().items()
    }
    assert cycle_in(graph) == []


def test_folders_import_only_the_folders_in_their_row():
    assert cycle_in(MAY_IMPORT) == []
    strays = [
        f"pipeline.{name}:{line} imports pipeline.{target}; {folder_of(target)} is not in the row "
        f"of {folder_of(name)} in MAY_IMPORT"
        for name, tree in modules().items()
        for line, target in imported_modules(tree)
        if folder_of(target) not in {folder_of(name), *MAY_IMPORT.get(folder_of(name), ())}
    ]
    assert strays == []


def test_every_folder_has_a_row_and_every_row_a_folder():
    assert set(MAY_IMPORT) - {"base", "commands"} == set(folders())


@pytest.mark.parametrize("folder", folders())
def test_folder_says_what_is_in_it_and_what_it_imports(folder: str):
    """must hold for its __init__: a sentence, and one that names the folders of its row"""
    text = " ".join((ast.get_docstring(folders()[folder]) or "").split())
    contents, _, rest = text.partition("Imports ")
    imports = re.split(r";|\.(?: |$)", rest)[0]
    named = re.findall(r"``([\w.]+)``|(base) modules|(commands)", imports)
    assert "." in contents
    assert {"".join(names) for names in named} == MAY_IMPORT[folder]


@pytest.mark.parametrize("library", DOORS)
def test_library_is_imported_at_its_doors_only(library: str):
    doors = DOORS[library].split()
    users = {
        name
        for name, tree in modules().items()
        for _, full_name in imported_names(tree)
        if full_name.split(".")[0] == library
    }
    strays = {name for name in users if not any(fnmatch(name, door) for door in doors)}
    unused = {door for door in doors if not any(fnmatch(name, door) for name in users)}
    assert (strays, unused) == (set(), set())


def test_every_imported_library_is_required_by_name():
    """must hold for optional ones too, which have a door and are required by the tests"""
    required, optional, loggers = (
        {re.split(r"[\[<>=~!]", line)[0] for line in (ROOT / file).read_text().splitlines()}
        for file in ("requirements.txt", "tests/requirements.txt", "tests/loggers/requirements.txt")
    )
    in_loggers = {name.removesuffix("-skinny") for name in loggers}  # not in this environment
    distributions = packages_distributions()
    missing = {
        f"pipeline.{name}: {library}"
        for name, tree in modules().items()
        for _, full_name in imported_names(tree)
        if (library := full_name.split(".")[0]) not in {*sys.stdlib_module_names, "pipeline"}
        and not (library in DOORS and library in in_loggers)
        and (required | optional if library in DOORS else required).isdisjoint(
            distribution.lower() for distribution in distributions.get(library, [])
        )
    }
    assert missing == set()


def test_modules_and_functions_stay_short():
    too_long = []
    for file, tree in modules_and_tools().items():
        if tree.body and tree.body[-1].end_lineno > MAX_MODULE_LINES:
            too_long.append(f"{file}: {tree.body[-1].end_lineno} lines")
        for node in definitions(tree):
            length = node.end_lineno - node.lineno + 1
            if not isinstance(node, ast.ClassDef) and length > MAX_FUNCTION_LINES:
                too_long.append(f"{file}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def test_public_names_have_docstrings():
    missing = [file for file, tree in modules_and_tools().items() if not ast.get_docstring(tree)]
    missing += [
        f"{file}:{line} {public_name}"
        for file, tree in modules_and_tools().items()
        for line, public_name, node in public_definitions(tree)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_only_modules_that_a_user_starts_print():
    prints = [
        f"pipeline.{name}:{node.lineno}"
        for name, tree in modules().items()
        if not is_started(tree)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert prints == []


def test_importing_only_defines():
    """must hold for every module, since each loader worker and each rank imports them all"""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, *DEFINITIONS)
    actions = [
        f"pipeline.{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in tree.body
        if not isinstance(node, allowed)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not is_entry(node)
    ]
    assert actions == []


def is_entry(node: ast.stmt) -> bool:
    """Whether a statement only asks how the module was started, or who reads it."""
    known = {"__name__", "__package__", "TYPE_CHECKING", "sys"}  # sys: its version
    return isinstance(node, ast.If) and bool(known & names_in(node))


def run_checker(*arguments: str) -> tuple[int, str]:
    """Exit status and output of a Python module that checks the repository."""
    checker = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return checker.returncode, checker.stdout + checker.stderr


def test_linter_finds_nothing():
    status, output = run_checker("ruff", "check", "--output-format=concise", ".")
    assert status == 0, output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_type_checker_finds_nothing():
    status, output = run_checker("mypy")
    assert status == 0, output
