"""`toolkit init` and `toolkit config show`, without a server."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fix_servers import PROJECT

from toolkit.cli import main
from toolkit.cli.template import NOTES, defaults, template
from toolkit.config import _KEYS, load_settings
from toolkit.opening import check_conninfo
from toolkit_maintenance.registry import JOBS


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TOOLKIT_DSN", "TOOLKIT_CONFIG", "TOOLKIT_SCHEMA"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def uncommented(text: str) -> str:
    """The file as it is once every setting's comment sign is gone."""
    lines = text.splitlines()
    return "\n".join(line[1:] if line[:1] == "#" and line[:2] != "# " else line for line in lines)


def test_template_has_every_setting_with_its_default_and_a_remark() -> None:
    assert set(defaults()) == set(_KEYS) == set(NOTES)
    tree = tomllib.loads(uncommented(template()))
    found = {f"{section}.{key}": v for section, keys in tree.items() for key, v in keys.items()}
    assert found == defaults()


def test_the_page_on_maintenance_shows_the_default_of_every_job() -> None:
    text = (PROJECT / "docs" / "maintenance.md").read_text()
    shown = tomllib.loads(text.split("```toml\n")[1].split("```")[0])["maintenance"]
    assert set(JOBS) <= set(shown)
    assert {f"maintenance.{key}": v for key, v in shown.items()}.items() <= defaults().items()


def test_file_that_init_writes_changes_nothing_until_it_is_uncommented(tmp_path: Path) -> None:
    assert run("init").exit_code == 0
    plain = load_settings(environ={})
    written = load_settings(tmp_path / "toolkit.toml", environ={})
    assert (written, dict(written.origins)) == (plain, {})
    file = tmp_path / "all.toml"
    file.write_text(uncommented(template()), "utf-8")
    every = load_settings(file, environ={})
    assert set(every.origins) == set(_KEYS)
    shown = {k: v for k, v in every.shown().items() if k != "database.dsn"}
    assert shown == {k: v for k, v in plain.shown().items() if k != "database.dsn"}


def test_file_that_init_writes_shows_how_several_servers_stand_in_it(tmp_path: Path) -> None:
    lines = template().splitlines()
    block = lines[lines.index("# [[shards]]") :]
    file = tmp_path / "several.toml"
    file.write_text("\n".join(line.removeprefix("# ") for line in block), "utf-8")
    topology = load_settings(file, environ={}).topology
    assert topology is not None
    assert [node.name for node in topology.nodes] == ["db1", "db2", "db3"]


