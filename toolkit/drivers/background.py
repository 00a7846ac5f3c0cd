"""What nobody waits for: one thread, or tasks, for work that is done ahead of its need."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from toolkit.errors import ToolkitError

Job = Callable[[], Coroutine[Any, Any, Any]]
_log = logging.getLogger("toolkit.drivers")
_MOST = 100  # jobs that wait: what comes beyond is done when somebody needs it


class BlockingBackground:
    """One thread for the jobs of a blocking driver."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: set[Hashable] = set()
        self._thread: ThreadPoolExecutor | None = None

    def later(self, key: Hashable, run: Callable[[], object]) -> None:
        """Run a job some time, unless one of that key waits for its turn or runs."""
        with self._lock:
            if key in self._waiting or len(self._waiting) >= _MOST:
                return
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "toolkit-ahead")
            try:
                self._thread.submit(self._run, key, run)
                self._waiting.add(key)
            except RuntimeError as error:  # no thread to be had, or the main one has ended
                _log.info("nothing is done ahead of its need: %s", error)

    def _run(self, key: Hashable, run: Callable[[], object]) -> None:
        try:
            run()
        except ToolkitError as error:
            _log.info("ahead of its need: %s", error)
        except Exception:  # the top of a thread
            _log.exception("ahead of its need")
        finally:
            with self._lock:
                self._waiting.discard(key)

    def close(self) -> None:
        """Drop what waits, and return when what runs is done."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)
            self._waiting.clear()


class AsyncBackground:
    """Tasks of an event loop; those of a loop that is gone are nobody's."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}

    def later(self, key: Hashable, job: Job) -> None:
        """Run a job soon, unless one of that key runs."""
        loop = asyncio.get_running_loop()
        running = self._tasks.get(key)
        if running is not None and running.get_loop() is loop:
            return
        if len(self._tasks) >= _MOST:
            self._tasks = {k: t for k, t in self._tasks.items() if t.get_loop() is loop}
            if len(self._tasks) >= _MOST:
                return
        self._tasks[key] = loop.create_task(self._run(key, job))

    async def _run(self, key: Hashable, job: Job) -> None:
        try:
            await job()
        except ToolkitError as error:
            _log.info("ahead of its need: %s", error)
        except Exception:  # the top of a task
            _log.exception("ahead of its need")
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]

    async def close(self) -> None:
        """End what runs."""
        loop = asyncio.get_running_loop()
        mine = [t for t in self._tasks.values() if t.get_loop() is loop]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        self._tasks.clear()
