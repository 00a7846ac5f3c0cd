"""The case of maintenance beside a load: what it does to those who read and write."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import migrate
from toolkit.bench.ground import Ground
from toolkit.bench.load import capacity, open_load
from toolkit.bench.measure import Result, Timing
from toolkit.config import Settings, load_settings
from toolkit.errors import ToolkitError
from toolkit.local import LocalServers
from toolkit.store import Store

_WORKERS = 4
_TIMES, _MORE_MS = 3.0, 10.0
_WRITES = 10  # of so many acts, one is a write
_READ = ("R", "S")
_OLD = timedelta(days=60)
_WORK = ("partitions", "refresh", "vacuum")


def maintain_load(ground: Ground) -> Result:
    """Read and write at half the machine's rate, alone and while another process maintains."""
    sizes = ground.sizes
    with _worn(ground) as worn, Store(worn.settings) as store:
        act = worn.acts(store, sizes.small_read)
        most = capacity(act, _WORKERS, sizes.load_s / 2)
        rate = most / 2
        alone = open_load(act, rate, _WORKERS, lambda lasted: lasted >= sizes.load_s)
        before = worn.answer(store)
        with _other_process(worn.settings) as other:
            beside = open_load(
                act, rate, _WORKERS, lambda lasted: lasted >= 0.2 and other.poll() is not None
            )
            reports = _answer(other)
        if worn.answer(store) != before:
            raise ToolkitError("maintain has changed an answer")
        alone += open_load(act, rate, _WORKERS, lambda lasted: lasted >= sizes.load_s)
    check_work(reports, worn.work)
    quiet, busy = Timing.of("alone", alone), Timing.of("beside", beside)
    allowed = max(_TIMES * quiet.p99, quiet.p99 + _MORE_MS)
    share = busy.p99 / allowed
    done = ", ".join(f"{r['job']} {len(r['done'])} in {r['seconds']:.1f} s" for r in reports)
    what = (
        f"p99 of reads and writes at {rate:,.0f}/s beside a whole maintain, against the larger of "
        f"{_TIMES:g} × and {_MORE_MS:g} ms more than without"
    )
    lines = (
        f"maintain_load: alone p50 {quiet.p50:.2f}, p99 {quiet.p99:.2f} ms, at most "
        f"{max(alone):.0f}; beside it {busy.p50:.2f}, {busy.p99:.2f} ms, at most "
        f"{max(beside):.0f}; acts done: {done}",
    )
    ours = Timing("beside / allowed", busy.turns, share, share)
    return Result("maintain_load", what, len(beside), ours, unit="×", ceiling=1.0, lines=lines)


def check_work(reports: Sequence[Mapping[str, Any]], work: Iterable[str]) -> None:
    """Refuse a run that failed, or that did nothing where there was something to do.

    >>> check_work([{"job": "vacuum", "status": "skipped", "done": []}], ["vacuum"])
    Traceback (most recent call last):
        ...
    toolkit.errors.ToolkitError: maintain has not done its work: vacuum: skipped
    """
    said = {r["job"]: r for r in reports}
    bad = [n for n, r in said.items() if r["status"] not in ("done", "nothing", "skipped")]
    bad += [n for n in work if n not in bad and not (n in said and said[n]["done"])]
    if bad:
        told = [f"{n}: {said[n]['status'] if n in said else 'not run'}" for n in bad]
        raise ToolkitError(f"maintain has not done its work: {', '.join(told)}")


@dataclass(frozen=True, slots=True)
class _Worn:
    """A database in which jobs have something to do, and what is read and written meanwhile."""

    settings: Settings
    start: datetime
    rows: int

    @property
    def work(self) -> list[str]:
        """The jobs that have something to do here: of a short time there is nothing to compress."""
        is_long = timedelta(minutes=self.rows) > 2 * _OLD
        return [*_WORK, *(["compress"] if is_long else [])]

    def acts(self, store: Store, points: int) -> Any:
        chance = np.random.default_rng(points)
        firsts = chance.integers(0, self.rows - points, 1_000).tolist()
        now = datetime.now(UTC)

        def act(number: int) -> object:
            if number % _WRITES == 0:
                ts = [now + timedelta(microseconds=number)]
                return store.write("metrics", {"ts": ts, "value": [1.0]}, series="load")
            first = self.start + timedelta(minutes=firsts[number % len(firsts)])
            span = first, first + timedelta(minutes=points)
            return store.read("candles", _READ[number % 2], *span)

        return act

    def answer(self, store: Store) -> list[Any]:
        """Return the bars of all series, which no job may change."""
        end = self.start + timedelta(minutes=self.rows)
        bars = store.read("candles", None, self.start, end, step="1d")
        return [bars.ts.tolist(), *(bars[name].tolist() for name in bars)]


@contextmanager
def _worn(ground: Ground) -> Iterator[_Worn]:
    """Start a server with work to be done, for as long as this lasts."""
    with tempfile.TemporaryDirectory(prefix="toolkit-bench-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        servers = LocalServers(home, name="worn")
        try:
            dsn = servers.up().dsn
            migrate.upgrade(dsn)
            settings = replace(load_settings(dsn).without_cache(), dsn=dsn)
            rows = ground.sizes.packed_rows // 2
            today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            start = today - timedelta(minutes=rows)
            with Store(settings) as store:
                _wear(store, start, rows)
            yield _Worn(settings, start, rows)
        finally:
            servers.reset()


def _wear(store: Store, start: datetime, rows: int) -> None:
    ts = np.datetime64(start.replace(tzinfo=None), "us") + np.arange(rows).astype("timedelta64[m]")
    value = 100 + np.arange(rows) % 1_017 / 8
    frame = {"ts": ts, "volume": value, **dict.fromkeys(("open", "high", "low", "close"), value)}
    for name in _READ:
        store.write("candles", frame, series=name)
    # in pieces of a day by turns: they leave the key's index half empty
    for day in range(0, rows, 1_440):
        for number in range(4):
            piece = {k: v[day : day + 1_440] for k, v in frame.items()}
            store.write("candles", piece, series=f"W{number}")
    store.set_compress_after("candles", f"{_OLD.days}d")
    store.delete("candles", "W3", start, start + timedelta(minutes=rows // 2))


@contextmanager
def _other_process(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that maintains; its answer is what it did."""
    other = subprocess.Popen(
        [sys.executable, "-m", "toolkit.bench.maintaining"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdin is not None
        assert other.stdout is not None
        # by standard input: a conninfo on a command line is there for all to see
        other.stdin.write(json.dumps(settings.dsn) + "\n")
        other.stdin.flush()
        if not other.stdout.readline():
            _answer(other)
        other.stdin.write("go\n")
        other.stdin.flush()
        yield other
    finally:
        other.kill()
        other.wait()


def _answer(other: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = other.communicate()
    if other.returncode:
        raise ToolkitError(f"the maintaining process failed: {err.strip()[-500:]}")
    answer: list[dict[str, Any]] = json.loads(out)
    return answer


def main() -> None:
    """Maintain what standard input says, once it says go; print what was done."""
    from toolkit_maintenance.runner import maintain

    dsn = json.loads(sys.stdin.readline())
    with Store(replace(load_settings(dsn).without_cache(), dsn=dsn)) as store:
        store.datasets()
        print("ready", flush=True)
        sys.stdin.readline()
        reports = maintain(store)
    print(json.dumps([r.to_mapping() for r in reports]))


if __name__ == "__main__":
    main()
