"""The services of deploy/compose.yml as processes of this machine, as the files there say.

    def test_it(stage: Stage) -> None:
        stage.start("valkey")
        stage.run("migrate")

A container's paths become those of what is mounted there, a service's name and port become a port
of loopback. Scripts run as they stand; of configurations nothing but such addresses is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fix_cli import COMMAND
from fix_examples import COMPOSE, DEPLOY, SERVICES, image_of
from fix_pgbouncer import Programs, unpacked
from fix_servers import PROJECT, WHEEL, die_with_parent, give_up, system_bin

from toolkit.cli import main
from toolkit.local import ports
from toolkit.local.account import Account, choose_account
from toolkit.local.binaries import postgres_wheel, valkey_wheel

PGDATA = "/var/lib/postgresql/18/docker"
_CONNINFO = re.compile(r"host=([\w-]+) port=(\d+)")
_ADDRESS = re.compile(r"(?<![\w.-])([a-z][\w-]*(?=:)|127\.0\.0\.1)([:/])(\d{4,5})\b")
_LISTENS = re.compile(r"^listen_port = (\d+)$", re.MULTILINE)
_TOLD = (
    *("toolkit.toml", "pgbouncer/pgbouncer.ini", "secrets/redis_url"),
    *("prometheus/*.yml", "grafana/provisioning/*/*.yml"),
)


@dataclass(slots=True)
class Stage:
    """A folder with deploy/ as it was copied and told other addresses, and what runs of it."""

    home: Path
    account: Account
    path: tuple[Path, ...]
    _ports: dict[tuple[str, int], int] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Copy deploy/, let its script make the secrets, and tell everything where others are."""
        shutil.copytree(DEPLOY, self.deploy, ignore=shutil.ignore_patterns("secrets"))
        for _ in range(2):  # what is there stays
            subprocess.run([self.deploy / "make-secrets.sh"], check=True, timeout=20)
        for pattern in _TOLD:
            for path in self.deploy.glob(pattern):
                me, text = path.parent.name, path.read_text()
                told = self.local(me, text) if me in SERVICES else self.addressed(text)
                path.write_text(told)
        for path in [self.deploy, *self.deploy.rglob("*")]:
            self.account.give(path)

    # -- what is where --------------------------------------------------------------------------

    @property
    def deploy(self) -> Path:
        return self.home / "deploy"

    def port(self, service: str, number: int) -> int:
        """The port of loopback that stands for one of a service."""
        assert service in SERVICES, f"{service}:{number} is no service of compose.yml"
        if (service, number) not in self._ports:
            self._ports[service, number] = ports.choose()
        return self._ports[service, number]

    def toolkit(self, *arguments: str, config: str = "") -> str:
        """Run a command of the toolkit as `migrate` could; return what it prints.

        ``config`` is another file of settings, which has all secrets in it.
        """
        variables = (
            {"TOOLKIT_CONFIG": config}
            if config
            else {
                "TOOLKIT_CONFIG": self.environment("migrate")["TOOLKIT_CONFIG"],
                "PGPASSWORD": self.secret("toolkit_password"),
                "TOOLKIT_CACHE_REDIS": self.secret("redis_url"),
                "TOOLKIT_CACHE_MEMORY": "64",
            }
        )
        result = CliRunner().invoke(main, arguments, env=variables)
        assert result.exit_code == 0, result.output
        return result.stdout

    def secret(self, name: str) -> str:
        return (self.deploy / "secrets" / name).read_text().strip()

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text(errors="replace")

    def addressed(self, text: str, me: str = "") -> str:
        """A text with addresses of loopback; ``me`` is the service that reads it."""

        def conninfo(found: re.Match[str]) -> str:
            return f"host=127.0.0.1 port={self.port(found[1], int(found[2]))}"

        def address(found: re.Match[str]) -> str:
            name = me if found[1] in ("localhost", "127.0.0.1") else found[1]
            return f"127.0.0.1{found[2]}{self.port(name, int(found[3]))}"

        text = _LISTENS.sub(lambda found: f"listen_port = {self.port(me, int(found[1]))}", text)
        return "".join(
            line if line.startswith("#") else _ADDRESS.sub(address, _CONNINFO.sub(conninfo, line))
            for line in text.splitlines(keepends=True)
        )

    def named(self, text: str) -> str:
        """A text with the names of services again, where it has addresses of loopback."""
        for (service, number), port in self._ports.items():
            text = text.replace(f"host=127.0.0.1 port={port}", f"host={service} port={number}")
        return text

    def mounts(self, service: str) -> dict[str, str]:
        """What stands here for the paths of a service's container, the longest first."""
        found = {}
        for volume in SERVICES[service].get("volumes", ()):
            source, target = volume.split(":")[:2]
            is_here = source.startswith(".")
            found[target] = str(self.deploy / source if is_here else self._volume(source))
        for secret in SERVICES[service].get("secrets", ()):
            name = secret if isinstance(secret, str) else secret["source"]
            target = f"/run/secrets/{name}" if isinstance(secret, str) else secret["target"]
            found[target] = str(self.deploy / COMPOSE["secrets"][name]["file"])
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    def _volume(self, name: str) -> Path:
        assert name in COMPOSE["volumes"]
        folder = self.home / "volumes" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            self.account.give(folder)
        return folder

    def local(self, service: str, text: str) -> str:
        """A command's word, or a variable's value, as it is here."""
        for target, here in self.mounts(service).items():
            text = re.sub(rf"(?<![\w./-]){re.escape(target)}(?![\w.-])", here, text)
        return self.addressed(text.replace("$$", "$"), service)

    def is_postgres(self, service: str) -> bool:
        return str(SERVICES[service]["image"]).startswith("postgres:")

    def command(self, service: str) -> list[str]:
        """What a service runs: its own words, else its image's."""
        given = SERVICES[service]
        entry, arguments = image_of(service)
        default = [] if "entrypoint" in given else arguments
        words = [*given.get("entrypoint", entry), *given.get("command", default)]
        # where it may write depends on who it is, and there are several of them here
        more = ["-c", f"unix_socket_directories={self.home}"] if self.is_postgres(service) else []
        return [*(self.local(service, word) for word in words), *more]

    def environment(self, service: str) -> dict[str, str]:
        """A service's variables, and those of its image."""
        given = SERVICES[service].get("environment", {})
        found = {name: self.local(service, str(value)) for name, value in given.items()}
        if self.is_postgres(service):
            found["PGDATA"] = self.local(service, PGDATA)
            found["PGPORT"] = str(self.port(service, 5432))
        path = os.pathsep.join([*map(str, self.path), "/usr/local/bin:/usr/bin:/bin"])
        return {"PATH": path, "LC_ALL": "C.UTF-8", **found}

    # -- what runs ------------------------------------------------------------------------------

    def start(self, service: str, *more: str) -> None:
        """Start a service, with ``more`` arguments, and wait until its own check is content."""
        self.launch(service, [*self.command(service), *more])
        self.wait(service, lambda: self.is_healthy(service))

    def launch(self, service: str, command: Sequence[str], **variables: str) -> None:
        """Run a command in a service's place."""
        with (self.home / f"{service}.log").open("ab") as log:
            self._running[service] = subprocess.Popen(
                command,
                cwd="/",
                env=self.environment(service) | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
                **self._identity(service),
            )

    def wait(self, service: str, ready: Callable[[], object], patience_s: float = 30) -> None:
        """Wait until something is so, as long as a service runs."""
        deadline = time.monotonic() + patience_s
        while not ready():
            if self._running[service].poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{service} is not ready:\n{self.log(service)[-3000:]}")
            time.sleep(0.02)

    def is_healthy(self, service: str) -> bool:
        """What a service's own check says."""
        word, *command = SERVICES[service]["healthcheck"]["test"]
        assert word == "CMD"
        words = [self.local(service, each) for each in command]
        if words[0] == "valkey-cli":  # it has its port from here, or from nowhere
            words[1:1] = ["-p", str(self.port(service, 6379))]
        return self.run(service, words, check=False).returncode == 0

    def run(
        self, service: str, command: Sequence[str] = (), *, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a service would, to its end; by default its own."""
        done = subprocess.run(
            command or self.command(service),
            cwd="/",
            env=self.environment(service) | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **self._identity(service),
        )
        assert done.returncode == 0 or not check, f"{done.args}\n{done.stdout}\n{done.stderr}"
        return done

    def stop(self, service: str, number: signal.Signals = signal.SIGINT) -> int:
        """End a service and what it has started; return what it ended with."""
        process = self._running.pop(service)
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, number)
        try:
            return process.wait(20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def close(self) -> None:
        for service in [*self._running]:
            self.stop(service, signal.SIGQUIT)

    def _identity(self, service: str) -> Mapping[str, Any]:
        """Whom to run as: root may be no server, and that user may not enter our environment."""
        if not self.account.is_other or SERVICES[service]["image"] == "timeseries-toolkit":
            return {}
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}

    def make_primary(self) -> None:
        """Do what the official image does before it starts a server that has no data yet."""
        given = self.environment("primary")
        password, name = self.secret("postgres_password"), given["POSTGRES_DB"]
        Path(given["PGDATA"]).parent.mkdir(exist_ok=True)
        self.account.give(Path(given["PGDATA"]).parent)
        options = ["--username=postgres", f"--pwfile={given['POSTGRES_PASSWORD_FILE']}"]
        self.run("primary", ["initdb", *options, *given["POSTGRES_INITDB_ARGS"].split()])
        self.launch("primary", [*self.command("primary"), "-c", "listen_addresses="])
        asked = ["pg_isready", "-q", "-h", str(self.home)]
        self.wait("primary", lambda: self.run("primary", asked, check=False).returncode == 0)
        psql = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-w", "-h", str(self.home)]
        create = f'CREATE DATABASE "{name}"'
        self.run("primary", [*psql, "-d", "postgres", "-c", create], PGPASSWORD=password)
        for target, here in self.mounts("primary").items():
            if target.startswith("/docker-entrypoint-initdb.d/"):
                self.run("primary", [*psql, "-d", name, "-f", here], PGPASSWORD=password)
        assert self.stop("primary") == 0


def _debian(store: Path) -> dict[str, list[str]]:
    """What starts the programs of images that Debian 12 has too."""
    sources = {
        "prometheus-2.42": ("prometheus", "libc6"),
        "node-exporter-1.5": ("prometheus-node-exporter", "libc6"),
        "redis-tools-7.0": (
            *("redis-tools", "libc6", "libssl3", "libsystemd0", "libcap2", "libgcrypt20"),
            *("libgpg-error0", "liblzma5", "libzstd1", "liblz4-1", "libjemalloc2", "liblzf1"),
            *("libstdc++6", "libgcc-s1", "libatomic1"),
        ),
    }
    names = {
        "prometheus-2.42": ("prometheus", "promtool"),
        "node-exporter-1.5": ("prometheus-node-exporter",),
        "redis-tools-7.0": ("redis-cli",),
    }
    found = {}
    for folder, needed in sources.items():
        try:
            # the archive's: what is installed may be newer than what can be downloaded
            packages = tuple(f"{name}/bookworm" for name in needed)
            there, starter = unpacked(store, folder, "bookworm", packages)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"").decode() or str(error)
            give_up(f"{needed[0]} could not be downloaded: {said}")
        found |= {name: [*starter, str(there / "usr/bin" / name)] for name in names[folder]}
    return found


def _fill(folder: Path, programs: Mapping[str, Sequence[object]], roots: str) -> None:
    """Make the programs that images have in their PATH, by the names that they have there."""
    folder.mkdir()
    for name, words in programs.items():
        line = f"PYTHONPATH={shlex.quote(roots)} exec {shlex.join(map(str, words))}"
        (folder / name).write_text(f'#!/bin/sh\n{line} "$@"\n')
        (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def stage(
    run_folder: Path, programs_folder: Path, pgbouncer_programs: Programs, server_version: str
) -> Iterator[Stage]:
    """The services: all but `maintain` and Grafana run, and `migrate` has run to its end."""
    home, store = run_folder / "deploy", (run_folder / ".bin").resolve()
    home.mkdir(mode=0o755)
    account = choose_account(home / "none")
    account.give(home)
    if server_version == WHEEL:
        system = postgres_wheel().usable_by(account, store).parent
    else:
        system = system_bin(server_version)
    programs = _debian(programs_folder)
    programs["valkey-cli"] = programs.pop("redis-cli")
    programs |= {
        "toolkit": [sys.executable, "-c", COMMAND],
        "with-secrets": [home / "deploy/with-secrets.sh"],
        "pgbouncer": pgbouncer_programs.program("1.24").command,
        "valkey-server": [valkey_wheel().usable_by(account, store)],
    }
    roots = os.pathsep.join(map(str, (PROJECT, PROJECT / "routing", PROJECT / "maintenance")))
    _fill(home / "bin", programs, roots)
    stage = Stage(home, account, (home / "bin", system))
    try:
        stage.prepare()
        for service, number in (("node-exporter", 9100), ("prometheus", 9090)):
            address = f"--web.listen-address=127.0.0.1:{stage.port(service, number)}"
            stage.launch(service, [*stage.command(service), address])
        stage.make_primary()
        stage.start("primary")
        for replica in ("replica1", "replica2"):  # each waits for the primary only
            stage.launch(replica, stage.command(replica))
        stage.start("valkey", "--port", str(stage.port("valkey", 6379)))
        stage.start("pgbouncer")
        for replica in ("replica1", "replica2"):
            stage.wait(replica, lambda: stage.is_healthy(replica))  # noqa: B023
        stage.run("migrate")
        yield stage
    finally:
        stage.close()
        shutil.rmtree(home)
