"""The decision, case by case: small farms that a person can check by hand."""

from dataclasses import replace

import pytest

from cloudfarm.domain.host import Host, NodePhase, NodeTruth
from cloudfarm.domain.lease import Ask, Lease, LeaseKind, Slice
from cloudfarm.domain.quantities import parse_shape
from cloudfarm.domain.quota import tree_in_force
from cloudfarm.domain.status import EndReason, JobStatus, LeaseStatus, Target
from cloudfarm.domain.tenant import Tenant
from cloudfarm.domain.workload import Job, RayJob
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules
from cloudfarm.steward import view as v
from cloudfarm.steward.decide import decide
from cloudfarm.testing.fake_farm import GIB, make_host

NOW = 1_000_000_000
POLICY = v.Policy(start_timeout_ms=60_000, notice_ms=30_000, host_lost_ms=60_000)


def lease(id_: str = "l1", shape: str = "0.5", tenant: str = "a", **more) -> Lease:
    ask = Ask(parse_shape(shape), cpus=2, memory_bytes=GIB, duration_ms=3_600_000)
    return Lease(id_, tenant, "kim", id_, LeaseKind.MANUAL, ask, created_ms=NOW - 1000, **more)


def running(id_: str = "l1", *, tenant: str = "a", index: int = 0, **more) -> Lease:
    piece = Slice(id_, 0, "h0", (index,), 500, 2, GIB, node_id=f"ray-{id_}")
    fields = {
        "status": LeaseStatus.ACTIVE,
        "slices": (piece,),
        "started_ms": NOW - 5000,
        "ends_ms": NOW + 3_600_000,
    }
    return lease(id_, tenant=tenant, **{**fields, **more})


def node(name: str, phase: NodePhase = NodePhase.UP, **more) -> NodeTruth:
    return NodeTruth(
        name, name.rpartition("-")[0], phase, f"ray-{name}", NOW - 6000, "root namespace", **more
    )


def host(*nodes: NodeTruth, name: str = "h0", **more) -> Host:
    return replace(make_host(name), nodes=nodes, seen_ms=NOW, **more)


def view(*leases: Lease, hosts: tuple[Host, ...] | None = None, **more) -> v.FarmView:
    return v.FarmView(
        now_ms=NOW,
        seen_before_ms={"h0": NOW - 1000},
        tenants={name: Tenant(name, name, 0) for name in "abc"},
        hosts=(host(),) if hosts is None else hosts,
        leases=leases,
        jobs=more.pop("jobs", ()),
        services=more.pop("services", ()),
        **more,
    )


def decided(farm: v.FarmView, *, limit: int = 4000) -> list[v.Decision]:
    admit = fair(Rules(), lambda view: tree_in_force((), view.tenants.values(), limit))
    return list(decide(farm, admit=admit, policy=POLICY))


def test_a_waiting_lease_is_granted_when_it_fits() -> None:
    (grant,) = decided(view(lease(shape="2x0.5")))
    assert isinstance(grant, v.Grant)
    assert [piece.gpu_indices for piece in grant.slices] == [(0,), (1,)]


def test_who_waits_for_room_is_not_delayed_by_those_behind() -> None:
    held = running("l0", ends_ms=NOW + 60_000)
    big = lease("l1", "2x1", tenant="b")
    long, short = lease("l2", "0.5", tenant="c"), lease("l3", "0.5", tenant="c")
    short = replace(short, ask=replace(short.ask, duration_ms=60_000))
    hosts = (host(node("l0-0")),)
    decisions = decided(view(held, big, long, short, hosts=hosts))
    waits = {each.lease_id: each.message for each in decisions if isinstance(each, v.Wait)}
    assert [each.lease_id for each in decisions if isinstance(each, v.Grant)] == ["l3"]
    assert set(waits) == {"l1", "l2"}
    assert "another tenant's lease is ahead" in waits["l2"]


