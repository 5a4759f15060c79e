"""Carrying out: what needs the store only is stored together, and nothing keeps the rest from being stored."""

import asyncio
import gc
from dataclasses import replace

import pytest

from cloudfarm.domain.ledger import LedgerEntry
from cloudfarm.domain.status import JobStatus, LeaseStatus, Target
from cloudfarm.domain.workload import Job, RayJob
from cloudfarm.errors import FencedError, UnavailableError
from cloudfarm.steward import act
from cloudfarm.steward.decide import decide
from cloudfarm.steward.view import DeployServices, EndLease, Grant, KillNode, ReleaseLease, StartNode, Wait
from cloudfarm.steward.workload_orders import WorkloadOrders
from cloudfarm.testing.fake_farm import FakeHosts, FakeRayJobs
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants
from cloudfarm.testing.memory_store import MemoryStore, MemoryUnitOfWork


class CountingStore(MemoryStore):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def begin(self, *, write: bool = True):
        self.writes += write
        return super().begin(write=write)


@pytest.fixture
async def farm() -> MemoryFarm:
    farm = MemoryFarm(store=CountingStore())
    await farm.begin()
    return farm


async def decided(farm: MemoryFarm):
    view = await farm.steward.observer.look(farm.steward.epoch)
    return decide(view, admit=farm.steward.admit, policy=farm.steward.policy), view


async def carry_out(farm: MemoryFarm, decisions, view) -> int:
    return await farm.steward.actor.carry_out(decisions, view, farm.steward.epoch)


async def statuses(farm: MemoryFarm, *lease_ids: str) -> list[LeaseStatus]:
    return [(await farm.lease(each)).status for each in lease_ids]


async def events(farm: MemoryFarm) -> list[tuple[str, str]]:
    async with farm.store.begin(write=False) as uow:
        return [(event.kind, event.subject) for event in await uow.events.list()][::-1]


async def test_grants_and_waits_of_a_step_are_one_transaction(farm) -> None:
    for number in range(6):
        await farm.request(f"l{number}", "1")
    decisions, view = await decided(farm)
    assert [type(each) for each in decisions if type(each) is not DeployServices] == [Grant] * 4 + [Wait] * 2
    farm.store.writes = 0
    assert await carry_out(farm, decisions, view) == 4  # a message is no reason for another look
    assert farm.store.writes == 1
    assert await statuses(farm, "l0", "l3", "l4") == [
        LeaseStatus.STARTING,
        LeaseStatus.STARTING,
        LeaseStatus.WAITING,
    ]
    assert "in the queue" in (await farm.lease("l5")).message
    assert await events(farm) == [("lease.starting", f"l{number}") for number in range(4)]
    await check_invariants(farm.store)


async def test_a_transaction_is_bounded_and_grants_come_first(farm, monkeypatch) -> None:
    monkeypatch.setattr(act, "TOGETHER", 2)
    for number in range(6):
        await farm.request(f"l{number}", "4" if number == 0 else "1")  # the first one waits
    decisions, view = await decided(farm)
    granted = []
    begin = farm.store.begin

    def counting(*, write: bool = True):
        if write:
            leases = farm.store.state.leases.values()
            granted.append(sum(lease.status is LeaseStatus.STARTING for lease in leases))
        return begin(write=write)

    monkeypatch.setattr(farm.store, "begin", counting)
    assert await carry_out(farm, decisions, view) == 4
    assert granted == [0, 2, 4]
    assert await events(farm) == [("lease.starting", f"l{number}") for number in range(1, 5)]


async def test_what_has_changed_since_is_left_out_and_all_else_is_kept(farm) -> None:
    for number in range(3):
        await farm.request(f"l{number}", "1")
    decisions, view = await decided(farm)
    await farm.release("l1")
    assert await carry_out(farm, decisions, view) == 2
    assert await statuses(farm, "l0", "l1", "l2") == [
        LeaseStatus.STARTING,
        LeaseStatus.WAITING,
        LeaseStatus.STARTING,
    ]
    assert (await farm.lease("l1")).target is Target.END
    assert await events(farm) == [("lease.starting", "l0"), ("lease.starting", "l2")]
    await farm.settle()
    assert await statuses(farm, "l0", "l1", "l2") == [
        LeaseStatus.ACTIVE,
        LeaseStatus.ENDED,
        LeaseStatus.ACTIVE,
    ]


