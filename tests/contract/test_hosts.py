"""The port Hosts: the fake, and the agent of a host on a running farm."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from cloudfarm.domain.host import NodePhase
from cloudfarm.domain.lease import Grade, Slice
from cloudfarm.domain.quantities import GIB
from cloudfarm.errors import FencedError, HostError, NotFoundError
from cloudfarm.ports import Hosts
from cloudfarm.raylayer.hosts import THREADS
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.fake_farm import FakeHosts, make_host
from tests.processes import eventually

from .bare_farm import CPUS, EPOCHS, HOST, node, node_in

PIECE = Slice("l1", 0, HOST, (1,), 500, 1, GIB)
ELSEWHERE = Slice("l1", 0, "nowhere", (1,), 500, 1, GIB)
ORDER = {"tenant": "kaist", "labels": {"lease": "l1", "host": HOST}, "env": {"CLOUDFARM_LEASE": "l1"}}
LOG = "raylet.out"
FAR_MS = 4_000_000_000_000
"""A deadline far away: what goes before it goes because it is idle."""


@pytest.fixture
async def hosts(farm) -> AsyncIterator[Hosts]:
    port = (
        FakeHosts(ManualClock(), {HOST: make_host(HOST, cpus=CPUS)}) if farm is None else farm.port("hosts")
    )
    yield port
    await port.kill_node(HOST, PIECE.name, epoch=next(EPOCHS))
    assert await node(port, PIECE.name) is None


async def test_a_lease_node_is_started_once_metered_once_and_leaves_nothing(hosts, epoch):
    assert await node(hosts, PIECE.name) is None
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    ordered = await node(hosts, PIECE.name)
    assert ordered.phase in (NodePhase.STARTING, NodePhase.UP)
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    up = await node_in(hosts, PIECE.name, NodePhase.UP)
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    assert await node(hosts, PIECE.name) == up
    assert (up.lease_id, up.started_ms, up.reason) == ("l1", ordered.started_ms, "")
    assert up.node_id
    assert up.isolation

    meter = await hosts.kill_node(HOST, PIECE.name, epoch=epoch)
    assert meter.cpu_ms > 0
    assert meter.peak_memory_bytes > 0
    assert await node(hosts, PIECE.name) is None
    assert await hosts.kill_node(HOST, PIECE.name, epoch=epoch) is None


async def test_a_host_says_what_it_is_and_when_it_was_seen(hosts):
    (host,) = await hosts.observe()
    assert (host.id, host.reachable, host.cpus, host.grade) == (HOST, True, CPUS, Grade.SIMULATED)
    assert [gpu.index for gpu in host.gpus] == [0, 1]
    (later,) = await hosts.observe()
    assert 0 < host.seen_ms <= later.seen_ms


async def test_an_older_steward_is_refused_and_changes_nothing(hosts, epoch):
    old, new = epoch, next(EPOCHS)
    await hosts.start_node(PIECE, epoch=new, **ORDER)
    up = await node_in(hosts, PIECE.name, NodePhase.UP)
    with pytest.raises(FencedError):
        await hosts.kill_node(HOST, PIECE.name, epoch=old)
    with pytest.raises(FencedError):
        await hosts.drain_node(HOST, up.node_id, deadline_ms=FAR_MS, epoch=old, message="")
    assert await node(hosts, PIECE.name) == up
    await hosts.kill_node(HOST, PIECE.name, epoch=new)
    with pytest.raises(FencedError):
        await hosts.start_node(PIECE, epoch=old, **ORDER)
    assert await node(hosts, PIECE.name) is None


async def test_an_unknown_host_can_do_nothing(hosts, epoch):
    with pytest.raises(HostError):
        await hosts.start_node(ELSEWHERE, epoch=epoch, **ORDER)
    with pytest.raises(HostError):
        await hosts.kill_node("nowhere", PIECE.name, epoch=epoch)
    with pytest.raises(HostError):
        await hosts.drain_node("nowhere", "00", deadline_ms=FAR_MS, epoch=epoch, message="")
    with pytest.raises(HostError):
        await hosts.read_log("nowhere", PIECE.name, LOG, max_bytes=10)


async def test_a_drained_idle_node_goes_and_its_logs_stay_until_it_is_killed(hosts, epoch):
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    up = await node_in(hosts, PIECE.name, NodePhase.UP)
    text = await hosts.read_log(HOST, PIECE.name, LOG, max_bytes=10**6)
    assert text
    await hosts.drain_node(HOST, up.node_id, deadline_ms=FAR_MS, epoch=epoch, message="the time is over")
    gone = await node_in(hosts, PIECE.name, NodePhase.EXITED)
    assert gone.lease_id == "l1"
    assert gone.reason
    await hosts.drain_node(HOST, up.node_id, deadline_ms=FAR_MS, epoch=epoch, message="once more")
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    same = await node(hosts, PIECE.name)  # it must be killed before it may come back
    assert (same.phase, same.started_ms) == (NodePhase.EXITED, gone.started_ms)

    whole = await hosts.read_log(HOST, PIECE.name, LOG, max_bytes=10**6)
    assert whole.startswith(text)
    assert await hosts.read_log(HOST, PIECE.name, LOG, max_bytes=8) == whole[-8:]
    assert await hosts.read_log(HOST, PIECE.name, LOG, max_bytes=0) == b""
    await hosts.kill_node(HOST, PIECE.name, epoch=epoch)
    with pytest.raises(NotFoundError):
        await hosts.read_log(HOST, PIECE.name, LOG, max_bytes=8)


async def test_a_log_that_is_not_there_or_not_the_nodes_is_not_found(hosts, epoch):
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    await node_in(hosts, PIECE.name, NodePhase.UP)
    for name, file in ((PIECE.name, "no.log"), (PIECE.name, f"../logs/{LOG}"), ("l9-0", LOG)):
        with pytest.raises(NotFoundError):
            await hosts.read_log(HOST, name, file, max_bytes=8)


async def test_a_node_that_cannot_start_has_exited_with_a_reason_until_it_is_killed(farm, hosts, epoch):
    order = dict(ORDER)
    if farm is None:
        hosts.broken.add(HOST)
    else:
        order["env"] = {"RAY_AUTH_TOKEN_PATH": "/nonexistent"}  # the cluster does not let it in
    for _ in range(3):  # the order to kill it may come before the host has found out why it failed, or after
        await hosts.start_node(PIECE, epoch=epoch, **order)
        exited = await node_in(hosts, PIECE.name, NodePhase.EXITED)
        assert (exited.lease_id, exited.node_id) == ("l1", None)
        assert exited.started_ms > 0
        assert exited.reason
        await hosts.kill_node(HOST, PIECE.name, epoch=epoch)
        assert await node(hosts, PIECE.name) is None


async def test_a_host_is_seen_while_many_calls_wait_for_its_nodes(farm, hosts, epoch):
    async def held_back() -> bool:
        await hosts.start_node(PIECE, epoch=epoch, **ORDER)
        if farm is None:
            return True
        farm.signal_node(PIECE.name, signal.SIGSTOP)
        if (await node(hosts, PIECE.name)).phase is NodePhase.STARTING:
            return True
        await hosts.kill_node(HOST, PIECE.name, epoch=epoch)  # it was up already
        return False

    await eventually(held_back, "a node to be stopped before it is up")
    async with asyncio.timeout(30):
        for _ in range(2 * THREADS):  # each waits for the node to be up
            await hosts.start_node(PIECE, epoch=epoch, **ORDER)
        (host,) = await hosts.observe()
    assert host.reachable
    if farm is not None:
        farm.signal_node(PIECE.name, signal.SIGCONT)
    await node_in(hosts, PIECE.name, NodePhase.UP)


@pytest.mark.own_farm
async def test_a_node_that_was_killed_is_dead_to_the_cluster_at_once_though_it_could_not_say_so(
    bare_farm, epoch
):
    hosts, cluster = bare_farm.port("hosts"), bare_farm.port("cluster")
    await hosts.start_node(PIECE, epoch=epoch, **ORDER)
    await node_in(hosts, PIECE.name, NodePhase.UP)
    assert PIECE.name in await cluster.living()
    bare_farm.signal_node(PIECE.name, signal.SIGSTOP)
    await hosts.kill_node(HOST, PIECE.name, epoch=epoch)
    assert PIECE.name not in await cluster.living()
