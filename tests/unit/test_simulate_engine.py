"""The event engine: order, time, cancellation; and the live steward's decision on its clock."""

import random
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.host import NodePhase, NodeTruth
from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.quantities import parse_shape
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import CloudfarmError, InvalidInputError
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules
from cloudfarm.simulate import engine as engine_module
from cloudfarm.simulate.engine import Alarm, Engine, Phase, VirtualClock
from cloudfarm.steward import view as v
from cloudfarm.steward.decide import decide
from cloudfarm.testing.fake_farm import GIB, make_host


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def done(engine):
    """What was done, with the time; ``done.note(word)`` is an action."""

    class Done(list):
        def note(self, word: str):
            return lambda: self.append((engine.now_ms(), word))

    return Done()


def test_events_are_carried_out_in_the_order_of_their_times(engine, done):
    for at_ms in (30, 10, 20):
        engine.at(at_ms, done.note("x"))
    assert engine.run() == 3
    assert done == [(10, "x"), (20, "x"), (30, "x")]


def test_at_one_instant_what_ends_goes_before_what_arrives_and_decisions_come_last(engine, done):
    engine.at(5, done.note("decide"), Phase.DECIDES)
    engine.at(5, done.note("second arrival"), Phase.ARRIVES)
    engine.at(5, done.note("end"), Phase.ENDS)
    engine.at(5, done.note("third arrival"), Phase.ARRIVES)
    engine.run()
    assert [word for _, word in done] == ["end", "second arrival", "third arrival", "decide"]


def test_an_action_may_schedule_for_the_same_instant(engine, done):
    def act():
        engine.after(0, done.note("then"))
        done.note("first")()

    engine.at(7, act)
    engine.at(7, done.note("second"))
    engine.run()
    assert done == [(7, "first"), (7, "second"), (7, "then")]


def test_an_end_scheduled_by_a_decision_still_comes_before_the_next_decision_of_that_instant(engine, done):
    engine.at(7, lambda: engine.after(0, done.note("end")), Phase.DECIDES)
    engine.at(7, done.note("decide again"), Phase.DECIDES)
    engine.run()
    assert [word for _, word in done] == ["end", "decide again"]


def test_the_past_cannot_be_scheduled(engine):
    engine.run(until_ms=100)
    with pytest.raises(InvalidInputError, match="99 ms has passed: it is 100 ms"):
        engine.at(99, lambda: None)
    with pytest.raises(InvalidInputError):
        engine.after(-1, lambda: None)


def test_a_cancelled_event_is_not_carried_out_and_does_not_move_the_clock(engine, done):
    engine.at(10, done.note("kept"))
    event = engine.at(20, done.note("cancelled"))
    assert event.pending
    assert engine.cancel(event)
    assert not event.pending
    assert not engine.cancel(event)
    assert engine.pending == 1
    assert engine.run() == 1
    assert done == [(10, "kept")]
    assert engine.now_ms() == 10


def test_an_event_that_was_carried_out_cannot_be_cancelled(engine, done):
    event = engine.at(10, done.note("done"))
    engine.run()
    assert not event.pending
    assert not engine.cancel(event)
    assert engine.pending == 0


def test_an_event_may_cancel_another_of_its_instant(engine, done):
    victim = None
    engine.at(5, lambda: engine.cancel(victim))
    victim = engine.at(5, done.note("never"))
    assert engine.run() == 1
    assert done == []


def test_run_until_includes_that_instant_and_leaves_the_clock_there(engine, done):
    for at_ms in (10, 20, 21):
        engine.at(at_ms, done.note("x"))
    assert engine.run(until_ms=20) == 2
    assert engine.run(until_ms=20) == 0
    assert engine.run(until_ms=15) == 0
    assert (engine.now_ms(), engine.pending) == (20, 1)
    assert engine.run(until_ms=50) == 1
    assert engine.now_ms() == 50


def test_step_carries_out_one_event(engine, done):
    engine.cancel(engine.at(1, done.note("cancelled")))
    engine.at(2, done.note("x"))
    assert engine.step()
    assert not engine.step()
    assert done == [(2, "x")]


