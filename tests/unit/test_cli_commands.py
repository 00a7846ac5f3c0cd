"""The command line as a whole: help, documentation, usage errors, and how failures end."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from toolkit.cli import COMMANDS, hoisted, main
from toolkit.cli.failing import Failure, failing
from toolkit.errors import Busy, InputError, PartialWrite, QueryError, Unavailable

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below ``command`` with what is typed for it."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    if command.invoke_without_command:
        yield path, command
    with click.Context(command) as context:
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, f"{path} {name}")


EVERY = dict(walk(main, "toolkit"))


@pytest.mark.parametrize("path", EVERY)
def test_command_has_help_for_itself_and_each_option(path: str) -> None:
    result = CliRunner().invoke(main, [*path.split()[1:], "--help"])
    assert result.exit_code == 0
    assert (EVERY[path].help or "").strip()
    for parameter in EVERY[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts}"


@pytest.mark.parametrize("path", EVERY)
def test_command_and_its_options_are_in_the_documentation(path: str) -> None:
    sections = re.split(r"^## ", DOCS.read_text("utf-8"), flags=re.MULTILINE)
    section = next((s for s in sections if s.startswith(f"`{path}`")), None)
    assert section is not None, f"docs/cli.md has no section `{path}`"
    for parameter in EVERY[path].params:
        if isinstance(parameter, click.Option):
            for name in parameter.opts:
                assert f"`{name}" in section, f"docs/cli.md: {name} is not under `{path}`"


def test_global_options_and_exit_codes_are_in_the_documentation() -> None:
    text = DOCS.read_text("utf-8")
    for parameter in main.params:
        assert f"`{parameter.opts[0]}" in text
    for code in (0, 1, 2, 3, 4, 130, 141):
        assert f"| {code} |" in text


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "demo"])
def test_group_lists_what_the_command_says_of_itself(name: str) -> None:
    with click.Context(main) as context:
        command = main.get_command(context, name)
    assert command is not None
    assert command.get_short_help_str(200) == COMMANDS[name][1]


@pytest.mark.parametrize("path", [p for p in EVERY if p != "toolkit demo"])
def test_every_command_speaks_json(path: str) -> None:
    assert any("--json" in p.opts for p in EVERY[path].params)


def test_help_is_quick_and_imports_no_command() -> None:
    code = (
        "import sys; from toolkit.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'psycopg', 'rich', 'pandas', 'alembic'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    times, bare = [], []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import click"], check=True)
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "migrate" in done.stdout
    assert min(times) < max(0.3, 3 * min(bare))  # on a busy machine everything takes its time


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["query", "candles"], "Missing argument"),
        (["query", "--csv", "candles", "BTC", "2024-01-01", "now"], "does not look like a file"),
        (["query", "candles", "now-1d", "now", "--json", "--csv", "x.csv"], "not both"),
        (["query", "candles", "now-1d", "now", "--nosuch"], "No such option"),
        (["label", "candles", "BTC-USD"], "give KEY=VALUE, or --remove KEY"),
        (["load", "nosuch.csv", "--dataset", "candles"], "does not exist"),
        (["load", __file__], "Missing option '--dataset'"),
        (["--config", "nosuch.toml", "config", "show"], "nosuch.toml: no such file"),
        (["--dsn", "nosuch", "datasets"], "database.dsn"),
    ],
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_conninfo_that_libpq_cannot_read_is_not_repeated() -> None:
    result = CliRunner().invoke(main, ["--dsn", "postgresql://me:pa:ss/hush@db1/x", "datasets"])
    assert result.exit_code == 2
    assert "hush" not in result.stderr
    assert "%-encoded" in result.stderr


def test_server_that_is_down_is_exit_code_3() -> None:
    result = CliRunner().invoke(main, ["--dsn", "postgresql://127.0.0.1:1/x", "datasets"])
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")
    assert "cannot be reached" in result.stderr


def test_global_options_may_stand_anywhere_before_two_dashes() -> None:
    assert hoisted(["query", "a", "--dsn", "x", "--schema=s"]) == [
        "--dsn", "x", "--schema=s", "query", "a",
    ]  # fmt: skip
    assert hoisted(["query", "--", "--debug"]) == ["query", "--", "--debug"]
    assert hoisted(["query", "--dsn"]) == ["--dsn", "query"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("line 3 is odd"), 1, "line 3 is odd"),
        (QueryError("no such step"), 2, "no such step"),
        (Unavailable("gone"), 3, "gone"),
        (Busy("held by 42"), 4, "held by 42"),
        (PartialWrite("chunk 2: gone", None), 1, "can simply be run again"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "out/x.csv"), 1, "out/x.csv: No such file"),
        (OSError(28, "No space left on device"), 1, "the disk is full"),
        (ValueError("odd\nvery odd"), 1, "ValueError: odd; the same command with --debug"),
    ],
)
def test_whatever_stops_a_command_is_a_sentence_with_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Failure) as raised, failing(is_debug=False):
        raise error
    assert raised.value.exit_code == code
    assert said in raised.value.message
    assert "\n" not in raised.value.message
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failure), failing(is_debug=True):
        raise ValueError("odd")
    assert "Traceback (most recent call last)" in capsys.readouterr().err
