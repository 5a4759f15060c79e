"""A workload on the event engine: jobs arrive, train, are given GPUs and lose them, and complete.

The rules are the artifact's, and they decide the figures:

- The discipline looks at whole multiples of the interval only (60 s), not when something happens: a job waits for the
  first round after its arrival, and GPUs of a job that is complete stay taken until the next.
- A job that gets GPUs, at its start or after a preemption, makes no progress for 30 s. Progress itself is kept.
- An epoch's end is rounded to a whole second, and the next epoch begins at the rounded instant. The event itself
  happens at the true instant: who completes a fraction of a second after a round was still there in that round.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from cloudfarm.errors import CloudfarmError, InvalidInputError
from cloudfarm.simulate.engine import Alarm, Engine, Event, Phase
from cloudfarm.simulate.pollux.applications import Application, read_application
from cloudfarm.simulate.pollux.files import ArtifactFiles, Floats
from cloudfarm.simulate.pollux.tiresias import Allocation
from cloudfarm.simulate.pollux.workload import Submission, read_workload

SECOND_MS = 1000
NOT_RUNNING: Floats = np.empty(0)


class Discipline(Protocol):
    """Who decides which jobs run, and where."""

    def assign(
        self, now_s: int, hosts: Sequence[int], jobs: Mapping[str, int], held: Mapping[str, Allocation]
    ) -> dict[str, Allocation]:
        """Return the allocation of every job that runs from now on.

        Args:
            now_s: seconds since the start.
            hosts: the GPUs of each host.
            jobs: the GPUs that each job wants, of all that are there, in the order of the workload.
            held: what they have been holding until now.
        """


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every job. The defaults are those of the published completion times."""

    hosts: tuple[int, ...] = (4,) * 16
    """The GPUs of each host."""
    interval_s: int = 60
    """Seconds between two rounds of the discipline."""
    restart_s: int = 30
    """Seconds without progress whenever a job gets GPUs."""

    def __post_init__(self) -> None:
        if not self.hosts or min(self.hosts) < 1 or self.interval_s < 1 or self.restart_s < 0:
            raise InvalidInputError("there are hosts with GPUs, an interval, and no restart before its start")


@dataclass(frozen=True, slots=True)
class Completed:
    """What became of a job."""

    submission: Submission
    completed_s: int
    """Seconds since the start of the workload."""
    restarts: int
    """How often it got GPUs again after it had lost them."""

    @property
    def completion_s(self) -> int:
        """Seconds from submission to completion."""
        return self.completed_s - self.submission.submitted_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a replay."""

    jobs: tuple[Completed, ...]
    """In the order of the workload."""
    rounds: int
    """How often the discipline decided."""
    events: int
    """How many events the engine carried out."""

    @property
    def mean_completion_s(self) -> float:
        """The mean time from submission to completion, in seconds."""
        return sum(job.completion_s for job in self.jobs) / len(self.jobs)


@dataclass(slots=True, eq=False)
class _Job:
    """A job on its way."""

    submission: Submission
    application: Application
    allocation: Allocation = ()
    epoch: int = 0
    """The epoch that it is in."""
    progress: float = 0.0
    """At ``since_s``, in steps at the application's first batch size."""
    since_s: int = 0
    """From when on it makes progress; in the future while it restarts."""
    rates: Floats = field(default_factory=lambda: NOT_RUNNING, repr=False)
    """Progress in a second, for each epoch, on the GPUs that it has."""
    starts: int = 0
    completed_s: int | None = None
    epoch_end: Event | None = field(default=None, repr=False)

    def halt(self, now_s: int) -> None:
        """Take its GPUs away and keep its progress."""
        if self.allocation and now_s > self.since_s:
            self.progress += float(self.rates[self.epoch]) * (now_s - self.since_s)
        self.allocation, self.rates = (), NOT_RUNNING

    def start(self, allocation: Allocation, since_s: int) -> None:
        """Give it GPUs on which it makes progress from an instant on."""
        self.allocation, self.since_s = allocation, since_s
        self.rates = self.application.rates(tuple(gpus for _, gpus in allocation), self.submission.samples)
        self.starts += 1

    def epoch_seconds(self) -> float:
        """Return the seconds from ``since_s`` until its epoch ends."""
        ahead = float(self.application.epoch_ends[self.epoch]) - self.progress
        return max(0.0, ahead / float(self.rates[self.epoch]))

    def end_epoch(self) -> None:
        """Go on to the next epoch, or be complete."""
        self.since_s += round(self.epoch_seconds())
        self.progress = float(self.application.epoch_ends[self.epoch])
        self.epoch += 1
        if self.epoch == self.application.epochs:
            self.completed_s = self.since_s


