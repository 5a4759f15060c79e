"""The public packing benchmark: reading its files, the protocol, and the allocator behind its interface."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing_baselines import BestFit, Fgd, FirstFit
from cloudfarm.errors import ConflictError, InvalidInputError
from cloudfarm.simulate.openb import ReplayPolicy, as_arrays, replay, simulate
from cloudfarm.simulate.openb_moves import Mover, MovingPolicy, Rescue
from cloudfarm.simulate.openb_trace import (
    Arrivals,
    Cluster,
    make_arrivals,
    read_arrivals,
    read_nodes,
    read_pods,
)

NODES = "sn,cpu_milli,memory_mib,gpu,model\nn1,32000,65536,4,T4\nn0,16000,32768,2,P100\nn2,64000,65536,0,\n"
PODS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np0,2000,1024,1,500,\np1,4000,1024,2,1000,T4|P100\n"
)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "nodes.csv").write_text(NODES)
    (tmp_path / "pods.csv").write_text(PODS)
    return tmp_path


def cluster_of(*nodes):
    cpu, mem, ngpu, model = zip(*nodes, strict=True)
    return Cluster(np.array(cpu), np.array(mem), np.array(ngpu), np.array(model))


def in_order(cluster, pods):
    return Arrivals(np.arange(len(pods)), np.arange(len(cluster.ngpu)))


def test_nodes_come_by_name_and_those_without_gpus_are_left_out(files):
    cluster = read_nodes(files / "nodes.csv")
    assert cluster.cpu.tolist() == [16000, 32000]
    assert cluster.model.tolist() == ["P100", "T4"]
    assert cluster.gpu_milli == 6000


def test_pods_keep_the_files_order_and_may_have_no_model(files):
    assert read_pods(files / "pods.csv")[1] == (4000, 1024, 2, 1000, "T4|P100", "p1")
    (files / "pods.csv").write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\np0,2000,1024,0,0\n")
    assert read_pods(files / "pods.csv") == [(2000, 1024, 0, 0, "", "p0")]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("p2,x,1,1,500,", "line 4: cpu_milli"),
        ("p2,-1,1,1,500,", "line 4: cpu_milli"),
        ("p2,1,1,1,1.5,", "line 4: gpu_milli"),
        ("p2,1,1,1,1001,", "line 4: gpu_milli is 1 to 1000"),
        ("p2,1,1,1,0,", "line 4: gpu_milli is 1 to 1000"),
        ("p2,1,1", "line 4: not as many values"),
        ("p2,1,1,1,500,,,7", "line 4: not as many values"),
        ("p2,1,99999999999999999999,1,500,", "line 4: memory_mib"),
        ('p2,"1,1,1,500,', "cannot be read"),
    ],
)
def test_a_malformed_pod_is_refused_with_its_line(files, bad, says):
    (files / "pods.csv").write_text(PODS + bad + "\n")
    with pytest.raises(InvalidInputError, match=says):
        read_pods(files / "pods.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: no column"),
        ("sn,cpu_milli\na,1\n", "line 1: no column memory_mib"),
        (NODES.splitlines()[0] + "\n", "no node has a GPU"),
        (NODES + "n1,1,1,1,T4\n", "same name"),
        (NODES + "n9,1,1,many,T4\n", "line 5: gpu"),
        ("\x00\xff", "no column"),
    ],
)
def test_a_malformed_node_list_is_refused(files, text, says):
    (files / "nodes.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=says):
        read_nodes(files / "nodes.csv")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_pods(tmp_path / "none.csv")


def test_arrivals_are_read_by_seed_and_must_belong_to_the_lists(files):
    path = files / "arrivals.npz"
    np.savez(path, **{"7": [1, 0, 1], "rank7": [1, 0], "8": [2], "rank8": [0, 1], "9": [0], "rank9": [0, 0]})
    assert read_arrivals(path, 7, pods=2, nodes=2).order.tolist() == [1, 0, 1]
    for seed in (6, 8, 9):
        with pytest.raises(InvalidInputError, match=f"seed {seed}"):
            read_arrivals(path, seed, pods=2, nodes=2)
    path.write_text("no archive")
    with pytest.raises(InvalidInputError):
        read_arrivals(path, 7, pods=2, nodes=2)


def test_made_arrivals_have_every_pod_once_and_then_reach_the_demand():
    cluster = cluster_of((64000, 65536, 8, "T4"))
    pods = [(1, 1, 1, 100, "", f"p{i}") for i in range(50)]
    arrivals = make_arrivals(cluster, pods, 3)
    assert sorted(arrivals.order[:50].tolist()) == list(range(50))
    assert len(arrivals.order) == 104  # 104 x 100 milli is 130 % of 8 GPUs
    assert make_arrivals(cluster, pods, 3).order.tolist() == arrivals.order.tolist()
    assert make_arrivals(cluster, pods, 4).order.tolist() != arrivals.order.tolist()


def test_of_a_list_with_too_much_demand_some_arrive():
    pods = [(1, 1, 1, 1000, "", f"p{i}") for i in range(50)]
    order = make_arrivals(cluster_of((64000, 65536, 8, "T4")), pods, 3).order
    assert len(order) == len(set(order.tolist())) == 10


def test_a_list_without_gpus_is_refused():
    with pytest.raises(InvalidInputError):
        make_arrivals(cluster_of((64000, 65536, 8, "T4")), [(1, 1, 0, 0, "", "p")], 3)


@pytest.mark.parametrize("policy", [FirstFit, BestFit, Fgd, ReplayPolicy])
def test_golden_a_run_that_can_be_checked_by_hand(policy):
    # One GPU. 600 milli are placed; 400 lack CPUs, at 100 % of demand; 300 are placed, at 130 %: 90 % are allocated.
    cluster = cluster_of((64000, 65536, 1, "T4"))
    pods = [(1 if milli != 400 else 99000, 1, 1, milli, "", f"p{milli}") for milli in (600, 400, 300)]
    arrays = as_arrays(cluster, in_order(cluster, pods))
    made = policy(arrays, np.random.default_rng(0) if policy is ReplayPolicy else pods)
    result = replay(cluster, pods, in_order(cluster, pods), made)
    assert (result.allocated_percent, result.failed, result.arrivals) == (90.0, 1, 3)
    assert 0 < result.mean_us <= result.p99_us


def test_simulate_reads_and_replays(files):
    result = simulate(files / "nodes.csv", files / "pods.csv", seed=1)
    assert 50 <= result.allocated_percent <= 100
    assert simulate(files / "nodes.csv", files / "pods.csv", seed=1).failed == result.failed


pods = st.lists(
    st.tuples(
        st.integers(0, 20000),
        st.integers(0, 20000),
        st.one_of(
            st.tuples(st.just(0), st.just(0)),
            st.tuples(st.just(1), st.integers(1, 1000)),
            st.tuples(st.integers(2, 8), st.just(1000)),
        ),
        st.sampled_from(["", "T4", "P100|T4", "G9"]),
    ).map(lambda row: (row[0], row[1], *row[2], row[3], "pod")),
    max_size=60,
)
SMALL = cluster_of((32000, 65536, 4, "T4"), (16000, 32768, 2, "P100"), (96000, 99999, 8, "G2"))


@settings(max_examples=60, deadline=None)
@given(pods, st.permutations(range(3)), st.booleans())
def test_every_pod_that_fits_is_placed_and_nothing_is_over_committed(listed, rank, calls_for_all):
    class Harness:
        """Asks for every pod, or only for those that fit."""

        def __init__(self):
            arrays = as_arrays(SMALL, Arrivals(np.arange(len(listed)), np.array(rank)))
            self.policy, self.choices = ReplayPolicy(arrays, np.random.default_rng(0)), []

        def pick(self, pod, feasible):
            choice = self.policy.pick(pod, feasible.tolist()) if calls_for_all or len(feasible) else None
            self.choices.append(choice)
            return choice

    first, second = Harness(), Harness()
    arrivals = Arrivals(np.arange(len(listed)), np.array(rank))
    if listed:
        replay(
            SMALL, listed, arrivals, first
        )  # raises if a choice does not fit or a feasible pod is not placed
        replay(SMALL, listed, arrivals, second)
        assert first.choices == second.choices


def test_the_policy_keeps_to_the_nodes_that_it_is_offered():
    policy = ReplayPolicy(as_arrays(SMALL, Arrivals(np.arange(1), np.arange(3))), np.random.default_rng(0))
    assert policy.pick((1, 1, 1, 500, "", "p"), [2]) == (2, [0])
    assert policy.pick((1, 1, 1, 500, "", "p"), np.array([1])) == (1, [0])
    assert policy.pick((1, 1, 0, 0, "", "p"), [1]) == (1, None)
    assert policy.pick((1, 1, 1, 500, "", "p"), []) is None
    with pytest.raises(ConflictError):
        policy.pick((1, 1, 4, 1000, "", "p"), [1])


def test_a_policy_that_cheats_is_found_out():
    listed = [(1, 1, 1, 600, "", "p")] * 2
    for always in ((0, [0]), (0, []), (0, [9]), (0, [0, 0]), (7, [0]), None):
        cheat = SimpleNamespace(pick=lambda *_, answer=always: answer)
        with pytest.raises(ConflictError):
            replay(SMALL, listed, in_order(SMALL, listed), cheat)


# With moves: another protocol


def replay_with_moves(cluster, listed, share, rank=None):
    arrivals = in_order(cluster, listed) if rank is None else Arrivals(np.arange(len(listed)), np.array(rank))
    policy = MovingPolicy(as_arrays(cluster, arrivals), np.random.default_rng(0))
    mover = Mover(policy, share)
    return replay(cluster, listed, arrivals, policy, mover), mover


TWO = cluster_of((4000, 65536, 1, "T4"), (64000, 65536, 1, "T4"))


def test_golden_two_halves_make_room_for_a_whole():
    # The second 500 needs more CPUs than the first node has left; then a whole GPU fits only if the first one moves.
    listed = [(3000, 1, 1, 500, "", "a"), (3000, 1, 1, 500, "", "b"), (1000, 1, 1, 1000, "", "c")]
    plain = replay(
        TWO, listed, in_order(TWO, listed), MovingPolicy(as_arrays(TWO, in_order(TWO, listed)), None)
    )
    assert (plain.failed, plain.moved) == (1, 0)
    result, mover = replay_with_moves(TWO, listed, 0.5)
    assert (result.failed, result.moved, mover.moved) == (0, 1, {0})
    may_move = {id_ for on in mover.policy._pool.on.values() for id_ in on}
    assert may_move == {"1", "2"}  # the first has been moved


def test_no_more_are_moved_than_the_share_of_those_placed():
    listed = [(3000, 1, 1, 500, "", "a"), (3000, 1, 1, 500, "", "b"), (1000, 1, 1, 1000, "", "c")]
    for share, moved in ((0.49, 0), (0.5, 1), (0.0, 0)):
        assert replay_with_moves(TWO, listed, share)[0].moved == moved


def test_work_without_gpus_that_is_bound_to_a_model_stays_there():
    other = cluster_of((4000, 65536, 1, "T4"), (4000, 65536, 1, "P100"))
    for spec, moved in (("T4", 0), ("", 1)):
        listed = [(3000, 1, 0, 0, spec, "a"), (3000, 1, 1, 500, "T4", "b")]
        assert replay_with_moves(other, listed, 1.0)[0].moved == moved


def test_simulate_moves_only_if_it_is_asked_to(files):
    runs = [simulate(files / "nodes.csv", files / "pods.csv", 1, None, share) for share in (0.0, 0.5)]
    assert runs[0].moved == 0
    assert runs[1].allocated_percent >= runs[0].allocated_percent


@settings(max_examples=60, deadline=None)
@given(pods, st.permutations(range(3)), st.sampled_from((0.1, 0.5, 1.0)))
def test_with_moves_nothing_is_over_committed_and_the_budget_is_kept(listed, rank, share):
    if listed:
        result, mover = replay_with_moves(SMALL, listed, share, rank)  # raises if the truth says no
        assert result.moved == len(mover.moved) <= share * (len(listed) - result.failed)


def test_a_policy_that_moves_too_much_is_found_out():
    listed = [(3000, 1, 1, 500, "", "a"), (3000, 1, 1, 500, "", "b"), *[(1000, 1, 1, 1000, "", "c")] * 2]
    cheats = [
        Rescue((0, [0]), {0: (1, [0]), 1: (1, [0])}),  # more than it may
        Rescue((0, [0]), {0: (0, [0])}),  # to where it lies, in the way
        Rescue((0, [0]), {}),  # nobody at all
    ]
    for cheat in cheats:
        arrivals = in_order(TWO, listed)
        policy = MovingPolicy(as_arrays(TWO, arrivals), np.random.default_rng(0))
        policy.rescue = lambda *_, answer=cheat: answer
        with pytest.raises(ConflictError):
            replay(TWO, listed, arrivals, policy, Mover(policy, 0.5))


def test_a_policy_that_moves_one_twice_is_found_out():
    four = cluster_of(*[(64000, 65536, 1, "T4")] * 3)
    listed = [*[(1000, 1, 1, 600, "", "a")] * 3, *[(1000, 1, 1, 1000, "", "c")] * 2]
    arrivals = in_order(four, listed)
    policy = MovingPolicy(as_arrays(four, arrivals), np.random.default_rng(0))
    mover = Mover(policy, 1.0)
    mover.moved.add(0)
    policy.rescue = lambda *_: Rescue((0, [0]), {0: (1, [0])})
    with pytest.raises(ConflictError, match="again"):
        replay(four, listed, arrivals, policy, mover)
