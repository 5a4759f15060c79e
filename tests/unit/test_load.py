"""What services are asked, and how many replicas that needs."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.load import WINDOW_MS, Load, LoadReport
from cloudfarm.domain.workload import Revision, Service
from cloudfarm.steward.scaling import SILENT_MS, is_fresh, wanted_replicas
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.factories import make_revision, make_service
from cloudfarm.testing.fakes_api import FakeNudge
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.troubles import Troubles
from cloudfarm.usecases import load
from cloudfarm.usecases.load import LoadReporter, Loads
from cloudfarm.usecases.revisions import Running

NOW = 10_000_000


def service(**settings) -> Service:
    return make_service(
        **{"min_replicas": 1, "max_replicas": 8, "target_load": 10, "idle_ms": 60_000, **settings}
    )


def present(replicas: int, **changes) -> Revision:
    return make_revision(replicas=replicas, created_ms=0, started_ms=NOW - 3_600_000, **changes)


def asked(peak: int, *, last_ms: int = NOW, since_ms: int = NOW - 3_600_000) -> LoadReport:
    return LoadReport(NOW, since_ms, {"s1": Load(peak, last_request_ms=last_ms)})


def wanted(of: Service, revision: Revision, report: LoadReport | None, *, at_least: int = 0) -> int:
    return wanted_replicas(of, revision, report, NOW, at_least=at_least)


def test_replicas_are_what_the_peak_needs_within_the_bounds() -> None:
    peaks = {0: 1, 1: 1, 10: 1, 11: 2, 80: 8, 81: 8, 10_000: 8}
    assert {peak: wanted(service(), present(1), asked(peak)) for peak in peaks} == peaks
    assert wanted(service(min_replicas=3), present(1), asked(0)) == 3
    assert wanted(service(), present(8), asked(15)) == 2


def test_without_a_report_only_the_bounds_count() -> None:
    sleepy = service(min_replicas=0)
    assert [wanted(sleepy, present(each), None) for each in (0, 1, 5, 9)] == [0, 1, 5, 8]
    assert wanted(service(min_replicas=2), present(1), None) == 2


def test_a_front_door_that_has_just_started_shrinks_nothing() -> None:
    young = asked(5, since_ms=NOW - WINDOW_MS + 1)
    assert wanted(service(), present(4), young) == 4
    assert wanted(service(), present(4), asked(55, since_ms=NOW)) == 6
    assert wanted(service(), present(4), asked(5, since_ms=NOW - WINDOW_MS)) == 1


def test_nobody_for_long_enough_is_none() -> None:
    sleepy = service(min_replicas=0)
    assert wanted(sleepy, present(1), asked(0, last_ms=NOW - 59_999)) == 1
    assert wanted(sleepy, present(1), asked(0, last_ms=NOW - 60_000)) == 0
    assert wanted(sleepy, present(1), LoadReport(NOW, NOW - 60_000)) == 0  # never asked since it is counted
    assert wanted(sleepy, present(1), LoadReport(NOW, NOW - 59_999)) == 1
    just_up = make_revision(replicas=1, started_ms=NOW - 59_999)
    assert wanted(sleepy, just_up, asked(0, last_ms=0)) == 1
    assert wanted(sleepy, present(0), asked(0, last_ms=NOW - 1)) == 0  # nobody wakes what nobody asks
    assert wanted(sleepy, present(0), asked(1)) == 1
    assert wanted(sleepy, present(1), asked(0, last_ms=0), at_least=1) == 1


def test_what_has_never_run_does_not_sleep_before_it_has() -> None:
    sleepy, new = service(min_replicas=0), make_revision(replicas=1, created_ms=NOW - 600_000)
    assert new.started_ms is None
    assert wanted(sleepy, new, LoadReport(NOW, NOW - 600_000)) == 1
    assert wanted(sleepy, present(1), LoadReport(NOW, NOW - 600_000)) == 0


def test_a_canary_needs_its_share_only() -> None:
    assert wanted(service(), present(1, canary_percent=10), asked(80)) == 1
    assert wanted(service(), present(1, canary_percent=25), asked(80)) == 2


@given(st.integers(0, 5), st.integers(1, 8), st.integers(0, 8), st.integers(0, 500), st.integers(0, 120_000))
def test_wanted_is_within_bounds_and_enough(least, most, now_there, peak, ago_ms) -> None:
    most = max(least, most)
    of = service(min_replicas=least, max_replicas=most)
    result = wanted(of, present(now_there), asked(peak, last_ms=NOW - ago_ms))
    assert least <= result <= most
    assert result == most or result * of.target_load >= peak


def test_a_report_is_fresh_for_a_while() -> None:
    assert is_fresh(asked(0), NOW + SILENT_MS)
    assert not is_fresh(asked(0), NOW + SILENT_MS + 1)
    assert not is_fresh(None, NOW)


class TestLoads:
    def test_the_peak_is_that_of_the_last_half_minute(self) -> None:
        clock = ManualClock()
        loads = Loads(clock)
        with loads.request("s1"), loads.request("s1"):
            clock.advance(5_000)
            with loads.request("s1"), loads.request("s2"):
                pass
        ended_ms = clock.now_ms()
        assert loads.report().loads == {"s1": Load(3, 0, ended_ms), "s2": Load(1, 0, ended_ms)}
        clock.advance(WINDOW_MS - 1_000)
        assert loads.report().loads["s1"] == Load(3, 0, ended_ms)
        clock.advance(1_000)
        assert loads.report().loads["s1"] == Load(0, 0, ended_ms)

    def test_a_long_request_is_under_way_all_the_time(self) -> None:
        clock = ManualClock()
        loads = Loads(clock)
        with loads.request("s1"):
            clock.advance(10 * WINDOW_MS)
            assert loads.report().loads["s1"] == Load(1, 0, clock.now_ms())
        clock.advance(WINDOW_MS - 1_000)
        assert loads.report().loads["s1"].peak == 1

    def test_who_waits_is_under_way_too(self) -> None:
        loads = Loads(ManualClock())
        with loads.wait("s1"):
            load = loads.report().loads["s1"]
            assert (load.peak, load.waiting, loads.waiting("s1")) == (1, 1, 1)
        assert (loads.report().loads["s1"].waiting, loads.waiting("s2")) == (0, 0)

    def test_who_was_sent_to_an_application_is_counted_there_until_it_ends(self) -> None:
        loads = Loads(ManualClock())
        with loads.sent("s1", "a.wind.1"), loads.sent("s1", "a.wind.1"), loads.wait("s1"):
            with loads.sent("s1", "a.wind.2"):
                assert loads.report().under_way == {"a.wind.1": 2, "a.wind.2": 1}
            assert loads.report().under_way == {"a.wind.1": 2}
        assert (loads.report().under_way, loads.report().loads["s1"].peak) == ({}, 4)

    def test_a_report_says_since_when(self) -> None:
        clock = ManualClock()
        loads, begun_ms = Loads(clock), clock.now_ms()
        clock.advance(7_000)
        assert loads.report() == LoadReport(begun_ms + 7_000, begun_ms, {})

    @given(st.lists(st.one_of(st.integers(0, 40_000), st.booleans()), max_size=60))
    def test_the_peak_is_never_below_what_a_naive_count_finds(self, steps) -> None:
        """A number lets time pass; True begins a request, False ends the oldest."""
        clock = ManualClock()
        loads = Loads(clock)
        open_requests, seen = [], [(clock.now_ms(), 0)]
        for step in steps:
            if step is True:
                request = loads.request("s1")
                request.__enter__()
                open_requests.append(request)
            elif step is False:
                if open_requests:
                    open_requests.pop(0).__exit__(None, None, None)
            else:
                clock.advance(step)
            seen.append((clock.now_ms(), len(open_requests)))
        now_ms = clock.now_ms()
        found = loads.report().loads.get("s1", Load())
        exact = max(count for at_ms, count in seen if at_ms > now_ms - WINDOW_MS + 1_000)
        assert exact <= found.peak <= max(count for _, count in seen)
        assert found.peak >= len(open_requests)


async def test_the_steward_is_told_every_second() -> None:
    nudge = FakeNudge()
    reporter = LoadReporter(Loads(ManualClock()), nudge, Troubles(MemoryStore(), ManualClock()))
    reporter.step()
    assert len(nudge.reports) == 1
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0)
    running.cancel()
    assert len(nudge.reports) == 2


async def test_the_steward_is_told_again_after_a_mistake_of_ours(monkeypatch, caplog) -> None:
    monkeypatch.setattr(load, "EVERY_S", 0.0)
    store = MemoryStore()
    reporter = LoadReporter(Loads(ManualClock()), FakeNudge(), Troubles(store, ManualClock()))
    with monkeypatch.context() as broken:
        broken.setattr(FakeNudge, "report", lambda _self, _report: 1 // 0)
        running = asyncio.create_task(reporter.run())
        for _ in range(5):
            await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    assert reporter.nudge.reports
    assert caplog.text.count("ZeroDivisionError: ") == 1
    async with store.begin(write=False) as uow:
        (told,) = await uow.events.list()
    assert told.message.startswith("telling the steward of the load: ZeroDivisionError at ")


@given(st.integers(1, 99), st.integers(0, 10_000))
def test_a_canary_gets_exactly_its_percent_of_any_hundred_in_a_row(percent: int, first: int) -> None:
    current, canary = make_revision(), make_revision("r2", canary_percent=percent)
    running = Running(current, canary, (current, canary))
    picked = [running.pick(number) for number in range(first, first + 100)]
    assert picked.count(canary) == percent
    some = [running.pick(number) for number in range(first, first + 50)].count(canary)
    assert abs(some - percent / 2) < 1  # and evenly


def test_without_a_canary_all_go_to_the_current_one() -> None:
    only = make_revision()
    assert {Running(only, None, (only,)).pick(number).id for number in range(300)} == {"r1"}
