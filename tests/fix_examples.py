"""What the files of deploy/ say: services, images, units, pods, and the commands in all of them."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from fix_servers import PROJECT

DEPLOY = PROJECT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PAGE = PROJECT / "docs" / "deploy.md"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
# what official images start
ENTRIES = {"prom/prometheus": ["prometheus"], "prom/node-exporter": ["prometheus-node-exporter"]}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what it is given."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def image_of(service: str) -> tuple[list[str], list[str]]:
    """What the image of a service starts, and with which arguments."""
    build = SERVICES[service].get("build")
    if build is None:
        return ENTRIES.get(SERVICES[service]["image"].partition(":")[0], []), []
    context, file = (build, "Dockerfile") if isinstance(build, str) else build.values()
    given = dict(instructions(DEPLOY / context / file))
    return json.loads(given["ENTRYPOINT"]), json.loads(given.get("CMD", "[]"))


def unit(path: Path) -> configparser.ConfigParser:
    """A systemd unit's sections."""
    return parsed_unit(path.read_text())


def parsed_unit(text: str) -> configparser.ConfigParser:
    """The same of a text; what is set twice is an error."""
    found = configparser.ConfigParser(
        interpolation=None, delimiters=["="], comment_prefixes=["#"], strict=True
    )
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(text)
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The containers of the Kubernetes objects that run the toolkit's image."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yml")):
        spec = yaml.safe_load(path.read_text()).get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        for container in spec.get("template", {}).get("spec", {}).get("containers", ()):
            if "timeseries-toolkit" in container["image"]:
                yield path.name, container


def said() -> dict[str, list[list[str]]]:
    """Every command of the toolkit's that a file of deploy/, or the page about it, has."""
    found: dict[str, list[list[str]]] = {}
    for name, given in SERVICES.items():
        words = [*given.get("entrypoint", image_of(name)[0]), *given.get("command", ())]
        if words[:2] == ["with-secrets", "toolkit"]:
            found.setdefault("compose.yml", []).append(words[2:])
        elif words[:2] == ["with-secrets", "sh"]:
            lines = re.findall(r"^ *toolkit (.+?) \|\|", words[-1], re.MULTILINE)
            found.setdefault("compose.yml", []).extend(map(shlex.split, lines))
    for path in UNITS:
        program, *words = shlex.split(unit(path)["Service"]["ExecStart"])
        assert program == "/opt/toolkit/bin/toolkit"
        found[path.name] = [words]
    for name, container in pods():
        found[name] = [container["args"]]
    text = PAGE.read_text()
    found[PAGE.name] = [
        shlex.split(line)
        for line in re.findall(
            r"^ {4}(?:docker compose run --rm migrate|toolkit) (.+)$", text, re.MULTILINE
        )
    ]
    return found
