"""The start-up hook: keeps stock Ray code inside its lease, without a change to that code.

`cloudfarm_hook.pth` (in site-packages) calls `install()` in every Python process that has `CLOUDFARM_LEASE`
or `CLOUDFARM_ROLE` in its environment, before any of the process's own code. `install` imports nothing heavy:
it only registers which modules are to be adapted once they are imported (`imports`), so a process that never
imports Ray pays about a millisecond.

Environment, set by whoever starts the Ray node, and inherited by all its workers and drivers:

| variable | effect |
|---|---|
| `CLOUDFARM_LEASE=<id>` | tasks, actors, placement groups, Serve deployments get the selector `lease=<id>` |
| the same | the nodes and resources that code sees, and that Data and Train reserve, are the lease's |
| the same | drivers show what their own job's workers print, also where they use Serve |
| `CLOUDFARM_TENANT=<slug>` | of Serve's applications the process may touch those named `<slug>.` and more only |
| `CLOUDFARM_ROLE=control` | head and base nodes: work that names no place gets `farm=control` |
| either of these | replicas of Serve listen on their node's address only |
| `CLOUDFARM_SIMULATED_GPUS=1` | Ray Train uses CPU devices where Ray announces simulated GPUs |
| `CLOUDFARM_GPU_MEMORY_FRACTION=0.5` | torch's CUDA allocator is capped to that share of each device |
| `CLOUDFARM_STORAGE_PATH=/path` | default `storage_path` of Ray Train and Ray Tune |
| `CLOUDFARM_JOB=<id>` | Ray Train runs without a name get one by job: run again after a preemption, they resume |
| `CLOUDFARM_NO_PIDNS=1` | no PID namespace: drivers join the raylet of `CLOUDFARM_NODE_SESSION=<temp dir>` |

This is a guard against accidents, not a security boundary: it lives in the tenant's own process, which can
undo it. The watch (`cloudfarm.raylayer.watch`) finds what leaves its lease all the same.
"""

from __future__ import annotations

import os

from cloudfarm.raylayer.hook.imports import after_import

TYPE_CHECKING = False  # `typing` would cost more than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_CONFINE = {
    "ray._raylet": "cloudfarm.raylayer.hook.confine:confine_core_worker",
    "ray.serve._private.config": "cloudfarm.raylayer.hook.confine:confine_replica_config",
    "ray.serve._private.client": "cloudfarm.raylayer.hook.serve_apps:keep_to_own_applications",
    "ray._private.state": "cloudfarm.raylayer.hook.view:show_own_nodes",
    "ray._private.worker": "cloudfarm.raylayer.hook.view:show_own_logs",
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator": (
        "cloudfarm.raylayer.hook.view:reserve_on_own_nodes"
    ),
}


_LISTEN = {"ray.serve._private.replica": "cloudfarm.raylayer.hook.defaults:listen_on_own_address"}


class HookError(RuntimeError):
    """The hook cannot do its work in this process; going on would mean work outside its lease."""


def install() -> None:
    """Register the adaptations that this process's environment asks for.

    A contradictory environment is reported when Ray is imported, not here: `site` swallows what a `.pth`
    raises.
    """
    try:
        patches = wanted_patches(os.environ)
    except HookError:
        patches = {"ray": "cloudfarm.raylayer.hook:refuse"}
    for module_name, patch in patches.items():
        after_import(module_name, patch)


def refuse(ray: ModuleType) -> None:
    """Fail the import of Ray with what is wrong in the environment.

    Raises:
        HookError: Always, unless the environment was mended since `install`.
    """
    del ray
    wanted_patches(os.environ)
    raise HookError("the environment changed after this process started; start it again")


def wanted_patches(environ: Mapping[str, str]) -> dict[str, str]:
    """Return which patch (`module:function`) is wanted after the import of which module.

    Raises:
        HookError: The environment contradicts itself.
    """
    lease = environ.get("CLOUDFARM_LEASE")
    role = environ.get("CLOUDFARM_ROLE")
    if lease is None:
        if role == "control":
            return {"ray._raylet": _CONFINE["ray._raylet"], **_LISTEN}
        raise HookError(f"CLOUDFARM_ROLE={role!r} is not known; the only role is 'control'")
    if not lease:
        raise HookError("CLOUDFARM_LEASE is set but empty: this process would not be confined to any lease")

    patches = {**_CONFINE, **_LISTEN}
    if environ.get("CLOUDFARM_SIMULATED_GPUS") == "1":
        patches["ray.air._internal.device_manager"] = "cloudfarm.raylayer.hook.devices:simulate_gpus"
        patches["ray.train.torch.config"] = "cloudfarm.raylayer.hook.devices:use_gloo"
    if environ.get("CLOUDFARM_GPU_MEMORY_FRACTION"):
        patches["torch.cuda"] = "cloudfarm.raylayer.hook.devices:cap_gpu_memory"
    if environ.get("CLOUDFARM_STORAGE_PATH"):
        patches["ray.train.constants"] = "cloudfarm.raylayer.hook.defaults:default_storage_path"
    if environ.get("CLOUDFARM_JOB"):
        patches["ray.train.v2.api.config"] = "cloudfarm.raylayer.hook.defaults:name_runs_by_job"
    if environ.get("CLOUDFARM_NO_PIDNS") == "1":
        patches["ray._private.services"] = "cloudfarm.raylayer.hook.defaults:join_own_raylet"
    return patches
