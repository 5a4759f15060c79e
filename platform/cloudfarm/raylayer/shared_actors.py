"""Ray Data's cluster-wide helper actors, created on the control plane before any tenant needs them.

Ray Data and elastic Ray Train get-or-create these detached actors by one fixed name for the whole cluster,
pinned to the node of whoever asks first. Left alone they would be born on the first tenant's lease node,
serve everybody from there, and die with that lease in the middle of other tenants' runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def create_shared_actors() -> Mapping[str, Any]:
    """Create, or find, the shared actors; return their handles by name.

    Call it once in a driver of the farm's own that is attached to the head or a base node, when the farm
    starts and after the head was replaced. The actors are pinned to that node.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (  # noqa: PLC0415 - 1 s
        get_or_create_autoscaling_coordinator,
    )
    from ray.data._internal.execution.autoscaling_requester import (  # noqa: PLC0415
        get_or_create_autoscaling_requester_actor,
    )
    from ray.data._internal.execution.node_trackers.actor_location import (  # noqa: PLC0415
        get_or_create_actor_location_tracker,
    )
    from ray.data._internal.stats import get_or_create_stats_actor  # noqa: PLC0415

    return {
        "AutoscalingCoordinator": get_or_create_autoscaling_coordinator(),
        "AutoscalingRequester": get_or_create_autoscaling_requester_actor(),
        "ActorLocationTracker": get_or_create_actor_location_tracker(),
        "datasets_stats_actor": get_or_create_stats_actor(),
    }
