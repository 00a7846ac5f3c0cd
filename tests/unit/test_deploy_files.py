"""The files of deploy/ by their schemas, and by what they have to agree about."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from fix_examples import (
    COMPOSE,
    DEPLOY,
    SERVICES,
    UNITS,
    image_of,
    instructions,
    parsed_unit,
    pods,
    said,
    unit,
)
from fix_pgbouncer import unpacked
from fix_servers import PROJECT, give_up

from toolkit.cli import main

KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yml"))
VALUES = "prometheus-adapter.yml"  # a Helm chart's, no object
RELEASE = "1.34"
_UNIT_KEYS = {
    "Unit": {"Description", "Wants", "After"},
    "Timer": {
        *("OnCalendar", "RandomizedDelaySec", "FixedRandomDelay", "AccuracySec", "Persistent"),
    },
    "Install": {"WantedBy"},
}


def test_every_command_exists_and_takes_what_it_is_given() -> None:
    for where, commands in said().items():
        assert commands, where
        for words in commands:
            parsed(words, where)


def parsed(words: list[str], where: str) -> None:
    """Have click read a command's arguments, and run nothing."""
    context, known, left = click.Context(main), main, list(words)
    while isinstance(known, click.Group):
        found = known.get_command(context, name := left.pop(0))
        assert found is not None, f"{where}: {name} of {words}"
        context, known = click.Context(found, parent=context), found  # type: ignore[assignment]
    known.make_context(known.name, left, parent=context.parent)


# -- compose ------------------------------------------------------------------------------------


def test_compose_file_follows_the_specification() -> None:
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(vendored.read_text()))


