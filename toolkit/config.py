"""Settings: from flags, then the environment, then ``toolkit.toml``, then defaults."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, QueryError, UnknownName, shorten
from toolkit.options import (
    AlertOptions,
    CacheOptions,
    DecodeOptions,
    Limits,
    MaintenanceOptions,
    PoolOptions,
    Prices,
)
from toolkit.rules import rules_of
from toolkit.timegrid import EARLIEST, LATEST, Span, Step, iso, to_us
from toolkit.topologies import RoutingOptions, topology_of
from toolkit_routing import AdmissionOptions, Topology

FILE = "toolkit.toml"
CHOOSERS = ("price", "thresholds")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a store can be told; ``dsn`` None means the local servers.

    With a ``topology`` there are several servers, and ``dsn`` is that of the one declared primary.

    ``origins`` says for each key (``"pool.max_size"``) where its value came from; a key that is
    not in it has its default.
    """

    dsn: str | None = None
    schema: str = "toolkit"
    allow_newer_schema: bool = False
    pool: PoolOptions = PoolOptions()
    limits: Limits = Limits()
    prices: Prices = Prices()
    cache: CacheOptions = CacheOptions()
    decode: DecodeOptions = DecodeOptions()
    routing: RoutingOptions = RoutingOptions()
    admission: AdmissionOptions = AdmissionOptions()
    maintenance: MaintenanceOptions = MaintenanceOptions()
    alerts: AlertOptions = AlertOptions()
    topology: Topology | None = None
    console: str = ""  # of the PgBouncer before it
    slow: float = 0.0
    parallel: int = 2
    plausible: Span = field(default_factory=lambda: Span(EARLIEST, LATEST))
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Settings(schema={self.schema!r}, dsn={'…' if self.dsn else None})"

    def without_cache(self) -> Settings:
        """Return the same for a store that is asked a few things only."""
        return replace(self, cache=replace(self.cache, memory=0))

    def shown(self) -> dict[str, str]:
        """Return every key with its value as text, passwords hidden."""
        values = {
            "database.dsn": hide_password(self.dsn) if self.dsn else "(the local servers)",
            "database.schema": self.schema,
            "database.allow_newer_schema": str(self.allow_newer_schema).lower(),
            "pgbouncer.console": hide_password(self.console) if self.console else "",
            "log.slow": str(self.slow),
            "read.parallel": str(self.parallel),
            "write.earliest": iso(self.plausible.start),
            "write.latest": iso(self.plausible.end),
        }
        for section, (attribute, kind) in SECTIONS.items():
            options = getattr(self, attribute)
            values |= {f"{section}.{f.name}": str(getattr(options, f.name)) for f in fields(kind)}
        values["cache.redis"] = hide_url_password(self.cache.redis)
        values["cache.ahead"] = values["cache.ahead"].lower()
        values["cache.rules"] = ", ".join(map(str, self.cache.rules)) or "(none)"
        return dict(sorted(values.items()))


SECTIONS: dict[str, tuple[str, type[Any]]] = {
    "pool": ("pool", PoolOptions),
    "chooser": ("limits", Limits),
    "prices": ("prices", Prices),
    "cache": ("cache", CacheOptions),
    "decode": ("decode", DecodeOptions),
    "admission": ("admission", AdmissionOptions),
    "maintenance": ("maintenance", MaintenanceOptions),
    "alerts": ("alerts", AlertOptions),
    "routing": ("routing", RoutingOptions),
}
"""Where the settings of a section go, and what they are; the other keys stand by themselves."""

_KEYS: dict[str, type] = {
    "database.dsn": str,
    "database.schema": str,
    "database.allow_newer_schema": bool,
    "pgbouncer.console": str,
    "log.slow": float,
    "read.parallel": int,
    "write.earliest": str,
    "write.latest": str,
    **{f"{s}.{f.name}": type(f.default) for s, (_, k) in SECTIONS.items() for f in fields(k)},
}
_MAY_BE_ZERO = {"log.slow", "pool.min_size", "cache.memory", "cache.max_age", "cache.keep_log"}
_MAY_BE_ZERO |= {"decode.least", "decode.most", "admission.max_inflight", "admission.rate"}
_MAY_BE_ZERO |= {f"prices.{f.name}" for f in fields(Prices)}
_LONGEST_S = 10 * 24 * 3600
_MOST = 2**31 - 1
_ALIASES = {"TOOLKIT_DSN": "database.dsn", "TOOLKIT_SCHEMA": "database.schema"}
_NOT_KEYS = {"TOOLKIT_CONFIG", "TOOLKIT_HOME"}


