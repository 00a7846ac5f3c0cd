"""The wheel: what is in it, and that it works beside a service's own folders."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from fix_servers import PROJECT, Database

# a service that has packages of our folders' names, and what it does with the toolkit
READ = """
import sys
import routing, maintenance, sql
assert routing.WHOSE == maintenance.WHOSE == sql.WHOSE == "the service"
import toolkit, toolkit_routing, toolkit_maintenance
assert all("site-packages" in m.__file__ for m in (toolkit, toolkit_routing, toolkit_maintenance))
with toolkit.connect(sys.argv[1]) as store:
    frame = {"ts": ["2024-01-01T00:00Z", "2024-01-01T00:01Z"], "close": [1.0, 2.5]}
    store.write("candles", frame, series="BTC-USD")
    store.refresh("candles")
    bars = store.read("candles", "BTC-USD", "2024-01-01Z", "2024-01-02Z", step="1h")
    print(bars["close"].tolist(), store.latest("candles")["close"].tolist())
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built as for a release."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(PROJECT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh venv with the wheel in it, and our dependencies beside."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    purelib = Path(
        sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    )
    target = folder / "bin" / "python"
    # our pip installs into it: a venv of Debian's python may have none of its own
    pip = [sys.executable, "-m", "pip", "--python", str(target), "install", "--quiet"]
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *offline, str(wheel)], check=True, capture_output=True)
    # .pth of this environment are not followed: an editable install of the project stays away
    beside = [p for p in site.getsitepackages() if Path(p).is_dir()]
    (purelib / "dependencies.pth").write_text("\n".join(beside))
    return target


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A service's folder, with packages named as our source folders are."""
    for name in ("routing", "maintenance", "sql", "migrations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('WHOSE = "the service"\n')
    return tmp_path


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TOOLKIT", "PG"))}
    command = [str(python), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_read_works_from_a_folder_with_its_own_routing_maintenance_and_sql(
    python: Path, service: Path, database: Database
) -> None:
    (service / "read.py").write_text(READ)
    done = run(python, "read.py", database.dsn, cwd=service)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[2.5] [2.5]"


def test_migrations_run_from_the_wheel(
    python: Path, service: Path, empty_database: Database
) -> None:
    code = "import sys; from toolkit import migrate; print(migrate.upgrade(sys.argv[1]).is_current)"
    done = run(python, "-c", code, empty_database.dsn, cwd=service)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_the_command_is_installed_by_its_name(python: Path, service: Path) -> None:
    done = run(python.with_name("toolkit"), "--help", cwd=service)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_everything_that_is_needed_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for source, target in (
        ("toolkit", "toolkit"),
        ("routing/toolkit_routing", "toolkit_routing"),
        ("maintenance/toolkit_maintenance", "toolkit_maintenance"),
        ("sql", "toolkit/_sql"),
        ("migrations", "toolkit/_migrations"),
    ):
        for path in (PROJECT / source).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".sql", ".mako", ".typed", ".csv"):
                assert f"{target}/{path.relative_to(PROJECT / source)}" in inside
    for package in ("toolkit", "toolkit_routing", "toolkit_maintenance"):
        assert f"{package}/py.typed" in inside
    assert any(n.endswith("licenses/LICENSE") for n in inside)


def test_nothing_else_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
    tops = {n.partition("/")[0] for n in inside}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "toolkit",
        "toolkit_routing",
        "toolkit_maintenance",
    }
    unwanted = ("test_", "fix_", "conftest", ".md", ".pyc", "alembic.ini", "docs/")
    assert [n for n in inside if any(u in n.removesuffix("LICENSE") for u in unwanted)] == []


def test_the_metadata_says_what_it_needs_and_under_which_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        said = archive.read(name).decode()
    assert "License-Expression: Apache-2.0" in said
    assert "Requires-Python: >=3.11" in said
    for extra in ("local", "frames", "async", "bench", "dev"):
        assert f"Provides-Extra: {extra}" in said


def test_a_missing_extra_is_named_with_its_pip_line(python: Path, service: Path) -> None:
    code = """
import sys, numpy as np
sys.modules["pyarrow"] = None   # as if it were not installed
from toolkit import Columns
try:
    Columns.empty({"close": "float"}).to_arrow()
except Exception as error:
    print(error)
"""
    done = run(python, "-c", code, cwd=service)
    assert "pip install 'timeseries-toolkit[frames]'" in done.stdout, done.stderr