def test_docker_compose_reads_it_as_these_tests_do(programs_folder: Path) -> None:
    """Debian 13's; it needs no Docker for that."""
    needed = ("docker-compose/trixie", "libc6/trixie")
    try:
        folder, starter = unpacked(programs_folder, "docker-compose-2.26", "trixie", needed)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"").decode() or str(error)
        give_up(f"Docker Compose could not be downloaded: {said}")
    program = folder / "usr/libexec/docker/cli-plugins/docker-compose"
    words = ["-f", DEPLOY / "compose.yml", "config", "--format", "json"]
    done = subprocess.run(
        [*starter, program, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    read = json.loads(done.stdout)["services"]
    assert read.keys() == SERVICES.keys()
    for name, given in SERVICES.items():
        for key in ("image", "user", "command", "entrypoint", "environment", "tmpfs", "cap_drop"):
            assert (read[name].get(key) or None) == given.get(key), f"{name}: {key}"
        check = given.get("healthcheck", {}).get("test")
        assert read[name].get("healthcheck", {}).get("test") == check, name
        mounts = [volume["target"] for volume in read[name].get("volumes", ())]
        assert mounts == [volume.split(":")[1] for volume in given.get("volumes", ())], name


@pytest.mark.parametrize("service", SERVICES)
def test_service_is_pinned_bounded_and_may_do_little(service: str) -> None:
    given = SERVICES[service]
    if "build" not in given:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", given["image"])
    assert given["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert given["restart"] in ("unless-stopped", "on-failure")
    assert given["read_only"]
    assert given["cap_drop"] == ["ALL"]
    for port in given.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    # no password but in a file
    for name, value in given.get("environment", {}).items():
        assert "PASSWORD" not in name or name.endswith("_FILE"), name
        if name.endswith("_FILE"):
            assert value.removeprefix("/run/secrets/") in given["secrets"]
    for other, how in given.get("depends_on", {}).items():
        assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]


def test_everything_that_is_mounted_is_there_and_nothing_is_left_over() -> None:
    mounted, volumes, secrets = set(), set(), set()
    for given in SERVICES.values():
        sources = [volume.split(":")[0] for volume in given.get("volumes", ())]
        volumes |= {source for source in sources if not source.startswith(".")}
        mounted |= {DEPLOY / source for source in sources if source.startswith(".")}
        secrets |= {s if isinstance(s, str) else s["source"] for s in given.get("secrets", ())}
    assert [path for path in mounted if not path.exists()] == []
    assert volumes == set(COMPOSE["volumes"])
    assert secrets == set(COMPOSE["secrets"])


def test_secrets_are_made_once_and_by_nobody_read(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets.sh"
    shutil.copy(DEPLOY / script.name, script)

    def made() -> dict[str, str]:
        subprocess.run([script], check=True, timeout=20, cwd="/")
        return {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    first = made()
    assert {f"secrets/{name}" for name in first} >= {s["file"] for s in COMPOSE["secrets"].values()}
    assert len({first[name] for name in first if name.endswith("_password")}) == 6
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    (tmp_path / "secrets" / "valkey_password").unlink()
    again = made()
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"valkey_password", "valkey_users", "redis_url"}
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert ignored == ["secrets/"]
    # what makes the source distribution reads this one only
    assert "deploy/secrets/" in (PROJECT / ".gitignore").read_text().split()
    assert not any(first[name] in path.read_text() for name in first for path in texts())


def texts() -> list[Path]:
    return [p for p in DEPLOY.rglob("*") if p.is_file() and "secrets" not in p.parts]


# -- images -------------------------------------------------------------------------------------


def test_image_is_built_from_what_its_context_has(tmp_path: Path) -> None:
    allowed = [
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    context = tmp_path / "context"
    for name in allowed:
        target = context / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).is_dir():
            shutil.copytree(
                PROJECT / name, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        else:
            shutil.copy(PROJECT / name, target)
    steps = instructions(DEPLOY / "Dockerfile")
    copied = [rest.split()[-2:] for word, rest in steps if word == "COPY" and "--from" not in rest]
    assert copied == [[".", "."], ["deploy/with-secrets.sh", "/usr/local/bin/with-secrets"]]
    (extras,) = [rest.removeprefix("EXTRAS=") for word, rest in steps if word == "ARG"]
    known = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert extras in known["optional-dependencies"]
    install = next(rest for word, rest in steps if word == "RUN" and "/pip install" in rest)
    words = shlex.split(install.replace("${EXTRAS}", extras))
    assert words[0] == "/opt/toolkit/bin/pip"
    here = [
        sys.executable,
        "-m",
        "pip",
        *words[1:-1],
        "--no-deps",
        "--no-build-isolation",
        "--no-compile",
    ]
    target = tmp_path / "installed"
    subprocess.run(
        [*here, "--quiet", "--target", target, words[-1]], cwd=context, check=True, timeout=120
    )
    assert (target / "bin" / "toolkit").exists()
    assert (target / "toolkit" / "_migrations" / "env.py").exists()
    assert image_of("migrate") == (["with-secrets", "toolkit"], ["--help"])
    users = [rest for word, rest in steps if word == "USER"]
    assert users == [str(container_user()["runAsUser"])]


def container_user() -> dict[str, Any]:
    spec = yaml.safe_load((DEPLOY / "kubernetes" / "migrate.yml").read_text())["spec"]
    found: dict[str, Any] = spec["template"]["spec"]["securityContext"]
    return found


def test_with_secrets_reads_files_and_starts_the_command(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("it's a $ecret\n")
    script, python = DEPLOY / "with-secrets.sh", "import os; print(os.environ['PGPASSWORD'])"
    done = subprocess.run(
        [script, sys.executable, "-c", f"{python}; print('PGPASSWORD_FILE' in os.environ)"],
        env={"PATH": "/usr/bin:/bin", "PGPASSWORD_FILE": str(tmp_path / "secret")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "it's a $ecret\nFalse\n"
    missing = subprocess.run(
        [script, "true"],
        env={"PATH": "/usr/bin:/bin", "TOOLKIT_DSN_FILE": str(tmp_path / "none")},
        capture_output=True,
        check=False,
    )
    assert missing.returncode != 0


# -- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in KUBERNETES if p.name != VALUES], ids=lambda p: p.stem)
def test_kubernetes_takes_the_object(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    kubernetes_validate.validate(found, RELEASE, strict=True)


def test_pods_run_the_image_as_nobody_and_within_bounds() -> None:
    names = [name for name, _ in pods()]
    assert names == ["maintain.yml", "migrate.yml"]
    for _, container in pods():
        assert container["image"].endswith(":" + version())
        assert container["resources"]["limits"].keys() == {"memory"}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container_user()["runAsNonRoot"]
    job = yaml.safe_load((DEPLOY / "kubernetes" / "maintain.yml").read_text())["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    scaled = yaml.safe_load((DEPLOY / "kubernetes" / "hpa.yml").read_text())["spec"]
    service = yaml.safe_load((DEPLOY / "kubernetes" / "service.yml").read_text())
    assert scaled["scaleTargetRef"]["name"] == service["metadata"]["name"]
    assert "replicas" not in service["spec"]


def version() -> str:
    import toolkit

    return toolkit.__version__


# -- systemd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.stem)
def test_unit_and_its_timer_are_what_systemd_takes(path: Path, tmp_path: Path) -> None:
    timer = path.with_suffix(".timer")
    for one in (path, timer):
        for section, keys in unit(one).items():
            assert keys.keys() <= _UNIT_KEYS.get(section, keys.keys()), f"{one.name}: [{section}]"
    service = unit(path)["Service"]
    # oneshot would know no such bound, and a service that is started by hand is no second one
    assert service.get("Type", "simple") in ("simple", "exec")
    assert service["RuntimeMaxSec"]
    if shutil.which("systemd-analyze") is None:
        return
    # verify wants the program to be there
    text = path.read_text().replace("/opt/toolkit/bin/toolkit", sys.executable)
    (tmp_path / path.name).write_text(text)
    shutil.copy(timer, tmp_path / timer.name)
    for words in (
        ["verify", tmp_path / path.name, tmp_path / timer.name],
        ["security", "--offline=yes", "--threshold=20", tmp_path / path.name],
    ):
        done = subprocess.run(
            ["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_user_of_the_units_is_made_and_may_write_where_they_do(tmp_path: Path) -> None:
    users = DEPLOY / "systemd" / "sysusers.conf"
    folders = (DEPLOY / "systemd" / "tmpfiles.conf").read_text()
    (user,) = {unit(path)["Service"]["User"] for path in UNITS}
    metrics = unit(DEPLOY / "systemd" / "toolkit-metrics.service")["Service"]
    (folder,) = re.findall(rf"^d (\S+) 0775 root {user} -$", folders, re.MULTILINE)
    assert metrics["ReadWritePaths"] == folder
    assert str(Path(metrics["ExecStart"].split()[-1]).parent) == folder
    assert re.search(rf'^u {user} - "[^"]+" /var/lib/{user}$', users.read_text(), re.MULTILINE)
    if shutil.which("systemd-sysusers") is not None:
        (tmp_path / "etc").mkdir()
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", users], check=True, timeout=20)
        assert (tmp_path / "etc" / "passwd").read_text().startswith(f"{user}:")


def test_unit_says_what_the_command_prints() -> None:
    words = ["maintain", "--print-systemd", "--max-runtime", "10m", "--json"]
    printed = json.loads(CliRunner().invoke(main, words).stdout)
    # whose settings it reads, and as whom: that is where the example does more
    own = {"ExecStart", "User", "EnvironmentFile", "ProtectSystem"}
    for name, text in printed.items():
        ours, theirs = unit(DEPLOY / "systemd" / name), parsed_unit(text)
        for section in theirs.sections():
            for key in theirs[section].keys() - own:
                assert ours[section][key] == theirs[section][key], f"{name}: {key}"
        if "Service" in theirs:
            commands = [shlex.split(one["Service"]["ExecStart"])[1:] for one in (ours, theirs)]
            assert commands[0] == commands[1]
