"""What a lease's processes see of the cluster, and count on: the nodes of their lease.

Stock code sizes itself by `ray.cluster_resources()` and `ray.nodes()`, and Ray Data and elastic Ray Train by what one
actor, shared by the whole cluster, reserves for them. Without this they would count on other tenants' slices: Train
would start more workers than fit, and each of several datasets would get its part of every lease and none of the one
CPU of its own. Ray has a word for a part of a cluster that is to be counted by itself: nodes with the same label
`ray-subcluster`. Lease nodes carry it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cloudfarm.raylayer.hook import HookError
from cloudfarm.raylayer.hook.rules import LEASE_LABEL, SUBCLUSTER_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def show_own_nodes(state: Any) -> None:
    """Have Ray's view of nodes and resources, as Python code gets it, hold the lease's nodes only.

    Raises:
        HookError: Ray looks at the cluster in a way that the hook does not know.
    """
    view: Any = getattr(state, "GlobalState", None)
    per_node = ("total_resources_per_node", "available_resources_per_node")
    if not all(hasattr(view, name) for name in ("node_table", *per_node)):
        raise HookError("ray._private.state has changed: code would count on other leases' resources")
    lease, every_node = os.environ["CLOUDFARM_LEASE"], view.node_table

    def own_nodes(self: Any) -> list[dict[str, Any]]:
        return [node for node in every_node(self) if (node["Labels"] or {}).get(LEASE_LABEL) == lease]

    def of_own_nodes(every: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def own(self: Any) -> dict[str, Any]:
            ids = {node["NodeID"] for node in own_nodes(self)}
            return {node_id: found for node_id, found in every(self).items() if node_id in ids}

        return own

    view.node_table = own_nodes
    for name in per_node:
        setattr(view, name, of_own_nodes(getattr(view, name)))


def show_own_logs(worker: Any) -> None:
    """Have a driver show what its own job's workers print, and nobody else's.

    Ray publishes what all workers print to all drivers, which leave out what is of another job. Serve's client turns
    that off, to show what replicas print: those of every tenant.

    Raises:
        HookError: Ray keeps jobs' lines apart in a way that the hook does not know.
    """
    if getattr(getattr(worker, "global_worker", None), "_filter_logs_by_job", None) is not True:
        raise HookError("ray._private.worker has changed: drivers would show other tenants' lines")
    worker.Worker._filter_logs_by_job = property(lambda _worker: True, lambda _worker, _wanted: None)  # noqa: SLF001


def reserve_on_own_nodes(coordinator: Any) -> None:
    """Have what Data and Train reserve with the cluster's one coordinator be reserved in the lease.

    Raises:
        HookError: Ray reserves resources in a way that the hook does not know.
    """
    if getattr(coordinator, "SUBCLUSTER_LABEL_KEY", None) != SUBCLUSTER_LABEL:
        raise HookError("Ray Data has other subclusters than the hook knows: leases would share reservations")
    get_or_create = coordinator.get_or_create_autoscaling_coordinator
    selector = {SUBCLUSTER_LABEL: os.environ["CLOUDFARM_LEASE"]}
    coordinator.get_or_create_autoscaling_coordinator = lambda: _OwnCoordinator(get_or_create(), selector)


class _OwnCoordinator:
    """A handle on the coordinator whose requests are for one subcluster."""

    def __init__(self, actor: Any, selector: Mapping[str, str]) -> None:
        self._actor = actor
        self.request_resources = _Requests(actor.request_resources, selector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name)


class _Requests:
    """The coordinator's method that asks for resources."""

    def __init__(self, method: Any, selector: Mapping[str, str]) -> None:
        self._method = method
        self._selector = selector

    def remote(self, **request: Any) -> Any:
        """Ask, with the subcluster."""
        return self._method.remote(**{**request, "subcluster_selector": dict(self._selector)})