async def test_one_that_the_store_refuses_keeps_no_other_from_being_stored(farm, caplog) -> None:
    for number in range(5):
        await farm.request(f"l{number}", "0.5")
    await farm.settle()
    lease = await farm.lease("l3")
    async with farm.store.begin() as uow:  # such an entry is there already: this one can never be closed
        now_ms = farm.clock.now_ms()
        await uow.ledger.append(LedgerEntry("a", "l3", lease.segment, "manual", 500, now_ms, now_ms, 0))
        await uow.commit()
    for number in range(5):
        await farm.release(f"l{number}")
    await farm.settle()
    assert await statuses(farm, *(f"l{number}" for number in range(5))) == [
        LeaseStatus.ENDING if number == 3 else LeaseStatus.ENDED for number in range(5)
    ]
    assert ("lease.ended", "l3") not in await events(farm)
    assert "lease_id='l3'" in caplog.text
    assert "lease_id='l4'" not in caplog.text


async def test_a_store_that_does_not_answer_is_tried_again(farm, caplog) -> None:
    await farm.request("l0", "1")
    await farm.request("l1", "1")
    decisions, view = await decided(farm)
    begin = farm.store.begin
    asked = []

    def down(*, write: bool = True):
        if write:
            asked.append(write)
            raise UnavailableError("down")
        return begin(write=write)

    farm.store.begin = down
    assert await carry_out(farm, decisions, view) == 0
    assert "down" in caplog.text
    assert len(asked) == 1  # not for one lease after the other
    farm.store.begin = begin
    await farm.settle()
    assert await statuses(farm, "l0", "l1") == [LeaseStatus.ACTIVE, LeaseStatus.ACTIVE]


async def test_no_step_ends_before_its_grants_are_stored(farm, monkeypatch) -> None:
    """Else the next one, which does not see them, might give the same GPUs to another lease."""
    commit = MemoryUnitOfWork.commit

    async def slow(uow) -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        await commit(uow)

    monkeypatch.setattr(MemoryUnitOfWork, "commit", slow)
    await farm.request("l0", "1")
    decisions, view = await decided(farm)
    farm.steward.actor.patience_s = 0
    assert await carry_out(farm, decisions, view) == 1
    assert await statuses(farm, "l0") == [LeaseStatus.STARTING]


async def test_of_two_decisions_about_one_lease_the_second_waits_for_the_next_step(farm) -> None:
    await farm.request("l0", "1")
    decisions, view = await decided(farm)
    both = (ReleaseLease("l0", None), *decisions)
    assert await carry_out(farm, both, view) == 1
    lease = await farm.lease("l0")
    assert (lease.status, lease.target, lease.version) == (LeaseStatus.WAITING, Target.END, 1)


async def test_a_decision_that_can_never_be_carried_out_keeps_no_other_from_it(farm, caplog) -> None:
    await farm.request("l0", "1")
    await farm.request("l1", "1")
    decisions, view = await decided(farm)
    wrong = EndLease("l1", None, "a waiting lease cannot be ending", 0)
    assert await carry_out(farm, (wrong, *decisions), view) == 2
    assert "no step from WAITING to ENDING" in caplog.text


async def test_a_steward_that_is_fenced_between_two_transactions_stores_no_more(farm, monkeypatch) -> None:
    monkeypatch.setattr(act, "TOGETHER", 1)
    await farm.request("l0", "1")
    await farm.request("l1", "1")
    decisions, view = await decided(farm)
    begin = farm.store.begin
    begun = []

    def fencing(*, write: bool = True):
        begun.append(write)
        if begun.count(True) == 2:
            farm.store.state = replace(farm.store.state, epoch=farm.steward.epoch + 1)
        return begin(write=write)

    monkeypatch.setattr(farm.store, "begin", fencing)
    with pytest.raises(FencedError):
        await carry_out(farm, decisions, view)
    assert await statuses(farm, "l0", "l1") == [LeaseStatus.STARTING, LeaseStatus.WAITING]


