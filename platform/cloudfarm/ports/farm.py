"""Hosts, Ray, Serve, files: ``raylayer``, ``artifacts`` and ``journal`` implement these; ``testing`` has the fakes."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from cloudfarm.domain.generation import Embeddings, Generation, Piece, ToEmbed
from cloudfarm.domain.host import Host, NodeMeter
from cloudfarm.domain.lease import Lease, Slice
from cloudfarm.domain.load import LoadReport
from cloudfarm.domain.served import Note
from cloudfarm.domain.status import Event
from cloudfarm.domain.workload import Deployment, Job, RayJob, ServeApp


class Hosts(Protocol):
    """The farm's hosts through their agents."""

    async def observe(self) -> Sequence[Host]:
        """Return every known host with its nodes; one whose agent does not answer in time has ``reachable=False``."""

    async def start_node(
        self, piece: Slice, *, tenant: str, epoch: int, labels: Mapping[str, str], env: Mapping[str, str]
    ) -> None:
        """Order a lease node; returns once the order is taken. Idempotent by the slice's name.

        Raises:
            FencedError: if the host has seen a newer epoch.
            HostError: if the host cannot.
        """

    async def drain_node(
        self, host: str, node_id: str, *, deadline_ms: int, epoch: int, message: str
    ) -> None:
        """Tell Ray (and through it Ray Train) that the node goes away at the deadline."""

    async def kill_node(self, host: str, name: str, *, epoch: int) -> NodeMeter | None:
        """Kill a lease node with everything in it and return, when nothing is left, what it used. Idempotent.

        None stands for a node that was gone already or cannot be metered.
        """

    async def read_log(self, host: str, name: str, file: str, *, max_bytes: int) -> bytes:
        """Return the end of a file of the node's Ray log folder, until the node is killed; raises NotFoundError."""


class RayJobs(Protocol):
    """The cluster's own Jobs API, behind the front door."""

    async def submit(self, job: Job, *, env: Mapping[str, str], label_selector: Mapping[str, str]) -> None:
        """Submit under ``job.ray_id``; a second time changes nothing."""

    async def list(self) -> Mapping[str, RayJob]:
        """Return every submitted job by ray_id."""

    async def stop(self, ray_id: str) -> bool:
        """Ask Ray to stop a job; False if it was over; raises NotFoundError."""

    async def delete(self, ray_id: str) -> None:
        """Make Ray forget an ended job, if it knows it; raises ConflictError for one that runs."""


class Serving(Protocol):
    """Ray Serve's one configuration."""

    async def open(self) -> None:
        """Make Serve run the farm's own application if it runs nothing yet, without waiting for the first look."""

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Make Serve run the farm's own application and exactly these.

        Unchanged ones are not touched. Of one whose number of replicas alone has changed, the others go on; a replica
        that is to go answers first what it was asked.
        """

    async def remove(self, names: Sequence[str]) -> None:
        """Take applications out of Serve that jobs have started there."""

    async def apps(self) -> Mapping[str, ServeApp]:
        """Return every application by name."""


class Watch(Protocol):
    """Finds and stops tenants' work outside their leases."""

    async def sweep(self, leases: Sequence[Lease]) -> Sequence[Event]:
        """Stop everything that runs where it should not, and say what and why."""


