"""The shape of the package, held by reading its source: nothing here imports what it examines."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A module imports only from rows above its own. A new module is given its place here.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "errors rng schedule metrics retry progress model.losses data.processes "
        "search.markup search.tether search.environment",
        "preemption slurm",
        "storage config comm tasks model.backbone data.transforms data.decoding data.folder",
        "log ownership results search.settings snapshots model.prompts data.samples data.pictures",
        "model.anchors search.records data.index data.records data.roster",
        "methods.base data.plan data.cache data.writer data.sources data.mirror data.audit",
        "search.display search.space search.launch search.cluster",
        "search.searcher search.trial",
        "search.actor",
        "search.scale",
        "search.charts",
        "methods.zeroshot methods.finetune data.encoding data.prefetch data.reader engine scoring",
        "methods.tppt_v data.batch data.sharding",
        "methods.tppt_vt data.stream",
        "methods frozen identity pictures",
        "evaluation recovery",
        "trainer",
        "run",
        "search.protocol",
        "search.report search.forecast search.sweep",
        # Commands, and what only the demo needs.
        "train prepare compare tune demo.nouns demo.renditions",
        "demo.pictures",
        "demo.measure demo.pretrain demo.__main__",
        "chaos.harms chaos.gate chaos.processes chaos.course chaos.findings",
        "chaos.rounds",
        "chaos.report",
        "chaos.__main__",
    )
)

# A heavy or replaceable library is imported by these modules and no other.
DOORS = {
    "deepspeed": {"engine"},
    "open_clip": {"model.backbone", "demo.measure", "demo.pretrain"},
    "webdataset": {"data.decoding", "data.writer"},
    "fsspec": {"storage"},
    "s3fs": {"storage"},
    "tenacity": {"retry"},
    "filelock": {"data.folder"},
    "psutil": {"chaos.processes", "search.launch"},
    "pyarrow": {"data.records"},
    "yaml": {"config"},
    "ray": {"search.actor", "search.cluster", "search.searcher", "search.sweep"},
    "optuna": {"search.searcher"},
    # A pickle runs what it says, unless everything but arrays is refused, as it is there.
    "pickle": {"data.records"},
}

# Their last words go to stdout; everything else is logged.
COMMANDS = {"train", "prepare", "demo.__main__", "demo.measure", "demo.pretrain"}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its name below the package; a package is its __init__."""
    trees = {}
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = file.relative_to(ROOT / "pipeline").with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        trees[name] = ast.parse(file.read_text(), filename=str(file.relative_to(ROOT)))
    return trees


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in a module, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_module(full_name: str) -> str | None:
    """The module of ours that holds ``full_name``, or None if it is not ours."""
    first, *rest = full_name.split(".")
    if first != "pipeline":
        return None
    while rest and ".".join(rest) not in modules():
        rest.pop()
    return ".".join(rest)


def definitions(node: ast.AST) -> Iterator[ast.stmt]:
    """Every function and class defined in ``node``, however deep."""
    for child in ast.walk(node):
        if isinstance(child, DEFINITIONS):
            yield child


def public_definitions(tree: ast.Module) -> Iterator[tuple[int, str, ast.AST]]:
    """Line, name and node of what a reader may use: classes, their methods, functions."""
    for node in tree.body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield node.lineno, node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, DEFINITIONS) and not method.name.startswith("_"):
                    yield method.lineno, f"{node.name}.{method.name}", method


def test_every_module_has_its_place_and_every_place_a_module():
    placed = [name for row in LAYERS for name in row]
    packages = {name for name, tree in modules().items() if len(tree.body) <= 1}
    assert set(modules()) - packages - set(placed) == set(), "give new modules a row in LAYERS"
    assert set(placed) - set(modules()) == set(), "take modules that are gone out of LAYERS"
    assert len(placed) == len(set(placed))


def test_imports_point_to_lower_layers_only():
    layer = {name: number for number, row in enumerate(LAYERS) for name in row}
    upward = [
        f"pipeline.{name}:{line} imports {full_name}"
        for name, tree in modules().items()
        for line, full_name in imported_names(tree)
        if (target := imported_module(full_name)) in layer
        and layer[target] >= layer.get(name, len(LAYERS))
    ]
    assert upward == []


def test_libraries_are_used_at_their_doors_only():
    strays = [
        f"pipeline.{name}:{line} imports {full_name}"
        for name, tree in modules().items()
        for line, full_name in imported_names(tree)
        if name not in DOORS.get(full_name.split(".")[0], {name})
    ]
    assert strays == []


def test_every_imported_library_is_required_by_name():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[\[<>=~!]", line)[0] for line in lines if line and line[0] != "#"}
    distributions = packages_distributions()
    missing = {
        f"pipeline.{name}: {library}"
        for name, tree in modules().items()
        for _, full_name in imported_names(tree)
        if (library := full_name.split(".")[0]) not in {*sys.stdlib_module_names, "pipeline"}
        and required.isdisjoint(
            distribution.lower() for distribution in distributions.get(library, [])
        )
    }
    assert missing == set()


def test_modules_and_functions_stay_readable_in_one_sitting():
    too_long = []
    for name, tree in modules().items():
        if tree.body and tree.body[-1].end_lineno > MAX_MODULE_LINES:
            too_long.append(f"pipeline.{name}: {tree.body[-1].end_lineno} lines")
        for node in definitions(tree):
            length = node.end_lineno - node.lineno + 1
            if not isinstance(node, ast.ClassDef) and length > MAX_FUNCTION_LINES:
                too_long.append(f"pipeline.{name}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def test_public_names_are_explained():
    silent = [f"pipeline.{name}" for name, tree in modules().items() if not ast.get_docstring(tree)]
    silent += [
        f"pipeline.{name}:{line} {public_name}"
        for name, tree in modules().items()
        for line, public_name, node in public_definitions(tree)
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_only_commands_print():
    loud = [
        f"pipeline.{name}:{node.lineno}"
        for name, tree in modules().items()
        if name not in COMMANDS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert loud == []


def test_importing_does_nothing_but_define():
    """must hold for every module, since each loader worker and each rank imports them all."""
    allowed = (
        *(ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign),
        *DEFINITIONS,
    )
    busy = [
        f"pipeline.{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in tree.body
        if not isinstance(node, allowed)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not is_entry(node)
    ]
    assert busy == []


def is_entry(node: ast.stmt) -> bool:
    """Whether a statement only asks how the module was started, or for whom."""
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    return isinstance(node, ast.If) and bool(names & {"__name__", "__package__", "TYPE_CHECKING"})


def test_linter_is_content():
    linter = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr
