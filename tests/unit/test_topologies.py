"""A configuration file's shards: what each entry means, and what is wrong with it by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import toolkit
from toolkit.cli import main
from toolkit.config import Settings, load_settings
from toolkit.errors import ConfigError
from toolkit.topologies import RoutingOptions
from toolkit_routing import Node, Shard, Topology


def load(folder: Path, text: str) -> object:
    file = folder / "toolkit.toml"
    file.write_text(text)
    return load_settings(file, environ={})


TIMES = ("wait", "interval", "deadline", "patience")
PRIMARY = '[[shards]]\nprimary = "host=a"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shards = []", r"shards: give each as \[\[shards\]\] with a primary"),
        ("shards = 3", r"shards: give each as \[\[shards\]\] with a primary"),
        ("[shards]\nprimary = 'host=a'", r"shards: give each as \[\[shards\]\]"),
        ("[[shards]]\nname = 'eu'", r"shards\[0\].primary: there is none; give its conninfo"),
        (
            "[[shards]]\nprimary = ['host=a', 'host=b']",
            r"shards\[0\].primary: a shard has one primary; the others are its replicas",
        ),
        ("[[shards]]\nprimary = 3", r"shards\[0\].primary: expected a table with name, dsn"),
        ("[[shards]]\nprimary = ''", r"shards\[0\].primary.dsn: node 'primary' has none"),
        ("[[shards]]\nprimary = {name = 'x'}", r"shards\[0\].primary.dsn: node 'x' has none"),
        ("[[shards]]\nprimary = {dsn = 3}", r"shards\[0\].primary.dsn: expected str, got a int"),
        ("[[shards]]\nprimery = 'host=a'", r"shards\[0\].primery: .*did you mean 'primary'"),
        (PRIMARY + "replicas = 'host=b'", r"shards\[0\].replicas: give a list of nodes"),
        (PRIMARY + "replicas = ['']", r"shards\[0\].replicas\[0\].dsn: node 'replica1' has none"),
        (
            PRIMARY + "replicas = ['host=b', {dsn = 'host=c', wieght = 1}]",
            r"shards\[0\].replicas\[1\].wieght: .*did you mean 'weight'",
        ),
        (
            PRIMARY + "replicas = [{dsn = 'host=b', weight = -1}]",
            r"shards\[0\].replicas\[0\].weight: -1.0 is not a number from 0 on",
        ),
        (
            PRIMARY + "replicas = [{dsn = 'host=b', weight = true}]",
            r"shards\[0\].replicas\[0\].weight: expected a number",
        ),
        (
            PRIMARY + "replicas = [{dsn = 'host=b', name = 'primary'}]",
            r"shards\[0\].replicas\[0\].name: 'primary' is shards\[0\].primary.name, too",
        ),
        (PRIMARY + "[routing]\nsmall = 'fastest'", r"routing.*small: .*'fastest'"),
        (PRIMARY + "[routing]\nwiat = 3", r"routing.wiat: .*did you mean"),
        (PRIMARY + "[routing]\nwait = 'long'", r"routing.wait: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({key: -1.0}, f"routing: {key}: -1.0 is no time") for key in TIMES),
        *(({key: 0.0}, f"routing: {key}: 0.0 is no time") for key in TIMES),
        *(({key: math.nan}, f"routing: {key}: nan is no time") for key in TIMES),
        ({"ejected": 5.0}, "routing: ejected: 5.0 is no part of the nodes"),
        ({"ejected": math.nan}, "routing: ejected: nan is no part of the nodes"),
        ({"analysis": "best"}, "routing: analysis: unknown choice 'best'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_code_too(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RoutingOptions(**options)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_is_a_number_from_0_on(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight: .* is not a number from 0 on"):
        Node("db1", "host=a", weight=weight)


@pytest.mark.parametrize(
    ("replica", "said"),
    [
        ("'postgresql://eve:secret@a:5432/x'", r"replicas\[0\].dsn: leads to the same server"),
        (
            "{dsn = 'host=p dbname=y', direct = 'host=d dbname=x'}",
            r"replicas\[0\].direct: leads to",
        ),
        ("'host=a port=5433 dbname=x'", ""),
        ("'host=a dbname=y'", ""),
    ],
)
def test_one_server_under_two_names_is_refused(tmp_path: Path, replica: str, said: str) -> None:
    primary = "{dsn = 'host=a dbname=x', direct = 'host=d dbname=x'}"
    text = f"[[shards]]\nprimary = {primary}\nreplicas = [{replica}]\n"
    file = tmp_path / "toolkit.toml"
    file.write_text(text)
    if not said:
        toolkit.resolve(file)
        return
    with pytest.raises(ConfigError, match=said) as caught:
        toolkit.resolve(file)
    assert "'primary'" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_message_repeats_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[[shards]]\nprimary = ['host=a password=secret', 'x']")
    assert "secret" not in str(caught.value)


BAD = [
    ("{dsn = 'postgresql://u:S3CR3T@h@x/d'}", "dsn: the host has an @ in it"),
    ("{dsn = 'host=c port=S3CR3T'}", "dsn: the port is not a number"),
    ("{dsn = 'S3CR3T'}", "dsn: missing"),
    ("{dsn = 'host=c', direct = 'host=c nonsense=S3CR3T'}", "direct: invalid connection option"),
]


@pytest.mark.parametrize(("node", "said"), BAD)
@pytest.mark.parametrize("connect", [toolkit.connect, toolkit.connect_async])
def test_an_address_that_is_none_is_named_before_anything_is_connected_to(
    tmp_path: Path, node: str, said: str, connect: Callable[..., object]
) -> None:
    file = tmp_path / "toolkit.toml"
    for text, where in (
        (f"[[shards]]\nprimary = {node}\n", "primary"),
        (f"{PRIMARY}replicas = ['host=b', {node}]", "replicas[1]"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            connect(file)
        assert str(caught.value).startswith(f"{file}: shards[0].{where}.{said}")
        assert "S3CR3T" not in str(caught.value)
        run = CliRunner().invoke(main, ["--config", str(file), "topology", "check"])
        assert (run.exit_code, run.stderr) == (2, f"Error: {caught.value}\n")


def test_an_address_that_is_none_is_named_in_code_too() -> None:
    shard = Shard("main", Node("db1", "host=a"), (Node("db2", "nonsense"),))
    said = r"settings: shards\[0\].replicas\[0\].dsn: missing"
    with pytest.raises(ConfigError, match=said):
        toolkit.connect(Settings(topology=Topology((shard,))))