def load_settings(
    source: str | os.PathLike[str] | Settings | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings for what :func:`toolkit.connect` takes.

    ``source`` is a conninfo (URL or ``key=value`` words), the path of a TOML file, settings as
    they are, or None: ``$TOOLKIT_CONFIG``, else ``toolkit.toml`` here, else defaults. ``flags``
    are keys like ``"database.schema"``; they win over the environment, and it over the file.
    """
    if isinstance(source, Settings):
        return source
    environ = environment() if environ is None else environ
    given: dict[str, tuple[object, str]] = {}
    if isinstance(source, str) and is_conninfo(source):
        file = None
        flags = {"database.dsn": source, **(flags or {})}
    else:
        file = _file(source, environ)
    if file is not None:
        given |= _from_file(file)
    given |= _from_environment(environ)
    given |= {k: (v, "flag") for k, v in (flags or {}).items() if v is not None}
    topology = topology_of(*given.pop("shards")) if "shards" in given else None
    values = {key: _typed(key, value, origin) for key, (value, origin) in given.items()}
    origins = {k: origin for k, (_, origin) in given.items()}
    return _with_topology(_build(values, origins), topology, str(file))


def _with_topology(settings: Settings, topology: Topology | None, file: str) -> Settings:
    """Return settings for several servers; a database named elsewhere wins over those of a file."""
    if topology is None:
        return settings
    origin = settings.origins.get("database.dsn")
    if origin == file:
        raise ConfigError(file, "database.dsn", "stands beside [[shards]]; give one of the two")
    if origin is not None:
        return settings
    if len(topology.shards) > 1:
        raise ConfigError(file, "shards[1]", "one shard is all that is supported yet")
    primary = topology.shards[0].primary
    origins = {**settings.origins, "shards": file}
    dsn = primary.direct or primary.conninfo
    return replace(settings, dsn=dsn, topology=topology, origins=origins)


def environment() -> Mapping[str, str]:
    """Return the process's environment: the one place that reads it."""
    return os.environ


def is_conninfo(text: str) -> bool:
    """Tell a conninfo from a path.

    >>> is_conninfo("postgresql://db1/x"), is_conninfo("host=db1"), is_conninfo("./toolkit.toml")
    (True, True, False)
    """
    return text.startswith(("postgresql://", "postgres://")) or (
        "=" in text and not text.endswith(".toml")
    )


def hide_password(conninfo: str) -> str:
    """Return a conninfo fit for a screen.

    >>> hide_password("postgresql://me:secret@db1/x")
    'user=me password=*** dbname=x host=db1'
    """
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    # up to the last @: an unescaped password may hold : / and @ itself
    masked = re.sub(r"^(postgres(?:ql)?://[^:/@]*:).*@", r"\1***@", conninfo)
    try:
        parts = conninfo_to_dict(masked)
    except Error:
        return "(not a valid conninfo)"
    hidden = {k: "***" if "password" in k else v for k, v in parts.items()}
    return make_conninfo("", **hidden)


def hide_url_password(url: str) -> str:
    """Return the URL of a Redis fit for a screen.

    >>> hide_url_password("redis://me:secret@h:1/0"), hide_url_password("unix://:a/b@/s?password=c")
    ('redis://me:***@h:1/0', 'unix://:***@/s?password=***')
    """
    masked = re.sub(r"^([^:]*://[^:/@]*:).*@", r"\1***@", url)
    return re.sub(r"(pass\w*=)[^&]*", r"\1***", masked)


def _file(source: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    if source is not None:
        path = Path(source)
    elif environ.get("TOOLKIT_CONFIG"):
        path = Path(environ["TOOLKIT_CONFIG"])
    elif Path(FILE).is_file():
        return Path(FILE)
    else:
        return None
    if not path.is_file():
        raise ConfigError(str(path), "", "no such file; toolkit init writes one")
    return path


def _from_file(path: Path) -> dict[str, tuple[object, str]]:
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "", f"not valid TOML: {error}") from None
    found: dict[str, tuple[object, str]] = {}
    for section, table in tree.items():
        if section == "shards":
            found[section] = (table, str(path))
            continue
        if not isinstance(table, dict):
            raise ConfigError(str(path), section, "stands outside a [section]")
        for key, value in table.items():
            full = f"{section}.{key}"
            if full not in _KEYS:
                problem = str(UnknownName("setting", full, _KEYS))
                raise ConfigError(str(path), full, problem)
            found[full] = (value, str(path))
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    by_name = {f"TOOLKIT_{k.replace('.', '_').upper()}": k for k in _KEYS} | _ALIASES
    found: dict[str, tuple[object, str]] = {}
    for variable, key in by_name.items():
        value = environ.get(variable)
        if value:
            found[key] = (value, f"${variable}")
    return found


def _typed(key: str, value: object, origin: str) -> Any:
    if key not in _KEYS:
        raise ConfigError(origin, key, str(UnknownName("setting", key, _KEYS)))
    wanted = _KEYS[key]
    if wanted is tuple:
        return rules_of(value, origin, key)
    if isinstance(value, str) and wanted is not str:
        value = _from_text(key, value, wanted, origin)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, wanted) and not (wanted is float and is_number):
        # what stands in place of a conninfo may hold a password
        got = f"a {type(value).__name__}" if key == "database.dsn" else shorten(str(value))
        raise ConfigError(origin, key, f"expected {wanted.__name__}, got {got}")
    if wanted is int and isinstance(value, bool):
        raise ConfigError(origin, key, f"expected int, got {str(value).lower()}")
    if isinstance(value, int | float) and is_number:
        _check_range(key, value, wanted, origin)
        return wanted(value)
    return value


