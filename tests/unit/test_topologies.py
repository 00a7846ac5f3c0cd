"""A configuration file's shards: what each entry means, and what is wrong with it by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config import load_settings
from toolkit.errors import ConfigError


def load(folder: Path, text: str) -> object:
    file = folder / "toolkit.toml"
    file.write_text(text)
    return load_settings(file, environ={})


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


def test_no_message_repeats_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[[shards]]\nprimary = ['host=a password=secret', 'x']")
    assert "secret" not in str(caught.value)
