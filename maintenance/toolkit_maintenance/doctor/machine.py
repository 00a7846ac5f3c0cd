"""What machine a server runs on: as somebody says, or this one where the server is here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import ConfigError

STORAGE = ("ssd", "hdd", "san")
WORKLOADS = ("web", "oltp", "dw", "mixed")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(kb|mb|gb|tb|k|m|g|t)i?b?", re.I)
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PROC, _SYS = Path("/proc"), Path("/sys")


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes, cores, kind of disk; None is not known. ``workload`` is one of pgtune's."""

    ram: int | None = None
    cpus: int | None = None
    storage: str | None = None
    workload: str = "mixed"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("storage", self.storage, STORAGE),
            ("workload", self.workload, WORKLOADS),
        ):
            if value is not None and value not in known:
                raise ConfigError("machine", key, f"{value!r} is none of {', '.join(known)}")
        for key, number, least in (("ram", self.ram, 64 << 20), ("cpus", self.cpus, 1)):
            if number is not None and number < least:
                raise ConfigError("machine", key, f"{number} is too little for a server")

    def completed(self, other: Machine) -> Machine:
        """Return this one, with what it does not say taken from another."""
        return replace(
            self,
            ram=self.ram if self.ram is not None else other.ram,
            cpus=self.cpus if self.cpus is not None else other.cpus,
            storage=self.storage or other.storage,
        )


def read_size(text: str) -> int:
    """Return bytes.

    >>> read_size("16GB"), read_size("1.5g")
    (17179869184, 1610612736)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError("machine", "ram", f"{text!r} is no size; give 16GB, 512MB, …")
    return int(float(match[1]) * _UNITS[match[2][0].lower()])


def machine_of(pid: int, is_near: bool) -> Machine:
    """Return this machine where the server process ``pid`` is on it, else one that is not known.

    ``is_near``: the server sees us come from its own address; so does one at the far end of a
    tunnel, or in another container, whose processes we do not see.
    """
    try:
        is_here = is_near and (_PROC / str(pid) / "comm").read_text().strip() == "postgres"
    except OSError:
        is_here = False
    if not is_here:
        return Machine()
    return Machine(_memory(pid), os.cpu_count(), _storage())


def _memory(pid: int) -> int:
    """Return the machine's memory, or what the server's control group leaves it of that."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = (_PROC / str(pid) / "cgroup").read_text().split("::", 1)[1].split("\n")[0]
        limit = (_SYS / "fs/cgroup" / group.lstrip("/") / "memory.max").read_text().strip()
    except (OSError, IndexError):
        return whole
    return min(whole, int(limit)) if limit.isdigit() and int(limit) >= 64 << 20 else whole


def _storage() -> str | None:
    """Return ssd where all disks here say so; a virtual disk says it turns, whatever is below."""
    says = []
    for path in _SYS.glob("block/*/queue/rotational"):
        if not path.parts[3].startswith(("loop", "ram", "zram", "sr", "fd")):
            try:
                says.append(path.read_text().strip())
            except OSError:
                return None
    return "ssd" if says and set(says) == {"0"} else None
