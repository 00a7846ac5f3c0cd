"""How a query is answered, as a value, and how many points it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from toolkit.catalog import Rollup
from toolkit.dataset import Aggregate, State
from toolkit.timegrid import Grid, Span

HELD = frozenset({"memory", "redis"})
"""Sources that are no rows of the database: what was remembered here, or shared by others."""

Kept = Callable[[str, Rollup | None], tuple[float, float] | None]
"""Says of a strategy, and its rollup, how many of its rows are remembered, and how many will be
fetched to remember them as well; None where it goes past what is remembered."""


@dataclass(frozen=True, slots=True)
class Density:
    """How many points the busiest series has in the range (up to the probe's cap), and where."""

    count: int
    extent: Span


@dataclass(frozen=True, slots=True)
class Plan:
    """How a query is answered, and, once it has been, what that took.

    ``sources`` counts the rows read by kind: points and rollup of the database, memory and redis
    of what was remembered; ``node`` is the server that answered; ``elapsed_ms`` is the whole
    call, on the client. ``drawn`` is what a picture of bars is picked by: how far they reach
    down, and up. ``price_ms`` is what it was expected to take, and ``alternatives`` says of the
    other plans what they would have, or why they cannot answer.
    """

    strategy: str
    reason: str
    span: Span
    columns: tuple[str, ...]
    grid: Grid | None = None
    aggregates: tuple[Aggregate, ...] = ()
    states: tuple[State, ...] = ()
    rollup: Rollup | None = None
    drawn: tuple[Aggregate, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    node: str = ""
    elapsed_ms: float = 0.0
    price_ms: float = 0.0
    alternatives: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def step(self) -> str | None:
        """The step of the answer's bars; None for native points."""
        return str(self.grid.step) if self.grid is not None else None

    @property
    def rows(self) -> int:
        """Rows the database touched for the answer."""
        return sum([count for kind, count in self.sources.items() if kind not in HELD])

    def done(self, span: Span, sources: Mapping[str, int], node: str, elapsed_ms: float) -> Plan:
        """Return the plan as carried out over ``span``."""
        return Plan(  # by position: on every read, and three times as fast as replace()
            self.strategy,
            self.reason,
            span,
            self.columns,
            self.grid,
            self.aggregates,
            self.states,
            self.rollup,
            self.drawn,
            self.rejected,
            sources,
            node,
            elapsed_ms,
            self.price_ms,
            self.alternatives,
        )

    @property
    def others(self) -> list[str]:
        """What speaks against the other plans, a line each."""
        others: Mapping[str, float | str] = self.alternatives or self.rejected
        return [
            f"not {name}: {said if isinstance(said, str) else f'about {said:,.1f} ms'}"
            for name, said in others.items()
        ]

    def __str__(self) -> str:
        step = f", step {self.step}" if self.grid is not None else ""
        source = f" from the {self.rollup.grid.step} rollup" if self.rollup is not None else ""
        held = [f"{n:,} from {k}" for k in ("memory", "redis") if (n := self.sources.get(k))]
        rows = f"; rows held: {', '.join(held)}" if held else ""
        return f"{self.strategy}{source}{step}: {self.reason}{rows}"
