"""What a slice may use, what a lease node is told about its lease, and the lease that a replica asks for."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace

from cloudfarm.domain.host import Host
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.lease import Ask, Grade, Lease, LeaseKind, Slice
from cloudfarm.domain.quantities import MAX_HOURS, MIB, Shape, gpu_memory_cap
from cloudfarm.domain.workload import RUN_APP, Job, ModelVersion, Revision, Service
from cloudfarm.ports import Artifacts

_STRENGTH = {grade: place for place, grade in enumerate(Grade)}
"""By grade: its place from the strongest on."""


def with_gpu_memory(piece: Slice, host: Host, reserve_percent: int) -> Slice:
    """Return a slice with what it may use of its GPUs' memory."""
    caps = (
        gpu_memory_cap(gpu.memory_mib * MIB, piece.milli_gpus, reserve_percent)
        for gpu in host.gpus
        if gpu.index in piece.gpu_indices
    )
    return replace(piece, gpu_memory_bytes=sum(caps))


def node_labels(lease: Lease, piece: Slice) -> Mapping[str, str]:
    """Return the Ray labels of a lease node.

    ``lease`` is the one that confines, ``ray-subcluster`` the one by which Ray Data and Ray Train count a lease's
    resources apart from the others', ``revision`` the one by which Serve finds the nodes of a service's replicas while
    leases come and go; the others are for people.
    """
    return {
        "lease": lease.id,
        "ray-subcluster": lease.id,
        **({"revision": lease.revision_id} if lease.revision_id is not None else {}),
        "tenant": lease.tenant,
        "host": piece.host,
        "slice": piece.name,
        "share": f"{piece.milli_gpus}m",
        "gpu": "-".join(map(str, piece.gpu_indices)) or "none",
    }


def node_env(lease: Lease, artifacts: Artifacts) -> Mapping[str, str]:
    """Return the environment that every process of the lease gets."""
    return {
        "CLOUDFARM_LEASE": lease.id,
        "CLOUDFARM_TENANT": lease.tenant,
        "CLOUDFARM_STORAGE_PATH": artifacts.uri("tenants", lease.tenant, "runs"),
    }


def weakest(grades: list[Grade]) -> Grade:
    """Return the weakest of some grades: what can be promised of a lease on several hosts."""
    return max(grades, key=_STRENGTH.__getitem__)


def lease_for_replica(service: Service, revision: Revision, now_ms: int) -> Lease:
    """Return a new lease for one replica of a revision: one slice, which may share a GPU, for a year."""
    ask = Ask(
        shape=Shape(1, service.milli_gpus),
        cpus=service.cpus,
        memory_bytes=service.memory_bytes,
        duration_ms=MAX_HOURS * 3_600_000,
        distinct_gpus=False,
    )
    return Lease(
        id=new_id("l"),
        tenant=service.tenant,
        owner=service.owner,
        name=service.name,
        kind=LeaseKind.SERVICE,
        ask=ask,
        created_ms=now_ms,
        project=service.project,
        revision_id=revision.id,
    )


def job_for_app(service: Service, revision: Revision, model: ModelVersion, lease_id: str, now_ms: int) -> Job:
    """Return the job that runs a tenant's own application in a lease of its service."""
    spec = model.manifest["spec"]
    words = ["exec", "python", "-m", RUN_APP, spec["import_path"], "--name", revision.app_name]
    return Job(
        id=new_id("j"),
        tenant=service.tenant,
        owner=service.owner,
        submission_id=revision.job_name(lease_id),
        lease_id=lease_id,
        owns_lease=False,
        entrypoint=shlex.join([*words, "--args", json.dumps(spec["args"])]),
        created_ms=now_ms,
        runtime_env=spec["runtime_env"],
        message=f"runs {revision.app_name}",
    )
