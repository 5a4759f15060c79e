"""What always holds, over random farms, quota trees and workloads in simulated time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Lease
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.quota import NOTHING, UNLIMITED, Amounts, Quota, QuotaTree, quota_of
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.future import Booking
from cloudfarm.scheduler.queue import SPARE, fair
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.simulate.world import Work, World
from cloudfarm.steward.view import Decisions, FarmView, Grant, Preempt, Wait
from cloudfarm.testing.fake_farm import make_host
from cloudfarm.testing.naive_placement import ever_fits
from tests.scheduling import (
    HOUR,
    MINUTE,
    assert_bookings_hold,
    assert_nothing_is_shared_out_twice,
    decide_and_book,
    held_by_quota,
    quota,
    room_for,
)

TENANTS = ("a", "b", "c")


def part(numbers: Amounts, parts: int, of: int) -> Amounts:
    return Amounts(
        numbers.milli_gpus * parts // of, numbers.cpus * parts // of, numbers.memory_bytes * parts // of
    )


@st.composite
def farms(draw: st.DrawFn, models: Sequence[str] = ("X", "Y")) -> tuple[Host, ...]:
    return tuple(
        make_host(
            f"h{number}",
            draw(st.integers(1, 4)),
            model=draw(st.sampled_from(models)),
            cpus=draw(st.sampled_from((8, 64))),
            memory_bytes=64 * GIB,
        )
        for number in range(draw(st.integers(1, 3)))
    )


@st.composite
def trees(draw: st.DrawFn, hosts: Sequence[Host]) -> QuotaTree:
    """A programme with two tenants, one of which has a project, and a tenant beside it."""
    whole = Amounts(
        sum(1000 * len(host.gpus) for host in hosts),
        sum(host.cpus for host in hosts),
        sum(host.memory_bytes for host in hosts),
    )
    of = sum(len(host.gpus) for host in hosts)
    programme = draw(st.integers(0, of))
    a = draw(st.integers(0, programme))
    b = draw(st.integers(0, programme - a))
    c = draw(st.integers(0, of - programme))

    def one(id_: str, parent: str | None, guarantee: int, *, loose: bool = True) -> Quota:
        is_limited = draw(st.integers(0, 3)) == 0
        limit = {"limit": part(whole, max(1, draw(st.integers(guarantee, of))), of)} if is_limited else {}
        bounded = loose and draw(st.integers(0, 3)) == 0
        return Quota(
            id_,
            parent,
            part(whole, guarantee, of) if guarantee else NOTHING,
            weight=draw(st.integers(1, 3)),
            committed_milli_gpu_ms=draw(st.integers(1, 4)) * 1000 * HOUR if bounded else UNLIMITED,
            **limit,
        )

    return QuotaTree.of(
        [
            one("p", None, programme),
            one("a", "p", a),
            one("a/x", "a", draw(st.integers(0, a))),
            one("b", "p", b),
            one("c", None, c),
        ],
        capacity=whole,
    )


@st.composite
def works(draw: st.DrawFn, number: int) -> Work:
    tenant = draw(st.sampled_from(TENANTS))
    milli = draw(st.sampled_from((0, 250, 500, 700, 1000, 1000, 2000, 3000)))
    minutes = draw(st.integers(1, 90))
    arrives = draw(st.integers(0, 90))
    ask = Ask(
        Shape(draw(st.sampled_from((1, 1, 1, 2, 3))), milli),
        draw(st.integers(0 if milli else 1, 4)),
        draw(st.integers(0, 8)) * GIB,
        minutes * MINUTE,
        gpu_model=draw(st.sampled_from((None, None, "X"))),
        distinct_gpus=draw(st.booleans()),
        priority=draw(st.integers(0, 1)),
        not_before_ms=draw(st.sampled_from((None, None, None, (arrives + 40) * MINUTE))),
    )
    return Work(
        f"{tenant}{number}",
        tenant,
        ask,
        arrives * MINUTE,
        draw(st.integers(MINUTE // 2, minutes * MINUTE)),
        project=draw(st.sampled_from(("", "x"))),
        checkpoint_ms=draw(st.sampled_from((5, 1000))) * MINUTE,
        saves_when_told=draw(st.booleans()),
    )


RULES = st.builds(
    Rules,
    min_run_ms=st.sampled_from((0, 5 * MINUTE, 20 * MINUTE)),
    preempt_notice_ms=st.sampled_from((1000, MINUTE)),
    bookings=st.sampled_from((1, 3, 16)),
    spare_gpus=st.sampled_from((0, 0, 1, 2)),
    spare_patience_ms=st.sampled_from((60 * MINUTE, 24 * 60 * MINUTE)),
)


@dataclass
class Watcher:
    """Judges every step of a world."""

    hosts: Sequence[Host]
    tree: QuotaTree
    rules: Rules
    preemptions: int = 0
    has_started: bool = False

    def admit(self, view: FarmView) -> Decisions:
        decisions, bookings = decide_and_book(view, self.rules, self.tree)
        assert decide_and_book(view, self.rules, self.tree) == (decisions, bookings)
        starts = [each for each in decisions if isinstance(each, Grant)]
        told = {each.lease_id: each for each in decisions if isinstance(each, Wait)}
        going = [each for each in decisions if isinstance(each, Preempt)]
        leases = tuple(
            replace(each, message=told[each.id].message, room=told[each.id].room) if each.id in told else each
            for each in view.leases
        )
        again, _ = decide_and_book(replace(view, leases=leases), self.rules, self.tree)
        assert again == tuple(each for each in decisions if not isinstance(each, Wait))
        self.judge_preemptions(view, going)
        deadlines = {each.lease_id: each.deadline_ms for each in going}
        after = replace(
            view,
            leases=tuple(
                replace(each, preempted_ms=deadlines.get(each.id, each.preempted_ms)) for each in view.leases
            ),
        )
        assert_bookings_hold(after, starts, bookings)
        self.judge_idleness(after, starts, bookings)
        self.judge_spare(view, decisions, [each for each in bookings if each.lease_id == SPARE])
        self.has_started = bool(starts)
        return decisions

    def judge_preemptions(self, view: FarmView, going: Sequence[Preempt]) -> None:
        leases = {lease.id: lease for lease in view.leases}
        staying = {
            lease.id: lease
            for lease in view.leases
            if lease.status.holds_capacity and lease.preempted_ms is None
        }
        for each in going:
            victim, lease = leases[each.lease_id], leases[each.for_lease_id]
            assert lease.status is LeaseStatus.WAITING
            assert victim.id in staying
            assert view.now_ms - victim.started_ms >= self.rules.min_run_ms
            assert each.deadline_ms == view.now_ms + self.rules.preempt_notice_ms
            held = held_by_quota(staying.values(), self.tree)
            mine = self.tree.path(quota_of(lease.tenant, lease.project))
            theirs = self.tree.path(quota_of(victim.tenant, victim.project))
            level = next(
                n for n, (one, two) in enumerate(zip(mine, theirs, strict=False)) if one.id != two.id
            )
            needs = held_by_quota([lease], self.tree)[mine[level].id]
            assert (held.get(mine[level].id, NOTHING) + needs).within(mine[level].guarantee)
            for each_ in theirs[level:]:
                assert not held[each_.id].within(each_.guarantee)
            del staying[victim.id]
            self.preemptions += 1

    def judge_idleness(self, view: FarmView, starts, bookings) -> None:
        """Nobody waits who may start and for whom there is room beside what is booked."""
        granted = {each.lease_id for each in starts}
        booked = {each.lease_id for each in bookings} - {SPARE}
        by_id = {lease.id: lease for lease in view.leases}
        holding = [lease for lease in view.leases if lease.status.holds_capacity or lease.id in granted]
        with_booked = held_by_quota([*holding, *(by_id[each] for each in booked)], self.tree)
        for lease in view.leases:
            if lease.status is not LeaseStatus.WAITING or lease.id in granted | booked:
                continue
            needs = held_by_quota([lease], self.tree)
            path = self.tree.path(quota_of(lease.tenant, lease.project))
            is_promised = (with_booked.get(path[0].id, NOTHING) + needs[path[0].id]).within(path[0].guarantee)
            is_kept_from = not is_promised and view.now_ms - lease.created_ms < self.rules.spare_patience_ms
            beside = [each for each in bookings if is_kept_from or each.lease_id != SPARE]
            if (lease.ask.not_before_ms or 0) > view.now_ms or not room_for(lease.ask, view, starts, beside):
                continue
            assert any(
                not (with_booked.get(each.id, NOTHING) + needs[each.id]).within(each.limit)
                or each.committed_milli_gpu_ms < UNLIMITED
                for each in path
            ), f"{lease} could start"

    def judge_spare(self, view: FarmView, decisions: Decisions, spare: Sequence[Booking]) -> None:
        """What is kept from borrowers is at most what somebody is promised who asks for nothing."""
        granted = {each.lease_id for each in decisions if isinstance(each, Grant)}
        going = {each.lease_id for each in decisions if isinstance(each, Preempt)}
        held = held_by_quota(
            [
                each
                for each in view.leases
                if each.status.holds_capacity and each.preempted_ms is None and each.id not in going
            ],
            self.tree,
        )
        waiting = [each for each in view.leases if each.status is LeaseStatus.WAITING]
        asking = held_by_quota([each for each in waiting if each.id not in granted], self.tree)
        left = {
            id_: quota.guarantee.milli_gpus - held.get(id_, NOTHING).milli_gpus
            for id_, quota in self.tree.quotas.items()
        }
        idle = [
            min(left[each.id] for each in self.tree.path(id_))
            for id_ in self.tree.quotas
            if id_ not in asking and "/" not in id_
        ]
        for each in spare:
            assert 1 <= len(each.slices) <= min(self.rules.spare_gpus, max(idle) // 1000)

    def look(self, world: World) -> None:
        assert_nothing_is_shared_out_twice(world.hosts, world.leases.values())
        held = held_by_quota([each for each in world.leases.values() if each.slices], self.tree)
        for id_, amounts in held.items():
            assert amounts.within(self.tree.get(id_).limit)
        # Whoever has just started has changed whose turn it is, or made a borrower of its tenant; else one step is
        # enough.
        decisions, _ = decide_and_book(world.view(), self.rules, self.tree)
        assert self.has_started or all(isinstance(each, Wait) for each in decisions)


def can_run(work: Work, hosts: Sequence[Host], tree: QuotaTree) -> bool:
    lease = Lease(work.id, work.tenant, "", "", None, work.ask, 0, project=work.project)
    needs = held_by_quota([lease], tree)
    path = tree.path(quota_of(work.tenant, work.project))
    return ever_fits(hosts, work.ask) and all(
        needs[each.id].within(each.limit)
        and (
            needs[each.id].within(each.guarantee)
            or lease.milli_gpus * work.ask.duration_ms <= each.committed_milli_gpu_ms
        )
        for each in path
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_always_holds(data):
    hosts = data.draw(farms())
    tree = data.draw(trees(hosts))
    rules = data.draw(RULES)
    plan = [data.draw(works(number)) for number in range(data.draw(st.integers(1, 14)))]
    watcher = Watcher(hosts, tree, rules)
    world = World(
        hosts,
        tree,
        watcher.admit,
        watch=watcher.look,
        wake=lambda view: next_look_ms(view, rules, tree),
    )
    world.run(plan)
    assert watcher.preemptions <= len(plan) ** 2
    left = {id_ for id_, story in world.stories.items() if story.ended_ms is None}
    assert left == {work.id for work in plan if not can_run(work, hosts, tree)}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_guarantee_is_to_be_had_within_the_minimum_time_and_the_notice(data):
    """Leases of one GPU each, so that whatever is promised fits beside all else that is."""
    hosts = [
        make_host(f"h{number}", data.draw(st.integers(1, 3)))
        for number in range(data.draw(st.integers(1, 3)))
    ]
    left = sum(len(host.gpus) for host in hosts)
    guarantees = {}
    for tenant in TENANTS:
        guarantees[tenant] = data.draw(st.integers(0, left))
        left -= guarantees[tenant]
    tree = QuotaTree.of(quota(tenant, number) for tenant, number in guarantees.items())
    rules = data.draw(RULES)
    plan = [
        Work(
            f"{tenant}{number}",
            tenant,
            Ask(Shape(1, 1000), 1, GIB, minutes * MINUTE),
            arrives * MINUTE // 2,
            minutes * MINUTE,
        )
        for number, (tenant, arrives, minutes) in enumerate(
            data.draw(
                st.lists(
                    st.tuples(st.sampled_from(TENANTS), st.integers(0, 90), st.integers(5, 200)),
                    min_size=1,
                    max_size=20,
                )
            )
        )
    ]
    since: dict[str, tuple[int, int]] = {}

    def look(world: World) -> None:
        for tenant, promised in guarantees.items():
            own = [lease for lease in world.leases.values() if lease.tenant == tenant]
            held = sum(1 for lease in own if lease.slices)
            starts = sum(lease.segment for lease in own)
            is_owed = held < promised and held < len(own)
            first_ms, before = since.get(tenant, (world.now_ms, starts))
            if not is_owed:
                since.pop(tenant, None)
                continue
            since[tenant] = (first_ms, starts) if before == starts else (world.now_ms, starts)
            assert world.now_ms - since[tenant][0] <= rules.min_run_ms + rules.preempt_notice_ms

    world = World(
        hosts,
        tree,
        fair(rules, lambda _: tree),
        watch=look,
        wake=lambda view: next_look_ms(view, rules, tree),
    )
    world.run(plan)
    assert all(story.ended_ms is not None for story in world.stories.values())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_who_is_first_in_line_never_starts_later_than_it_was_told(data):
    """One tenant, in the order of arrival: what comes later may pass, and delays nobody."""
    hosts = data.draw(farms(models=("X",)))
    plan = [
        Work(f"a{number}", "a", ask, arrives * MINUTE, max(1, ask.duration_ms * ran // 4))
        for number, (ask, arrives, ran) in enumerate(
            data.draw(
                st.lists(
                    st.tuples(
                        st.builds(
                            Ask,
                            st.builds(Shape, st.integers(1, 3), st.sampled_from((250, 500, 1000, 2000))),
                            st.integers(0, 4),
                            st.just(GIB),
                            st.integers(1, 120).map(lambda minutes: minutes * MINUTE),
                        ),
                        st.integers(0, 60),
                        st.integers(1, 4),
                    ),
                    min_size=2,
                    max_size=16,
                )
            )
        )
    ]
    told: dict[str, int] = {}
    tree = QuotaTree()

    def admit(view: FarmView) -> Decisions:
        decisions, bookings = decide_and_book(view, Rules(), tree)
        for each in decisions:
            if isinstance(each, Grant) and each.lease_id in told:
                assert view.now_ms <= told[each.lease_id]
        if bookings:
            first = bookings[0]
            assert first.from_ms <= told.get(first.lease_id, first.from_ms)
            told[first.lease_id] = first.from_ms
        return decisions

    World(hosts, tree, admit).run(plan)