def test_a_tenants_own_limit_holds_back_nobody_else() -> None:
    decisions = decided(view(lease("l1", "2x1"), lease("l2", "0.5", tenant="b")), limit=1000)
    assert [type(each) for each in decisions] == [v.Wait, v.Grant]
    assert "at most 1 GPU" in decisions[0].message
    assert decisions[1].lease_id == "l2"


def test_a_wait_that_was_told_is_not_told_again() -> None:
    (wait,) = decided(view(lease(shape="3x1")))
    assert decided(view(lease(shape="3x1", message=wait.message))) == []


def test_nothing_is_placed_on_a_silent_or_cordoned_host() -> None:
    for trouble in ({"reachable": False}, {"cordoned": True}):
        (wait,) = decided(view(lease(), hosts=(host(**trouble),)))
        assert isinstance(wait, v.Wait)


def starting(**more) -> Lease:
    piece = Slice("l1", 0, "h0", (0,), 500, 2, GIB)
    return lease(status=LeaseStatus.STARTING, slices=(piece,), granted_ms=NOW - 1000, **more)


def test_a_starting_lease_has_its_node_ordered_until_the_host_has_it() -> None:
    (order,) = decided(view(starting()))
    assert isinstance(order, v.StartNode)
    assert decided(view(starting(), hosts=(host(node("l1-0", NodePhase.STARTING)),))) == []


def test_a_starting_lease_is_active_when_its_node_is_up() -> None:
    (active,) = decided(view(starting(), hosts=(host(node("l1-0")),)))
    assert active == v.ActivateLease("l1", {0: ("ray-l1-0", "root namespace")})


def test_a_node_that_exits_while_starting_ends_the_lease_with_its_reason() -> None:
    (end,) = decided(view(starting(), hosts=(host(node("l1-0", NodePhase.EXITED, reason="no room")),)))
    assert isinstance(end, v.EndLease)
    assert end.reason is EndReason.START_FAILED
    assert "no room" in end.message


def test_a_start_that_takes_too_long_ends_the_lease() -> None:
    late = replace(starting(), granted_ms=NOW - 60_001)
    (end,) = decided(view(late, hosts=(host(node("l1-0", NodePhase.STARTING)),)))
    assert end.reason is EndReason.START_FAILED


def test_a_lost_node_ends_the_lease_when_its_host_last_answered() -> None:
    (end,) = decided(view(running()))
    assert end == v.EndLease("l1", EndReason.NODE_LOST, "lease node l1-0 was lost", NOW - 1000)


def test_nothing_is_concluded_from_a_host_that_is_silent_for_a_moment() -> None:
    silent = replace(host(), reachable=False, seen_ms=NOW - 59_000)
    assert decided(view(running(), hosts=(silent,))) == []


def test_a_host_silent_for_too_long_loses_its_leases_as_of_when_it_was_seen() -> None:
    silent = replace(host(), reachable=False, seen_ms=NOW - 61_000)
    old = replace(running(), started_ms=NOW - 100_000)
    (end,) = decided(view(old, hosts=(silent,)))
    assert (end.reason, end.at_ms) == (EndReason.NODE_LOST, NOW - 61_000)


def test_notice_comes_before_the_end_and_the_end_at_its_time() -> None:
    up = (host(node("l1-0")),)
    near = running(ends_ms=NOW + 29_000)
    assert decided(view(near, hosts=up)) == [v.NoticeLease("l1")]
    told = replace(near, noticed_ms=NOW)
    assert decided(view(told, hosts=up)) == [v.DrainNode("l1", told.slices[0], NOW + 29_000)]
    (end,) = decided(view(replace(near, ends_ms=NOW), hosts=up))
    assert end.reason is EndReason.EXPIRED


