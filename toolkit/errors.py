"""The errors callers meet: each says what went wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from toolkit.timegrid import Span

_MOST = 50  # names: all checks, all jobs; not all series


class ToolkitError(Exception):
    """Base of every error the toolkit raises on purpose.

    ``retryable`` says whether the same call may succeed later without a change by the
    caller; ``exit_code`` is what the command line exits with.
    """

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class Stopped(Exception):
    """Whoever heard how far a call is has ended it there: no error, and counted as none."""


class ConfigError(ToolkitError):
    """A setting is missing or wrong."""

    exit_code = 2

    def __init__(self, source: str, key: str, problem: str) -> None:
        super().__init__(f"{source}: {key}: {problem}" if key else f"{source}: {problem}")
        self.source = source
        self.key = key


class MissingExtra(ConfigError):
    """An optional package that this call needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            purpose,
            "",
            f"needs the package {package!r}; pip install 'timeseries-toolkit[{extra}]'",
        )
        self.package = package
        self.extra = extra


class QueryError(ToolkitError):
    """The question cannot be answered as it was asked."""

    exit_code = 2


class UnknownName(QueryError):
    """A dataset, series, column or label that does not exist; the message offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3)
        place = f" in {where}" if where else ""
        if near:
            hint = f"did you mean {', '.join(repr(n) for n in near)}?"
        elif names:
            shown = names if len(names) <= _MOST else names[:8]
            more = "" if shown is names else ", …"
            hint = f"there is {', '.join(map(repr, shown))}{more}"
        else:
            hint = f"there is no {kind} yet"
        super().__init__(f"unknown {kind} {shorten(name)}{place}: {hint}")
        self.kind = kind
        self.name = name


class InputError(ToolkitError):
    """Data handed over to be stored is not what the dataset takes; nothing of it was stored."""


class PartialWrite(ToolkitError):
    """A write in chunks stopped midway: whole chunks before it are stored, nothing after.

    ``report`` counts what is stored; the cause is ``__cause__`` (if that is OutcomeUnknown, the
    chunk it stopped at may be stored, too). With ``mode="upsert"`` or ``"ignore"`` the same
    call can simply be run again.
    """

    def __init__(self, message: str, report: object) -> None:
        super().__init__(message)
        self.report = report


class ExportError(ToolkitError):
    """A file could not be written; nothing of it was left behind."""


class SchemaError(ToolkitError):
    """The database's schema is not the one this version works with."""


class DatabaseError(ToolkitError):
    """PostgreSQL refused a statement; ``sqlstate`` is its code.

    ``constraint`` names the constraint that a row violates, where it is one with a name.
    """

    def __init__(
        self, message: str, sqlstate: str | None = None, constraint: str | None = None
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint


class ReadOnlyDatabase(DatabaseError):
    """The server takes no writes: a standby, or a primary set read-only."""


class DiskFull(DatabaseError):
    """The server's disk is full; the statement was rolled back."""


class QueryTimeout(DatabaseError):
    """The call's deadline passed: what ran on the server was cancelled, the rest not begun."""

    retryable = True


class CorruptBlock(DatabaseError):
    """A stored block whose bytes are not as they were written, or that is another's.

    Nothing of it is believed. ``dataset``, ``series`` and ``span`` say which one it is.
    """

    def __init__(self, dataset: str, series: str, span: Span, problem: object) -> None:
        self.dataset, self.series, self.span = dataset, series, span
        super().__init__(
            f"dataset {dataset!r}, series {series!r}, block {span}: {problem}; "
            "toolkit verify says what is damaged, and from what it can be made again"
        )


class Unavailable(ToolkitError):
    """No server could be reached, or the connection was lost; ``node`` is its name, if known."""

    retryable = True
    exit_code = 3
    node = ""


class NoConnection(Unavailable):
    """The server is there, but every connection is taken: its own, or those of the pool."""


class NoPrimary(Unavailable):
    """None of the nodes takes writes, and none began to in the time that was waited."""


class OutcomeUnknown(Unavailable):
    """The connection was lost during COMMIT: the transaction is stored as a whole or not at all."""

    retryable = False


class AccessDenied(Unavailable):
    """The server was reached and refused the user, the password or the database."""

    retryable = False


class Busy(ToolkitError):
    """Somebody else holds a lock this call needs; the message names the holder."""

    retryable = True
    exit_code = 4


class Overloaded(ToolkitError):
    """More was asked at once than may be; nothing was done. ``retry_after`` is in seconds."""

    retryable = True
    exit_code = 4

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def may_be_stored(error: BaseException) -> bool:
    """Tell whether a write that ended so may have stored something, or all.

    >>> may_be_stored(InputError("ts is not a time")), may_be_stored(KeyboardInterrupt())
    (False, True)
    """
    return isinstance(error, PartialWrite | OutcomeUnknown) or not isinstance(error, ToolkitError)


def shorten(text: str, limit: int = 60) -> str:
    """Quote ``text`` for a message, cut in the middle when it is long.

    >>> shorten("BTC-USD")
    "'BTC-USD'"
    >>> len(shorten("x" * 300)) < 90
    True
    """
    if len(text) <= limit:
        return repr(text)
    return f"{text[: limit - 20]!r}…{text[-12:]!r} ({len(text)} characters)"


_SINGULARS = {"indexes": "index", "series": "series", "tries": "try"}


def counted(number: float, noun: str, verb: str = "") -> str:
    """Return a count for a message; ``noun`` and ``verb`` are those of many.

    >>> counted(1, "rows"), counted(2_000, "indexes", "are"), counted(1, "indexes", "are")
    ('1 row', '2,000 indexes are', '1 index is')
    """
    if number == 1:
        noun = _SINGULARS.get(noun) or noun.removesuffix("s")
        verb = verb and ("is" if verb == "are" else f"{verb}s")
    return f"{number:,} {noun} {verb}".rstrip()
