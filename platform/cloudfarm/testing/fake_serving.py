"""Ray Serve in memory: its applications' replicas stand on the nodes of the fake hosts.

``tests/contract`` holds it to what the real one does on a running farm.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloudfarm.domain.host import NodePhase
from cloudfarm.domain.workload import Deployment, Replica, ServeApp
from cloudfarm.errors import UnavailableError
from cloudfarm.testing.fake_farm import FakeHosts

FRONT_DOOR = "front-door"
"""The farm's own application."""


@dataclass(slots=True)
class FakeServing:
    """Serve, whose replicas run as soon as there is a node for them."""

    hosts: FakeHosts | None = None
    """Where replicas are placed; None: anywhere."""
    applied: dict[str, Deployment] = field(default_factory=dict)
    """What was asked for last, by application."""
    deployed: dict[str, int] = field(default_factory=dict)
    """How often each application was deployed, the first time and each time that it had changed."""
    failing: set[str] = field(default_factory=set)
    """Applications that cannot run: Serve has tried often enough."""
    sick: set[str] = field(default_factory=set)
    """Applications whose replicas have stopped answering: Serve starts them anew."""
    busy: set[str] = field(default_factory=set)
    """Applications whose replicas have requests to answer: one that is to go stays."""
    blind: bool = False
    """Whether it has not seen yet that nodes are lost, and takes their replicas for running."""
    down: bool = False
    taking: asyncio.Event | None = None
    """Set when Serve takes what it is told; None: at once."""
    seen: Mapping[str, ServeApp] | None = None
    """What was said last."""
    started: dict[str, ServeApp] = field(default_factory=dict)
    """What jobs have started; :meth:`start` does so."""
    _replicas: dict[str, list[Replica]] = field(default_factory=dict)
    _specs: dict[str, object] = field(default_factory=dict)
    """What Serve was told of each application that runs."""

    async def open(self) -> None:
        """Run the farm's own application if nothing runs."""
        self._check()
        if not self._specs:
            self._deploy({})

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Run the farm's own application and exactly these."""
        self._check()
        if self.taking is not None:
            await self.taking.wait()
        self.applied = {each.revision.app_name: each for each in deployments}
        self._deploy({name: _spec(each) for name, each in self.applied.items()})

    async def apps(self) -> Mapping[str, ServeApp]:
        """Return what runs."""
        self._check()
        self.move()
        names = {*self._specs, *self._replicas}
        self.seen = {name: self._app(name) for name in sorted(names)} | self.started
        return self.seen

    async def remove(self, names: Sequence[str]) -> None:
        """Forget what jobs have started."""
        self._check()
        for name in names:
            self.started.pop(name, None)

    def _app(self, name: str) -> ServeApp:
        running = name not in self.sick
        replicas = tuple(
            replace(each, running=each.running and running) for each in self._replicas.get(name, ())
        )
        runs = name in self._specs and (name == FRONT_DOOR or any(each.running for each in replicas))
        wanted = self.applied[name].replicas if name in self.applied else 0
        failed, given_up = name in self.failing | self.sick, name in self.failing
        return ServeApp(name, runs, failed, "broken" if failed else "", wanted, replicas, given_up=given_up)

    def _deploy(self, specs: Mapping[str, object]) -> None:
        wanted = {FRONT_DOOR: "the farm's own", **specs}
        for name, spec in wanted.items():
            if self._specs.get(name) != spec:
                self.deployed[name] = self.deployed.get(name, 0) + 1
        self._specs = wanted
        self.move()

    def _check(self) -> None:
        if self.down:
            raise UnavailableError("Serve is down")

    # === Test methods ===

    def move(self) -> None:
        """Do what Serve does all the time: forget replicas of nodes that it sees lost, let go of some, place others.

        It stops what is on a node that is being drained as long before the deadline as it may take to finish, which is
        longer than any notice: at once.
        """
        drained: set[str | None] = set()
        if self.hosts is not None:
            drained.update(node_id for _, node_id, _ in self.hosts.drained)
        for name in [*self._replicas, *self.applied]:
            wanted = self.applied[name].replicas if name in self.applied else 0
            there = [each for each in self._replicas.get(name, ()) if self.blind or self._is_up(each.node_id)]
            staying = [each for each in there if not each.stopping and each.node_id not in drained][:wanted]
            going = [replace(each, running=False, stopping=True) for each in there if each not in staying]
            kept = staying + (going if name in self.busy else [])
            if name in self.applied:
                free = self._free_nodes(self.applied[name], drained | {each.node_id for each in kept})
                new = [Replica(node_id, running=name not in self.failing) for node_id in free]
                kept += new[: wanted - len(staying)]
            self._replicas.pop(name, None)
            if kept:
                self._replicas[name] = kept

    def start(self, name: str, lease_id: str, node_id: str | None = None) -> None:
        """Do what a job in a lease does that runs an application of its tenant's own."""
        replicas = (Replica(node_id),)
        self.started[name] = ServeApp(
            name,
            running=True,
            failed=False,
            replicas_wanted=1,
            replicas=replicas,
            lease_ids=frozenset({lease_id}),
        )

    def replicas(self) -> Mapping[str, Sequence[Replica]]:
        """Return what runs now of each application."""
        return {name: tuple(each) for name, each in self._replicas.items()}

    def nodes_of(self, name: str) -> set[str | None]:
        """Return the nodes that an application's replicas stand on."""
        return {each.node_id for each in self._replicas.get(name, ())}

    def _is_up(self, node_id: str | None) -> bool:
        return self.hosts is None or any(
            node.node_id == node_id and node.phase is NodePhase.UP for node in self.hosts.nodes.values()
        )

    def _free_nodes(self, deployment: Deployment, taken: set[str | None]) -> Iterator[str]:
        if self.hosts is None:
            yield from (f"n{number}" for number in range(100) if f"n{number}" not in taken)
            return
        for key, node in sorted(self.hosts.nodes.items()):
            fits = self.hosts.labels[key].get("revision") == deployment.revision.id
            if fits and node.phase is NodePhase.UP and node.node_id is not None and node.node_id not in taken:
                yield node.node_id


def _spec(deployment: Deployment) -> object:
    """Return what of a deployment Serve is told: all else may change without its being touched."""
    revision, service = deployment.revision, deployment.service
    return revision.id, revision.import_path, deployment.model.uri, service.milli_gpus
