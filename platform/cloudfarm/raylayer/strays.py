"""Which of the work seen on the farm is a tenant's outside its lease: a pure judgement on one snapshot.

The lease of a job is the label of the node on which its *driver* runs; jobs whose driver runs on the control
plane are the farm's own and may run anywhere. Exempt is what Ray itself pins to the head on behalf of a
tenant's job (`HEAD_PINNED`, with the reason).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ray.core.generated import common_pb2, gcs_pb2

from cloudfarm.raylayer.hook.rules import HEAD_PINNED

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

Kind = Literal["actor", "task", "worker", "driver", "placement_group"]

_SUPERVISOR_NAME = "_ray_internal_job_actor_{}"
_METADATA_SUBMISSION = "job_submission_id"

METADATA_LEASE = "lease"
"""Key of a submission's metadata that names its lease; it tells a driver that runs in the wrong place."""


@dataclass(frozen=True, slots=True)
class Stray:
    """One piece of a tenant's work outside its lease."""

    kind: Kind
    id: str
    """Hex id of the actor, worker, job (of a driver) or placement group."""
    name: str
    """Class of an actor, name of a placement group, entrypoint of a driver; empty for tasks and workers."""
    job_id: str
    owner_lease: str
    found_on_lease: str | None
    """The other lease, or None for a control-plane node."""
    found_on_node_id: str
    pid: int
    """As seen in the PID namespace of the node where it runs; 0 for a placement group."""
    reason: str
    submission_id: str = ""
    """The submission whose driver sent it there; empty for a driver that the tenant's code started itself."""
    address: str = field(default="", repr=False)
    """Where the process answers (`host:port`); empty for a placement group."""
    driver_address: str = field(default="", repr=False)
    """Where the driver of its job answers; empty when that driver has ended."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the GCS and the raylets said, in Ray's own records; all ids are hex."""

    lease_of_node: Mapping[str, str | None]
    """Of living and dead nodes; None: a node of the control plane."""
    living_nodes: frozenset[str]
    jobs: Mapping[str, Any]
    lease_of_job: Mapping[str, str | None]
    """None: a job of the farm's own. A job that is missing is not known, and left alone."""
    actors: Mapping[str, Any]
    """Those that have a process."""
    groups: tuple[Any, ...]
    workers: Mapping[str, list[Any]]
    """Worker processes by node; one whose raylet was silent, or could not be told from a dead one's, is missing."""


def nodes_by_address(nodes: Iterable[Any]) -> dict[str, str]:
    """Return which living node's raylet answers at each address: the one that started last there.

    A raylet that died without a goodbye counts as alive for about 15 s, in which a new node may get its port. What
    answers there does not say which node it is: the new one's workers would be taken for the dead one's.
    """
    return {
        f"{node.node_manager_address}:{node.node_manager_port}": node.node_id.hex()
        for node in sorted(nodes, key=lambda node: int(node.start_time_ms))
        if node.state == gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE
    }


def find_strays(farm: Snapshot) -> list[Stray]:
    """Return all of the tenants' work that seems to be outside its lease; see :func:`confirmed`."""
    return [*_stray_drivers(farm), *_stray_actors(farm), *_stray_workers(farm), *_stray_groups(farm)]


def confirmed(strays: Iterable[Stray], seen_before: Container[str]) -> list[Stray]:
    """Return those that are certain: of tasks and workers the ones that seemed strays in the survey before, too.

    Raylets are asked before the actors are read. The process of an actor that ends in between is nobody's then, as is
    one whose actor is not written down yet; so an actor that may be where it is would seem to be a stray worker.
    """
    return [stray for stray in strays if stray.kind not in ("task", "worker") or stray.id in seen_before]


def _stray_drivers(farm: Snapshot) -> Iterator[Stray]:
    """Drivers that do not run in the lease for which they were submitted."""
    for job_id, job in farm.jobs.items():
        node_id = job.driver_address.node_id.hex()
        named = named_lease(job, farm.lease_of_node)
        if (
            job.is_dead
            or named is None
            or node_id not in farm.living_nodes
            or farm.lease_of_node[node_id] == named
        ):
            continue
        yield _stray(
            farm,
            "driver",
            job_id,
            name=job.entrypoint,
            job_id=job_id,
            lease=named,
            node_id=node_id,
            pid=job.driver_pid,
            address=job.driver_address,
        )


