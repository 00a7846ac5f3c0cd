"""The grid as lines of text: for each read the road taken, and how far it is from the best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

NEAR = 1.5  # times the best: what counts as well chosen
_LETTERS = {"direct": "d", "aggregated": "a"}
_WORST = 20  # cells that are told one by one


@dataclass(frozen=True, slots=True)
class Cell:
    """One read in one state of the cache: the ms of each road, and what each chooser took."""

    state: str
    series: str
    columns: str
    range: str
    step: str
    took: Mapping[str, float]
    chosen: Mapping[str, str]

    def ratio(self, chooser: str) -> float:
        """Return how many times the best road's time the chosen one's is."""
        return self.took[self.chosen[chooser]] / min(self.took.values())

    def is_near(self, chooser: str) -> bool:
        """Return whether the chosen road is as good as the best."""
        return self.ratio(chooser) <= NEAR

    @property
    def shown(self) -> str:
        """The road and its ratio; a star where thresholds choose badly."""
        road = self.chosen["price"]
        letter = _LETTERS.get(road, road.removeprefix("downsampled from "))
        mark = " " if self.is_near("thresholds") else "*"
        return f"{letter} {self.ratio('price'):5.2f}{mark}".rjust(10)

    @property
    def told(self) -> str:
        """What was read, and what each road took."""
        roads = sorted(self.took.items(), key=lambda item: item[1])
        times = ", ".join(f"{road} {ms:,.2f} ms" for road, ms in roads)
        what = f"{self.state}: {self.series}, {self.columns}, {self.range} by {self.step}"
        return f"  {what}: {self.ratio('price'):.2f} × with {self.chosen['price']} of {times}"


def near_share(cells: Sequence[Cell], chooser: str, state: str | None = None) -> float:
    """Return the share of cells, all or those of a state, that a chooser did well in."""
    found = [c for c in cells if chooser in c.chosen and state in (None, c.state)]
    return sum(c.is_near(chooser) for c in found) / len(found)


def shown(cells: Sequence[Cell], states: Mapping[str, str]) -> tuple[str, ...]:
    """Return a table for each state: a line a range, in it the road and the ratio of each step."""
    return (
        "",
        "chosen / best road; d direct, a aggregated, else the rollup; * by thresholds over 1.5",
        *[line for name, what in states.items() for line in _table(cells, name, what)],
        *_worst(cells),
    )


def _table(cells: Sequence[Cell], state: str, what: str) -> Iterator[str]:
    found = [c for c in cells if c.state == state]
    shares = f"within {NEAR} ×: {near_share(found, 'price'):.1%} of {len(found)}"
    if any("first" in c.chosen for c in found):
        shares += f", before changes were seen {near_share(found, 'first'):.1%}"
    yield ""
    yield f"{state}: {what}; {shares}, by thresholds {near_share(found, 'thresholds'):.1%}"
    steps = list(dict.fromkeys(c.step for c in found))
    yield f"{'changed':8}{'columns':8}{'range':6}" + "".join(f"{s:>9} " for s in steps)
    rows: defaultdict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for cell in found:
        rows[cell.series, cell.columns, cell.range][cell.step] = cell.shown
    for (series, columns, name), row in rows.items():
        told = "".join(row.get(step, " " * 10) for step in steps).rstrip()
        yield f"{series:8}{columns:8}{name:6}{told}"


def _worst(cells: Sequence[Cell]) -> Iterator[str]:
    beyond = sorted((c for c in cells if not c.is_near("price")), key=lambda c: -c.ratio("price"))
    yield ""
    yield f"beyond {NEAR} ×: {len(beyond)} of {len(cells)}" + (", the worst:" if beyond else "")
    yield from (c.told for c in beyond[:_WORST])
