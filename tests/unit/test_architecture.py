"""Imports point to lower floors only and never in a circle, and heavy libraries stay where they belong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import PAGE, ROOT, circles, import_graph, imports_of, modules, picture, redrawn

import snpdeconv
from snpdeconv.launch.control import cancel
from snpdeconv.launch.records import all_records

PACKAGE = Path(snpdeconv.__file__).parent
FLOOR = {
    "errors": 0,
    "device": 0,
    "version": 0,
    "files": 0,
    "console": 0,
    "config": 0,
    "presets": 0,
    "genetics": 1,
    "stats": 2,
    "simulation": 2,
    "models": 2,
    "epistasis": 3,
    "training": 3,
    "finemapping": 4,
    "interpret": 5,
    "tracking": 5,
    "pipelines": 6,
    "launch": 7,
    "cli_options": 0,
    "cli_jobs": 8,
    "cli_models": 9,
    "cli": 10,
}
ALLOWED = {("training/trainer.py", "interpret")}  # the one public method that hands over to interpret
LONGEST_FILE = 560
# Circles of files that import each other, closed by imports inside functions. The list may only get shorter.
KNOWN_CIRCLES: set[tuple[str, ...]] = set()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_modules(path: Path) -> set[str]:
    return imported_by(path.read_text(), package=path.relative_to(PACKAGE.parent).parts[:-1])


def imported_by(text: str, *, package: tuple[str, ...]) -> set[str]:
    """Full names of what a module of `package` imports, relative imports included."""
    taken = imports_of(text, package=package)
    return {one.module for one in taken} | {
        f"{one.module}.{one.name}" for one in taken if one.module == "snpdeconv" and one.name
    }


def test_relative_imports_are_seen_too():
    text = "from ..pipelines import train\nfrom .. import tracking\nfrom .data import Batch\nimport os.path"
    assert imported_by(text, package=("snpdeconv", "training")) == {
        "snpdeconv.pipelines", "snpdeconv", "snpdeconv.tracking", "snpdeconv.training.data", "os.path",
    }  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "snpdeconv" or len(parts) == 1:
            continue
        other = parts[1]
        if other == own or other not in FLOOR or (str(path.relative_to(PACKAGE)), other) in ALLOWED:
            continue
        assert FLOOR[other] < FLOOR[own] or FLOOR[other] == FLOOR[own] == 0, (
            f"{path} imports {name}, which is not below it"
        )


def test_files_import_each_other_in_no_circle():
    assert circles(import_graph(PACKAGE, inside_functions=False)) == []
    found = {
        tuple(module.removeprefix("snpdeconv.") for module in circle)
        for circle in circles(import_graph(PACKAGE, inside_functions=True))
    }
    assert not found - KNOWN_CIRCLES, "files import each other in a circle"
    assert not KNOWN_CIRCLES - found, "these circles are gone: take them off the list"


def test_no_file_is_too_long():
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules(PACKAGE).items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST_FILE} == {}


def write_package(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / "toy" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for parent in {path.parent for path in folder.rglob("*.py")} | {folder / "toy"}:
        (parent / "__init__.py").touch()
    return folder / "toy"


def test_circles_are_found(tmp_path):
    toy = write_package(
        tmp_path,
        a="from toy.room import b\n",
        room__b="from .c import name\n",
        room__c="def f():\n    import toy.a\n",
        alone="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy import above\nimport os\n",
        above="try:\n    from toy.alone import name\nexcept ImportError:\n    from toy import a\n",
    )
    at_load = import_graph(toy, inside_functions=False)
    assert at_load["toy.a"] == {"toy.room.b"}  # of the package beside it nothing is taken
    assert at_load["toy.above"] == {"toy.alone", "toy.a"}
    assert at_load["toy.alone"] == set()
    assert circles(at_load) == []
    assert circles(import_graph(toy, inside_functions=True)) == [("toy.a", "toy.room.b", "toy.room.c")]


def test_a_picture_leaves_out_what_follows(tmp_path):
    toy = write_package(
        tmp_path,
        top="from toy.high import x\nfrom toy.low import y\nimport toy.errors\n",
        high__x="from toy.low import y\n",
        low__y="from toy.errors import Error\n",
        errors="",
    )
    assert picture(import_graph(toy, inside_functions=True)).splitlines() == [
        "flowchart TD",
        '    high["high/"]',
        "    high --> low",
        '    low["low/"]',
        "    low --> base",
        '    top(["top"])',
        "    top --> high",
        '    base(["errors"])',
    ]


def test_the_page_shows_the_imports_as_they_are():
    page = PAGE.read_text()
    drawn = redrawn(page, import_graph(PACKAGE, inside_functions=True))
    assert page == drawn, "run `python tests/import_graph.py`"


def test_the_page_names_every_package_and_nothing_that_is_gone():
    page = PAGE.read_text()
    packages = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    named = {word.rstrip("/") for word in re.findall(r"`([a-z_/]+/)`", page)}
    assert {one for one in packages if "/" not in one} <= named
    assert named <= packages
    files = set(re.findall(r"`([a-z_/]+\.py)`", page))
    assert {one for one in files if not any((place / one).is_file() for place in (PACKAGE, ROOT))} == set()


def test_every_module_has_a_floor():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} <= set(FLOOR)


def test_mlflow_is_imported_by_tracking_only():
    users = {path.relative_to(PACKAGE).parts[0] for path in MODULES if "mlflow" in path.read_text()
             and any(name.split(".")[0] == "mlflow" for name in imported_modules(path))}  # fmt: skip
    assert users == {"tracking"}


def test_the_training_core_needs_no_platform_libraries():
    """A GPU machine with torch and numpy alone can train and interpret."""
    code = (
        "import sys\n"
        "for name in ('mlflow', 'submitit', 'pydantic', 'bed_reader', 'pgenlib', 'cyvcf2', 'msprime',\n"
        "             'typer'):\n"
        "    sys.modules[name] = None\n"
        "from snpdeconv import MultiGPUSNPTrainer, GPUMemoryManager, GenotypeEncoder\n"
        "from snpdeconv import create_gpu_optimized_model\n"
        "import snpdeconv.interpret.attribution, snpdeconv.training.metrics, snpdeconv.genetics.packed\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_public_names_are_there():
    for name in snpdeconv.__all__:
        assert getattr(snpdeconv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = snpdeconv.nonsense


def modules_loaded_by(*arguments: str, code: int = 0) -> set[str]:
    """The top packages that a command has loaded when it ends."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from snpdeconv.cli import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == code, run.stderr
    return set(run.stderr.splitlines()[-1].split())


