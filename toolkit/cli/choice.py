"""What the global options say, and the store or the settings they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.config import Settings
    from toolkit.dataset import Dataset
    from toolkit.store import Store


_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True, repr=False)
class Choice:
    """The global options; ``repr`` leaves out the conninfo, which may hold a password."""

    dsn: str | None = None
    config: Path | None = None
    schema: str | None = None
    is_debug: bool = False

    def __repr__(self) -> str:
        return f"Choice(config={self.config}, schema={self.schema!r})"

    @property
    def _flags(self) -> dict[str, object]:
        return {"database.dsn": self.dsn, "database.schema": self.schema}

    def settings(self) -> Settings:
        """Return the settings as given; starts nothing."""
        from toolkit.config import load_settings

        return load_settings(self.config, flags=self._flags)

    def resolved(self, *, migrates: bool = True) -> Settings:
        """Return settings with a database in them, the local servers started if there is none."""
        from toolkit.cli.render import working
        from toolkit.opening import resolve

        with working("looking for the database") as say:
            return resolve(self.config, self._flags, migrates=migrates, on_progress=say)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the store; its connections are closed at the end."""
        from toolkit.store import Store

        with Store(self.resolved().without_cache()) as store:
            yield store

    @contextmanager
    def sharing(self) -> Iterator[Store]:
        """Open the store with what processes share; who asks by hand waits for a slow Redis."""
        from toolkit.store import Store

        _patient(self.settings()).cache.check_shared()  # before local servers are started
        with Store(_patient(self.resolved())) as store:
            yield store

    @contextmanager
    def tending(self) -> Iterator[Store]:
        """Open the store for jobs: with what processes share, where they do."""
        from toolkit.store import Store

        settings = self.resolved()
        shares = bool(settings.cache.redis)
        with Store(_patient(settings) if shares else settings.without_cache()) as store:
            yield store


def _patient(settings: Settings) -> Settings:
    cache = settings.cache
    memory, timeout = max(1, cache.memory), max(_PATIENCE_S, cache.redis_timeout)
    return replace(settings, cache=replace(cache, memory=memory, redis_timeout=timeout))


def dataset_of(store: Store, name: str) -> Dataset:
    """Return the dataset called ``name`` or say which there are."""
    from toolkit.errors import UnknownName

    found = {d.name: d for d in store.datasets()}
    if name not in found:
        raise UnknownName("dataset", name, found)
    return found[name]
