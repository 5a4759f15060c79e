"""Find tenants' work outside its lease, and stop it.

The start-up hook keeps honest code in its lease; this is for all the rest. It believes nothing that a
tenant's process says: it asks the GCS and every raylet, and compares the place where something runs with the
place where its job's *driver* runs.

What is asked in one `survey` (all calls of a round at once, about 5 ms on a farm of five nodes):

| of | what | lag |
|---|---|---|
| GCS | nodes with labels, jobs with the driver's node, living and starting actors, placement groups | none |
| each raylet | its worker processes with job, actor and pid (`GetNodeStats`) | none |

Task events are not used: they lag by seconds and get lost. A task is found by the worker process that runs
it; a worker belongs to one job for all its life, also while it idles between two tasks. It counts once two surveys
in a row have found it, because it may belong to an actor that ends, or begins, while one is made.

Limits: workers that live shorter than that are not found. Tasks that a Serve *replica* submits carry the farm's job id,
and a worker does not say who owns its task, so they are not found (actors of a replica are, by their owner's node).
Processes that are not Ray's are the host agent's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import (
    core_worker_pb2,
    core_worker_pb2_grpc,
    gcs_pb2,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    node_manager_pb2,
    node_manager_pb2_grpc,
)

from cloudfarm.raylayer.hook.rules import LEASE_LABEL
from cloudfarm.raylayer.strays import Snapshot, Stray, confirmed, find_strays, named_lease, nodes_by_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Stray", "Survey", "Watch"]

_ACTOR_STATES_WITH_PROCESS = (
    # `__init__` runs in the first two. In this order one that becomes alive meanwhile is seen twice, never
    # missed.
    gcs_pb2.ActorTableData.PENDING_CREATION,
    gcs_pb2.ActorTableData.RESTARTING,
    gcs_pb2.ActorTableData.ALIVE,
)
_NO_ACTOR = b"\xff" * 16
_ALIVE = gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at the farm found."""

    strays: tuple[Stray, ...]
    silent_nodes: tuple[str, ...]
    """Ids of living nodes whose actors alone were seen: their raylet did not answer, or another does at its address."""


