"""Every host of the farm, through its agent. Agents are found by the labels of the base nodes, and made if missing."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from cloudfarm.domain.host import Host, NodeMeter
from cloudfarm.domain.lease import Slice
from cloudfarm.errors import CloudfarmError, HostError
from cloudfarm.raylayer.agent import WAITING, HostAgent

log = logging.getLogger(__name__)

NAMESPACE = "cloudfarm"
OBSERVE_TIMEOUT_S = 5.0
ORDER_TIMEOUT_S = 60.0
THREADS = 16
"""Of an agent, for calls that wait for nodes, and again for all others."""


class RayHosts:
    """Implements :class:`cloudfarm.ports.Hosts`; lives in a process connected to the cluster.

    ``on_change`` is called when a lease node has come up or failed.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = _nothing
        self._agents: dict[str, Any] = {}
        self._last: dict[str, Host] = {}
        self._waits: set[asyncio.Task[None]] = set()
        self._gcs = GcsClient(address=ray.get_runtime_context().gcs_address)

    async def observe(self) -> Sequence[Host]:
        """Return every known host with its nodes; a silent one as it was last seen, with ``reachable=False``."""
        await asyncio.to_thread(self._find_agents)
        known = sorted(self._agents.keys() | self._last.keys())
        found = await asyncio.gather(*(self._observe_one(host) for host in known))
        return [host for host in found if host is not None]

    async def _observe_one(self, host: str) -> Host | None:
        try:
            self._last[host] = await self._call(host, "observe", timeout_s=OBSERVE_TIMEOUT_S)
        except CloudfarmError as error:
            log.warning("host %s: %s", host, error)
            last = self._last.get(host)
            return None if last is None else replace(last, reachable=False, nodes=())
        return self._last[host]

    def _find_agents(self) -> None:
        for node in ray.nodes():
            labels = node["Labels"]
            host = labels.get("host")
            if node["Alive"] and labels.get("farm") == "control" and host and host not in self._agents:
                self._agents[host] = (
                    ray.remote(concurrency_groups={WAITING: THREADS})(HostAgent)
                    .options(
                        name=f"agent:{host}",
                        namespace=NAMESPACE,
                        lifetime="detached",
                        get_if_exists=True,
                        max_restarts=-1,
                        max_concurrency=THREADS,
                        num_cpus=0,
                        label_selector={"farm": "control", "host": host},
                    )
                    .remote()
                )

    async def start_node(
        self,
        piece: Slice,
        *,
        tenant: str,
        epoch: int,
        labels: Mapping[str, str],
        env: Mapping[str, str],
    ) -> None:
        """Order a lease node; see :class:`cloudfarm.ports.Hosts`."""
        await self._call(piece.host, "start_node", piece, epoch, {**labels, "tenant": tenant}, dict(env))
        wait = asyncio.create_task(self._tell_when_up(piece))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _tell_when_up(self, piece: Slice) -> None:
        try:
            await self._call(piece.host, "wait_up", piece.name, ORDER_TIMEOUT_S)
        except CloudfarmError as error:
            log.info("waiting for %s: %s", piece.name, error)
        self.on_change()

    async def drain_node(
        self, host: str, node_id: str, *, deadline_ms: int, epoch: int, message: str
    ) -> None:
        """Tell Ray that the node goes away at the deadline; see :class:`cloudfarm.ports.Hosts`.

        Raises:
            FencedError: if the host has seen a newer epoch.
        """
        await self._call(host, "check_epoch", epoch)
        accepted, why = await asyncio.to_thread(
            self._gcs.drain_node,
            node_id,
            DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            message,
            deadline_ms,
        )
        if not accepted:
            raise HostError(f"{host}: Ray does not drain node {node_id}: {why}")

    async def kill_node(self, host: str, name: str, *, epoch: int) -> NodeMeter | None:
        """Kill a lease node; see :class:`cloudfarm.ports.Hosts`."""
        meter: NodeMeter | None = await self._call(host, "kill_node", name, epoch)
        return meter

    async def kill_pid(self, host: str, name: str, pid: int, *, epoch: int) -> bool:
        """Kill one process of a lease node; False if it is gone."""
        return bool(await self._call(host, "kill_pid", name, pid, epoch))

    async def read_log(self, host: str, name: str, file: str, *, max_bytes: int) -> bytes:
        """Return the end of a file of the node's Ray log folder; see :class:`cloudfarm.ports.Hosts`."""
        return bytes(await self._call(host, "read_log", name, file, max_bytes))

    async def _call(self, host: str, method: str, *args: Any, timeout_s: float = ORDER_TIMEOUT_S + 5) -> Any:
        agent = self._agents.get(host)
        if agent is None:
            raise HostError(f"host {host} is not in the cluster")
        call: Coroutine[Any, Any, Any] = _await(getattr(agent, method).remote(*args))
        try:
            return await asyncio.wait_for(call, timeout_s)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, CloudfarmError):
                raise cause from error
            raise HostError(f"host {host} failed to {method}: {error}") from error
        except ActorDiedError as error:
            # For ever, as one whose `__init__` failed: Ray restarts it no more, and the next look makes another.
            if self._agents.get(host) is agent:  # not the other one, if this call fails late
                del self._agents[host]
            log.warning("the agent of host %s has died: %s", host, error)
            raise HostError(f"the agent of host {host} has died; another one is made") from error
        except (TimeoutError, GetTimeoutError, RayActorError) as error:
            raise HostError(f"the agent of host {host} does not answer") from error
        except RayError as error:
            raise HostError(f"host {host}: {error}") from error


def _nothing() -> None:
    """Nobody waits for a change."""


async def _await(reference: Any) -> Any:
    return await reference
