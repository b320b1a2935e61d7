"""Which file of the package imports which, and the picture of it in docs/architecture.md.

usage: python tests/import_graph.py     draws the picture on the page anew
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- picture: tests/import_graph.py draws what lies between these marks -->", "<!-- end -->"

Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Import:
    """A module that a file imports, or a name of it, and when.

    Attributes:
        module: Full name of the module.
        name: What is taken of it; empty for the module itself.
        when: `load`, `function` (inside one, when it is called) or `typing` (for the type checker alone).
    """

    module: str
    name: str
    when: str


@cache
def imports_of(text: str, *, package: tuple[str, ...]) -> tuple[Import, ...]:
    """Imports of a file of `package`, relative ones by their full names."""

    def visit(node: ast.AST, when: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (Import(module, alias.name, when) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                yield from visit(statement, "typing")
            for statement in node.orelse:
                yield from visit(statement, when)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, "function" if inside and when == "load" else when)

    return tuple(visit(ast.parse(text), "load"))


def modules(folder: Path) -> dict[str, Path]:
    """Full name -> file of a package's modules; a package stands for its `__init__.py`."""
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
    }


def import_graph(folder: Path, *, inside_functions: bool) -> Graph:
    """Module -> modules of the same package that it imports; without what only the type checker reads."""
    files = modules(folder)
    whens = {"load", "function"} if inside_functions else {"load"}
    graph: Graph = {}
    for module, path in files.items():
        package = path.relative_to(folder.parent).parts[:-1]
        taken = [one for one in imports_of(path.read_text(), package=package) if one.when in whens]
        # `from package import module` needs the module; the package is only where it lies.
        named = {f"{one.module}.{one.name}" for one in taken} & set(files)
        others = {one.module for one in taken if f"{one.module}.{one.name}" not in files} & set(files)
        graph[module] = (named | others) - {module}
    return graph


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Groups of modules that import each other, in circles: strongly connected components, by name."""
    reached = {module: _reachable(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }
    return sorted(groups)


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def picture(graph: Graph) -> str:
    """Mermaid's text: a box a package, and an arrow from who imports to what is imported.

    Top modules that need no package are one box. What a package reaches through another has no arrow of its
    own.
    """
    package = min(graph, key=len)
    rooms: Graph = {_room(module, package): set() for module in graph}
    for module, others in graph.items():
        room = _room(module, package)
        rooms[room] |= {_room(other, package) for other in others} - {room}
    folders = {_room(module, package) for module in graph if module.count(".") > 1}
    base = {room for room in rooms if room not in folders and not _reachable(rooms, room) & folders}
    joined: Graph = {"base": set()}
    for room in rooms.keys() - base:
        joined[room] = (rooms[room] - base) | ({"base"} if rooms[room] & base else set())

    lines = ["flowchart TD"]
    for room in sorted(joined, key=lambda room: (room == "base", room)):
        label = ", ".join(sorted(base - {package})) if room == "base" else room
        lines.append(f'    {room}["{label}/"]' if room in folders else f'    {room}(["{label}"])')
        reached = [_reachable(joined, other) for other in joined[room]]
        lines.extend(
            f"    {room} --> {other}"
            for other in sorted(joined[room])
            if not any(other in further and room not in further for further in reached)
        )
    return "\n".join(lines)


def _room(module: str, package: str) -> str:
    """The package or top module that a module belongs to."""
    return module.removeprefix(package).lstrip(".").partition(".")[0] or package


def redrawn(page: str, graph: Graph) -> str:
    """The page with the picture that the imports give."""
    before, rest = page.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n\n```mermaid\n{picture(graph)}\n```\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text(), import_graph(ROOT / "snpdeconv", inside_functions=True)))