HEAVY = {"torch", "mlflow", "scipy", "sklearn", "matplotlib", "sqlalchemy", "optuna", "cyvcf2", "bed_reader"}


@pytest.mark.parametrize("command", [(), ("train",), ("submit",)])
def test_help_loads_no_library_but_the_command_lines(command):
    loaded = modules_loaded_by(*command, "--help")
    own = {"pydantic"} if command else set()  # typer's, for the options' types
    assert not loaded & (HEAVY | {"numpy", "pandas", "pydantic", "submitit"}) - own


@pytest.mark.parametrize("end", [("--dry-run",), ()])
def test_submit_loads_no_library_of_the_job(cohort, tmp_path, end):
    words = ("submit", "small_cpu", "--data", str(cohort), "--cluster", "local")
    try:
        loaded = modules_loaded_by(*words, "--out", str(tmp_path / "run"), *end)
    finally:
        for record in all_records():
            cancel(record)
    assert not loaded & HEAVY


def test_status_loads_no_library_of_the_job():
    assert not modules_loaded_by("status") & (HEAVY | {"pandas"})


@pytest.mark.parametrize("command", ["train", "rank"])
def test_a_mistyped_name_is_told_before_the_libraries_are_loaded(cohort, tmp_path, command):
    tables = ("--phenotypes", str(cohort / "phenotypes.tsv"), "--out", str(tmp_path / "out"))
    for genotypes, trait in (("cohort.bed", "trai"), ("cohort.bd", "trait")):
        words = (command, "--genotypes", str(cohort / genotypes), *tables, "--trait", trait)
        assert not modules_loaded_by(*words, code=2) & HEAVY


def test_commands_start_without_the_compiler():
    """torch's takes a second to import, and most commands compile nothing."""
    code = (
        "import sys, snpdeconv.pipelines.rank, snpdeconv.pipelines.train, snpdeconv.pipelines.predict\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
