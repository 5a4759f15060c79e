"""Whatever leases do and however often a steward crashes, the ledger holds exactly what they used, once."""

import asyncio
from dataclasses import replace
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.ledger import DAY_MS, LedgerEntry, amount, split
from cloudfarm.domain.quantities import Shape
from cloudfarm.domain.status import LeaseStatus, transition
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import AlreadyExistsError, TransitionError
from cloudfarm.testing.factories import add, keep, look, make_lease
from cloudfarm.testing.memory_store import MemoryStore

SHAPES = st.builds(
    Shape,
    count=st.integers(1, 1024),
    milli_gpus=st.one_of(st.integers(0, 1000), st.integers(1, 64).map(lambda gpus: gpus * 1000)),
)
STARTS = st.integers(0, 2**42)
LENGTHS = st.one_of(st.integers(0, 5000), st.integers(0, 400 * DAY_MS), st.sampled_from([DAY_MS, DAY_MS - 1]))


def entry_of(lease, end_ms):
    cost = amount(lease.milli_gpus, lease.started_ms, end_ms)
    times = (lease.started_ms, end_ms)
    return LedgerEntry(
        lease.tenant, lease.id, lease.segment, lease.kind.value, lease.milli_gpus, *times, cost
    )


class LedgerMachine(RuleBasedStateMachine):
    """Leases start, change nodes, end and are charged; stewards crash before, in and after the commit."""

    active = Bundle("active")
    ended = Bundle("ended")

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = MemoryStore()
        self.used: list[tuple[int, int, int]] = []
        self.segments = 0

    def do(self, work):
        return self.runner.run(keep(self.store, work))

    def lease(self, lease_id):
        return self.runner.run(look(self.store, lambda uow: uow.leases.get(lease_id)))

    @initialize()
    def open_farm(self):
        self.runner.run(add(self.store, tenants=[Tenant("kaist", "", 1)]))
        self.count = 0

    @rule(target=active, shape=SHAPES, start_ms=STARTS)
    def start(self, shape, start_ms):
        self.count += 1
        lease = make_lease(f"l{self.count}", ask=Ask(shape, 1, 1, 1))

        async def work(uow):
            await uow.leases.add(lease)
            await uow.apply(transition(lease, LeaseStatus.STARTING, now_ms=start_ms))
            starting = await uow.leases.get(lease.id)
            await uow.apply(
                transition(starting, LeaseStatus.ACTIVE, now_ms=start_ms, started_ms=start_ms, segment=1)
            )

        self.do(work)
        return lease.id

    @rule(lease_id=active, length_ms=LENGTHS, gap_ms=LENGTHS)
    def go_on_in_a_new_segment(self, lease_id, length_ms, gap_ms):
        lease = self.lease(lease_id)
        end_ms = lease.started_ms + length_ms

        async def work(uow):
            await uow.ledger.append(entry_of(lease, end_ms))
            await uow.leases.update(replace(lease, segment=lease.segment + 1, started_ms=end_ms + gap_ms))

        self.do(work)
        self.note(lease, end_ms)

    @rule(target=ended, lease_id=consumes(active), length_ms=LENGTHS)
    def end(self, lease_id, length_ms):
        end_ms = self.lease(lease_id).started_ms + length_ms
        lease = self.do(lambda uow: self.finish(uow, lease_id, end_ms))
        self.note(lease, end_ms)
        return lease_id

    @rule(lease_id=active, length_ms=LENGTHS, appended=st.booleans())
    def crash_before_the_commit(self, lease_id, length_ms, appended):
        lease = self.lease(lease_id)
        end_ms = lease.started_ms + length_ms

        async def work():
            async with self.store.begin() as uow:
                if appended:
                    await uow.ledger.append(entry_of(lease, end_ms))
                else:
                    await self.finish(uow, lease_id, end_ms)

        self.runner.run(work())
        assert self.lease(lease_id) == lease

    @rule(lease_id=ended, length_ms=LENGTHS)
    def crash_after_the_commit(self, lease_id, length_ms):
        """The next steward does not know that it was done."""
        lease = self.lease(lease_id)
        end_ms = lease.started_ms + length_ms
        for again, error in (
            (lambda uow: self.finish(uow, lease_id, end_ms), TransitionError),
            (lambda uow: uow.ledger.append(entry_of(lease, end_ms)), AlreadyExistsError),
        ):
            try:
                self.do(again)
            except error:
                continue
            raise AssertionError("charged twice")

    async def finish(self, uow, lease_id, end_ms):
        lease = await uow.leases.get(lease_id)
        if lease.status is LeaseStatus.ACTIVE:
            await uow.apply(transition(lease, LeaseStatus.ENDING, now_ms=end_ms, ending_ms=end_ms))
            lease = await uow.leases.get(lease_id)
        await uow.apply(transition(lease, LeaseStatus.ENDED, now_ms=end_ms, ended_ms=end_ms))
        await uow.ledger.append(entry_of(lease, end_ms))
        return lease

    def note(self, lease, end_ms):
        self.segments += 1
        self.used.append((lease.milli_gpus, lease.started_ms, end_ms))

    def entries(self):
        return self.runner.run(look(self.store, lambda uow: uow.ledger.list()))

    @invariant()
    def the_ledger_is_what_was_used(self):
        charged = sum(entry.milli_gpu_seconds for entry in self.entries())
        assert charged == sum(int(Fraction(milli * (end - start), 1000)) for milli, start, end in self.used)

    @invariant()
    def no_segment_is_charged_twice(self):
        entries = self.entries()
        assert len({(entry.lease_id, entry.segment) for entry in entries}) == len(entries) == self.segments

    @invariant()
    def days_add_up(self):
        for entry in self.entries():
            days, shares = zip(*split(entry), strict=True)
            assert sum(shares) == entry.milli_gpu_seconds
            assert list(days) == list(range(entry.start_ms // DAY_MS, days[-1] + 1))
            assert days[-1] * DAY_MS <= entry.end_ms <= (days[-1] + 1) * DAY_MS
            assert all(0 <= share <= entry.milli_gpus * (DAY_MS // 1000) for share in shares)

    def teardown(self):
        self.runner.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
