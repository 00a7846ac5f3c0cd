"""The pages for people: their examples run, their links lead somewhere, their commands exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fix_servers import PROJECT, Database
from sqlalchemy import MetaData

import toolkit
from toolkit import errors, migrate
from toolkit.cli import main
from toolkit.tables import catalog_tables

PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)[^)]*\)")
_COMMAND = re.compile(r"(?:^ {4}|`)toolkit ([a-z][a-z ]*)", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \| (\d) \| (yes|no) \| (.+) \| (.+) \|$", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in _FENCE.findall(page.read_text()) if language in languages]


def with_blocks(*languages: str) -> list[Any]:
    return [pytest.param(p, id=p.name) for p in PAGES if blocks(p, *languages)]


@pytest.fixture
def local(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A place where toolkit.connect() finds a database with one known series."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_DSN", database.dsn)
    for name in ("TOOLKIT_CONFIG", "TOOLKIT_CACHE_MEMORY", "TOOLKIT_CACHE_KEEP_LOG"):
        monkeypatch.delenv(name, raising=False)
    with toolkit.connect() as store:
        store.write("candles", {"ts": ["2023-01-01Z"], "close": [1.0]}, series="BTC-USD")
    return database.dsn


def migrated(namespace: dict[str, Any], dsn: str) -> None:
    """Run the migration that a block has declared: there and back and there again."""
    upgrade, downgrade = namespace.pop("upgrade"), namespace.pop("downgrade")
    with migrate.connected(dsn) as connection:
        with Operations.context(MigrationContext.configure(connection)):
            for step in (upgrade, downgrade, upgrade):
                step()
        connection.commit()


@pytest.mark.parametrize("page", with_blocks("python"))
def test_examples_run_as_they_stand(
    page: Path, local: str, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "example"}
    for number, code in enumerate(blocks(page, "python"), 1):
        exec(compile(code, f"{page.name}, example {number}", "exec"), namespace)
        if "upgrade" in namespace:
            migrated(namespace, local)
    capsys.readouterr()


def test_the_errors_page_prints_what_it_says(
    local: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PROJECT / "docs" / "errors.md"
    (code,) = blocks(page, "python")
    exec(compile(code, page.name, "exec"), {})
    promised = re.findall(r"print\(error\)  # (.+?)(?: …)?$", code, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(promised) == len(printed) == 2
    for said, shown in zip(printed, promised, strict=True):
        assert said.startswith(shown)


@pytest.mark.parametrize("page", with_blocks("sh", "bash"))
def test_shell_blocks_can_be_parsed(page: Path) -> None:
    for code in blocks(page, "sh", "bash"):
        shell = shutil.which("bash") or "sh"
        done = subprocess.run(
            [shell, "-n"], input=code, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_on_the_pages_exist(page: Path) -> None:
    for words in _COMMAND.findall(page.read_text()):
        known: click.Command = main
        context = click.Context(main)
        for word in words.split():
            if not isinstance(known, click.Group):
                break
            found = known.get_command(context, word)
            assert found is not None, f"{page.name}: toolkit {words}"
            known = found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_page_has_tabs_or_very_long_lines(page: Path) -> None:
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        inside ^= line.startswith("```")
        assert "\t" not in line, f"{page.name}:{number}"
        if not inside and not line.startswith(("|", "    ")):
            assert len(line) <= 110, f"{page.name}:{number}"


# -- docs/errors.md ------------------------------------------------------------------------------


def all_errors() -> dict[str, type[errors.ToolkitError]]:
    found: list[type[errors.ToolkitError]] = [errors.ToolkitError]
    for known in found:
        found += known.__subclasses__()
    return {kind.__name__: kind for kind in found if kind.__module__.startswith("toolkit")}


def test_every_error_is_on_its_page_with_its_exit_code_and_retryability() -> None:
    rows = _ROW.findall((PROJECT / "docs" / "errors.md").read_text())
    page = {name: (int(code), retryable == "yes") for name, code, retryable, _, _ in rows}
    code = {name: (kind.exit_code, kind.retryable) for name, kind in all_errors().items()}
    assert page == code
    assert len(rows) == len(page)


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    for kind in all_errors().values():
        assert f"| {kind.exit_code} |" in page


def test_the_architecture_names_every_table_and_each_module_on_one_floor() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    metadata = MetaData(schema="toolkit")
    catalog_tables(metadata)
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert {t.name for t in metadata.tables.values()} <= set(re.findall(r"`(\w+)`", rows))
    floors = text.split("## Floors")[1].split("\n\n`toolkit_maintenance`")[0]
    assert [n for n, count in Counter(re.findall(r"`(\w+)`", floors)).items() if count > 1] == []
