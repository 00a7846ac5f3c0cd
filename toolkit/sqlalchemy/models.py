"""The catalog and the datasets as SQLAlchemy's tables and mapped classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Dialect, MetaData, Table
from sqlalchemy.orm import foreign, registry, relationship
from sqlalchemy.types import TypeDecorator

from toolkit.dataset import Dataset
from toolkit.errors import UnknownName
from toolkit.tables import catalog_tables, dataset_tables


class Scaled(TypeDecorator[Decimal]):
    """An exact number of so many digits after the point, stored as a scaled bigint.

    >>> Scaled(2).process_bind_param(Decimal("12.5"), None)
    1250
    >>> Scaled(2).process_result_value(1250, None)
    Decimal('12.50')
    """

    impl = BigInteger
    cache_ok = True

    def __init__(self, digits: int) -> None:
        super().__init__()
        self.digits = digits

    def process_bind_param(self, value: Any, dialect: Dialect | None) -> int | None:
        """Return what is stored; ValueError for more digits than there are."""
        if value is None:
            return None
        scaled = Decimal(value).scaleb(self.digits)
        if scaled != scaled.to_integral_value():
            raise ValueError(f"{value} has more than {self.digits} digits after the point")
        return int(scaled)

    def process_result_value(self, value: Any, dialect: Dialect | None) -> Decimal | None:
        """Return the number."""
        return None if value is None else Decimal(value).scaleb(-self.digits)


class Models(Mapping[str, type[Any]]):
    """Mapped classes over one schema: ``Dataset``, ``Series``, ``Rollup``, and one a dataset.

    The latter go by the dataset's name: its points, as far as they are rows. A point has its
    ``series``, a series its ``dataset``.

    >>> from toolkit.dataset import CANDLES
    >>> found = models(CANDLES)
    >>> found["candles"].__table__.fullname, list(found)
    ('toolkit.candles', ['candles'])
    """

    def __init__(self, datasets: tuple[Dataset, ...], schema: str) -> None:
        self.metadata = MetaData(schema=schema)
        self._registry = registry(metadata=self.metadata)
        catalog_tables(self.metadata)
        self.Dataset = self._mapped("Dataset", "dataset")
        self.Series = self._mapped("Series", "series", dataset=relationship(self.Dataset))
        self.Rollup = self._mapped("Rollup", "rollup", dataset=relationship(self.Dataset))
        self._points = {dataset.name: self._of(dataset) for dataset in datasets}

    def _mapped(self, name: str, table: str, **related: Any) -> type[Any]:
        found = self.metadata.tables[f"{self.metadata.schema}.{table}"]
        made = type(name, (), {"__doc__": found.comment or f"A row of {found.fullname}."})
        self._registry.map_imperatively(made, found, properties=related)
        return made

    def _of(self, dataset: Dataset) -> type[Any]:
        dataset_tables(self.metadata, dataset)
        table = self.metadata.tables[f"{self.metadata.schema}.{dataset.name}"]
        for column in dataset.columns:
            if column.is_decimal:
                table.c[column.name].type = Scaled(column.scale)
        series = self.Series.__table__
        has_series = relationship(
            self.Series, primaryjoin=foreign(table.c.series_id) == series.c.id, viewonly=True
        )
        name = "".join(word.capitalize() for word in dataset.name.split("_"))
        return self._mapped(name, dataset.name, series=has_series)

    def __getitem__(self, name: str) -> type[Any]:
        if name not in self._points:
            raise UnknownName("dataset", name, self._points, "models")
        return self._points[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)


def models(*datasets: Dataset, schema: str = "toolkit") -> Models:
    """Return mapped classes for the catalog and for datasets, ``*store.datasets()`` for all."""
    return Models(datasets, schema)


def table_of(dataset: Dataset, schema: str = "toolkit") -> Table:
    """Return the table of a dataset's points, as far as they are rows."""
    found = models(dataset, schema=schema)[dataset.name].__table__
    assert isinstance(found, Table)
    return found
