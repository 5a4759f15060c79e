"""The `.pth` file, the post-import patches, and what they do to the modules: with stand-ins, without Ray."""

# ruff: noqa: ARG002, ARG003, PLC0415 - stand-ins have the parameters of the real ones; imports are the subject

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cloudfarm.raylayer import hook
from cloudfarm.raylayer.hook import HookError, confine, defaults, devices, serve_apps, view, wanted_patches
from cloudfarm.raylayer.hook.imports import PatchingFinder, after_import
from cloudfarm.raylayer.hook.rules import ConfinementError, ControlScope, LeaseScope

PTH = Path(hook.__file__).with_name("cloudfarm_hook.pth")
ROOT = Path(__file__).parents[2]


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a bare interpreter to which the `.pth` file was applied as `site` does it."""
    line = PTH.read_text().strip()
    source = f"import sys; sys.path.insert(0, {str(ROOT / 'platform')!r})\n{line}\n{code}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CLOUDFARM_")}
    return subprocess.run(
        [sys.executable, "-S", "-c", source], env=clean | env, capture_output=True, text=True, check=False
    )


def test_pth_is_one_line_that_site_executes():
    (line,) = PTH.read_text().splitlines()
    assert line.startswith("import ")


def test_pth_is_installed_into_site_packages_by_wheel_and_editable_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included[str(PTH.relative_to(ROOT))] == PTH.name


def test_without_the_environment_nothing_is_imported_or_installed():
    done = run_python("print([m for m in sys.modules if 'cloudfarm' in m], len(sys.meta_path))")
    assert done.stdout.split() == ["[]", "3"], done.stderr


@pytest.mark.parametrize("env", [{"CLOUDFARM_LEASE": "A"}, {"CLOUDFARM_ROLE": "control"}])
def test_with_the_environment_it_stays_small(env):
    heavy = "{'ray', 'torch', 'typing', 'inspect', 'dataclasses', 'importlib.abc'}"
    done = run_python(f"print(sorted({heavy} & set(sys.modules)), len(sys.meta_path))", **env)
    assert done.stdout.split() == ["[]", "4"], done.stderr


@pytest.mark.parametrize("env", [{"CLOUDFARM_LEASE": ""}, {"CLOUDFARM_ROLE": "tenant"}])
def test_contradictory_environment_fails_the_import_of_ray(env, tmp_path):
    (tmp_path / "ray.py").write_text("print('imported')")
    done = run_python(f"sys.path.insert(0, {str(tmp_path)!r}); import ray", **env)
    assert done.returncode != 0
    assert "HookError" in done.stderr


def test_wanted_patches_follow_the_environment():
    assert set(wanted_patches({"CLOUDFARM_ROLE": "control"})) == {"ray._raylet", "ray.serve._private.replica"}
    bare = {"CLOUDFARM_LEASE": "A"}
    assert set(wanted_patches(bare)) == {
        "ray._private.state",
        "ray._private.worker",
        "ray._raylet",
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
        "ray.serve._private.client",
        "ray.serve._private.config",
        "ray.serve._private.replica",
    }
    assert set(wanted_patches({**bare, "CLOUDFARM_ROLE": "control"})) == set(wanted_patches(bare))
    full = {
        **bare,
        "CLOUDFARM_SIMULATED_GPUS": "1",
        "CLOUDFARM_GPU_MEMORY_FRACTION": "0.5",
        "CLOUDFARM_STORAGE_PATH": "/shared",
        "CLOUDFARM_JOB": "j1",
        "CLOUDFARM_NO_PIDNS": "1",
    }
    assert set(wanted_patches(full)) - set(wanted_patches(bare)) == {
        "ray.air._internal.device_manager",
        "ray.train.torch.config",
        "torch.cuda",
        "ray.train.constants",
        "ray.train.v2.api.config",
        "ray._private.services",
    }


def test_every_patch_exists():
    full = dict.fromkeys(("CLOUDFARM_LEASE", "CLOUDFARM_STORAGE_PATH", "CLOUDFARM_GPU_MEMORY_FRACTION"), "1")
    full |= {"CLOUDFARM_SIMULATED_GPUS": "1", "CLOUDFARM_NO_PIDNS": "1", "CLOUDFARM_JOB": "j1"}
    modules = {"confine": confine, "defaults": defaults, "devices": devices}
    modules |= {"serve_apps": serve_apps, "view": view}
    for patch in wanted_patches(full).values():
        where, _, name = patch.partition(":")
        assert callable(getattr(modules[where.rpartition(".")[2]], name))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module `cf_toy` to import, and `cf_patch:mark`, which marks it."""
    (tmp_path / "cf_toy.py").write_text("value = 1\n")
    (tmp_path / "cf_patch.py").write_text(
        "def mark(module):\n    module.value += 1\n"
        "def fail(module):\n    raise RuntimeError('not this one')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for name in ("cf_toy", "cf_patch"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("toy")
class TestAfterImport:
    def test_patch_runs_once_after_the_module(self):
        after_import("cf_toy", "cf_patch:mark")
        assert "cf_patch" not in sys.modules
        import cf_toy

        assert cf_toy.value == 2
        assert inspect.getsource(cf_toy) == "value = 1\n"  # the loader is the real one

    def test_module_that_was_imported_before_is_patched_at_once(self):
        import cf_toy

        after_import("cf_toy", "cf_patch:mark")
        assert cf_toy.value == 2

    def test_failing_patch_fails_the_import(self):
        after_import("cf_toy", "cf_patch:fail")
        with pytest.raises(RuntimeError, match="not this one"):
            import cf_toy  # noqa: F401
        assert "cf_toy" not in sys.modules

    def test_one_finder_serves_all_patches(self):
        after_import("cf_toy", "cf_patch:mark")
        after_import("cf_other", "cf_patch:mark")
        assert sum(isinstance(finder, PatchingFinder) for finder in sys.meta_path) == 1


class FakeCoreWorker:
    """The parameters of the core worker that matter, in an order of its own."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def get_current_node_id(self) -> bytes:
        return b"\xaa"

    def submit_task(
        self, function_descriptor, resources, scheduling_strategy, label_selector, fallback_strategy
    ):
        self.calls.append({"label_selector": label_selector, "strategy": scheduling_strategy})

    def create_actor(
        self, function_descriptor, resources, *, label_selector, scheduling_strategy, fallback_strategy
    ):
        self.calls.append({"label_selector": label_selector, "strategy": scheduling_strategy})

    def create_placement_group(self, name, bundles, soft_target_node_id, bundle_label_selector):
        self.calls.append({"bundle_label_selector": bundle_label_selector})


def confined(scope: Any, labels: dict[str, str]) -> Any:
    arguments = {
        method: confine._Arguments(FakeCoreWorker, method, needed)
        for method, needed in confine._NEEDED_PARAMETERS.items()
    }
    return confine.confined(FakeCoreWorker, scope, arguments, {"aa": labels}.get)()


DESCRIPTOR = SimpleNamespace(module_name="m", class_name="", function_name="f")


def test_core_worker_settles_selectors_given_by_position_and_by_name():
    worker = confined(LeaseScope("A", {}.get), {"lease": "A"})
    worker.submit_task(DESCRIPTOR, {}, "DEFAULT", None, None)
    worker.create_actor(
        DESCRIPTOR, {}, label_selector={"x": "y"}, scheduling_strategy="DEFAULT", fallback_strategy=None
    )
    worker.create_placement_group("", [{"CPU": 1}] * 2, "", [])
    assert [call.get("label_selector") for call in worker.calls[:2]] == [
        {"lease": "A"},
        {"x": "y", "lease": "A"},
    ]
    assert worker.calls[2]["bundle_label_selector"] == [{"lease": "A"}] * 2


def test_soft_affinity_outside_becomes_no_affinity():
    worker = confined(LeaseScope("A", {"bb": {"lease": "B"}}.get), {"lease": "A"})
    strategy = SimpleNamespace(node_id="bb", soft=True)
    worker.submit_task(DESCRIPTOR, {}, strategy, None, None)
    assert worker.calls == [{"label_selector": {"lease": "A"}, "strategy": "DEFAULT"}]


@pytest.mark.parametrize("scope", [LeaseScope("A", {}.get), ControlScope()])
def test_process_attached_to_a_foreign_node_may_submit_nothing(scope):
    worker = confined(scope, {"lease": "B"})
    with pytest.raises(ConfinementError, match="attached to node aa"):
        worker.submit_task(DESCRIPTOR, {}, "DEFAULT", None, None)
    assert worker.calls == []


def test_unknown_core_worker_is_refused_loudly(monkeypatch):
    class Changed(FakeCoreWorker):
        def submit_task(self, spec):
            """A later Ray."""

    monkeypatch.setenv("CLOUDFARM_LEASE", "A")
    with pytest.raises(HookError, match=r"CoreWorker\.submit_task .* has no"):
        confine.confine_core_worker(SimpleNamespace(CoreWorker=Changed))


def test_replicas_of_a_tenant_are_confined(monkeypatch):
    class ReplicaConfig:
        @classmethod
        def create(
            cls,
            deployment_def,
            ray_actor_options=None,
            placement_group_bundles=None,
            placement_group_bundle_label_selector=None,
            placement_group_fallback_strategy=None,
        ):
            return ray_actor_options, placement_group_bundle_label_selector

    monkeypatch.setenv("CLOUDFARM_LEASE", "A")
    confine.confine_replica_config(SimpleNamespace(ReplicaConfig=ReplicaConfig))
    options, selectors = ReplicaConfig.create("f", {"num_gpus": 1}, placement_group_bundles=[{"GPU": 1}])
    assert options == {"num_gpus": 1, "label_selector": {"lease": "A"}}
    assert selectors == [{"lease": "A"}]
    assert ReplicaConfig.create("f") == ({"label_selector": {"lease": "A"}}, None)
    elsewhere = {"fallback_strategy": [{"label_selector": {"lease": "B"}}, {}]}
    at_home = {"label_selector": {"lease": "A"}}
    assert ReplicaConfig.create("f", elsewhere)[0] == {**at_home, "fallback_strategy": [at_home, at_home]}
    with pytest.raises(ConfinementError, match="fallback"):
        ReplicaConfig.create("f", placement_group_fallback_strategy=[{"bundles": [{"CPU": 1}]}])


class FakeCuda:
    """torch.cuda as far as the cap needs it: calls wait for the initialisation."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.queue: list[Any] = []
        self.caps: dict[int, float] = {}

    def _lazy_call(self, call):
        self.queue.append(call)

    def device_count(self):
        return self.devices

    def set_per_process_memory_fraction(self, fraction, device):
        self.caps[device] = fraction


def test_gpu_memory_is_capped_when_cuda_initialises(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_GPU_MEMORY_FRACTION", "0.5")
    cuda = FakeCuda(devices=2)
    devices.cap_gpu_memory(cuda)
    assert cuda.caps == {}
    for call in cuda.queue:
        call()
    assert cuda.caps == {0: 0.5, 1: 0.5}


@pytest.mark.parametrize("fraction", ["0", "1.5", "-1", "nan", "half"])
def test_wrong_fraction_is_refused(monkeypatch, fraction):
    monkeypatch.setenv("CLOUDFARM_GPU_MEMORY_FRACTION", fraction)
    with pytest.raises(HookError, match="CLOUDFARM_GPU_MEMORY_FRACTION"):
        devices.cap_gpu_memory(FakeCuda(1))


def test_unknown_torch_is_refused(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_GPU_MEMORY_FRACTION", "0.5")
    with pytest.raises(HookError, match="_lazy_call"):
        devices.cap_gpu_memory(ModuleType("torch.cuda"))


def test_storage_path_becomes_the_default(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_STORAGE_PATH", "/shared/runs")
    constants = SimpleNamespace(DEFAULT_STORAGE_PATH="~/ray_results")
    defaults.default_storage_path(constants)
    assert constants.DEFAULT_STORAGE_PATH == "/shared/runs"
    with pytest.raises(HookError):
        defaults.default_storage_path(SimpleNamespace())


@pytest.mark.parametrize(("host", "address"), [("10.0.0.7", "10.0.0.7:0"), ("fd00::7", "[fd00::7]:0")])
def test_replicas_listen_on_their_nodes_address_only(monkeypatch, host, address):
    asked = []
    replica = SimpleNamespace(
        add_port_to_grpc_server=lambda server, address: asked.append((server, address)) or 9
    )
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: host)
    defaults.listen_on_own_address(replica)
    assert replica.add_port_to_grpc_server("server", "[::]:0") == 9
    assert asked == [("server", address)]
    with pytest.raises(HookError):
        defaults.listen_on_own_address(SimpleNamespace())


def test_runs_without_a_name_are_named_by_job_and_order():
    """In a process of its own, with the real Ray Train: the patch stays in the module."""
    packages = Path(find_spec("ray").origin).parents[1]
    code = (
        f"sys.path.append({str(packages)!r}); from ray.train.v2.api.config import RunConfig; "
        "print([RunConfig().name, RunConfig(name='mine').name, RunConfig().name])"
    )
    done = run_python(code, CLOUDFARM_LEASE="l1", CLOUDFARM_JOB="j7", CLOUDFARM_STORAGE_PATH="/shared")
    assert done.stdout.strip() == "['ray_train_run-j7-1', 'mine', 'ray_train_run-j7-2']", done.stderr
    with pytest.raises(HookError):
        defaults.name_runs_by_job(SimpleNamespace())


def test_driver_finds_only_the_raylet_of_its_own_temp_dir(monkeypatch, tmp_path):
    import psutil

    def raylet(node_id: str, temp_dir: str) -> SimpleNamespace:
        command = [
            "/x/raylet/raylet",
            f"--node_id={node_id}",
            f"--session_dir={tmp_path}/{temp_dir}/session_1",
        ]
        return SimpleNamespace(info={"cmdline": command})

    others = [SimpleNamespace(info={"cmdline": command}) for command in (None, [], ["python", "x.py"])]
    running = [raylet("head", "head"), raylet("mine", "a1"), raylet("near", "a10"), *others]
    monkeypatch.setattr(psutil, "process_iter", lambda _attrs: running)
    monkeypatch.setenv("CLOUDFARM_NODE_SESSION", f"{tmp_path}/a1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:7000")
    services = SimpleNamespace(
        find_node_ids=None,
        find_gcs_addresses=lambda: {"127.0.0.1:6379", "127.0.0.1:7000"},
        _is_raylet_process=lambda command: command[0].endswith("raylet"),
    )
    defaults.join_own_raylet(services)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # as Ray does before it looks
    assert services.find_node_ids() == {"mine"}
    assert services.find_gcs_addresses() == {"127.0.0.1:7000"}


def test_fallback_without_a_temp_dir_is_refused(monkeypatch):
    monkeypatch.delenv("CLOUDFARM_NODE_SESSION", raising=False)
    with pytest.raises(HookError, match="CLOUDFARM_NODE_SESSION"):
        defaults.join_own_raylet(SimpleNamespace())
    monkeypatch.setenv("CLOUDFARM_NODE_SESSION", "somewhere")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(HookError, match="RAY_ADDRESS"):
        defaults.join_own_raylet(SimpleNamespace())
