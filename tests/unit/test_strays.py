"""Whose work is where: the judgement on snapshots made of Ray's own records."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from ray.core.generated import common_pb2, gcs_pb2

from cloudfarm.raylayer.hook.rules import HEAD_PINNED
from cloudfarm.raylayer.strays import Snapshot, confirmed, find_strays, nodes_by_address

HEAD, A, B, GONE = (bytes([number]) * 28 for number in range(1, 5))
JOB_OF_FARM, JOB_OF_A, JOB_OF_B = (bytes([0, 0, 0, number]) for number in range(1, 4))
ACTOR = b"\x07" * 16
NO_ACTOR = b"\xff" * 16


def job(job_id: bytes, node: bytes, **metadata: str) -> gcs_pb2.JobTableData:
    record = gcs_pb2.JobTableData(job_id=job_id, entrypoint="python train.py", driver_pid=11)
    record.driver_address.node_id = node
    record.config.metadata.update(metadata)
    return record


def actor(
    job_id: bytes, node: bytes, owner: bytes, module: str = "m", name: str = "C"
) -> gcs_pb2.ActorTableData:
    record = gcs_pb2.ActorTableData(actor_id=ACTOR, job_id=job_id, class_name=name)
    record.address.node_id, record.owner_address.node_id = node, owner
    record.function_descriptor.python_function_descriptor.module_name = module
    record.function_descriptor.python_function_descriptor.class_name = name
    return record


def worker(job_id: bytes, *, actor_id: bytes = NO_ACTOR, tasks: int = 0, driver: bool = False) -> Any:
    return common_pb2.CoreWorkerStats(
        worker_id=b"\x09" * 28,
        job_id=job_id,
        actor_id=actor_id,
        pid=42,
        ip_address="10.0.0.1",
        port=1234,
        num_running_tasks=tasks,
        worker_type=common_pb2.DRIVER if driver else common_pb2.WORKER,
    )


def group(job_id: bytes, *nodes: bytes, state: int = gcs_pb2.PlacementGroupTableData.CREATED) -> Any:
    record = gcs_pb2.PlacementGroupTableData(
        placement_group_id=b"\x05" * 18, creator_job_id=job_id, state=state
    )
    for node in nodes:
        record.bundles.add(node_id=node)
    return record


def node(node_id: bytes, port: int, start_time_ms: int, *, alive: bool = True) -> Any:
    states = gcs_pb2.GcsNodeInfo.GcsNodeState
    return gcs_pb2.GcsNodeInfo(
        node_id=node_id,
        node_manager_address="10.0.0.1",
        node_manager_port=port,
        start_time_ms=start_time_ms,
        state=states.ALIVE if alive else states.DEAD,
    )


def snapshot(**seen: Any) -> Snapshot:
    jobs = seen.pop("jobs", [job(JOB_OF_FARM, HEAD), job(JOB_OF_A, A), job(JOB_OF_B, B)])
    leases = {JOB_OF_FARM: None, JOB_OF_A: "A", JOB_OF_B: "B"}
    return Snapshot(
        lease_of_node={HEAD.hex(): None, A.hex(): "A", B.hex(): "B", GONE.hex(): "A"},
        living_nodes=frozenset(node.hex() for node in (HEAD, A, B)),
        jobs={each.job_id.hex(): each for each in jobs},
        lease_of_job={job_id.hex(): lease for job_id, lease in leases.items()},
        actors={each.actor_id.hex(): each for each in seen.pop("actors", ())},
        groups=tuple(seen.pop("groups", ())),
        workers={node.hex(): workers for node, workers in seen.pop("workers", {}).items()},
    )


def test_work_in_its_own_lease_is_no_stray():
    seen = snapshot(
        actors=[actor(JOB_OF_A, A, A)],
        groups=[group(JOB_OF_A, A, A)],
        workers={A: [worker(JOB_OF_A, tasks=1), worker(JOB_OF_A, driver=True)], B: [worker(JOB_OF_B)]},
    )
    assert find_strays(seen) == []


def test_actor_on_another_lease():
    seen = snapshot(actors=[actor(JOB_OF_A, B, A)], workers={B: [worker(JOB_OF_A, actor_id=ACTOR, tasks=1)]})
    (stray,) = find_strays(seen)
    assert (stray.kind, stray.id, stray.name, stray.pid) == ("actor", ACTOR.hex(), "C", 42)
    assert (stray.owner_lease, stray.found_on_lease, stray.found_on_node_id) == ("A", "B", B.hex())
    assert stray.reason == f"actor C of job {JOB_OF_A.hex()} belongs to lease A but runs on lease B"


def test_actor_on_the_control_plane_is_a_stray_unless_ray_pins_it_there():
    (stray,) = find_strays(snapshot(actors=[actor(JOB_OF_A, HEAD, A)]))
    assert stray.found_on_lease is None
    assert "runs on the control plane" in stray.reason
    for module, name in HEAD_PINNED:
        assert find_strays(snapshot(actors=[actor(JOB_OF_A, HEAD, A, module, name)])) == []
        assert find_strays(snapshot(actors=[actor(JOB_OF_A, B, A, module, name)])) != []


def test_farms_own_actors_go_anywhere_but_not_those_of_its_replicas():
    assert find_strays(snapshot(actors=[actor(JOB_OF_FARM, A, HEAD)])) == []
    assert find_strays(snapshot(actors=[actor(JOB_OF_FARM, A, A)])) == []
    (stray,) = find_strays(snapshot(actors=[actor(JOB_OF_FARM, B, A)]))
    assert (stray.owner_lease, stray.found_on_lease) == ("A", "B")


def test_actor_without_a_place_yet_is_left_alone():
    assert find_strays(snapshot(actors=[actor(JOB_OF_A, b"", A), actor(JOB_OF_A, GONE, A)])) == []


def test_workers_on_another_lease_with_and_without_a_task():
    seen = snapshot(workers={B: [worker(JOB_OF_A, tasks=1)], HEAD: [worker(JOB_OF_A)]})
    assert [(s.kind, s.address, s.found_on_lease) for s in find_strays(seen)] == [
        ("task", "10.0.0.1:1234", "B"),
        ("worker", "10.0.0.1:1234", None),
    ]


def test_process_left_by_an_actor_that_the_gcs_no_longer_knows_is_a_stray():
    (stray,) = find_strays(snapshot(workers={B: [worker(JOB_OF_A, actor_id=ACTOR)]}))
    assert stray.kind == "worker"


def test_workers_are_certain_once_they_were_seen_before_and_all_else_at_once():
    seen = find_strays(
        snapshot(
            jobs=[job(JOB_OF_A, B, lease="A")],
            actors=[actor(JOB_OF_A, B, A)],
            groups=[group(JOB_OF_A, B)],
            workers={B: [worker(JOB_OF_A, tasks=1)], HEAD: [worker(JOB_OF_A)]},
        )
    )
    assert {stray.kind for stray in seen} == {"driver", "actor", "task", "worker", "placement_group"}
    assert {stray.kind for stray in confirmed(seen, ())} == {"driver", "actor", "placement_group"}
    assert confirmed(seen, {stray.id for stray in seen}) == seen


def test_process_of_an_actor_that_ends_or_begins_while_one_looks_is_no_stray():
    cleaner = min(HEAD_PINNED)
    process = {HEAD: [worker(JOB_OF_A, actor_id=ACTOR)]}
    lives = find_strays(snapshot(actors=[actor(JOB_OF_A, HEAD, A, *cleaner)], workers=process))
    ended_meanwhile, is_gone = find_strays(snapshot(workers=process)), find_strays(snapshot())
    begins = find_strays(snapshot(workers={HEAD: [worker(JOB_OF_A)]}))
    assert ended_meanwhile
    assert begins

    seen_before: set[str] = set()
    for seen in (begins, lives, ended_meanwhile, is_gone):
        assert confirmed(seen, seen_before) == []
        seen_before = {stray.id for stray in seen}


def test_workers_without_a_job_and_of_unknown_jobs_are_left_alone():
    assert find_strays(snapshot(workers={B: [worker(b"\xff" * 4), worker(b"\x00\x00\x00\x09")]})) == []


def test_driver_in_the_wrong_place_is_known_by_its_submission():
    for node, found in ((A, []), (B, ["B"]), (HEAD, [None])):
        seen = snapshot(jobs=[job(JOB_OF_A, node, lease="A")])
        assert [(s.kind, s.found_on_lease) for s in find_strays(seen)] == [
            ("driver", place) for place in found
        ]


def test_metadata_that_names_no_lease_of_the_farm_is_only_text():
    assert find_strays(snapshot(jobs=[job(JOB_OF_A, A, lease="my favourite")])) == []


def test_submission_is_believed_only_where_its_supervisor_is():
    supervisor = actor(JOB_OF_FARM, A, HEAD)
    supervisor.name = "_ray_internal_job_actor_raysubmit_1"
    for node, believed in ((A, "raysubmit_1"), (B, "")):
        seen = snapshot(
            jobs=[job(JOB_OF_A, node, job_submission_id="raysubmit_1")],
            actors=[supervisor],
            workers={B: [worker(JOB_OF_A)]},
        )
        assert [stray.submission_id for stray in find_strays(seen)] == [believed]


def test_ended_drivers_are_no_strays():
    ended = job(JOB_OF_A, B, lease="A")
    ended.is_dead = True
    assert find_strays(snapshot(jobs=[ended])) == []


def test_placement_group_with_one_bundle_outside_is_one_stray():
    (stray,) = find_strays(snapshot(groups=[group(JOB_OF_A, A, B, B)]))
    assert (stray.kind, stray.found_on_lease, stray.pid, stray.address) == ("placement_group", "B", 0, "")
    removed = gcs_pb2.PlacementGroupTableData.REMOVED
    assert find_strays(snapshot(groups=[group(JOB_OF_A, B, state=removed), group(JOB_OF_FARM, A, B)])) == []


def test_at_an_address_of_two_living_nodes_the_later_one_answers():
    silently_dead, its_heir, other = node(GONE, 7000, 1_000), node(B, 7000, 9_000), node(A, 7001, 2_000)
    seen_dead = node(HEAD, 7000, 10_000, alive=False)
    answering = {"10.0.0.1:7000": B.hex(), "10.0.0.1:7001": A.hex()}
    for nodes in permutations([silently_dead, its_heir, other, seen_dead]):
        assert nodes_by_address(nodes) == answering
