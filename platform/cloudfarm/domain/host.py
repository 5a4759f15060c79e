"""Hosts as the steward sees them: what they can hold and which lease nodes are really there."""

from dataclasses import dataclass
from enum import StrEnum

from cloudfarm.domain.lease import Grade


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical (or simulated) GPU."""

    index: int
    model: str
    memory_mib: int
    uuid: str = ""


class NodePhase(StrEnum):
    """What a host says of a lease node: being started, up in Ray, or no longer running."""

    STARTING = "starting"
    UP = "up"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class NodeTruth:
    """A lease node found on a host, whoever ordered it."""

    name: str
    lease_id: str
    phase: NodePhase
    node_id: str | None
    started_ms: int
    isolation: str = ""
    reason: str = ""
    """Why it exited."""


@dataclass(frozen=True, slots=True)
class NodeMeter:
    """What a lease node used in all its life."""

    cpu_ms: int
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Host:
    """A server and its lease nodes at one moment."""

    id: str
    gpus: tuple[Gpu, ...]
    cpus: int
    memory_bytes: int
    grade: Grade
    """The best isolation grade this host can give."""
    reachable: bool = True
    """Whether its agent answered this time; if not, ``nodes`` is unknown, not empty."""
    nodes: tuple[NodeTruth, ...] = ()
    seen_ms: int = 0
    """When its agent last answered."""
    cordoned: bool = False
    """Whether new slices are kept off it."""