def test_the_clock_is_injected_and_fits_the_live_code(done):
    class Watched(VirtualClock):
        def move_to(self, at_ms: int) -> None:
            done.append(at_ms)
            super().move_to(at_ms)

    clock = Watched(1000)  # has what cloudfarm.clock.Clock asks for
    engine = Engine(clock)
    for at_ms in (1000, 1500, 1500):
        engine.at(at_ms, lambda: None)
    engine.run()
    assert done == [1500]
    assert clock.now_ms() == engine.now_ms() == 1500


def test_a_simulation_that_stands_still_is_stopped(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "MOST_AT_ONE_INSTANT", 50)

    def again():
        engine.after(0, again)

    engine.at(9, again)
    with pytest.raises(CloudfarmError, match="no longer gets beyond 9 ms"):
        engine.run()


def test_many_events_at_different_instants_are_no_standstill(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "MOST_AT_ONE_INSTANT", 3)
    for at_ms in range(100):
        for _ in range(3):
            engine.at(at_ms, lambda: None)
    assert engine.run() == 300


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(Phase)), max_size=30),
    st.sets(st.integers(0, 29)),
)
def test_the_order_is_that_of_time_phase_and_scheduling(asked, cancelled):
    engine, done = Engine(), []
    events = [engine.at(at_ms, partial(done.append, n), phase) for n, (at_ms, phase) in enumerate(asked)]
    for index in cancelled & set(range(len(events))):
        engine.cancel(events[index])
    left = [index for index in range(len(asked)) if index not in cancelled]
    assert engine.pending == len(left)
    engine.run()
    assert done == sorted(left, key=asked.__getitem__)  # a stable sort: ties stay as scheduled


def grow(seed: int) -> list[tuple[int, int]]:
    """Events that schedule and cancel others at random."""
    engine, done, rng, events = Engine(), [], random.Random(seed), []  # noqa: S311

    def act(number: int) -> None:
        done.append((engine.now_ms(), number))
        for _ in range(rng.randrange(3)):
            if len(events) < 300:
                phase = rng.choice(list(Phase))
                events.append(engine.after(rng.randrange(5), partial(act, len(events)), phase))
        if rng.random() < 0.3:
            engine.cancel(rng.choice(events))

    events.extend(engine.at(0, partial(act, number)) for number in range(5))
    engine.run()
    return done


def test_the_same_simulation_twice_does_the_same():
    runs = [grow(seed) for seed in range(20)]
    assert runs == [grow(seed) for seed in range(20)]
    assert len({len(run) for run in runs}) > 1
    assert all(run == sorted(run, key=lambda each: each[0]) for run in runs)


# The alarm


def test_an_alarm_rings_once_at_the_earliest_instant_asked_for(engine, done):
    alarm = Alarm(engine, done.note("ring"))
    for at_ms in (30, 20, 25, 20):
        alarm.ring_by(at_ms)
    assert (alarm.due_ms, engine.pending) == (20, 1)
    engine.run()
    assert done == [(20, "ring")]
    assert alarm.due_ms is None


def test_an_alarm_can_be_set_again_when_it_rings_and_be_stopped(engine, done):
    def ring():
        done.note("ring")()
        if engine.now_ms() < 30:
            alarm.ring_by(engine.now_ms() + 10)

    alarm = Alarm(engine, ring)
    alarm.ring_by(10)
    engine.run(until_ms=25)
    alarm.stop()
    alarm.stop()
    engine.run()
    assert [at_ms for at_ms, _ in done] == [10, 20]
    alarm.ring_by(40)
    engine.run()
    assert done[-1] == (40, "ring")


def test_a_refused_instant_leaves_an_alarm_as_it_was(engine, done):
    engine.run(until_ms=10)
    alarm = Alarm(engine, done.note("ring"))
    alarm.ring_by(50)
    with pytest.raises(InvalidInputError):
        alarm.ring_by(5)
    assert alarm.due_ms == 50


# The live decision on the engine's clock

START_MS, END_MS = 2_000, 500
"""How long a simulated lease node takes to come up, and to be gone."""
POLICY = v.Policy(start_timeout_ms=60_000, notice_ms=10_000, host_lost_ms=60_000)