def _stray_actors(farm: Snapshot) -> Iterator[Stray]:
    """Actors on a node outside the lease of their job, or of the lease node that created them."""
    for actor_id, actor in farm.actors.items():
        node_id = actor.address.node_id.hex()
        if node_id not in farm.living_nodes:  # not placed yet
            continue
        job_id = actor.job_id.hex()
        # The farm's own jobs go anywhere, but what a Serve replica creates belongs to the replica's lease.
        lease = farm.lease_of_job.get(job_id) or farm.lease_of_node.get(actor.owner_address.node_id.hex())
        if lease is None or farm.lease_of_node[node_id] == lease:
            continue
        descriptor = actor.function_descriptor.python_function_descriptor
        if (
            farm.lease_of_node[node_id] is None
            and (descriptor.module_name, descriptor.class_name) in HEAD_PINNED
        ):
            continue
        yield _stray(
            farm,
            "actor",
            actor_id,
            name=actor.class_name,
            job_id=job_id,
            lease=lease,
            node_id=node_id,
            pid=actor.pid or _pid_of(actor_id, farm.workers.get(node_id, ())),
            address=actor.address,
        )


def _stray_workers(farm: Snapshot) -> Iterator[Stray]:
    """Worker processes of a lease's job on a node outside it: with a task, idle, or left by an actor."""
    for node_id, processes in farm.workers.items():
        for worker in processes:
            job_id = worker.job_id.hex()
            lease = farm.lease_of_job.get(job_id)
            if (
                worker.worker_type != common_pb2.WORKER
                or worker.actor_id.hex() in farm.actors  # judged as an actor
                or lease is None
                or farm.lease_of_node[node_id] == lease
            ):
                continue
            kind: Kind = "task" if worker.num_running_tasks else "worker"
            yield _stray(
                farm,
                kind,
                worker.worker_id.hex(),
                job_id=job_id,
                lease=lease,
                node_id=node_id,
                pid=worker.pid,
                address=worker,
            )


def _stray_groups(farm: Snapshot) -> Iterator[Stray]:
    """Placement groups that hold a bundle outside the lease of their job."""
    removed = gcs_pb2.PlacementGroupTableData.REMOVED
    for group in farm.groups:
        job_id = group.creator_job_id.hex()
        lease = farm.lease_of_job.get(job_id)
        if lease is None or group.state == removed:
            continue
        for bundle in group.bundles:
            node_id = bundle.node_id.hex()
            if node_id in farm.living_nodes and farm.lease_of_node[node_id] != lease:
                group_id = group.placement_group_id.hex()
                yield _stray(
                    farm,
                    "placement_group",
                    group_id,
                    name=group.name,
                    job_id=job_id,
                    lease=lease,
                    node_id=node_id,
                )
                break


def _stray(
    farm: Snapshot,
    kind: Kind,
    id_: str,
    *,
    job_id: str,
    lease: str,
    node_id: str,
    name: str = "",
    pid: int = 0,
    address: Any = None,
) -> Stray:
    """Describe one stray."""
    other = farm.lease_of_node[node_id]
    place = f"lease {other}" if other else "the control plane"
    job = farm.jobs.get(job_id)
    what = f"{kind.replace('_', ' ')} {name or id_[:12]}"
    return Stray(
        kind=kind,
        id=id_,
        name=name,
        job_id=job_id,
        owner_lease=lease,
        found_on_lease=other,
        found_on_node_id=node_id,
        pid=pid,
        reason=f"{what} of job {job_id} belongs to lease {lease} but runs on {place}",
        submission_id=_submission_of(farm, job_id),
        address=_host_port(address) if address is not None else "",
        driver_address=_host_port(job.driver_address) if job is not None and not job.is_dead else "",
    )


def _host_port(address: Any) -> str:
    """Return where a process answers, from any record with its `ip_address` and `port`."""
    return f"{address.ip_address}:{address.port}"


def _submission_of(farm: Snapshot, job_id: str) -> str:
    """Return the submission to which a job's driver belongs, or nothing.

    A driver writes its own metadata, so it could name somebody else's submission and have that stopped. It is
    believed only if that submission's supervisor lives on the very node where the driver runs.
    """
    job = farm.jobs.get(job_id)
    if job is None:
        return ""
    submission_id: str = job.config.metadata.get(_METADATA_SUBMISSION, "")
    supervisor = _SUPERVISOR_NAME.format(submission_id)
    for actor in farm.actors.values():
        if actor.name == supervisor and actor.address.node_id == job.driver_address.node_id:
            return submission_id
    return ""


def named_lease(job: Any, lease_of_node: Mapping[str, str | None]) -> str | None:
    """Return the lease that a job's submission metadata names, if a node of that lease is or was known."""
    named: str | None = job.config.metadata.get(METADATA_LEASE)
    return named if named in lease_of_node.values() else None


def _pid_of(actor_id: str, workers: Iterable[Any]) -> int:
    """Return the pid of an actor's worker, which the GCS lacks while `__init__` runs; 0 if unknown."""
    return next((worker.pid for worker in workers if worker.actor_id.hex() == actor_id), 0)