def test_init_overwrites_only_when_told_to(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[database]\n", "utf-8")
    result = run("init", str(file))
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert file.read_text("utf-8") == "[database]\n"
    assert json.loads(run("init", str(file), "--force", "--json").stdout) == {"file": str(file)}
    assert file.read_text("utf-8") == template()


def test_config_show_says_where_each_setting_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("toolkit.toml").write_text("[database]\nschema = 'a'\n[pool]\nmax_size = 9\n", "utf-8")
    monkeypatch.setenv("TOOLKIT_SCHEMA", "b")
    monkeypatch.setenv("TOOLKIT_POOL_MIN_SIZE", "1")
    found = json.loads(run("config", "show", "--json", "--schema", "c").stdout)
    assert found["database.schema"] == {"value": "c", "from": "flag"}
    assert found["pool.min_size"] == {"value": "1", "from": "$TOOLKIT_POOL_MIN_SIZE"}
    assert found["pool.max_size"] == {"value": "9", "from": "toolkit.toml"}
    assert found["read.parallel"] == {"value": "2", "from": "default"}
    assert set(found) == set(_KEYS)


def test_config_show_lists_the_nodes_of_a_topology() -> None:
    Path("toolkit.toml").write_text(
        "[[shards]]\nprimary = {dsn = 'host=a password=hush', direct = 'host=d password=hush'}\n"
        "replicas = [{name = 'b', dsn = 'postgresql://me:hush@b/x', region = 'eu', weight = 2}]\n",
        "utf-8",
    )
    result = run("config", "show", "--json")
    assert "hush" not in result.output
    found = {k: v["value"] for k, v in json.loads(result.stdout).items() if k[:6] == "shards"}
    assert found == {
        "shards[0].name": "main",
        "shards[0].primary.name": "primary",
        "shards[0].primary.dsn": "password=*** host=a",
        "shards[0].primary.direct": "password=*** host=d",
        "shards[0].primary.weight": "1",
        "shards[0].replicas[0].name": "b",
        "shards[0].replicas[0].dsn": "user=me password=*** dbname=x host=b",
        "shards[0].replicas[0].region": "eu",
        "shards[0].replicas[0].weight": "2",
    }
    assert json.loads(result.stdout)["shards[0].name"]["from"] == "toolkit.toml"
    assert "database.dsn" not in json.loads(result.stdout)
    assert "shards[0].replicas[0].dsn" in run("config", "show").stdout
    assert "database.dsn" in json.loads(run("config", "show", "--json", "--dsn", "host=c").stdout)


@pytest.mark.parametrize("dsn", ["postgresql://me:hush@db1/x", "host=db1 password=hush"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_config_show_hides_passwords(dsn: str, form: list[str]) -> None:
    result = run("--dsn", dsn, "config", "show", *form)
    assert result.exit_code == 0
    assert "hush" not in result.output
    assert "db1" in result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pool]\nmax_sice = 3\n", "did you mean 'pool.max_size'"),
        ("[pool]\nmax_size = 'many'\n", "expected int"),
        ("[pool\n", "not valid TOML"),
        ("[write]\nearliest = '2024'\n", "write.earliest"),
        ("[routing]\nsmall = 'latencies'\n", "routing.small: unknown choice 'latencies'"),
    ],
)
def test_wrong_setting_is_named_with_its_file(text: str, said: str) -> None:
    Path("toolkit.toml").write_text(text, "utf-8")
    result = run("config", "show")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: toolkit.toml: ")
    assert said in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        'dsn = ["postgresql://u:S3CR3T@h/x"]',
        'dsn.url = "postgresql://u:S3CR3T@h/x"',
        'dsn = "postgresql://u:p@S3CR3T@h/x"',
        'dsn = "host=S3CR3T@h"',
    ],
)
def test_what_stands_for_a_conninfo_is_never_repeated(text: str) -> None:
    Path("toolkit.toml").write_text(f"[database]\n{text}\n", "utf-8")
    result = run("datasets")
    assert result.exit_code == 2
    assert "database.dsn" in result.stderr
    assert "S3CR3T" not in result.output


def test_abstract_socket_is_a_host() -> None:
    check_conninfo("host=@toolkit", "flag")


@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "864001", "-inf", "0"])
@pytest.mark.parametrize(
    "key", ["connect_timeout", "pool_timeout", "statement_timeout", "max_idle"]
)
def test_times_beyond_reason_are_refused(
    key: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("toolkit.toml").write_text(f"[pool]\n{key} = {value}\n", "utf-8")
    result = run("config", "show")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"toolkit.toml: pool.{key}: " in result.stderr
    monkeypatch.setenv(f"TOOLKIT_POOL_{key.upper()}", value)
    assert f"$TOOLKIT_POOL_{key.upper()}: pool.{key}: " in run("config", "show").stderr


def test_whole_number_beyond_reason_is_refused() -> None:
    for key in ("max_size", "max_idle"):
        Path("toolkit.toml").write_text(f"[pool]\n{key} = 1{'0' * 400}\n", "utf-8")
        result = run("config", "show")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert len(result.stderr) < 200


@pytest.mark.parametrize(
    "arguments",
    [
        *(("query", "x", "now-1d", "now", "--timeout", v) for v in ("inf", "nan", "1e300")),
        ("query", "x", "now-1d", "now", "--limit", "2147483648"),
        ("query", "x", "now-1d", "now", "--points", "2147483648"),
        ("latest", "x", "-n", "2147483648"),
        ("migrate", "up", "--wait", "nan"),
        *(("topology", "watch", "--every", v) for v in ("-1", "0", "nan")),
        *(("pgbouncer", "pause", "--wait", v) for v in ("-1", "0")),
    ],
)
def test_number_beyond_reason_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[-2]}'" in result.stderr


def test_migrate_sql_needs_no_database() -> None:
    result = run("migrate", "sql", "--schema", "bars")
    assert result.exit_code == 0
    assert 'CREATE TABLE "bars".dataset' in result.stdout
    assert json.loads(run("migrate", "sql", "--json").stdout)["revision"] == "head"
    assert run("migrate", "sql", "0009").exit_code == 1
