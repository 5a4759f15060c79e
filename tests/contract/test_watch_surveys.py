"""The watch against a GCS and a raylet that answer what a test wrote down, without Ray."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from ray.core.generated import (
    common_pb2,
    gcs_pb2,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    node_manager_pb2,
    node_manager_pb2_grpc,
)

from cloudfarm.raylayer.watch import Watch

A, B = (bytes([number]) * 28 for number in range(1, 3))
JOB = b"\x00\x00\x00\x01"


@pytest.fixture
def farm():
    """A job of lease A; one address at which the GCS and every raylet answer."""
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    farm = SimpleNamespace(address=f"127.0.0.1:{port}", port=port, nodes=[], workers=[])
    job = gcs_pb2.JobTableData(job_id=JOB)
    job.driver_address.node_id = A
    answers = {
        "GetAllNodeInfo": lambda *_: gcs_service_pb2.GetAllNodeInfoReply(node_info_list=farm.nodes),
        "GetAllJobInfo": lambda *_: gcs_service_pb2.GetAllJobInfoReply(job_info_list=[job]),
        "GetAllActorInfo": lambda *_: gcs_service_pb2.GetAllActorInfoReply(),
        "GetAllPlacementGroup": lambda *_: gcs_service_pb2.GetAllPlacementGroupReply(),
        "GetNodeStats": lambda *_: node_manager_pb2.GetNodeStatsReply(core_workers_stats=farm.workers),
    }
    for module, name in (
        (gcs_service_pb2_grpc, "NodeInfoGcsService"),
        (gcs_service_pb2_grpc, "JobInfoGcsService"),
        (gcs_service_pb2_grpc, "ActorInfoGcsService"),
        (gcs_service_pb2_grpc, "PlacementGroupInfoGcsService"),
        (node_manager_pb2_grpc, "NodeManagerService"),
    ):
        servicer = type(
            name, (getattr(module, f"{name}Servicer"),), {k: staticmethod(v) for k, v in answers.items()}
        )
        getattr(module, f"add_{name}Servicer_to_server")(servicer(), server)
    server.start()
    yield farm
    server.stop(None).wait()


@pytest.fixture
def watch(farm):
    watch = Watch(farm.address)
    yield watch
    watch.close()


def node(farm, node_id, lease, start_time_ms):
    return gcs_pb2.GcsNodeInfo(
        node_id=node_id,
        node_manager_address="127.0.0.1",
        node_manager_port=farm.port,
        start_time_ms=start_time_ms,
        labels={"lease": lease},
    )


def task(number):
    return common_pb2.CoreWorkerStats(
        worker_id=bytes([number]) * 28, job_id=JOB, num_running_tasks=1, worker_type=common_pb2.WORKER
    )


def test_a_task_is_found_by_the_second_look_at_it(farm, watch):
    farm.nodes = [node(farm, A, "A", 1), node(farm, B, "B", 2)]
    one, other = task(1), task(2)
    found = []
    for farm.workers in ([one], [one, other], [other], [], [other]):
        found.append([stray.id for stray in watch.survey().strays])
    assert found == [[], [one.worker_id.hex()], [other.worker_id.hex()], [], []]


def test_tasks_of_a_node_are_not_those_of_the_dead_one_whose_port_it_got(farm, watch):
    farm.nodes = [node(farm, A, "A", 2), node(farm, B, "B", 1)]
    farm.workers = [task(1)]
    for _ in range(2):
        survey = watch.survey()
        assert (survey.strays, survey.silent_nodes) == ((), (B.hex(),))