class Watch:
    """Looks at one farm again and again; keeps its connections. Use from one thread at a time."""

    def __init__(self, gcs_address: str, *, timeout_s: float = 2.0) -> None:
        """Prepare to look; connects at the first survey.

        Args:
            gcs_address: `host:port` of the GCS. Token and TLS come from the environment, as in all of Ray.
            timeout_s: How long one call may take.
        """
        self._timeout_s = timeout_s
        self._gcs = init_grpc_channel(gcs_address)
        self._raylets: dict[str, grpc.Channel] = {}
        # A dead job's detached actors live on; the GCS may have dropped the dead node where its driver was.
        self._lease_of_job: dict[str, str | None] = {}
        self._seen_before: set[str] = set()

    def close(self) -> None:
        """Close all connections."""
        for channel in (self._gcs, *self._raylets.values()):
            channel.close()
        self._raylets.clear()

    def survey(self) -> Survey:
        """Look once at the whole farm; tasks and workers are found by the second look that sees them.

        Raises:
            grpc.RpcError: The GCS does not answer.
        """
        # Nodes, then raylets, then the rest: whatever a raylet tells of is then in the tables that are read
        # after it.
        nodes = self._ask_nodes()
        snapshot = self._ask_tables(nodes, self._ask_raylets(nodes))
        strays = find_strays(snapshot)
        certain = confirmed(strays, self._seen_before)
        self._seen_before = {stray.id for stray in strays}
        return Survey(tuple(certain), tuple(snapshot.living_nodes - snapshot.workers.keys()))

    def stop_stray(self, stray: Stray) -> None:
        """Stop it at once, without its restarting elsewhere. The next survey shows whether it is gone.

        An actor is killed through the GCS for good. Tasks, workers and drivers are processes: each is told by
        its own RPC port to exit without clean-up, which needs neither its host nor its PID namespace. Ray
        retries a killed task as its `max_retries` allows, so a job that strays again and again has to be
        stopped as a job.

        Raises:
            grpc.RpcError: The GCS or the process did not answer; the host agent must kill `pid`.
        """
        if stray.kind == "actor":
            actors = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(self._gcs)
            actors.KillActorViaGcs(
                gcs_service_pb2.KillActorViaGcsRequest(
                    actor_id=bytes.fromhex(stray.id), force_kill=True, no_restart=True
                ),
                timeout=self._timeout_s,
            )
        elif stray.kind == "placement_group":
            groups = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(self._gcs)
            groups.RemovePlacementGroup(
                gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=bytes.fromhex(stray.id)),
                timeout=self._timeout_s,
            )
        else:
            self._kill_process(stray.address)

    def stop_driver(self, stray: Stray) -> None:
        """Stop the driver of the stray's job, and by that the job: for drivers that belong to no submission.

        Raises:
            grpc.RpcError: The process did not answer.
        """
        if stray.driver_address:
            self._kill_process(stray.driver_address)

    def _kill_process(self, address: str) -> None:
        """Make a worker or driver exit now; "kill no actor" is what a process without an actor obeys."""
        with init_grpc_channel(address) as channel:
            worker = core_worker_pb2_grpc.CoreWorkerServiceStub(channel)
            try:
                worker.KillActor(
                    core_worker_pb2.KillActorRequest(intended_actor_id=_NO_ACTOR, force_kill=True),
                    timeout=self._timeout_s,
                )
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # it is gone before it can answer
                    raise

    def _ask_nodes(self) -> list[Any]:
        """Read the node table, living and dead."""
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(self._gcs)
        reply = stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=self._timeout_s)
        return list(reply.node_info_list)

    def _ask_raylets(self, nodes: Sequence[Any]) -> dict[str, list[Any]]:
        """Read the worker processes of all raylets at once; return them by node, without those who were silent."""
        asked = nodes_by_address(nodes)
        for address in self._raylets.keys() - asked.keys():
            self._raylets.pop(address).close()
        calls = {}
        for address, node_id in asked.items():
            if address not in self._raylets:
                self._raylets[address] = init_grpc_channel(address)
            stub = node_manager_pb2_grpc.NodeManagerServiceStub(self._raylets[address])
            request = node_manager_pb2.GetNodeStatsRequest(include_memory_info=False)
            calls[node_id] = stub.GetNodeStats.future(request, timeout=self._timeout_s)
        return {
            node_id: list(call.result().core_workers_stats)
            for node_id, call in calls.items()
            if call.exception() is None  # waits
        }

    def _ask_tables(self, nodes: Sequence[Any], workers: Mapping[str, list[Any]]) -> Snapshot:
        """Read the GCS's other tables, all at once."""
        jobs_call = gcs_service_pb2_grpc.JobInfoGcsServiceStub(self._gcs).GetAllJobInfo.future(
            gcs_service_pb2.GetAllJobInfoRequest(
                skip_submission_job_info_field=True, skip_is_running_tasks_field=True
            ),
            timeout=self._timeout_s,
        )
        groups_call = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(
            self._gcs
        ).GetAllPlacementGroup.future(gcs_service_pb2.GetAllPlacementGroupRequest(), timeout=self._timeout_s)
        actor_stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(self._gcs)
        actor_calls = []
        for state in _ACTOR_STATES_WITH_PROCESS:
            request = gcs_service_pb2.GetAllActorInfoRequest()
            request.filters.state = state
            actor_calls.append(actor_stub.GetAllActorInfo.future(request, timeout=self._timeout_s))

        lease_of_node = {node.node_id.hex(): node.labels.get(LEASE_LABEL) for node in nodes}
        jobs = {job.job_id.hex(): job for job in jobs_call.result().job_info_list}
        for job_id, job in jobs.items():
            driver_node = job.driver_address.node_id.hex()
            if driver_node in lease_of_node:
                self._lease_of_job[job_id] = lease_of_node[driver_node] or named_lease(job, lease_of_node)
        return Snapshot(
            lease_of_node=lease_of_node,
            living_nodes=frozenset(node.node_id.hex() for node in nodes if node.state == _ALIVE),
            jobs=jobs,
            lease_of_job=dict(self._lease_of_job),
            actors={
                actor.actor_id.hex(): actor
                for call in actor_calls
                for actor in call.result().actor_table_data
                # Without a worker it has no process yet, whatever node it names: the GCS writes down which node it
                # asks for a place, and of an actor that needs no resources it asks any node of the cluster.
                if actor.address.worker_id
            },
            groups=tuple(groups_call.result().placement_group_table_data),
            workers=workers,
        )
