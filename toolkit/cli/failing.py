"""Turns whatever stops a command into one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from toolkit.errors import PartialWrite, ToolkitError

FAILED, USAGE, UNAVAILABLE, BUSY = 1, 2, 3, 4
INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell counts the signals 2 and 13


class Failure(click.ClickException):
    """A sentence for the user, and the exit code."""

    def __init__(self, sentence: str, exit_code: int = FAILED) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code  # type: ignore[misc]  # click's own subclasses do so, too

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {self.message}", file=file, err=True)


@contextmanager
def failing(*, is_debug: bool) -> Iterator[None]:
    """Raise what click can show in place of everything else that may come."""
    try:
        _stand_in()
        try:
            yield
        finally:
            sys.stdout.flush()
    except (click.exceptions.Exit, click.Abort):
        raise
    except click.ClickException:
        raise
    except KeyboardInterrupt as error:
        _trace(is_debug)
        raise Failure("interrupted", INTERRUPTED) from error
    except ToolkitError as error:
        _trace(is_debug)
        raise Failure(_sentence(error), error.exit_code) from error
    except BrokenPipeError as error:
        # nobody reads any more: be silent, also when the interpreter flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(PIPE_CLOSED) from error
    except OSError as error:
        _trace(is_debug)
        raise Failure(_of_system(error)) from error
    except Exception as error:
        _trace(is_debug)
        hint = "" if is_debug else "; the same command with --debug shows where"
        what = str(error).strip().splitlines() or [""]
        raise Failure(
            f"this should not have happened: {type(error).__name__}: {what[0]}{hint}"
        ) from error


def _stand_in() -> None:
    """Put the null device where standard input or error is closed; without output, refuse.

    What is closed Python has as None, and gives its number to the next file or connection.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - until the program ends
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as above
        raise Failure("standard output is closed; send it to /dev/null where nobody reads it")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as above


def _trace(is_debug: bool) -> None:
    if is_debug:
        traceback.print_exc()


def _sentence(error: ToolkitError) -> str:
    if isinstance(error, PartialWrite):
        return f"{error}; with --mode upsert or ignore the same command can simply be run again"
    return str(error)


def _of_system(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        what = "the disk is full"
    return f"{error.filename}: {what}" if error.filename else what