class Replay:
    """One workload under one discipline, once.

    Args:
        submissions: the workload; the order counts where several jobs come up in one round.
        applications: by name, what was measured.
        discipline: who decides.
        rules: what holds for every job.
        engine: on which it happens; one of its own, at 0, if none is given.
    """

    def __init__(
        self,
        submissions: Sequence[Submission],
        applications: Mapping[str, Application],
        discipline: Discipline,
        rules: Rules | None = None,
        engine: Engine | None = None,
    ) -> None:
        if not submissions:
            raise InvalidInputError("a workload without jobs says nothing")
        self._rules = rules or Rules()
        self._engine = engine or Engine()
        self._discipline = discipline
        self._jobs = [_Job(each, _of(each, applications)) for each in submissions]
        self._present: dict[int, _Job] = {}
        """By place in the workload: who has arrived and is not complete."""
        self._next_round = Alarm(self._engine, self._round, Phase.DECIDES)
        self._rounds = 0

    def run(self) -> Outcome:
        """Let everything happen and return what came out.

        Raises:
            InvalidInputError: jobs are left over that the discipline never lets run, or one got GPUs for which
                nothing was measured.
        """
        for place, job in enumerate(self._jobs):
            arrives_ms = job.submission.submitted_s * SECOND_MS
            self._engine.at(arrives_ms, partial(self._arrive, place), Phase.ARRIVES)
        events = self._engine.run()
        return Outcome(
            tuple(
                Completed(job.submission, job.completed_s, job.starts - 1)
                for job in self._jobs
                if job.completed_s is not None
            ),
            self._rounds,
            events,
        )

    def _arrive(self, place: int) -> None:
        self._present[place] = self._jobs[place]
        interval_ms = self._rules.interval_s * SECOND_MS
        rounds = max(1, -(-self._engine.now_ms() // interval_ms))  # none at the very beginning
        self._next_round.ring_by(rounds * interval_ms)

    def _round(self) -> None:
        """Let the discipline decide, carry it out, and look again after an interval if anybody is left."""
        self._rounds += 1
        now_s = self._engine.now_ms() // SECOND_MS
        present = {job.submission.name: job for _, job in sorted(self._present.items())}
        given = self._discipline.assign(
            now_s,
            self._rules.hosts,
            {name: job.submission.gpus for name, job in present.items()},
            {name: job.allocation for name, job in present.items() if job.allocation},
        )
        self._check(given, present)
        if present and not given:
            names = ", ".join(present)
            raise InvalidInputError(f"nothing runs, and these wait: {names}", jobs=list(present))
        for name, job in present.items():
            allocation = given.get(name, ())
            if allocation != job.allocation:
                self._reallocate(job, allocation, now_s)
        if present:
            self._next_round.ring_by((now_s + self._rules.interval_s) * SECOND_MS)

    def _check(self, given: Mapping[str, Allocation], present: Mapping[str, _Job]) -> None:
        """Refuse what no cluster could do: a discipline that errs would make any figure worthless."""
        free = list(self._rules.hosts)
        for name, allocation in given.items():
            if name not in present or sum(gpus for _, gpus in allocation) != present[name].submission.gpus:
                raise CloudfarmError(f"the discipline gives {name} {allocation}, which it did not ask for")
            for host, gpus in allocation:
                free[host] -= gpus
        if min(free) < 0:
            raise CloudfarmError(f"the discipline gives away more GPUs than host {free.index(min(free))} has")

    def _reallocate(self, job: _Job, allocation: Allocation, now_s: int) -> None:
        if job.epoch_end is not None:
            self._engine.cancel(job.epoch_end)
        job.halt(now_s)
        if allocation:
            job.start(allocation, now_s + self._rules.restart_s)
            self._expect(job)

    def _expect(self, job: _Job) -> None:
        # Rounded up to the engine's millisecond, which keeps its order with the rounds, at whole seconds.
        true_ms = math.ceil((job.since_s + job.epoch_seconds()) * SECOND_MS)
        job.epoch_end = self._engine.at(max(true_ms, self._engine.now_ms()), partial(self._end_epoch, job))

    def _end_epoch(self, job: _Job) -> None:
        job.end_epoch()
        if job.completed_s is None:
            self._expect(job)
        else:
            self._present = {place: each for place, each in self._present.items() if each is not job}


def replay(
    files: ArtifactFiles, workload: str, discipline: Discipline, rules: Rules | None = None
) -> Outcome:
    """Read a workload (``workloads/workload-6.csv``) with its applications and run it.

    Raises:
        InvalidInputError: a file is malformed, or something was not measured.
        NotFoundError: a file is missing.
    """
    submissions = read_workload(files, workload)
    names = sorted({each.application for each in submissions})
    return Replay(
        submissions, {name: read_application(files, name) for name in names}, discipline, rules
    ).run()


def _of(submission: Submission, applications: Mapping[str, Application]) -> Application:
    try:
        return applications[submission.application]
    except KeyError:
        raise InvalidInputError(
            f"{submission.name}: nothing was measured of {submission.application}"
        ) from None
