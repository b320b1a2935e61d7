"""The code as a house: its size, its circles, what a command walks through, and what it offers to users.

usage: python benchmarks/house.py before|after [--root CHECKOUT]     measures; fills results/house.json
       python benchmarks/house.py --compare                          what is different after
One process is traced for each command, all its threads: what a subprocess runs is not counted.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import statistics
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from checkout import HERE, Checkout

sys.path.insert(0, str(HERE / "tests"))
from import_graph import circles, import_graph, modules

RESULTS = Path(__file__).parent / "results" / "house.json"
PACKAGE = "snpdeconv"
SHORT = 60  # lines
QUICK = [
    word
    for setting in (
        "training.epochs=2", "training.batch_size=32", "model.width=16", "model.channels=6,6",
        "model.num_layers=1", "interpretation.gradient_steps=4", "interpretation.max_samples=40",
        "interpretation.decoys=1",
    )
    for word in ("--set", setting)
]  # fmt: skip

# Runs the command traced; ends with a line of JSON. A function counts when it is entered: named ones, and
# neither lambdas and comprehensions nor the bodies of modules and classes.
TRACE = """
import atexit, json, os, sys, threading
package, first_metric = sys.argv.pop(1), sys.argv.pop(1)
seen, before = set(), []
def told(frame, event, argument):  # of calls alone: it gives no function that would be told of lines
    code = frame.f_code
    if code.co_filename.startswith(package) and code not in seen:
        if code.co_qualname == first_metric:
            before.extend(seen)
        seen.add(code)
def counted(codes):
    functions = {code for code in codes if code.co_flags & 1 and not code.co_name.startswith("<")}
    return {
        "files": len({code.co_filename for code in functions}),
        "functions": len(functions),
        "files_loaded": len({code.co_filename for code in codes}),
    }
def tell():
    sys.settrace(None)
    whole = counted(set(seen))
    if before:
        whole["before_first_metric"] = counted(before)
    print(json.dumps(whole), flush=True)
atexit.register(tell)
threading.settrace(told)
sys.settrace(told)
from snpdeconv.cli import main
main()
"""

# What users and other programs rely on, read from the live package.
SURFACE = """
import importlib, inspect, json, pkgutil, re, sys, types, yaml
import typer.main
import snpdeconv
entry, settings = sys.argv[1:]
found = {"commands": {}, "settings": {}, "presets": {}, "names": {}}

def option(parameter):
    kind = parameter.type_descriptor.annotation if hasattr(parameter, "type_descriptor") else parameter.type
    told = {"type": getattr(kind, "__name__", str(kind)), "default": repr(parameter.default)}
    told |= {name: getattr(parameter, name, None) for name in ("required", "multiple", "min", "max")}
    return " ".join(f"{name}={value}" for name, value in told.items() if value not in (None, False))

def walk(command, name):
    parameters = {"/".join([*p.opts, *p.secondary_opts]): option(p) for p in command.params}
    found["commands"][name] = parameters
    for sub, inner in getattr(command, "commands", {}).items():
        walk(inner, f"{name} {sub}")
walk(typer.main.get_command(importlib.import_module(entry).app), "snpdeconv")

def keys(model, prefix):
    for key, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            keys(field.annotation, f"{prefix}{key}.")
        else:
            default = "(in the preset)" if field.is_required() else repr(field.default)
            found["settings"][f"{prefix}{key}"] = f"{field.annotation} = {default}"
module = importlib.import_module(settings)
keys(module.Config, "")
for preset in module.preset_names():
    for key, value in module.load_config(preset).flat().items():
        found["presets"][f"{preset}: {key}"] = value

def signature(value):
    try:
        return re.sub(" at 0x[0-9a-f]+", "", str(inspect.signature(value)))
    except (TypeError, ValueError):
        return repr(value) if isinstance(value, (str, int, float, tuple)) else type(value).__name__

packages = [snpdeconv] + [importlib.import_module(one.name) for one in
                          pkgutil.walk_packages(snpdeconv.__path__, "snpdeconv.") if one.ispkg]
for package in packages:
    own = getattr(package, "__all__", None) or [
        name for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
        and str(getattr(value, "__module__", "")).startswith("snpdeconv")]
    for name in own:
        value = getattr(package, name)
        found["names"][f"{package.__name__}.{name}"] = signature(value)
        if inspect.isclass(value):
            for method, inner in vars(value).items():
                bound = callable(inner) or isinstance(inner, (classmethod, staticmethod))
                if bound and not method.startswith("_"):
                    found["names"][f"{package.__name__}.{name}.{method}"] = signature(getattr(value, method))
