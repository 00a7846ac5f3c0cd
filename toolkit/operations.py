"""Alembic operations: ``op.create_dataset`` and its kin for a service's own migrations.

Import this module in the migration (or in ``env.py``) and the operations are there::

    import toolkit.operations
    from toolkit.dataset import Aggregate, Column, Dataset

    FILLS = Dataset("fills", [Column("price")], [Aggregate("price", "last", "price")])

    def upgrade():
        op.create_dataset(FILLS)

    def downgrade():
        op.drop_dataset(FILLS)

``op.set_compress_after("fills", "30d")`` and ``op.set_retention("fills", rows="90d")`` change a
dataset that is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alembic.operations import MigrateOperation, Operations

from toolkit import ddl
from toolkit.dataset import Dataset
from toolkit.errors import SchemaError
from toolkit.retaining import Retention
from toolkit.timegrid import Step

_PARTITION = re.compile(r"_p[0-9]{8}$")


@Operations.register_operation("create_dataset")
class CreateDataset(MigrateOperation):
    """Create a dataset's tables, triggers, rollups and catalog rows."""

    def __init__(self, dataset: Dataset, schema: str) -> None:
        self.dataset = dataset
        self.schema = schema

    @classmethod
    def create_dataset(
        cls, operations: Operations, dataset: Dataset | str, *, schema: str = "toolkit", **spec: Any
    ) -> None:
        """Create ``dataset``, or the one that a name and the fields of ``Dataset`` describe."""
        operations.invoke(cls(_declared(dataset, spec), schema))

    def reverse(self) -> DropDataset:
        return DropDataset(self.dataset, self.schema)


@Operations.register_operation("drop_dataset")
class DropDataset(MigrateOperation):
    """Drop a dataset with all its data; the same declaration makes it reversible."""

    def __init__(self, dataset: Dataset, schema: str) -> None:
        self.dataset = dataset
        self.schema = schema

    @classmethod
    def drop_dataset(
        cls, operations: Operations, dataset: Dataset | str, *, schema: str = "toolkit", **spec: Any
    ) -> None:
        """Drop the tables, triggers, rollups and catalog rows; takes what create_dataset takes."""
        operations.invoke(cls(_declared(dataset, spec), schema))

    def reverse(self) -> CreateDataset:
        return CreateDataset(self.dataset, self.schema)


@Operations.register_operation("set_compress_after")
class SetCompressAfter(MigrateOperation):
    """Set from what age on the points of a dataset are compressed."""

    def __init__(self, dataset: str, age: str, schema: str) -> None:
        self.dataset = dataset
        self.age = age
        self.schema = schema

    @classmethod
    def set_compress_after(
        cls, operations: Operations, dataset: str, age: str, *, schema: str = "toolkit"
    ) -> None:
        """Have points older than ``age`` (a step: 30d) compressed; empty: none by themselves."""
        operations.invoke(cls(dataset, str(Step.parse(age)) if age else "", schema))


@Operations.register_operation("set_retention")
class SetRetention(MigrateOperation):
    """Set how long a dataset is kept."""

    def __init__(self, dataset: str, retain: Retention, schema: str) -> None:
        self.dataset = dataset
        self.retain = retain
        self.schema = schema

    @classmethod
    def set_retention(
        cls,
        operations: Operations,
        dataset: str,
        *,
        rows: str = "",
        blocks: str = "",
        rollups: Mapping[str, str] | None = None,
        schema: str = "toolkit",
    ) -> None:
        """Keep rows, blocks and rollups (by step) for so long (a step: 90d); empty: for ever."""
        retain = Retention(rows, blocks, tuple((rollups or {}).items()))
        operations.invoke(cls(dataset, retain, schema))


@Operations.implementation_for(CreateDataset)
def _create(operations: Operations, operation: CreateDataset) -> None:
    for statement in ddl.create_dataset(operation.dataset, operation.schema):
        execute(operations, statement)


@Operations.implementation_for(DropDataset)
def _drop(operations: Operations, operation: DropDataset) -> None:
    for statement in ddl.drop_dataset(operation.dataset, operation.schema):
        execute(operations, statement)


@Operations.implementation_for(SetCompressAfter)
def _set_compress_after(operations: Operations, operation: SetCompressAfter) -> None:
    for statement in ddl.set_compress_after(operation.dataset, operation.schema, operation.age):
        execute(operations, statement)


@Operations.implementation_for(SetRetention)
def _set_retention(operations: Operations, operation: SetRetention) -> None:
    for statement in ddl.set_retention(operation.dataset, operation.schema, operation.retain):
        execute(operations, statement)


def _declared(dataset: Dataset | str, spec: dict[str, Any]) -> Dataset:
    if isinstance(dataset, Dataset):
        if spec:
            raise SchemaError("give either a Dataset or a name with its fields, not both")
        return dataset
    try:
        return Dataset(dataset, **spec)
    except TypeError as error:
        raise SchemaError(
            f"dataset {dataset!r}: {error}; give a Dataset, or a name with the fields of one"
        ) from None


def execute(operations: Any, statement: str) -> None:
    """Run or print a statement as it is; ``operations`` is a migration's ``op``.

    ``op.execute`` would read colons in JSON and casts as parameters, and prints ``%`` twice.
    """
    context = operations.get_context()
    if context.as_sql:
        context.impl.static_output(statement + ";\n")
    else:
        connection = context.connection
        assert connection is not None
        connection.exec_driver_sql(statement.replace("%", "%%"))


def include_name(name: str | None, type_: str, parents: Any, schema: str = "toolkit") -> bool:
    """Alembic's hook for a service's ``env.py``: autogenerate leaves the toolkit's schema alone."""
    return not (type_ == "schema" and name == schema)


def include_object(
    obj: Any, name: str | None, type_: str, reflected: bool, compare_to: Any
) -> bool:
    """Alembic's hook: autogenerate proposes nothing for partitions and what hangs on them."""
    table = name if type_ == "table" else getattr(getattr(obj, "table", None), "name", None)
    return not (reflected and table is not None and _PARTITION.search(table))
