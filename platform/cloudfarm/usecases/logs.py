"""A job's log: what there is of it now, and following it to the job's end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import cast

from cloudfarm.domain.status import JobStatus
from cloudfarm.domain.workload import Job, attempt_line
from cloudfarm.errors import UnavailableError
from cloudfarm.ports import Artifacts, LiveLogs, Store
from cloudfarm.usecases import paths
from cloudfarm.usecases.access import Principal
from cloudfarm.usecases.jobs import JobView, get_job

TRACE_CHARS = 4096
"""How much of what was sent is remembered, to find the place in a log whose beginning was not kept."""
STALL_S = 1.0
"""After so long a silence of a live log look whether the job is over: a host without power closes nothing."""


async def read_log(
    store: Store, artifacts: Artifacts, live_logs: LiveLogs, principal: Principal, submission_id: str
) -> str:
    """Return the log so far: from the archive once the job has ended, else from where it runs.

    Raises:
        UnavailableError: if the log is where the farm cannot reach it just now.
    """
    job = (await get_job(store, principal, submission_id)).job
    if job.log_uri is not None:
        return await _archived(artifacts, job)
    return await live_logs.read(job) if job.status is JobStatus.RUNNING else ""


async def follow_log(
    store: Store,
    artifacts: Artifacts,
    live_logs: LiveLogs,
    principal: Principal,
    submission_id: str,
    *,
    pause: Callable[[], Awaitable[None]],
) -> AsyncGenerator[str, None]:
    """Yield a job's log from its beginning until the job has ended, however long it waits first.

    While it waits, each new reason is told in a line that begins with ``cloudfarm:``. The iterator ends only
    after the job's record has its final status, since the stock client asks for it once, right afterwards.

    Args:
        store: the records.
        artifacts: where ended jobs' logs are.
        live_logs: where running jobs' logs are.
        principal: who asks.
        submission_id: the job.
        pause: waits a moment between two looks at the record.

    Raises:
        NotFoundError: if there is no such job (any more).
    """

    async def look() -> JobView:
        return await get_job(store, principal, submission_id)

    sent = _Sent()
    told = line = ""
    live_has_closed = False
    attempt = 0
    while not (view := await look()).job.status.is_terminal:
        if view.job.attempt != attempt:
            attempt, sent, live_has_closed = view.job.attempt, _Sent(attempt_line(view.job.attempt)), False
            yield attempt_line(attempt)
        if view.job.status is JobStatus.PENDING:
            line = f"cloudfarm: {view.message}\n"
        elif not live_has_closed:
            try:
                async with aclosing(_live(live_logs, view, sent, look)) as pieces:
                    async for fresh in pieces:
                        yield fresh
                live_has_closed = True
            except UnavailableError as error:
                line = f"cloudfarm: {error.detail}\n"
        if line != told:
            told = line
            yield line
        await pause()
    # Also when the live log has closed in good order: Ray closes it so when the lease node is killed, too.
    if view.job.log_uri is not None and (rest := sent.rest_of(await _archived(artifacts, view.job))):
        yield rest


class _Sent:
    """How far a log has been sent, over several tails that each begin at its beginning.

    Args:
        after: the line of the archive after which what is sent here begins; empty for its beginning.
    """

    def __init__(self, after: str = "") -> None:
        self.chars = 0
        self._after = after
        self._seen = 0
        self._trace = ""

    def rewind(self) -> None:
        """Note that a new tail begins."""
        self._seen = 0

    def fresh(self, piece: str) -> str:
        """Return what of the tail's next piece has not been sent, and count it as sent."""
        new = piece[max(0, self.chars - self._seen) :]
        self._seen += len(piece)
        self.chars = max(self.chars, self._seen)
        self._trace = (self._trace + new)[-TRACE_CHARS:]
        return new

    def rest_of(self, log: str) -> str:
        """Return what of the whole log, or of its kept end, has not been sent."""
        if self._after:
            log = log.rpartition(self._after)[2]
        if log[max(0, self.chars - len(self._trace)) : self.chars] == self._trace:
            return log[self.chars :]
        found = log.rfind(self._trace)
        if found >= 0:
            return log[found + len(self._trace) :]
        return f"cloudfarm: some of the log was not kept\n{log}"


async def _live(
    live_logs: LiveLogs, view: JobView, sent: _Sent, look: Callable[[], Awaitable[JobView]]
) -> AsyncGenerator[str, None]:
    """Yield what a running job prints and was not sent yet, until the log closes or falls silent for good.

    Between its lines, and at once, it is told when its lease is about to end.
    """
    job, told = view.job, ""
    loop = asyncio.get_running_loop()
    look_at = loop.time() + STALL_S
    sent.rewind()
    # Every tail is a generator that holds a connection: closing it at once, not when it is collected, frees
    # that.
    async with aclosing(cast("AsyncGenerator[str, None]", live_logs.tail(job))) as pieces:
        while True:
            following = asyncio.ensure_future(anext(pieces, None))
            try:
                while not following.done():
                    await asyncio.wait({following}, timeout=STALL_S)
                    if not following.done() or loop.time() >= look_at:
                        view, look_at = await look(), loop.time() + STALL_S
                        is_over = view.job.status is not JobStatus.RUNNING or view.job.attempt != job.attempt
                        if is_over and not following.done():
                            return
                        if view.notice not in ("", told):
                            told = view.notice
                            yield f"cloudfarm: {told}\n"
            finally:
                if not following.done():
                    following.cancel()
                    with suppress(asyncio.CancelledError):
                        await following
            piece = following.result()
            if piece is None:
                return
            if fresh := sent.fresh(piece):
                yield fresh


async def _archived(artifacts: Artifacts, job: Job) -> str:
    text = (await artifacts.read(*paths.job_log(job))).decode(errors="replace")
    # Ray reads logs in text mode, so the live log has plain newlines; positions must mean the same here.
    return text.replace("\r\n", "\n").replace("\r", "\n")