def test_a_drained_node_that_goes_idle_is_not_lost() -> None:
    pieces = tuple(
        Slice("l1", index, "h0", (index,), 500, 2, GIB, node_id=f"ray-l1-{index}") for index in range(2)
    )
    near = running(ends_ms=NOW + 20_000, noticed_ms=NOW - 5_000, slices=pieces)
    assert decided(view(near, hosts=(host(node("l1-1")),))) == [v.DrainNode("l1", pieces[1], NOW + 20_000)]
    (end,) = decided(view(near, hosts=(host(node("l1-0", NodePhase.EXITED)),)))
    assert (end.reason, end.at_ms) == (EndReason.EXPIRED, NOW)


def test_an_ending_lease_is_killed_and_finished_only_when_nothing_is_left() -> None:
    ending = running(
        status=LeaseStatus.ENDING, ending_ms=NOW - 500, reason=EndReason.RELEASED, target=Target.END
    )
    assert decided(view(ending, hosts=(host(node("l1-0")),))) == [v.KillNode("h0", "l1-0")]
    assert decided(view(ending, hosts=(replace(host(), reachable=False),))) == []
    assert decided(view(ending)) == [v.FinishLease("l1", NOW, EndReason.RELEASED)]


def test_nobody_pays_beyond_the_time_limit_for_a_late_steward() -> None:
    late = {"ending_ms": NOW - 500, "reason": EndReason.EXPIRED, "target": Target.END, "ends_ms": NOW - 9000}
    ending = running(status=LeaseStatus.ENDING, **late)
    assert decided(view(ending)) == [v.FinishLease("l1", NOW - 9000, EndReason.EXPIRED)]


def test_a_lost_lease_is_charged_until_it_was_last_seen() -> None:
    ending = running(
        status=LeaseStatus.ENDING, ending_ms=NOW - 1000, reason=EndReason.NODE_LOST, target=Target.END
    )
    assert decided(view(ending)) == [v.FinishLease("l1", NOW - 1000, EndReason.NODE_LOST)]


def test_a_node_without_a_lease_is_a_leak() -> None:
    assert decided(view(hosts=(host(node("l9-0")),))) == [v.KillNode("h0", "l9-0", leaked_ms=NOW - 6000)]


def test_capacity_of_an_ending_lease_is_not_given_away() -> None:
    ending = running(status=LeaseStatus.ENDING, ending_ms=NOW, reason=EndReason.RELEASED)
    kinds = [type(each) for each in decided(view(ending, lease("l2", "2x0.6"), hosts=(host(node("l1-0")),)))]
    assert kinds == [v.KillNode, v.Wait]


RAY_ID = "a.train.j1"


def job(**more) -> Job:
    return Job("j1", "a", "kim", "train", "l1", True, "python x.py", NOW, **more)


def ray(status: JobStatus, message: str = "") -> dict[str, RayJob]:
    return {RAY_ID: RayJob(RAY_ID, status, message)}


@pytest.mark.parametrize(
    ("the_job", "the_lease", "in_ray", "expected"),
    [
        (job(), lease(), None, []),
        (job(), running(), None, [v.SubmitJob("j1")]),
        (
            job(target=Target.END),
            lease(),
            None,
            [v.UpdateJob("j1", JobStatus.STOPPED, "stopped before it started")],
        ),
        (job(submitted_ms=NOW), running(), None, []),
        (job(submitted_ms=NOW), running(), {}, [v.SubmitJob("j1")]),
        (job(submitted_ms=NOW), running(), ray(JobStatus.PENDING), []),
        (
            job(submitted_ms=NOW),
            running(),
            ray(JobStatus.RUNNING, "go"),
            [v.UpdateJob("j1", JobStatus.RUNNING, "go", ray(JobStatus.RUNNING, "go")[RAY_ID])],
        ),
        (job(submitted_ms=NOW, status=JobStatus.RUNNING), running(), ray(JobStatus.RUNNING), []),
        (
            job(submitted_ms=NOW, status=JobStatus.RUNNING, target=Target.END),
            running(),
            ray(JobStatus.RUNNING),
            [v.StopJob("j1")],
        ),
        (
            job(submitted_ms=NOW, status=JobStatus.RUNNING),
            running(),
            ray(JobStatus.FAILED, "boom"),
            [v.UpdateJob("j1", JobStatus.FAILED, "boom", ray(JobStatus.FAILED, "boom")[RAY_ID])],
        ),
    ],
)
def test_jobs(the_job, the_lease, in_ray, expected) -> None:
    up = (host(node("l1-0")),)
    decisions = decided(
        view(replace(the_lease, kind=LeaseKind.JOB), hosts=up, jobs=(the_job,), ray_jobs=in_ray)
    )
    assert [each for each in decisions if not isinstance(each, v.Grant | v.KillNode)] == expected