class Farm:
    """One host with two GPUs under the steward's ``decide``; every decision is carried out at its instant."""

    def __init__(self) -> None:
        self.engine = Engine(VirtualClock(1_000_000))
        self.wake = Alarm(self.engine, self.look)
        self.leases: dict[str, Lease] = {}
        self.nodes: dict[str, NodeTruth] = {}
        self.ordered: set[tuple[str, str]] = set()
        self.log: list[tuple[int, str, str]] = []

    def arrive(self, id_: str, shape: str, duration_ms: int) -> None:
        ask = Ask(parse_shape(shape), 2, GIB, duration_ms)
        self.leases[id_] = Lease(id_, "a", "kim", id_, LeaseKind.MANUAL, ask, self.engine.now_ms())
        self.wake.ring_by(self.engine.now_ms())

    def look(self) -> None:
        now_ms = self.engine.now_ms()
        farm = v.FarmView(
            now_ms=now_ms,
            tenants={"a": Tenant("a", "a", 0)},
            hosts=(replace(make_host("h0"), nodes=tuple(self.nodes.values()), seen_ms=now_ms),),
            leases=tuple(each for each in self.leases.values() if each.status is not LeaseStatus.ENDED),
            jobs=(),
            services=(),
            seen_before_ms={"h0": now_ms},
        )
        for decision in decide(farm, admit=fair(Rules(), lambda view: view.quotas), policy=POLICY):
            self.act(decision)

    def set(self, id_: str, word: str, **changes: object) -> None:
        self.leases[id_] = replace(self.leases[id_], **changes)
        self.log.append((self.engine.now_ms() - 1_000_000, id_, word))
        self.wake.ring_by(self.engine.now_ms())

    def act(self, decision: v.Decision) -> None:
        now_ms = self.engine.now_ms()
        match decision:
            case v.Grant(id_, slices):
                self.set(id_, "granted", status=LeaseStatus.STARTING, slices=slices, granted_ms=now_ms)
            case v.StartNode(id_, piece):
                self.order("start", piece.name, START_MS, partial(self.come_up, id_, piece.name))
            case v.ActivateLease(id_):
                ends_ms = now_ms + self.leases[id_].ask.duration_ms
                self.set(id_, "active", status=LeaseStatus.ACTIVE, started_ms=now_ms, ends_ms=ends_ms)
                self.engine.at(max(now_ms, ends_ms - POLICY.notice_ms), self.changed)
                self.engine.at(ends_ms, self.changed)
            case v.NoticeLease(id_):
                self.set(id_, "noticed", noticed_ms=now_ms)
            case v.EndLease(id_, reason):
                self.set(id_, "ending", status=LeaseStatus.ENDING, reason=reason, ending_ms=now_ms)
            case v.KillNode(_, name):
                self.order("kill", name, END_MS, partial(self.be_gone, name))
            case v.FinishLease(id_):
                self.set(id_, "ended", status=LeaseStatus.ENDED, ended_ms=now_ms)
            case v.Wait(id_, message):
                self.set(id_, "told", message=message)

    def order(self, what: str, name: str, delay_ms: int, action) -> None:
        if (what, name) not in self.ordered:
            self.ordered.add((what, name))
            self.engine.after(delay_ms, action)

    def come_up(self, id_: str, name: str) -> None:
        self.nodes[name] = NodeTruth(name, id_, NodePhase.UP, f"ray-{name}", self.engine.now_ms())
        self.changed()

    def be_gone(self, name: str) -> None:
        del self.nodes[name]
        self.changed()

    def changed(self) -> None:
        self.wake.ring_by(self.engine.now_ms())


def test_the_live_decision_runs_on_the_virtual_clock():
    # Two GPUs. `one` holds both for 30 s; `two` waits for it. Nodes take 2 s to come up and 0.5 s to go.
    farm = Farm()
    farm.engine.at(1_000_000, partial(farm.arrive, "one", "2x1", 30_000), Phase.ARRIVES)
    farm.engine.at(1_005_000, partial(farm.arrive, "two", "1", 5_000), Phase.ARRIVES)
    farm.engine.run()
    assert farm.log == [
        (0, "one", "granted"),
        (2_000, "one", "active"),
        (5_000, "two", "told"),
        (22_000, "one", "noticed"),
        (32_000, "one", "ending"),
        (32_500, "one", "ended"),
        (32_500, "two", "granted"),
        (34_500, "two", "active"),
        (34_500, "two", "noticed"),  # it is shorter than the notice
        (39_500, "two", "ending"),
        (40_000, "two", "ended"),
    ]
    assert farm.nodes == {}
    assert farm.leases["two"].message.startswith("place 1 in the queue")
