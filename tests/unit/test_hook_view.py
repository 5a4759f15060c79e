"""What a lease's processes see of the cluster: with stand-ins, without Ray."""

from types import SimpleNamespace

import pytest

from cloudfarm.raylayer.hook import HookError, view

NODES = [
    {"NodeID": "head", "Labels": {"farm": "control"}},
    {"NodeID": "bare", "Labels": None},
    {"NodeID": "a0", "Labels": {"lease": "A"}},
    {"NodeID": "a1", "Labels": {"lease": "A"}},
    {"NodeID": "b0", "Labels": {"lease": "B"}},
]


class GlobalState:
    def node_table(self):
        return NODES

    def total_resources_per_node(self):
        return {node["NodeID"]: {"CPU": 2.0} for node in NODES}

    def available_resources_per_node(self):
        return {node["NodeID"]: {"CPU": 1.0} for node in NODES if node["NodeID"] != "a1"}


@pytest.fixture
def _in_lease_a(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_LEASE", "A")


@pytest.mark.usefixtures("_in_lease_a")
def test_the_lease_is_the_cluster():
    state = SimpleNamespace(GlobalState=type("View", (GlobalState,), {}))
    view.show_own_nodes(state)
    seen = state.GlobalState()
    assert [node["NodeID"] for node in seen.node_table()] == ["a0", "a1"]
    assert seen.total_resources_per_node() == {"a0": {"CPU": 2.0}, "a1": {"CPU": 2.0}}
    assert seen.available_resources_per_node() == {"a0": {"CPU": 1.0}}


@pytest.mark.usefixtures("_in_lease_a")
@pytest.mark.parametrize(
    "missing", ["node_table", "total_resources_per_node", "available_resources_per_node"]
)
def test_a_view_that_the_hook_does_not_know_is_refused(missing):
    kept = {name: found for name, found in vars(GlobalState).items() if name != missing}
    with pytest.raises(HookError, match=r"ray\._private\.state"):
        view.show_own_nodes(SimpleNamespace(GlobalState=type("View", (), kept)))


def test_serve_does_not_make_a_driver_show_others_lines():
    worker = SimpleNamespace(Worker=type("Worker", (), {}))
    worker.global_worker = worker.Worker()
    worker.global_worker._filter_logs_by_job = True
    view.show_own_logs(worker)
    worker.global_worker._filter_logs_by_job = False  # as Serve's client does
    assert worker.global_worker._filter_logs_by_job is True


@pytest.mark.parametrize("global_worker", [None, SimpleNamespace(), SimpleNamespace(_filter_logs_by_job="")])
def test_a_worker_that_the_hook_does_not_know_is_refused(global_worker):
    with pytest.raises(HookError, match=r"ray\._private\.worker"):
        view.show_own_logs(SimpleNamespace(Worker=object, global_worker=global_worker))


class Coordinator:
    """A handle on an actor that notes what it is asked."""

    def __init__(self):
        self.asked = []
        self.request_resources = SimpleNamespace(remote=lambda **request: self.asked.append(request))
        self.get_reserved_resources = SimpleNamespace(remote=lambda name: f"reserved for {name}")


def module(coordinator, key="ray-subcluster"):
    return SimpleNamespace(
        SUBCLUSTER_LABEL_KEY=key, get_or_create_autoscaling_coordinator=lambda: coordinator
    )


@pytest.mark.usefixtures("_in_lease_a")
def test_reservations_are_of_the_lease_whatever_subcluster_was_named():
    coordinator = Coordinator()
    ray_data = module(coordinator)
    view.reserve_on_own_nodes(ray_data)
    handle = ray_data.get_or_create_autoscaling_coordinator()
    handle.request_resources.remote(requester_id="train", resources=[{"GPU": 1}])
    handle.request_resources.remote(requester_id="data", subcluster_selector=None)
    handle.request_resources.remote(requester_id="sly", subcluster_selector={"ray-subcluster": "B"})
    own = {"ray-subcluster": "A"}
    assert coordinator.asked == [
        {"requester_id": "train", "resources": [{"GPU": 1}], "subcluster_selector": own},
        {"requester_id": "data", "subcluster_selector": own},
        {"requester_id": "sly", "subcluster_selector": own},
    ]
    assert handle.get_reserved_resources.remote("data") == "reserved for data"


@pytest.mark.usefixtures("_in_lease_a")
def test_other_subclusters_than_the_hook_knows_are_refused():
    for changed in (module(Coordinator(), "zone"), SimpleNamespace()):
        with pytest.raises(HookError, match="subclusters"):
            view.reserve_on_own_nodes(changed)