@pytest.fixture
def go(monkeypatch) -> asyncio.Event:
    """Let hosts be slow to answer orders, and refuse them, when told to go on, as those of an older epoch."""
    event = asyncio.Event()

    async def refuse(*_args: object, **_more: object) -> None:
        await event.wait()
        raise FencedError("a newer epoch")

    monkeypatch.setattr(FakeHosts, "kill_node", refuse)
    monkeypatch.setattr(FakeHosts, "start_node", refuse)
    return event


async def test_an_order_that_is_fenced_after_its_steward_has_ended_ends_quietly(farm, go) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    farm.steward.actor.patience_s = 0
    view = await farm.steward.observer.look(farm.steward.epoch)
    assert await carry_out(farm, (KillNode("h0", "l9-0"),), view) == 0
    (order,) = farm.steward.actor._under_way.values()
    farm.steward = None  # it has ended, and nobody waits for the order any more
    go.set()
    await asyncio.wait([order])
    del order
    gc.collect()
    assert complaints == []


async def test_the_next_step_ends_with_what_an_order_under_way_has_met(farm, go) -> None:
    farm.steward.actor.patience_s = 0
    view = await farm.steward.observer.look(farm.steward.epoch)
    assert await carry_out(farm, (KillNode("h0", "l9-0"),), view) == 0
    go.set()
    farm.steward.actor.patience_s = 1
    with pytest.raises(FencedError, match="a newer epoch"):
        await carry_out(farm, (), view)
    with pytest.raises(FencedError, match="a newer epoch"):
        await farm.steward.actor.finish()


async def test_a_slow_host_keeps_nothing_from_being_stored(farm, go) -> None:
    await farm.request("l0", "1")
    await farm.steward.step()
    await farm.request("l1", "1")
    farm.steward.actor.patience_s = 0
    decisions, view = await decided(farm)
    assert [type(each) for each in decisions if isinstance(each, StartNode | Grant)] == [StartNode, Grant]
    assert await carry_out(farm, decisions, view) == 1
    assert await statuses(farm, "l0", "l1") == [LeaseStatus.STARTING, LeaseStatus.STARTING]
    go.set()


@pytest.fixture
async def handing_over(farm, monkeypatch) -> tuple[Job, asyncio.Event]:
    """A job that is being handed to Ray, in a lease that outlives it, and what ends the upload of its packages."""
    submit, begun, uploaded = FakeRayJobs.submit, asyncio.Event(), asyncio.Event()

    async def slow(*args: object, **how: object) -> None:
        begun.set()
        await uploaded.wait()
        await submit(*args, **how)

    monkeypatch.setattr(FakeRayJobs, "submit", slow)
    await farm.request("l0", "1")
    await farm.settle()
    job = await farm.submit("j0", "l0", owns_lease=False)
    farm.steward.actor.patience_s = 0.01
    await farm.steward.step()
    await begun.wait()
    return job, uploaded


async def change(farm: MemoryFarm, job_id: str, **changes: object) -> None:
    async with farm.store.begin() as uow:
        await uow.jobs.update(replace(await uow.jobs.get(job_id), **changes))
        await uow.commit()


async def test_a_job_that_is_stopped_while_it_is_handed_to_ray_does_not_go_on(farm, handing_over) -> None:
    job, uploaded = handing_over
    await change(farm, "j0", target=Target.END)
    await farm.steward.step()
    uploaded.set()
    await farm.steward.actor.finish()
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.STOPPED
    await farm.settle()
    assert (await farm.job("j0")).status is JobStatus.STOPPED
    assert await statuses(farm, "l0") == [LeaseStatus.ACTIVE]


@pytest.mark.parametrize("why", ["stopped", "deleted", "its lease is over"])
async def test_what_a_steward_hands_over_that_has_been_replaced_is_stopped_too(
    farm, handing_over, why
) -> None:
    job, uploaded = handing_over
    old = farm.steward
    if why == "its lease is over":
        await farm.release("l0")
    else:
        await change(farm, "j0", target=Target.END)
    farm.ray_jobs.down = True
    await farm.crash()
    await farm.settle()
    farm.ray_jobs.down = False
    await farm.settle()
    assert (await farm.job("j0")).status.is_terminal  # Ray does not know it
    if why == "deleted":
        async with farm.store.begin() as uow:
            await uow.jobs.delete("j0")
            await uow.commit()
    uploaded.set()
    await old.actor.finish()
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.STOPPED