def test_a_job_that_left_its_lease_has_failed_whatever_ray_says() -> None:
    caught = job(
        submitted_ms=NOW, status=JobStatus.RUNNING, error_type="left_its_lease", message="an actor ran on l2"
    )
    in_ray = ray(JobStatus.STOPPED, "stopped")
    decisions = decided(view(running(), hosts=(host(node("l1-0")),), jobs=(caught,), ray_jobs=in_ray))
    assert decisions == [v.UpdateJob("j1", JobStatus.FAILED, "an actor ran on l2", in_ray[RAY_ID])]


@pytest.mark.parametrize(
    ("ending_ms", "in_ray", "killed"),
    [
        (NOW - POLICY.archive_ms, ray(JobStatus.RUNNING), False),
        (NOW - POLICY.archive_ms - 1, ray(JobStatus.RUNNING), True),  # its log cannot be had: enough waited
        (NOW, None, True),  # Ray is silent: no job can be closed, and what is ending must end
    ],
)
def test_an_ending_leases_node_stays_until_the_log_of_its_job_is_saved(ending_ms, in_ray, killed) -> None:
    ending = running(
        status=LeaseStatus.ENDING, ending_ms=ending_ms, reason=EndReason.RELEASED, target=Target.END
    )
    open_job = job(submitted_ms=NOW, status=JobStatus.RUNNING)
    decisions = decided(view(ending, hosts=(host(node("l1-0")),), jobs=(open_job,), ray_jobs=in_ray))
    assert (v.KillNode("h0", "l1-0") in decisions) is killed
    assert any(isinstance(each, v.UpdateJob) for each in decisions) is (in_ray is not None)


def test_a_job_whose_lease_is_lost_fails_and_says_so() -> None:
    ending = running(
        status=LeaseStatus.ENDING,
        ending_ms=NOW,
        reason=EndReason.NODE_LOST,
        message="lease node l1-0 was lost",
    )
    started = job(submitted_ms=NOW, status=JobStatus.RUNNING)
    decisions = decided(view(ending, jobs=(started,), ray_jobs=ray(JobStatus.RUNNING)))
    assert v.UpdateJob("j1", JobStatus.FAILED, "its lease l1 ended: lease node l1-0 was lost") in decisions


def test_a_lease_made_for_a_job_ends_with_it() -> None:
    over = replace(running(), kind=LeaseKind.JOB)
    assert decided(view(over, hosts=(host(node("l1-0")),))) == [v.ReleaseLease("l1", EndReason.JOB_FINISHED)]


def test_a_stopping_farm_ends_leases_and_starts_nothing() -> None:
    decisions = decided(view(running(), lease("l2"), hosts=(host(node("l1-0")),), stopping=True))
    assert [(type(each), each.lease_id) for each in decisions] == [(v.EndLease, "l1")]
    assert decisions[0].reason is EndReason.FARM_STOPPED


def test_the_same_view_gives_the_same_decisions() -> None:
    farm = view(running(), lease("l2", "2x0.5"), lease("l3", "3x1"), hosts=(host(node("l1-0")),))
    assert decided(farm) == decided(farm)
