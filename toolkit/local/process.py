"""Running programs as an account, and telling whose a process id is."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Unavailable
from toolkit.local.account import Account, choose_account

# servers get an environment of their own: PG* variables, locales and zones of ours would leak in
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: its exit code and all that it wrote."""

    code: int
    text: str


def run(command: Sequence[str | Path], account: Account, *, timeout_s: float = 120) -> Outcome:
    """Run a program to its end as ``account``, in "/" (ours may be closed to it).

    Its output goes to a file: a server that it leaves behind would hold a pipe open for ever.
    """
    identity = (
        {"user": account.uid, "group": account.gid, "extra_groups": []} if account.is_other else {}
    )
    with tempfile.TemporaryFile() as output:
        try:
            code = subprocess.run(  # noqa: S603 - our own command lists
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=_ENVIRONMENT,
                timeout=timeout_s,
                check=False,
                umask=0o077,
                **identity,  # type: ignore[call-overload]  # user, group: int, list by name
            ).returncode
        except subprocess.TimeoutExpired as error:
            program = Path(str(command[0])).name
            raise Unavailable(f"{program} did not end within {timeout_s:g} s") from error
        except OSError as error:
            raise Unavailable(
                f"cannot run {command[0]} as {account.name}: {error.strerror}"
            ) from error
        output.seek(0)
        return Outcome(code, output.read().decode("utf-8", "replace").strip())


def can_execute(path: Path, account: Account) -> bool:
    """Whether the user can run a program, or enter a folder; the kernel says (modes, ACLs)."""
    if not account.is_other:
        return os.access(path, os.X_OK)
    return run(["/bin/sh", "-c", 'test -x "$0"', path], account, timeout_s=10).code == 0


def runs(pid: int, program: str, argument: Path) -> bool:
    """Whether process ``pid`` is ``program`` started with ``argument``: a pid may be anybody's.

    A zombie runs nothing: its command line is empty.
    """
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/cmdline").exists():
            return False
        shown = run(["ps", "-ww", "-o", "command=", "-p", str(pid)], choose_account(argument))
        return program in shown.text and str(argument) in shown.text
    except PermissionError:
        return False
    words = line.split("\0")
    names = [Path(word).name for word in words]
    # what was unpacked beside other libraries is started by a loader of its own
    is_it = names[0] == program or (names[0].startswith("ld-linux") and program in names)
    return is_it and str(argument) in words


def end(pid: int, number: signal.Signals, patience_s: float, is_alive: Callable[[], bool]) -> bool:
    """Signal a process and wait for its end; True if it came in time."""
    try:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)  # a frozen process hears nothing else
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise Unavailable(f"process {pid} belongs to another user; stop it as that user") from error
    deadline = time.monotonic() + patience_s
    while is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
