"""Examines a database: asks its nodes, and has each check judge what they say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from toolkit.errors import UnknownName
from toolkit.store import Store
from toolkit_maintenance.doctor.check import Answers, Check, Thresholds, unknown
from toolkit_maintenance.doctor.finding import Examination, Finding
from toolkit_maintenance.doctor.machine import Machine
from toolkit_maintenance.doctor.questions import Asker
from toolkit_maintenance.doctor.registry import CHECKS
from toolkit_maintenance.doctor.snapshots import keep_snapshot


def examine(
    store: Store,
    only: Iterable[str] = (),
    *,
    machine: Machine = Machine(),
    limits: Thresholds = Thresholds(),
    keeps_snapshot: bool = False,
) -> Examination:
    """Look at a store's database and its nodes, and return what each check found.

    ``only`` are ids of checks, or patterns like ``index-*``; by default all. ``machine`` is the
    primary's, for advice on settings; one on this machine need not be described. Changes nothing,
    but with ``keeps_snapshot`` what statements took is kept, to compare the next with. What the
    role may not see, or what is too young to tell, is ``unknown``. Raises Unavailable where the
    primary cannot be reached.
    """
    began = time.monotonic()
    settings = store.settings
    wanted = _wanted(tuple(only), bool(settings.cache.redis))
    with Asker(settings, limits) as asker:
        for check in wanted:
            asker.ask((*check.asks, *check.may_ask))
        answers = Answers(
            settings,
            tuple(store.datasets()),
            asker.primary,
            asker.facts,
            asker.rows,
            asker.lost,
            asker.untold,
            limits,
            machine.completed(asker.machine),
            machine != Machine(),
        )
        findings = [_judged(check, answers) for check in wanted]
        if keeps_snapshot:
            keep_snapshot(asker.nodes[asker.primary], settings)
    return Examination(
        answers.of_primary.now, tuple(asker.facts), tuple(findings), time.monotonic() - began
    )


def _wanted(only: Sequence[str], has_redis: bool) -> list[Check]:
    known = [c for c in CHECKS if has_redis or c.asks != ("redis",)]
    for pattern in only:
        if not any(fnmatchcase(c.id, pattern) for c in known):
            why = "" if has_redis else " (those of Redis are there where cache.redis is set)"
            raise UnknownName("check", pattern, [c.id for c in known], f"the doctor{why}")
    return [c for c in known if not only or any(fnmatchcase(c.id, p) for p in only)]


def _judged(check: Check, answers: Answers) -> Finding:
    untold = [answers.untold[q] for q in check.asks if q in answers.untold]
    return unknown(check.id, untold[0]) if untold else check.judge(answers)
