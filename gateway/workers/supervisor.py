"""
The supervisor: a small process that serves nobody, and sees to it that its workers do.

Strategy: each worker has a seat (`gateway.workers.seat`), and this keeps a process in each. When one falls,
another is started; when one is to be replaced, its successor takes connections from the very same sockets
before it stops doing so, and none is lost between them. What an ending means is decided in
`gateway.workers.endings`.

It must not grow: what is not here cannot fail here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from gateway.cli.ending import CANNOT
from gateway.setting import SettingsError
from gateway.settings import Settings
from gateway.workers.endings import Verdict, judge
from gateway.workers.process import Process
from gateway.workers.seat import Seat

logger = logging.getLogger(__name__)

OPEN_SECONDS: Final = 3
"""Without anybody who serves for so long, the workers are opened to say why not."""

END_SECONDS: Final = 30.0
"""How long a worker may take to end, beyond `drain_seconds`, before it is killed."""

COME_UP_SECONDS: Final = 60.0
"""How long a worker that is to replace another may take to be ready; then the other stays."""

HANG_SECONDS: Final = 30.0
"""A worker whose event loop has not turned for so long hangs, and is killed."""

FIXED: Final[dict[str, Callable[[Settings], object]]] = {
    "host": lambda settings: settings.host,
    "port": lambda settings: settings.port,
    "data": lambda settings: settings.data,
    "workers": lambda settings: settings.workers,
    "stream": lambda settings: settings.stream,
    "webhooks": lambda settings: settings.webhooks,
    "tls_cert": lambda settings: bool(settings.tls_cert),  # another file is fine
    "store": lambda settings: bool(settings.store),  # its address may be that of the same one
}
"""What all workers must have in common, by the setting, so that it cannot change one after the other."""


class Supervisor:
    """
    Starts the workers, keeps them up, and takes them down.

    Args:
        settings: those of the gateway.
        reread: returns them as they are to be from now on; asked on SIGHUP.
        seats: one for each worker.
        address: where they serve.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        seats: Sequence[Seat],
        address: tuple[str, int],
    ) -> None:
        self._settings = settings
        self._reread = reread
        self._seats = seats
        self._address = address
        self._running: list[Process] = []  # all that have not ended, also those on their way out
        self._ending = asyncio.Event()  # nothing is started any more
        self._reload = asyncio.Event()
        self._announced = False
        self._code = 0

    async def run(self) -> int:
        """Serve until told to stop, or until the workers refuse; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            for seat in self._seats:
                seat.process = self._start(seat, self._settings)
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(each) for each in (self._reload_when_told(), self._watch())]
                await asyncio.wait([tasks.create_task(self._keep(seat)) for seat in self._seats])
                for process in list(self._running):
                    await process.gone.wait()
                for each in helpers:
                    each.cancel()
        finally:
            for process in self._running:  # whatever went wrong, nobody is left behind
                process.kill()
        return self._code

    # --- up -------------------------------------------------------------------------------------------------

    def _start(self, seat: Seat, settings: Settings) -> Process:
        """
        Start a process for a seat.

        Raises:
            OSError: it cannot be started.
        """
        process = seat.start(settings, self._heard)
        self._running.append(process)
        logger.debug("worker.started", extra=_facts(process))
        return process

    async def _keep(self, seat: Seat) -> None:
        """Have a process at a seat until all end."""
        while not self._ending.is_set():
            process = seat.process
            assert process is not None
            await process.gone.wait()
            if process is not seat.process:
                continue  # it was replaced
            ending = process.ending
            assert ending is not None
            seat.served = seat.served or ending.ready
            verdict = judge(ending, served=seat.served)
            if verdict is Verdict.STOP:
                self._refuse(process, ending.code)
            if verdict is not Verdict.RESTART:
                return
            await self._restart(seat, process, ending.seconds)

    async def _restart(self, seat: Seat, fallen: Process, seconds: float) -> None:
        """Put another process in the place of one that fell, unless somebody else does, or all end."""
        while not self._ending.is_set() and seat.process is fallen:
            pause = seat.pauses.after(seconds, random.random())
            extra = {**_facts(fallen), "ran": round(seconds, 1), "restart_in": round(pause, 2)}
            logger.warning("worker.fell: %s", fallen.refusal or fallen.ending, extra=extra)
            seat.fall()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            async with seat.turn:
                if self._ending.is_set() or seat.process is not fallen:
                    return
                seat.restarts += 1
                try:
                    seat.process = self._start(seat, self._settings)
                except OSError:
                    logger.exception("worker.not_started", extra={"worker": seat.index})
                    seconds = 0

    def _heard(self, process: Process) -> None:
        """A worker has come further: say where the gateway serves, once all do, and later who is back."""
        if self._announced:
            if process.up:
                logger.info("worker.up", extra=_facts(process))
        elif all(seat.process and seat.process.opened.is_set() for seat in self._seats):
            self._announced = True
            host, port = self._address
            shown = f"[{host}]" if ":" in host else host
            where = f"{self._settings.scheme}://{shown}:{port}, data in {self._settings.where_data_is}"
            sys.stderr.write(f"sluice: serving on {where}, {len(self._seats)} workers\n")

    async def _watch(self) -> None:
        """Look once a second for who hangs, and for whether anybody serves."""
        nobody = 0
        while True:
            await asyncio.sleep(1)
            self._kill_who_hangs()
            nobody = 0 if any(each.up for each in self._running) else nobody + 1
            if nobody >= OPEN_SECONDS:
                for process in self._running:
                    process.open()

    def _kill_who_hangs(self) -> None:
        """Kill who hangs: the kernel would go on giving it its share of the connections."""
        for process in self._running:
            if (silence := process.silence()) > HANG_SECONDS:
                logger.error("worker.hangs", extra={**_facts(process), "silent": round(silence)})
                process.kill()

    def _reap(self) -> None:
        """A child ended, or several."""
        for process in list(self._running):
            if not process.reap():
                continue
            self._running.remove(process)
            ending = process.ending
            assert ending is not None
            badly = process.asked and not ending.orderly  # of who was not asked, `_restart` tells
            level = logging.WARNING if badly else logging.DEBUG
            logger.log(level, "worker.ended: %s", ending, extra=_facts(process))
            if badly and self._ending.is_set():
                self._code = self._code or CANNOT

    # --- down -----------------------------------------------------------------------------------------------

    def _refuse(self, process: Process, code: int) -> None:
        """A worker cannot start, so none can: say why, once, and end with its code."""
        if not self._ending.is_set():
            self._code = code
            if process.refusal:
                sys.stderr.write(f"sluice: {process.refusal}\n")
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        """Pass a signal on that ends the workers, and start none any more."""
        if not self._ending.is_set():
            self._ending.set()
            patience = self._settings.drain_seconds + END_SECONDS
            asyncio.get_running_loop().call_later(patience, self._lose_patience)
        for seat in self._seats:
            seat.close()
        for process in self._running:
            process.signal(number)

    def _lose_patience(self) -> None:
        for process in self._running:
            logger.error("worker.stuck", extra=_facts(process))
            process.kill()

    # --- one after the other --------------------------------------------------------------------------------

    async def _reload_when_told(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                settings = self._changed()
            except SettingsError as error:
                logger.error("reload.refused: %s", error)  # noqa: TRY400  (the sentence says it all)
                continue
            await self._replace_all(settings)

    def _changed(self) -> Settings:
        """
        Return the settings as they are to be.

        Raises:
            SettingsError: they cannot be, or not without a restart.
        """
        settings = self._reread()
        for name, part in FIXED.items():
            if part(settings) != part(self._settings):
                raise SettingsError(name, "changing this needs a restart; nothing was changed")
        return settings

    async def _replace_all(self, settings: Settings) -> None:
        """Replace the workers, one after the other; at the first that does not come up the others stay."""
        logger.info("reload.began")
        for seat in self._seats:
            if not await self._replace(seat, settings):
                if not self._ending.is_set():
                    logger.error("reload.failed: the other workers stay", extra={"worker": seat.index})
                return
        logging.getLogger().setLevel(settings.log_level.upper())
        logger.info("reload.ended")

    async def _replace(self, seat: Seat, settings: Settings) -> bool:
        """Put a new process in the place of one that serves, once it is ready; return whether it came up."""
        async with seat.turn:
            if self._ending.is_set():
                return False
            try:
                new = self._start(seat, settings)
            except OSError:
                logger.exception("worker.not_started", extra={"worker": seat.index})
                return False
            if not await new.come_up(COME_UP_SECONDS):
                await self._give_up(new)
                return False
            self._settings = settings
            old = seat.replace(new)
            if not old.gone.is_set():
                old.leave()
        if not await old.end_within(settings.drain_seconds + END_SECONDS):
            logger.error("worker.stuck", extra=_facts(old))
        seat.left()
        return True

    async def _give_up(self, new: Process) -> None:
        """A process that was to replace another does not come up."""
        ending = new.ending
        if ending is None:
            why = f"it was not ready after {COME_UP_SECONDS:.0f} seconds"
            new.signal(signal.SIGTERM)
            await new.end_within(END_SECONDS)
        else:
            why = new.refusal or str(ending)
        if not self._ending.is_set():
            logger.error("worker.not_up: %s", why, extra=_facts(new))


def _facts(process: Process) -> dict[str, object]:
    """Return what every line about a process says."""
    return {"worker": process.index, "pid": process.pid}