async def test_an_attempt_that_reaches_ray_after_it_was_given_up_is_stopped(farm, handing_over) -> None:
    job, uploaded = handing_over
    await change(farm, "j0", submitted_ms=None, attempt=1)
    uploaded.set()
    await farm.steward.actor.finish()
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.STOPPED
    await farm.settle()
    again = await farm.job("j0")
    assert (again.status, again.ray_id) == (JobStatus.RUNNING, f"{job.ray_id}.1")


async def test_a_submission_that_fails_without_an_answer_leaves_nothing(
    farm, handing_over, monkeypatch
) -> None:
    job, uploaded = handing_over
    check = FakeRayJobs._check

    def lose_the_answer(ray_jobs: FakeRayJobs) -> None:
        check(ray_jobs)
        if uploaded.is_set() and job.ray_id not in ray_jobs.jobs:
            ray_jobs.jobs[job.ray_id] = RayJob(job.ray_id, JobStatus.RUNNING)
            raise UnavailableError("no answer")

    monkeypatch.setattr(FakeRayJobs, "_check", lose_the_answer)
    await change(farm, "j0", submitted_ms=None, attempt=1)
    uploaded.set()
    await farm.steward.actor.finish()
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.STOPPED


async def test_a_steward_that_dies_as_it_hands_a_stopped_job_over_leaves_it_to_the_next(
    farm, handing_over, monkeypatch
) -> None:
    job, uploaded = handing_over
    await change(farm, "j0", target=Target.END)
    await farm.steward.step()
    assert (
        await farm.job("j0")
    ).status is JobStatus.PENDING  # not over: the next steward would not look for it

    async def die(*_args: object) -> None:
        raise FencedError("dead")

    monkeypatch.setattr(WorkloadOrders, "_stop_unwanted", die)
    uploaded.set()
    with pytest.raises(FencedError, match="dead"):
        await farm.steward.actor.finish()
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.RUNNING
    await farm.crash()
    await farm.settle()
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.STOPPED
    assert (await farm.job("j0")).status is JobStatus.STOPPED


async def test_a_mistake_in_one_order_keeps_no_other_from_being_carried_out(
    farm, monkeypatch, caplog
) -> None:
    start_node = FakeHosts.start_node

    async def mistaken(hosts, piece, *more, **how):
        if piece.lease_id == "l0":
            raise RecursionError("a mistake")
        return await start_node(hosts, piece, *more, **how)

    with monkeypatch.context() as wrong:
        wrong.setattr(FakeHosts, "start_node", mistaken)
        await farm.request("l0", "1")
        await farm.request("l1", "1")
        for _ in range(5):
            await farm.steward.step()
            await farm.steward.actor.finish()
    assert await statuses(farm, "l0", "l1") == [LeaseStatus.STARTING, LeaseStatus.ACTIVE]
    assert "Traceback" in caplog.text
    with pytest.raises(RecursionError, match="a mistake"):  # no test passes over it
        await farm.settle()
    farm.steward.actor.troubles.mistake = None
    await farm.settle()
    assert await statuses(farm, "l0") == [LeaseStatus.ACTIVE]


async def test_a_mistake_in_one_change_keeps_no_other_from_being_stored(farm, monkeypatch, caplog) -> None:
    await farm.request("l0", "1")
    await farm.request("l1", "1")
    decisions, view = await decided(farm)
    grant = act.CHANGES[Grant]

    def mistaken(decision, view):
        if decision.lease_id == "l0":
            raise KeyError("a mistake")
        return grant(decision, view)

    monkeypatch.setattr(act, "CHANGES", {**act.CHANGES, Grant: mistaken})
    assert await carry_out(farm, decisions, view) == 1
    assert await statuses(farm, "l0", "l1") == [LeaseStatus.WAITING, LeaseStatus.STARTING]
    assert "Traceback" in caplog.text
