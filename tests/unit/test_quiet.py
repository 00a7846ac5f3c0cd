"""What a script that has set up no logging hears of psycopg's pools."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging
import toolkit.drivers.blocking
{setup}
logging.getLogger("psycopg.pool").warning("discarding closed connection")
logging.getLogger("toolkit.cluster").warning("begins without pg1")
"""


@pytest.mark.parametrize(("setup", "is_heard"), [("", False), ("logging.basicConfig()", True)])
def test_the_pools_own_words_are_for_who_has_set_up_logging(setup: str, is_heard: bool) -> None:
    script = [sys.executable, "-c", SCRIPT.format(setup=setup)]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stderr
    assert ("discarding" in said) is is_heard
    assert "begins without pg1" in said
