"""Apply the rules at Ray's own choke point: the core worker's three calls that ask for a place.

Every task, actor and placement group of a Python process, whoever creates it (user code, Train, Data, Tune,
Serve), is submitted by one object, `ray._private.worker.global_worker.core_worker`, through `submit_task`,
`create_actor` or `create_placement_group`. `ray._raylet.CoreWorker` is replaced by a subclass that settles
the label selectors in these three and passes everything else on. Nothing above (options, decorators,
libraries) has to be known.

Serve replicas are the exception: the Serve controller, a process of the farm, creates them. A tenant's
`serve.run` is therefore confined where the tenant's own process writes down what a replica needs,
`ReplicaConfig.create`.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

from cloudfarm.raylayer.hook import HookError
from cloudfarm.raylayer.hook.rules import (
    ConfinementError,
    ControlScope,
    LeaseScope,
    Scope,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GCS_TIMEOUT_S = 10.0
_NEEDED_PARAMETERS = {
    "submit_task": (
        "function_descriptor",
        "resources",
        "scheduling_strategy",
        "label_selector",
        "fallback_strategy",
    ),
    "create_actor": (
        "function_descriptor",
        "resources",
        "scheduling_strategy",
        "label_selector",
        "fallback_strategy",
    ),
    "create_placement_group": ("bundles", "soft_target_node_id", "bundle_label_selector"),
}


def confine_core_worker(raylet: Any) -> None:
    """Replace `ray._raylet.CoreWorker` by a subclass that keeps this process's work in its place.

    Raises:
        HookError: This Ray's core worker is not the one that the hook knows.
    """
    base = raylet.CoreWorker
    arguments = {method: _Arguments(base, method, needed) for method, needed in _NEEDED_PARAMETERS.items()}
    labels_of_node = NodeLabels(raylet)
    lease = os.environ.get("CLOUDFARM_LEASE")
    scope: Scope = LeaseScope(lease, labels_of_node) if lease else ControlScope()
    raylet.CoreWorker = confined(base, scope, arguments, labels_of_node)


def confined(
    base: type,
    scope: Scope,
    arguments: Mapping[str, _Arguments],
    labels_of_node: Callable[[str], Mapping[str, str] | None],
) -> type:
    """Return the subclass of the core worker that applies `scope`."""

    class CoreWorker(base):  # type: ignore[misc]
        """Ray's core worker, confined."""

        _cloudfarm_scope = scope
        _cloudfarm_is_at_home = False

        def submit_task(self, *args: Any, **kwargs: Any) -> Any:
            self._cloudfarm_check_home()
            args = _settle_work(scope, arguments["submit_task"], args, kwargs)
            return super().submit_task(*args, **kwargs)

        def create_actor(self, *args: Any, **kwargs: Any) -> Any:
            self._cloudfarm_check_home()
            args = _settle_work(scope, arguments["create_actor"], args, kwargs)
            return super().create_actor(*args, **kwargs)

        def create_placement_group(self, *args: Any, **kwargs: Any) -> Any:
            self._cloudfarm_check_home()
            call = arguments["create_placement_group"].bind(args, kwargs)
            call["bundle_label_selector"] = scope.place_bundles(
                len(call["bundles"]),
                call["bundle_label_selector"],
                node_wanted=bool(call["soft_target_node_id"]),
            )
            return super().create_placement_group(*call.args, **kwargs)

        def _cloudfarm_check_home(self) -> None:
            """Refuse to submit anything when this process is attached to a node that is not its own.

            Where PID namespaces are missing, a driver can join another raylet of the same host; its helpers,
            pinned to "the driver's node", would then run there. Looked up once a process, about 2 ms.
            """
            if self._cloudfarm_is_at_home:
                return
            node_id = self.get_current_node_id().hex()
            key, value = scope.label
            labels = labels_of_node(node_id) or {}
            if labels.get(key) != value:
                raise ConfinementError(
                    f"this process belongs to {key}={value} but is attached to node {node_id}, "
                    f"labelled {dict(labels)}"
                )
            self._cloudfarm_is_at_home = True

    CoreWorker.__module__ = base.__module__
    CoreWorker.__qualname__ = base.__qualname__
    return CoreWorker


class _Arguments:
    """Where a core worker's method has the arguments of interest; they come by position or by name."""

    def __init__(self, base: type, method: str, needed: tuple[str, ...]) -> None:
        """Look at the method's signature.

        Raises:
            HookError: The method or one of its parameters is missing in this Ray.
        """
        function = getattr(base, method, None)
        names = list(inspect.signature(function).parameters)[1:] if function else []
        missing = [name for name in needed if name not in names]
        if missing:
            import ray  # noqa: PLC0415 - only to say which version it is

            raise HookError(
                f"CoreWorker.{method} of Ray {getattr(ray, '__version__', '?')} has no {missing}: "
                "Cloudfarm's start-up hook cannot keep this process in its lease, so Ray is not imported"
            )
        self._index = {name: names.index(name) for name in needed}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """Return a view of one call's arguments by name."""
        return _Call(self._index, list(args), kwargs)


