"""What a job stands on: the store, a session of its own on the primary, and its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from toolkit.dataset import Dataset
from toolkit.drivers.direct import Direct, Patience
from toolkit.errors import UnknownName
from toolkit.options import MaintenanceOptions
from toolkit.statements import Part, filled, name
from toolkit.store import Store

Say = Callable[[str], None]
_SHORT_S, _LONG_S = 1.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Ground:
    """One run's; ``now`` is the server's time at its beginning.

    ``targets`` are what somebody named by hand (datasets, tables, indexes); empty: everything.
    ``is_forced``: what is named is done, needed or not. ``is_by_hand``: the job was asked for,
    due or not.
    ``until`` is when its time is over, by ``time.monotonic``; acts that take long look at
    :attr:`left`. ``say`` tells who watches how far it is.
    """

    store: Store
    direct: Direct
    now: datetime
    options: MaintenanceOptions
    targets: tuple[str, ...] = ()
    until: float | None = None
    is_dry: bool = False
    is_forced: bool = False
    is_by_hand: bool = False
    say: Say = field(default=lambda text: None, repr=False)

    @property
    def schema(self) -> str:
        return self.store.settings.schema

    @property
    def patience(self) -> Patience:
        """How long DDL waits for locks: near the end of the run's time it tries less often."""
        whole = Patience(self.options.lock_timeout, self.options.tries)
        if self.left is None:
            return whole
        fit = int(self.left / (whole.lock_timeout + whole.pause))
        return replace(whole, tries=max(1, min(whole.tries, fit)))

    @property
    def left(self) -> float | None:
        """Seconds that are left of the run's time; None: any number."""
        return None if self.until is None else self.until - time.monotonic()

    @property
    def timeout(self) -> float:
        """Seconds for a statement: what is left of the run's time, from a second to a day.

        A second is left where the time is over between statements that belong together.
        """
        return _LONG_S if self.left is None else max(_SHORT_S, min(self.left, _LONG_S))

    def datasets(self) -> list[Dataset]:
        """Return the datasets that are meant: those named by ``targets``, else all."""
        found = {d.name: d for d in self.store.datasets()}
        for target in self.targets:
            if target not in found:
                raise UnknownName("dataset", target, found)
        return [found[t] for t in self.targets] if self.targets else list(found.values())

    def table(self, relation: str) -> Part:
        """Return the quoted name of a table of the schema."""
        return name(self.schema, relation)

    def ddl(self, what: str, statements: Sequence[bytes], *, together: bool = True) -> None:
        """Run DDL that gives up in time; raises Busy, which names who was in the way.

        ``together`` in one transaction; not so what is CONCURRENTLY, which takes until the run's
        time is over.
        """
        timeout = None if together else self.timeout
        self.direct.patiently(statements, what, self.patience, together=together, timeout=timeout)


def texts(
    statements: Iterable[bytes], params: Mapping[str, object] | None = None
) -> tuple[str, ...]:
    """Return statements as a dry run shows them: the values of ``params`` are in them.

    Without ``params`` they are sent as they are, else as :func:`toolkit.statements.filled` says.
    """
    return tuple(s.decode() if params is None else filled(s, params) for s in statements)
