"""Telling the cluster which nodes are dead, as soon as their host knows it: Ray alone finds it out after 17 s."""

from __future__ import annotations

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from cloudfarm.errors import UnavailableError

TIMEOUT_S = 2.0


class NodeDeaths:
    """Tells the GCS; use from any thread.

    Args:
        gcs_address: `host:port` of the GCS. Token and TLS come from the environment, as in all of Ray.
    """

    def __init__(self, gcs_address: str) -> None:
        self._nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(init_grpc_channel(gcs_address))

    def tell(self, name: str) -> None:
        """Have the cluster count a node as dead of which nothing is left.

        A raylet says so itself when it is asked to end, if it has the time. Of one that had not, the cluster goes on
        asking: what it places there, or has passed on from there, waits until then, and some of it fails.

        Raises:
            UnavailableError: if the GCS does not answer.
        """
        living = gcs_service_pb2.GetAllNodeInfoRequest(
            node_selectors=[gcs_service_pb2.GetAllNodeInfoRequest.NodeSelector(node_name=name)],
            state_filter=gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE,
        )
        death = common_pb2.NodeDeathInfo(
            reason=common_pb2.NodeDeathInfo.EXPECTED_TERMINATION, reason_message="its host has ended it"
        )
        try:
            for node in self._nodes.GetAllNodeInfo(living, timeout=TIMEOUT_S).node_info_list:
                request = gcs_service_pb2.UnregisterNodeRequest(node_id=node.node_id, node_death_info=death)
                self._nodes.UnregisterNode(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise UnavailableError(
                f"the cluster cannot be told that {name} is dead: {error.code()}"
            ) from error
