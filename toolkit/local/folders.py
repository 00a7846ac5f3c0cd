"""Deleting folders that a dying process may still write to."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

_DISCARDED = "discarded-"
_TRIES = 20


def beside(folder: Path, prefix: str) -> Path:
    """A path next to ``folder`` that nobody has used."""
    return folder.with_name(f"{prefix}{secrets.token_hex(6)}")


def discard(folder: Path) -> None:
    """Delete a folder, if it is there, and what was left of earlier ones.

    It first gets another name: that is atomic, and what still writes there by the old name does
    not write into the folder that follows it.
    """
    if folder.exists():
        folder.rename(beside(folder, _DISCARDED))
    for left in folder.parent.glob(f"{_DISCARDED}*"):
        for attempt in range(_TRIES):
            try:
                shutil.rmtree(left)
                break
            except FileNotFoundError:
                break
            except OSError:  # not empty: somebody just wrote there
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.1)
