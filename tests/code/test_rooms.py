"""The order of rooms, which are subpackages: each imports only from those before it, and no modules form a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOMS = [
    "errors",
    "files",
    "processes",
    "config",
    "text",
    "fetching",
    "models",
    "metrics",
    "tasks",
    "data",
    "training",
    "planning",
    "predicting",
    "evaluation",
    "export",
    "serving",
    "registry",
    "selection",
    "stages",
    "cli",
]
REGISTRY = ["runs", "versions", "lineage", "promotion", "server"]
PACKAGE = Path(__file__).resolve().parents[2] / "src" / "textmill"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of Textmill that it imports: at any depth of code, and for type checkers too."""
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = imported_modules(path.read_text(encoding="utf-8"), set(modules))
    return graph


def imported_modules(text: str, modules: set[str]) -> set[str]:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            assert "textmill" not in names, "import a module of textmill, or a name from it"
            imported |= names & modules
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "write absolute imports"
            for name in (alias.name for alias in node.names):
                full = f"{node.module}.{name}"
                imported |= {full} if full in modules else {node.module} & modules
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            imported |= {each.value for each in node.args if isinstance(each, ast.Constant)} & modules
    return imported


@pytest.mark.parametrize(
    "text",
    [
        "import textmill.serving as s",
        "from textmill import serving",
        "from textmill.serving import *",
        "def f():\n    from textmill.serving import anything",
        "if TYPE_CHECKING:\n    from textmill.serving import anything",
        "importlib.import_module('textmill.serving')",
        "__import__('textmill.serving')",
    ],
)
def test_every_form_of_import_is_seen(text: str) -> None:
    assert imported_modules(text, {"textmill", "textmill.serving"}) == {"textmill.serving"}


@pytest.mark.parametrize("text", ["from . import serving", "from .serving import app", "import textmill"])
def test_import_that_hides_its_module_is_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        imported_modules(text, {"textmill", "textmill.serving"})


def edges(depth: int) -> list[tuple[str, str, str, str]]:
    """Part -> part with the modules between which the import stands; parts at one depth of the package."""
    return [
        (module.split(".")[depth], target.split(".")[depth], module, target)
        for module, targets in import_graph().items()
        for target in targets
        if min(module.count("."), target.count(".")) >= depth
        and module.split(".")[:depth] == target.split(".")[:depth]
        and module.split(".")[depth] != target.split(".")[depth]
    ]


def test_every_room_has_its_place() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__"} == set(ROOMS)


def test_rooms_import_only_from_those_before() -> None:
    wrong = [edge[2:] for edge in edges(1) if ROOMS.index(edge[0]) < ROOMS.index(edge[1])]
    assert not wrong


def test_folders_of_registry_import_only_from_those_before() -> None:
    inside = [edge for edge in edges(2) if edge[2].startswith("textmill.registry.")]
    assert inside
    assert not [edge[2:] for edge in inside if REGISTRY.index(edge[0]) < REGISTRY.index(edge[1])]


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