class _Call:
    """One call's arguments, read and written by name."""

    def __init__(self, index: Mapping[str, int], args: list[Any], kwargs: dict[str, Any]) -> None:
        self._index = index
        self.args = args
        self._kwargs = kwargs

    def __getitem__(self, name: str) -> Any:
        return self._kwargs[name] if name in self._kwargs else self.args[self._index[name]]

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self._kwargs:
            self._kwargs[name] = value
        else:
            self.args[self._index[name]] = value


def _settle_work(scope: Scope, arguments: _Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply the scope to one submission; return the positional arguments, change the named ones in place."""
    call = arguments.bind(args, kwargs)
    descriptor, strategy = call["function_descriptor"], call["scheduling_strategy"]
    placed = scope.place(
        Work(
            module=getattr(descriptor, "module_name", ""),  # Java and C++ descriptors have none
            name=getattr(descriptor, "class_name", "") or getattr(descriptor, "function_name", ""),
            resources=call["resources"],
            selector=call["label_selector"],
            fallback=call["fallback_strategy"],
            affinity=getattr(strategy, "node_id", None),
            affinity_is_soft=bool(getattr(strategy, "soft", False)),
            in_group=getattr(strategy, "placement_group", None) is not None,
        )
    )
    call["label_selector"] = placed.selector
    call["fallback_strategy"] = placed.fallback
    if placed.drop_affinity:
        call["scheduling_strategy"] = "DEFAULT"
    return call.args


class NodeLabels:
    """Labels of nodes by id, asked once from the GCS: labels never change while a node lives."""

    def __init__(self, raylet: Any) -> None:
        self._raylet = raylet
        self._known: dict[str, Mapping[str, str]] = {}

    def __call__(self, node_id: str) -> Mapping[str, str] | None:
        """Return the node's labels, or None when the GCS knows no such living node."""
        if node_id not in self._known:
            from ray._private.worker import global_worker  # noqa: PLC0415 - the hook runs before Ray is imported
            from ray.core.generated.gcs_pb2 import GcsNodeInfo  # noqa: PLC0415
            from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # noqa: PLC0415

            wanted = GetAllNodeInfoRequest.NodeSelector(
                node_id=self._raylet.NodeID.from_hex(node_id).binary()
            )
            nodes = global_worker.gcs_client.get_all_node_info(
                timeout=GCS_TIMEOUT_S, node_selectors=[wanted], state_filter=GcsNodeInfo.GcsNodeState.ALIVE
            )
            for node in nodes.values():
                self._known[node_id] = dict(node.labels)
        return self._known.get(node_id)


def confine_replica_config(config: Any) -> None:
    """Make `serve.run` in a lease ask for replicas in that lease.

    Raises:
        HookError: This Serve describes replicas in a way that the hook does not know.
    """
    replica_config = config.ReplicaConfig
    create = replica_config.create
    signature = inspect.signature(create)
    needed = (
        "ray_actor_options",
        "placement_group_bundles",
        "placement_group_bundle_label_selector",
        "placement_group_fallback_strategy",
    )
    missing = [name for name in needed if name not in signature.parameters]
    if missing:
        raise HookError(
            f"ray.serve ReplicaConfig.create has no {missing}: replicas could not be kept in their lease"
        )
    lease = os.environ["CLOUDFARM_LEASE"]
    scope = LeaseScope(lease, lambda _node_id: None)

    def create_in_lease(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        options = dict(arguments.get("ray_actor_options") or {})
        options["label_selector"] = scope.force(options.get("label_selector"))
        if options.get("fallback_strategy"):
            options["fallback_strategy"] = [
                {**option, "label_selector": scope.force(option.get("label_selector"))}
                for option in options["fallback_strategy"]
            ]
        arguments["ray_actor_options"] = options
        if arguments.get("placement_group_fallback_strategy"):
            raise ConfinementError("a placement_group_fallback_strategy could lead out of the lease")
        bundles = arguments.get("placement_group_bundles")
        if bundles:
            arguments["placement_group_bundle_label_selector"] = scope.place_bundles(
                len(bundles), arguments.get("placement_group_bundle_label_selector") or [], node_wanted=False
            )
        return create(**arguments)

    replica_config.create = create_in_lease