print(json.dumps(found))
"""


def size(folder: Path) -> dict[str, Any]:
    """Lines and files of the package."""
    lines = {module: len(path.read_text().splitlines()) for module, path in modules(folder).items()}
    longest = max(lines, key=lambda module: lines[module])
    docstrings = sum(_docstring_lines(path) for path in modules(folder).values())
    return {
        "lines": sum(lines.values()),
        "docstring_lines": docstrings,
        "files": len(lines),
        "median_file": statistics.median(lines.values()),
        "longest_file": {longest: lines[longest]},
        f"files_under_{SHORT}_lines": sum(length < SHORT for length in lines.values()),
        "over_560_lines": sorted(module for module, length in lines.items() if length > 560),
    }


def _docstring_lines(path: Path) -> int:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    texts = [node.body[0] for node in owners if ast.get_docstring(node, clean=False) is not None]
    return sum((text.end_lineno or 0) - text.lineno + 1 for text in texts)


def imports(folder: Path) -> dict[str, Any]:
    """Circles between files."""
    graphs = {"at_load": False, "inside_functions_too": True}
    found = {name: import_graph(folder, inside_functions=inside) for name, inside in graphs.items()}
    return {
        "imports": {name: sum(map(len, graph.values())) for name, graph in found.items()},
        "circles": {name: circles(graph) for name, graph in found.items()},
    }


def walked(checkout: Checkout) -> dict[str, Any]:
    """Files and functions of the package that a small train and a small rank pass through."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        home, cohort = folder / "home", folder / "cohort"
        checkout.command("simulate", cohort, "--samples", 240, "--variants", 200, "--causal", 4, home=home)
        words = [
            "--genotypes",
            cohort / "cohort.bed",
            "--phenotypes",
            cohort / "phenotypes.tsv",
            "--trait",
            "trait",
        ]
        trace = [TRACE, f"{checkout.root / PACKAGE}/", "TrackedRun.log_metrics"]
        train = checkout.script(*trace, "train", *words, *QUICK, "--out", folder / "run", home=home)
        if "before_first_metric" not in train:
            raise RuntimeError("no call of TrackedRun.log_metrics was seen: is it called something else now?")
        rank = checkout.script(*trace, "rank", *words, "--out", folder / "ranking", home=folder / "home2")
    rank.pop("before_first_metric", None)
    return {"train": train, "rank": rank}


def surface(checkout: Checkout) -> dict[str, Any]:
    """Commands with their options, settings with their defaults, and public names with their signatures."""
    project = tomllib.loads((checkout.root / "pyproject.toml").read_text())["project"]
    entry = project["scripts"]["snpdeconv"].partition(":")[0]
    (settings,) = (
        module
        for module, path in modules(checkout.root / PACKAGE).items()
        if any(
            isinstance(node, ast.ClassDef) and node.name == "Config"
            for node in ast.parse(path.read_text()).body
        )
    )
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, Any] = checkout.script(SURFACE, entry, settings, home=Path(temporary) / "home")
    return found


def measure(checkout: Checkout) -> dict[str, Any]:
    """All of a checkout."""
    folder = checkout.root / PACKAGE
    return {
        "commit": checkout.commit(),
        **size(folder),
        **imports(folder),
        "surface": surface(checkout),
        "passes_through": walked(checkout),
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Lines that say what is different."""
    told = []
    for name in sorted((before.keys() | after.keys()) - {"surface"}):
        old, new = (json.dumps(side.get(name)) for side in (before, after))
        told.append(f"{name}: {old}" + ("" if old == new else f" -> {new}"))
    for kind in before["surface"]:
        old, new = (_flat(side["surface"][kind]) for side in (before, after))
        differences = [
            line
            for line in difflib.unified_diff(sorted(old), sorted(new), lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        told.append(f"{kind}: {len(old)} before, {len(new)} after, {len(differences)} lines of difference")
        told.extend(f"  {line}" for line in differences)
    return told


def _flat(names: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in names.items():
        lines.append(name if isinstance(value, dict) else f"{name} {value}")
        lines.extend(
            f"{name} {one} {told}" for one, told in (value.items() if isinstance(value, dict) else ())
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("when", nargs="?", choices=["before", "after"])
    parser.add_argument("--root", type=Path, default=HERE, help="another checkout, with a .venv of its own")
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    if arguments.when is None and not arguments.compare:
        parser.error("say before or after, or --compare")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.when:
        results[arguments.when] = measure(Checkout(arguments.root.resolve()))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        told = {name: value for name, value in results[arguments.when].items() if name != "surface"}
        print(json.dumps(told, indent=2))
    if arguments.compare:
        print("\n".join(compare(results["before"], results["after"])))


if __name__ == "__main__":
    main()
