"""Debian's Prometheus: scrapes a test's own metrics, and judges rules.

    def test_it(prometheus: MakePrometheus, promtool: Promtool) -> None:
        scraping = prometheus(port_of_metrics, rules)
        scraping.ask("toolkit_server_up")

It is 2.42, of Debian 12, unpacked as PgBouncer is.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fix_pgbouncer import unpacked
from fix_servers import die_with_parent, give_up

from toolkit.local import ports

_CONFIGURATION = """\
global: {{scrape_interval: 300ms, scrape_timeout: 300ms, evaluation_interval: 300ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: service
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@dataclass(slots=True)
class Prometheus:
    """One that runs."""

    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str, **params: str) -> Any:
        """What its API answers."""
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(params)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values that an expression has now."""
        found = self.get("/api/v1/query", query=expression)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in found]


MakePrometheus = Callable[[int, Path], Prometheus]
Promtool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prometheus_program(programs_folder: Path) -> Callable[[str], list[str]]:
    """The words that start a program of the package."""
    try:
        packages = ("prometheus", "libc6")
        folder, starter = unpacked(programs_folder, "prometheus-2.42", "bookworm", packages)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"").decode() or str(error)
        give_up(f"Prometheus could not be downloaded: {said}")
    return lambda name: [*starter, str(folder / "usr/bin" / name)]


@pytest.fixture
def promtool(prometheus_program: Callable[[str], list[str]]) -> Promtool:
    """Runs promtool."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*prometheus_program("promtool"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def prometheus(
    prometheus_program: Callable[[str], list[str]], tmp_path: Path
) -> Iterator[MakePrometheus]:
    """Makes Prometheuses that scrape a port three times a second; they end with the test."""
    made: list[Prometheus] = []

    def make(port: int, rules: Path) -> Prometheus:
        home = tmp_path / f"prometheus{len(made)}"
        home.mkdir()
        file = home / "prometheus.yml"
        file.write_text(_CONFIGURATION.format(port=port, rules=rules))
        own = ports.choose()
        words = [f"--config.file={file}", f"--storage.tsdb.path={home / 'data'}"]
        words += [f"--web.listen-address=127.0.0.1:{own}"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [*prometheus_program("prometheus"), *words],
                cwd=home,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        made.append(Prometheus(own, process))
        deadline = time.monotonic() + 20
        while True:
            try:
                made[-1].get("/api/v1/status/runtimeinfo")
                return made[-1]
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no Prometheus:\n{(home / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
