"""Where a piece of work may run: pure rules, without Ray.

Each rule takes what is about to be submitted and returns its new label selectors. `LeaseScope` speaks for a
tenant's process on a lease node, `ControlScope` for the farm's own processes on head and base nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Labels = Mapping[str, str]
    LabelsOfNode = Callable[[str], Labels | None]  # None: no such node is known

NODE_ID_LABEL = "ray.io/node-id"
LEASE_LABEL = "lease"
SUBCLUSTER_LABEL = "ray-subcluster"
"""Ray Data's own, on lease nodes with the lease's id."""
REVISION_LABEL = "revision"
FARM_LABEL = "farm"
CONTROL = "control"
HEAD_RESOURCE = "node:__internal_head__"

HEAD_PINNED = frozenset(
    {
        # Detached and on the head by Ray's own wish, so that they outlive the node of the run that they look
        # after. They do no work of the tenant's: a record of runs, a remover of placement groups, usage
        # counters.
        ("ray.train.v2._internal.execution.controller.placement_group_cleaner", "PlacementGroupCleaner"),
        ("ray.train.v2._internal.state.state_actor", "TrainStateActor"),
        ("ray.train._internal.state.state_actor", "TrainStateActor"),
        ("ray.llm._internal.serve.observability.usage_telemetry.usage", "TelemetryAgent"),
        ("ray.llm._internal.batch.observability.usage_telemetry.usage", "_TelemetryAgent"),
    }
)
"""(module, class) of the actors that Ray itself pins to the head node on behalf of a tenant's job."""


class ConfinementError(RuntimeError):
    """The work asks for a place outside its lease."""


class Work(NamedTuple):
    """A task or an actor about to be submitted."""

    module: str
    name: str  # class of an actor, function of a task
    resources: Mapping[str, float]
    selector: Labels | None
    fallback: Sequence[Mapping[str, Any]] | None
    affinity: str | None  # hex id of the node that a NodeAffinitySchedulingStrategy names
    affinity_is_soft: bool
    in_group: bool  # placed by a placement group


class Placed(NamedTuple):
    """The same work with its selectors settled."""

    selector: Labels | None
    fallback: Sequence[Mapping[str, Any]] | None
    drop_affinity: bool = (
        False  # a soft wish for a node outside the lease: place it as if it had not been made
    )


class Scope(Protocol):
    """The places that this process may use."""

    label: tuple[str, str]

    def place(self, work: Work) -> Placed:
        """Return the selectors with which to submit a task or actor."""

    def place_bundles(self, count: int, selectors: Sequence[Labels], *, node_wanted: bool) -> list[Labels]:
        """Return one selector for each of the `count` bundles of a placement group."""


class LeaseScope:
    """Everything runs on nodes labelled with the lease, whatever else it asks for."""

    def __init__(self, lease: str, labels_of_node: LabelsOfNode) -> None:
        self.lease = lease
        self.label = (LEASE_LABEL, lease)
        self._labels_of_node = labels_of_node

    def place(self, work: Work) -> Placed:
        """Force the lease's label on selector and fallbacks; refuse a hard wish for a node outside.

        Raises:
            ConfinementError: The work insists on a node outside the lease.
        """
        what = f"{work.module}.{work.name}"
        if HEAD_RESOURCE in work.resources:
            if (work.module, work.name) in HEAD_PINNED:
                return Placed(work.selector, work.fallback)
            raise ConfinementError(
                f"{what} asks for the farm's head node, which is not part of lease {self.lease}"
            )

        fallback = work.fallback
        if fallback is not None:
            fallback = [self._force_fallback(option) for option in fallback]

        named = work.affinity or _node_named_by(work.selector)
        if named is None:
            return Placed(self.force(work.selector), fallback)
        labels = self._labels_of_node(named)
        if labels is None or labels.get(LEASE_LABEL) == self.lease:
            if work.affinity and work.affinity_is_soft:
                # Ray drops a soft pin to a node that is dead, draining or too small, and looks everywhere.
                return Placed(self.force(work.selector), fallback)
            # Ray's libraries pin helpers to the driver's node; an unknown node is Ray's to complain about.
            return Placed(work.selector, fallback)
        if work.affinity and work.affinity_is_soft:
            return Placed(self.force(work.selector), fallback, drop_affinity=True)
        raise ConfinementError(f"{what} asks for node {named}, which is not part of lease {self.lease}")

    def place_bundles(self, count: int, selectors: Sequence[Labels], *, node_wanted: bool) -> list[Labels]:
        """Force the lease's label on every bundle."""
        del node_wanted  # `_soft_target_node_id` is soft: Ray drops it when the selector does not match
        return [self.force(selector) for selector in selectors or [{}] * count]

    def force(self, selector: Labels | None) -> Labels:
        """Return the selector with the lease's label, over any other lease that it may name."""
        return {**(selector or {}), LEASE_LABEL: self.lease}

    def _force_fallback(self, option: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return one entry of a fallback strategy, confined like the selector that it stands in for."""
        return {**option, "label_selector": self.force(option.get("label_selector"))}


class ControlScope:
    """The farm's own work: on control-plane nodes unless it names a place itself."""

    label = (FARM_LABEL, CONTROL)

    def place(self, work: Work) -> Placed:
        """Add `farm=control` to work that names no lease, service, node, host or placement group."""
        names_place = (
            work.affinity is not None
            or work.in_group
            or any(resource.startswith("node:") for resource in work.resources)
            or _names_place(work.selector)
        )
        return Placed(work.selector if names_place else self._default(work.selector), work.fallback)

    def place_bundles(self, count: int, selectors: Sequence[Labels], *, node_wanted: bool) -> list[Labels]:
        """Add `farm=control` to the bundles that name no lease or node."""
        if node_wanted:
            return list(selectors)
        return [s if _names_place(s) else self._default(s) for s in selectors or [{}] * count]

    def _default(self, selector: Labels | None) -> Labels:
        return {**(selector or {}), FARM_LABEL: CONTROL}


def _names_place(selector: Labels | None) -> bool:
    """Say whether a selector already chooses a lease, a service's leases, a node or the control plane."""
    places = {LEASE_LABEL, REVISION_LABEL, FARM_LABEL, NODE_ID_LABEL}
    return bool(selector) and not places.isdisjoint(selector or ())


def _node_named_by(selector: Labels | None) -> str | None:
    """Return the one node id that a selector names; None also for the operator forms `!id`, `in(...)`."""
    value = (selector or {}).get(NODE_ID_LABEL)
    return value if value and value.isalnum() else None
