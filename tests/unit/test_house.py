"""The rules of the house: what importing costs, who imports whom, and that everything is said."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fix_servers import PROJECT, system_bin

import toolkit
import toolkit_maintenance
import toolkit_routing

PACKAGES = (toolkit, toolkit_routing, toolkit_maintenance)
ROOTS = [PROJECT, PROJECT / "routing", PROJECT / "maintenance"]
SOURCES = [
    path
    for folder in ("toolkit", "routing", "maintenance", "migrations", "tests")
    for path in sorted((PROJECT / folder).rglob("*.py"))
]
STATEMENTS = sorted((PROJECT / "sql").rglob("*.sql"))
MODULES = sorted(
    info.name
    for package in PACKAGES
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not info.name.endswith("__main__")
)
IMPORT_MS = 150
LONGEST = 430  # lines; what is longer has more than one reason to change
LONGEST_TEST = 500


def shown(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, ROOTS))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# -- importing ----------------------------------------------------------------------------------


def test_importing_the_package_is_cheap() -> None:
    code = "from time import perf_counter as t; a = t(); import toolkit; print(1000 * (t() - a))"
    times = [float(python("-c", code).stdout) for _ in range(7)]
    if min(times) >= IMPORT_MS:
        said = python("-X", "importtime", "-c", "import toolkit").stderr.splitlines()
        heavy = sorted(said[1:], key=lambda line: int(line.split("|")[1]))[-12:]
        pytest.fail(f"import toolkit took {min(times):.0f} ms:\n" + "\n".join(heavy))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("toolkit", ("numpy", "psycopg", "pandas")),
        ("toolkit.store", ("pandas", "pyarrow", "polars", "asyncpg", "matplotlib", "sqlalchemy")),
        ("toolkit.aio", ("pandas", "pyarrow", "polars", "asyncpg", "matplotlib", "sqlalchemy")),
        ("toolkit.cli", ("numpy", "pandas", "psycopg", "sqlalchemy")),
        ("toolkit_routing", ("toolkit", "numpy", "psycopg")),
    ],
)
def test_what_is_not_needed_is_not_loaded(module: str, unwanted: tuple[str, ...]) -> None:
    done = python("-c", f"import {module}, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint(unwanted)


def test_every_public_name_is_there_and_nothing_else_is_promised() -> None:
    for name in toolkit.__all__:
        assert getattr(toolkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toolkit.nothing  # noqa: B018


def test_a_module_imports_only_from_floors_below() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = python("-c", code.replace("lint_imports()", "lint_imports(no_cache=True)"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# -- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_every_module_opens_with_a_sentence(path: Path) -> None:
    text = path.read_text()
    if not text.strip():
        pytest.fail("an empty module")
    said = ast.get_docstring(ast.parse(text))
    assert said, "no docstring"
    assert said.split("\n\n")[0].endswith((".", "::", "?")), said.splitlines()[0]


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_no_module_is_a_bag_or_too_long(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "types", "misc"}
    lines = path.read_text().count("\n")
    assert lines <= (LONGEST_TEST if "tests" in path.parts else LONGEST)


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_offers_is_described(name: str) -> None:
    module = importlib.import_module(name)
    missing = []
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if (inspect.isclass(value) or inspect.isfunction(value)) and not said_of(value):
            missing.append(key)
    assert missing == []


def said_of(value: object) -> str:
    said = inspect.getdoc(value) or ""
    # what dataclass writes where nobody else did
    return "" if re.match(r"^\w+\(", said) else said


@pytest.mark.parametrize("name", sorted(set(toolkit.__all__) - {"connect", "connect_async"}))
def test_public_classes_describe_their_methods(name: str) -> None:
    kind = getattr(toolkit, name)
    assert said_of(kind)
    for key, value in inspect.getmembers(kind, inspect.isfunction):
        assert key.startswith("_") or said_of(value), f"{name}.{key}"


def test_both_stores_offer_the_same() -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        return {
            key: list(inspect.signature(value).parameters)
            for key, value in inspect.getmembers(kind, inspect.isroutine)
            if not key.startswith("_")
        }

    assert offered(toolkit.Store) == offered(toolkit.AsyncStore)


@pytest.mark.parametrize("path", STATEMENTS, ids=shown)
def test_every_statement_says_what_it_does_takes_and_returns(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = " ".join(line for line in lines if line.startswith("--"))
    body = "\n".join(line for line in lines if not line.startswith("--"))
    assert lines[0].startswith("-- What: ")
    assert re.fullmatch(r"[a-z]+_[a-z_]+", path.stem), "verb_what"
    assert "\\" not in body, "means another thing where standard_conforming_strings is off"
    parameters = set(re.findall(r"%\((\w+)\)s", body))
    if parameters:
        assert "Params: " in header
        said = set(re.findall(r"\w+", header.partition("Params: ")[2]))
        assert parameters <= said, f"not in the header: {parameters - said}"
    if re.match(r"\s*(SELECT|WITH)\b", body) or "RETURNING" in body.splitlines()[-1]:
        is_query = not re.search(r"^(UPDATE|DELETE|INSERT)\b", body, re.MULTILINE)
        assert not is_query or "Columns: " in header or "set_config" in body, "no Columns: line"


def test_every_statement_is_used() -> None:
    code = "\n".join(path.read_text() for path in SOURCES)
    for path in STATEMENTS:
        area, name = path.parent.name, path.stem
        assert f'"{area}/{name}"' in code or f'"{name}"' in code, f"{area}/{name} is not used"


# -- what tests stand on ------------------------------------------------------------------------


def test_a_server_that_was_asked_for_by_name_and_is_missing_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOOLKIT_TEST_PG", "99")
    with pytest.raises(pytest.fail.Exception, match="package postgresql-99"):
        system_bin("99")


# -- examples in docstrings ---------------------------------------------------------------------


def with_examples() -> list[str]:
    paths = [p for p in SOURCES if ">>> " in p.read_text() and "tests" not in p.parts]
    names = []
    for path in paths:
        root = next(r for r in reversed(ROOTS) if path.is_relative_to(r))
        names.append(".".join(path.relative_to(root).with_suffix("").parts))
    return [n.removesuffix(".__init__") for n in names]


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_hold(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0
