"""How the house is built: rooms, one direction of imports, no circles, sizes, what may stand in one place only."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ivlens

ROOT = Path(__file__).parent.parent
PACKAGE = Path(ivlens.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a module imports only from its own room and from the rooms before it.
ROOMS = "common tasks prompts models forward effects vectors steering tuning analysis runs out show pocket cli".split()
MOST_ROOMS = 16
NO_ROOMS = {"__init__.py", "__main__.py", "py.typed", "data", "__pycache__"}
DRAWS_ITSELF = (
    "plot",
    "plot_shares",
    "pick",
    "_repr_html_",
)  # methods of results, which may import `show` when they are called


def name_of(path: Path) -> str:
    """Dotted name of a module; that of the package for its `__init__`."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a dotted name: the part after `ivlens`."""
    return module.split(".")[1]


def imported(tree: ast.AST, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import from the package, wherever it stands: lazy and for types only as well."""
    drawing = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in DRAWS_ITSELF
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ivlens.show")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "ivlens")
        elif isinstance(node, ast.ImportFrom) and id(node) not in drawing:
            assert node.level == 0, f"line {node.lineno}: relative import; the package imports by full name"
            if (node.module or "").split(".")[0] == "ivlens":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield node.lineno, inner if inner in known else node.module or ""


def imports_of(sources: Mapping[str, str]) -> dict[str, list[tuple[int, str]]]:
    """What every module imports, with line numbers."""
    return {module: sorted(imported(ast.parse(text), set(sources))) for module, text in sources.items()}


def upward(imports: Mapping[str, Iterable[tuple[int, str]]]) -> list[str]:
    """Imports from a room that does not come before, or from the package's own face."""
    wrong = []
    for module, found in imports.items():
        if module in ("ivlens", "ivlens.__main__"):
            continue
        for line, there in found:
            if there == "ivlens":
                wrong.append(f"{module}:{line} imports ivlens itself, whose names are for users")
            elif ROOMS.index(room_of(there)) > ROOMS.index(room_of(module)):
                wrong.append(f"{module}:{line} imports {there}, whose room does not come before")
    return wrong


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of a graph, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def folders(imports: Mapping[str, Iterable[tuple[int, str]]]) -> dict[str, set[str]]:
    """Which folder imports from which."""
    packages = {module for module in imports if (PACKAGE.parent / module.replace(".", "/")).is_dir()}

    def folder(module: str) -> str:
        return module if module in packages else module.rsplit(".", 1)[0]

    graph: dict[str, set[str]] = {}
    for module, found in imports.items():
        graph.setdefault(folder(module), set()).update(folder(there) for _, there in found)
    return {here: there - {here} for here, there in graph.items()}


@pytest.fixture(scope="module")
def imports() -> dict[str, list[tuple[int, str]]]:
    return imports_of({name_of(path): path.read_text() for path in MODULES})


def test_rooms():
    found = {path.name for path in PACKAGE.iterdir()} - NO_ROOMS
    assert found == set(ROOMS), "a room is new or gone: say so in ROOMS, and in CONTRIBUTING.md"
    assert len(found) <= MOST_ROOMS


def test_contributing_shows_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.findall(r"^  (\w+)/ ", text, re.MULTILINE)
    assert shown == [*ROOMS, "data"]
    folders_named = set(re.findall(r"`((?:ivlens|tests|docs)/[\w/]+(?:\.\w+)?)", text))
    assert not [name for name in folders_named if not (ROOT / name).exists()]


def test_imports_point_upward(imports):
    assert not upward(imports), "\n".join(upward(imports))


def test_no_import_circle(imports):
    found = circle({module: {there for _, there in given} for module, given in imports.items()})
    assert not found, " -> ".join(found)


def test_no_circle_of_folders(imports):
    found = circle(folders(imports))
    assert not found, " -> ".join(found)


@pytest.mark.parametrize(
    "broken",
    [
        "from ivlens.b import thing",
        "def late():\n    from ivlens.b import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ivlens import b",
        "import ivlens.b",
    ],
    ids=["plain", "lazy", "for types", "import"],
)
def test_a_circle_is_found(broken: str):
    imports = imports_of({"ivlens.a": broken, "ivlens.b": "from ivlens.a import other", "ivlens": ""})
    assert set(circle({module: {there for _, there in given} for module, given in imports.items()})) == {
        "ivlens.a",
        "ivlens.b",
    }


def test_an_import_from_below_is_found():
    sources = {"ivlens.tasks.task": "", "ivlens.show.figures": ""}
    assert not upward(imports_of(sources | {"ivlens.show.figures": "from ivlens.tasks.task import Task"}))
    late = "def {}(self):\n    from ivlens.show.figures import Theme"
    assert upward(imports_of(sources | {"ivlens.tasks.task": late.format("helper")}))
    assert not upward(imports_of(sources | {"ivlens.tasks.task": late.format("plot")}))
    assert upward(imports_of(sources | {"ivlens.tasks.task": "import ivlens"}))


def test_module_sizes():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: size for name, size in sizes.items() if size > 300}, "modules of more than 300 lines; split them"


MOST_PARAMETERS = 8
MAY_HAVE_MORE = {"causal_indirect_effect"}  # its arguments are those of the papers' equations


def wide_functions(tree: ast.AST) -> dict[str, int]:
    """Functions and methods without a leading underscore that take too many parameters, and how many."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(one.arg not in ("self", "cls") for one in given)
            if count > MOST_PARAMETERS and node.name not in MAY_HAVE_MORE:
                found[node.name] = count
    return found


def test_no_function_takes_too_many_parameters():
    found = {str(path.relative_to(ROOT)): wide_functions(ast.parse(path.read_text())) for path in MODULES}
    assert not {name: wide for name, wide in found.items() if wide}, "group them: a recipe, or an object of options"
    nine = ", ".join("abcdefghi")
    assert wide_functions(ast.parse(f"class A:\n    def f(self, {nine}): ...")) == {"f": 9}
    assert not wide_functions(ast.parse(f"def _f({nine}): ..."))


@pytest.mark.parametrize("name", sorted(set(ivlens.__all__) - {"__version__"}))
def test_a_public_name_takes_at_most_eight_parameters(name: str):
    """The names of `ivlens` themselves, by their signatures; the fields of a result or of options do not count."""
    value = getattr(ivlens, name)
    if name not in MAY_HAVE_MORE and not dataclasses.is_dataclass(value):
        assert len(inspect.signature(value).parameters) <= MOST_PARAMETERS


def code_strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the string constants of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.lineno, node.value


def test_hook_names_are_spelled_in_one_place():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {text!r}"
        for path in MODULES
        if path != PACKAGE / "forward" / "hooks.py"
        for line, text in code_strings(path)
        if re.search(r"\bhook_[a-z]|\bblocks\.", text)
    ]
    assert not wrong, "hook names belong in forward/hooks.py:\n" + "\n".join(wrong)


def test_nothing_outside_the_package_is_assumed():
    outside = re.compile(r"\.\./|(?<![\w.:/])/(home|root|work|tmp|opt)/")
    wrong = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if outside.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_tests_mirror_the_tree():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