class Artifacts(Protocol):
    """Files of the farm and its tenants on the artifact store. Paths are ``/``-joined parts under one root."""

    def uri(self, *parts: str) -> str:
        """Return where the parts lie, as a URI or path that pyarrow.fs and Ray Train understand on every host."""

    async def write(self, *parts: str, data: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a file whole or not at all and return its size; raises TooLargeError, StorageFullError."""

    async def read(self, *parts: str, max_bytes: int | None = None) -> bytes:
        """Return a file; raises NotFoundError, and TooLargeError, without reading on, for more than ``max_bytes``."""

    async def exists(self, *parts: str) -> bool:
        """Whether there is such a file."""

    async def modified_ms(self, *parts: str) -> int | None:
        """Return when a file was last written, or None if there is no such file."""

    async def list(self, *parts: str) -> Sequence[str]:
        """Return the names in a folder, sorted; empty if there is none."""

    async def delete(self, *parts: str) -> None:
        """Remove a file or folder; missing is fine."""


class UsageJournal(Protocol):
    """Notes of what callers use, until the ledger has them. They outlive the process that wrote them.

    Notes come in batches, each of which is handed over once, whole, under its own name. Several processes may have
    journals in the same place; none sees a batch of another that lives.
    """

    def append(self, notes: Sequence[Note]) -> None:
        """Write notes into the open batch, all or none of them; raises UnavailableError, StorageFullError."""

    def close_batch(self) -> None:
        """Let the open batch, if there is one, wait for its hand-over; the next note opens another."""

    def waiting(self) -> Sequence[str]:
        """Return the names of the batches that wait, those that a dead process left too."""

    def is_own(self, batch: str) -> bool:
        """Whether this journal has written the batch, not one before it."""

    def read(self, batch: str) -> Sequence[Note]:
        """Return the notes of a waiting batch; what cannot be read of it is left out, and logged."""

    def drop(self, batch: str) -> None:
        """Forget a waiting batch that was handed over."""

    def close(self) -> None:
        """Leave everything to whoever opens the journal next."""


class LiveLogs(Protocol):
    """The log of a job that Ray is running."""

    def tail(self, job: Job) -> AsyncIterator[str]:
        """Yield the log's text from its beginning until Ray closes it; raises UnavailableError when cut off."""

    async def read(self, job: Job) -> str:
        """Return the log so far."""


class Inference(Protocol):
    """Calls a service's replicas."""

    async def call(self, app_name: str, payload: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Return the service's answer.

        Raises:
            InvalidInputError: for what the service refuses.
            NoReplicaError: if there is no replica that could take it.
            ReplicaLostError: if one is lost that may have taken it.
            UnavailableError: if none answers in time.
        """

    def generate(
        self, app_name: str, request: Generation, made: Callable[[Piece], None]
    ) -> AsyncGenerator[Piece]:
        """Yield the answer as it is made; closing the generator (``aclose``) stops the work in the engine.

        Args:
            app_name: of the application.
            request: what is asked.
            made: told of each piece as it comes, whether it is ever taken or not.

        Raises:
            InvalidInputError: for what the engine refuses, with ``param`` and ``openai_code`` in its data.
            NoReplicaError: before the first piece, if there is no replica that could take it.
            ReplicaLostError: if one is lost that may have taken it; perhaps after some pieces.
            UnavailableError: if no replica answers.
        """

    async def embed(self, app_name: str, request: ToEmbed, made: Callable[[Piece], None]) -> Embeddings:
        """Return the texts' vectors; tells of their tokens before, and raises as :meth:`generate`."""

    def close(self) -> None:
        """Take no more answers; once nobody waits for any."""


class Apps(Protocol):
    """Calls tenants' own applications."""

    def answer(
        self, app_name: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages of the answer to an HTTP request as they are made.

        Closing the generator (``aclose``) cancels the work in the application.

        Raises:
            AppFailedError: if the application fails before its answer is complete.
            NoReplicaError: before the first message, if there is no replica that could take it.
            ReplicaLostError: if one is lost that may have taken it; perhaps after some messages.
            UnavailableError: if no replica answers.
        """

    def converse(
        self, app_name: str, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the ASGI messages that the application sends to a WebSocket's client, as they are made.

        They end when the application is done with the client, closed or not. Closing the generator (``aclose``)
        cancels the work in the application.

        Args:
            app_name: of the application.
            scope: tells it of the request.
            receive: returns the next ASGI message of the client, which is asked for when the one before was taken;
                after the one that says that the client is gone no more.

        Raises:
            AppFailedError: if the application fails.
            UnavailableError: if no replica answers, or one dies on the way.
        """


class Nudge(Protocol):
    """Tells the steward what it cannot see, and wakes it, so that it acts now and not at its next tick."""

    def nudge(self) -> None:
        """Wake it; never blocks and never fails (the next tick comes anyway)."""

    def report(self, report: LoadReport) -> None:
        """Say how much services are asked; likewise."""
