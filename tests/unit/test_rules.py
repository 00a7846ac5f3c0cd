"""Rules for what is remembered: read from a settings file, refused where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config import load_settings
from toolkit.errors import ConfigError
from toolkit.rules import CacheRule

MINUTE = 60_000_000


def load(tmp_path: Path, text: str) -> tuple[CacheRule, ...]:
    file = tmp_path / "toolkit.toml"
    file.write_text(text)
    return load_settings(str(file), environ={}).cache.rules


def test_both_spellings_of_toml_are_read(tmp_path: Path) -> None:
    inline = '[cache]\nrules = [{dataset = "candles", step = "1m", tiers = ["memory"], open = 5}]'
    tables = '[[cache.rules]]\ndataset = "candles"\nstep = "1m"\ntiers = ["memory"]\nopen = 5'
    wanted = (CacheRule("candles", "1m", ("memory",), 5),)
    assert load(tmp_path, inline) == load(tmp_path, tables) == wanted


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("rules = 3", "cache.rules: expected tables"),
        ("rules = [1]", "cache.rules[0]: expected a table"),
        ('rules = [{}, {step = "1 fortnight"}]', "cache.rules[1].step"),
        ("rules = [{step = 60}]", "cache.rules[0].step: expected str"),
        ('rules = [{tiers = ["disk"]}]', "cache.rules[0].tiers: ['disk'] is not a list of memory"),
        ('rules = [{tiers = "redis"}]', "cache.rules[0].tiers"),
        ("rules = [{open = -1}]", "cache.rules[0].open: -1 is not a number of seconds"),
        ("rules = [{closed = nan}]", "cache.rules[0].closed"),
        ("rules = [{closed = true}]", "cache.rules[0].closed"),
        ('rules = [{data_set = "x"}]', "cache.rules[0].data_set: unknown setting 'data_set'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, said: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.rules") as caught:
        load(tmp_path, f"[cache]\n{said}")
    assert problem in str(caught.value)


def test_a_variable_cannot_hold_rules() -> None:
    with pytest.raises(ConfigError, match=r"\$TOOLKIT_CACHE_RULES: cache.rules: expected tables"):
        load_settings(environ={"TOOLKIT_CACHE_RULES": "candles"})


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (CacheRule(), True),
        (CacheRule("can*"), True),
        (CacheRule("metrics"), False),
        (CacheRule(step="1m"), True),
        (CacheRule(step="60s"), True),
        (CacheRule(step="5m"), False),
        (CacheRule(step="points"), True),
    ],
    ids=str,
)
def test_a_rule_fits_by_dataset_and_step(rule: CacheRule, fits: bool) -> None:
    assert rule.fits("candles", "points", MINUTE) is fits


def test_points_are_no_buckets() -> None:
    assert not CacheRule(step="points").fits("candles", "1m", MINUTE)


@pytest.mark.parametrize(
    ("step", "life"),
    [("1s", 60), ("1m", 60), ("5m", 300), ("15m", 900), ("1h", 3600), ("4h", 14400), ("1d", 86400)],
)
def test_a_span_near_now_lives_as_long_as_its_step(step: str, life: float) -> None:
    from toolkit.timegrid import Step

    us = Step.parse(step).approximate_us
    assert CacheRule().life(us, is_closed=False) == life
    assert CacheRule(open=1).life(us, is_closed=False) == 1
    assert CacheRule(closed=7).life(us, is_closed=True) == 7