def _check_range(key: str, value: float, wanted: type, origin: str) -> None:
    least, most = (0.001, _LONGEST_S) if wanted is float else (1, _MOST)
    if key in _MAY_BE_ZERO:
        least = 0
    if value < least:
        raise ConfigError(origin, key, f"{value!r} is too small")
    if not value <= most:  # nan is not, either
        problem = f"is not a number up to {most:,}" + (" (10 days)" if wanted is float else "")
        raise ConfigError(origin, key, f"{shorten(str(value))} {problem}")


def _from_text(key: str, value: str, wanted: type, origin: str) -> object:
    try:
        if wanted is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return wanted(value)
    except (KeyError, ValueError):
        raise ConfigError(origin, key, f"expected {wanted.__name__}, got {value!r}") from None


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        given.setdefault(section, {})[name] = value
    options, decode = PoolOptions(**given["pool"]), DecodeOptions(**given["decode"])
    if decode.most and decode.most < decode.least:
        where = origins.get("decode.most") or origins["decode.least"]
        raise ConfigError(where, "decode.most", f"{decode.most} is less than decode.least")
    if options.max_size < max(options.min_size, 2):
        where = origins.get("pool.max_size", "defaults")
        raise ConfigError(
            where,
            "pool.max_size",
            f"{options.max_size} is less than min_size, or than the 2 a large read uses",
        )
    return Settings(
        dsn=values.get("database.dsn"),
        schema=_schema(values.get("database.schema", "toolkit"), origins),
        allow_newer_schema=values.get("database.allow_newer_schema", False),
        pool=options,
        limits=_limits(given["chooser"], origins),
        prices=Prices(**given["prices"]),
        cache=CacheOptions(**given["cache"]),
        decode=decode,
        routing=_routing(given["routing"], origins),
        admission=AdmissionOptions(**given["admission"]),
        maintenance=_maintenance(given["maintenance"], origins),
        alerts=_alerts(given["alerts"], origins),
        console=values.get("pgbouncer.console", ""),
        slow=values.get("log.slow", 0.0),
        parallel=values.get("read.parallel", 2),
        plausible=_plausible(values, origins),
        origins=origins,
    )


def _routing(given: Mapping[str, Any], origins: Mapping[str, str]) -> RoutingOptions:
    try:
        return RoutingOptions(**given)
    except ConfigError as error:
        key, problem = f"routing.{error.key}", str(error).removeprefix(f"routing: {error.key}: ")
        raise ConfigError(origins[key], key, problem) from None


def _maintenance(given: Mapping[str, Any], origins: Mapping[str, str]) -> MaintenanceOptions:
    for name, value in given.items():
        is_step = isinstance(value, str) and name != "retain_export"
        if is_step and (value or name == "keep_runs"):
            key = f"maintenance.{name}"
            try:
                Step.parse(value)
            except QueryError as error:
                raise ConfigError(origins[key], key, f"{error}; a step is 10m, 1h or 30d") from None
    return MaintenanceOptions(**given)


def _alerts(given: Mapping[str, Any], origins: Mapping[str, str]) -> AlertOptions:
    for name in ("errors", "hit_rate", "memory", "pool"):
        if not given.get(name, 1.0) <= 1.0:
            key = f"alerts.{name}"
            raise ConfigError(origins[key], key, f"{given[name]:g} is no share of 1; 0.8 is 80 %")
    return AlertOptions(**given)


def _limits(values: Mapping[str, Any], origins: Mapping[str, str]) -> Limits:
    limits = Limits(**values)
    if limits.by not in CHOOSERS:
        problem = f"{shorten(limits.by)} is none of {', '.join(CHOOSERS)}"
        raise ConfigError(origins["chooser.by"], "chooser.by", problem)
    return limits


def _schema(name: str, origins: Mapping[str, str]) -> str:
    # %: what stands in a statement with parameters must not look like one
    if not name or len(name.encode()) > 63 or set(name) & {"\0", "%"} or name.startswith("pg_"):
        where = origins.get("database.schema", "")
        raise ConfigError(where, "database.schema", f"{name!r} is not a usable schema name")
    return name


def _plausible(values: Mapping[str, Any], origins: Mapping[str, str]) -> Span:
    bounds = {"write.earliest": EARLIEST, "write.latest": LATEST}
    for key in bounds:
        if key in values:
            try:
                bounds[key] = to_us(values[key], key)
            except Exception as error:
                raise ConfigError(origins[key], key, str(error)) from None
    low, high = bounds["write.earliest"], bounds["write.latest"]
    if not EARLIEST <= low < high <= LATEST:
        where = origins.get("write.latest") or origins.get("write.earliest") or ""
        raise ConfigError(
            where, "write.earliest", "earliest and latest must lie within 1900 to 2100"
        )
    return Span(low, high)
