"""Which parts of a ``runtime_env`` a job may bring, and why the others are refused.

This keeps honest jobs from leaving their lease by accident. What a job's code does once it runs is held by
its lease node, not by this list.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cloudfarm.errors import ForbiddenKeyError, InvalidInputError
from cloudfarm.usecases.access import quoted
from cloudfarm.usecases.packages import is_package_name

MAX_BYTES = 256 * 1024
MAX_ENV_VARS = 256

ALLOWED_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "working_dir": str,
    "py_modules": list,
    "pip": (list, dict),
    "uv": (list, dict),
    "env_vars": dict,
    "excludes": list,
    "config": dict,
    "worker_process_setup_hook": str,
    # Ray's own client adds these when it is asked for pip or conda packages.
    "_ray_commit": str,
    "_ray_release": (str, bool),
    "_inject_current_ray": bool,
}

_IMAGES = (
    "it runs the workers in a container that shares the host's network and processes, outside the lease node"
)
REFUSED_KEYS: Mapping[str, str] = {
    "py_executable": "it is pasted into a shell that starts every worker",
    "container": _IMAGES,
    "image_uri": _IMAGES,
    "conda": "its environments are shared by all of a host; use pip or uv",
    "java_jars": "the farm runs no Java workers",
    "nsight": "it puts a profiler around every worker",
    "_nsight": "it puts a profiler around every worker",
    "rocprof_sys": "it puts a profiler around every worker",
    "_rocprof_sys": "it puts a profiler around every worker",
}

_OTHER_GPUS = "it decides which GPUs a process sees; the farm sets it for the lease"
REFUSED_ENV: Mapping[str, str] = {
    "LD_PRELOAD": "it puts code into every process before the lease's own hook",
    "LD_AUDIT": "it puts code into every process before the lease's own hook",
    "PYTHONPATH": "it can hide Ray and the lease's own hook; use working_dir or py_modules",
    "PYTHONHOME": "it takes the installed packages, and with them the lease's own hook, away",
    "PYTHONNOUSERSITE": "it changes which packages are found; use pip or py_modules",
    "CUDA_VISIBLE_DEVICES": _OTHER_GPUS,
    "CUDA_DEVICE_ORDER": _OTHER_GPUS,
    "NVIDIA_VISIBLE_DEVICES": _OTHER_GPUS,
    "HIP_VISIBLE_DEVICES": _OTHER_GPUS,
    "ROCR_VISIBLE_DEVICES": _OTHER_GPUS,
    # The only one of Train's own settings: the farm's callback is what puts Train's workers into the lease.
    "RAY_TRAIN_CALLBACKS": "the farm sets it to keep Ray Train's workers in the lease",
}
REFUSED_ENV_PREFIXES: Mapping[str, str] = {
    "CLOUDFARM_": "the farm's own settings begin so",
    "CUDA_MPS_": "it sets how much of a GPU a process gets; the farm sets it for the lease",
    "RAY_": "it can change which cluster, node or token the job's processes use",
}
ALLOWED_RAY_PREFIXES = (
    "RAY_TRAIN_",
    "RAY_TUNE_",
    "RAY_DATA_",
    "RAY_AIR_",
    "RAY_DEDUP_LOGS",
    "RAY_COLOR_PREFIX",
)
"""Settings of Ray's libraries, which concern nobody but the job."""

_LOCAL_SCHEMES = ("file://", "local://")


def check_runtime_env(env: Mapping[str, Any]) -> None:
    """Refuse a runtime_env that a job may not bring.

    Raises:
        ForbiddenKeyError: naming the key and saying why.
        InvalidInputError: if a value has the wrong type or the whole is too big.
    """
    if len(json.dumps(env)) > MAX_BYTES:
        raise InvalidInputError(f"runtime_env is over {MAX_BYTES // 1024} KiB")
    for key, value in env.items():
        if key in REFUSED_KEYS:
            raise ForbiddenKeyError(
                f"runtime_env key {quoted(key)} is not allowed here: {REFUSED_KEYS[key]}", key=key
            )
        if key not in ALLOWED_KEYS:
            names = ", ".join(sorted(name for name in ALLOWED_KEYS if not name.startswith("_")))
            raise ForbiddenKeyError(
                f"runtime_env key {quoted(key)} is not known here; known are {names}", key=key[:80]
            )
        if not isinstance(value, ALLOWED_KEYS[key]):
            raise InvalidInputError(
                f"runtime_env key {quoted(key)}: {type(value).__name__} is not what belongs there"
            )
    _check_env_vars(env.get("env_vars", {}))
    for uri in _uris(env):
        if not isinstance(uri, str):
            raise InvalidInputError("runtime_env: working_dir and py_modules hold URIs, which are text")
        if uri.startswith(_LOCAL_SCHEMES):
            raise ForbiddenKeyError(
                f"{quoted(uri)} would read the hosts' own disks; upload the folder instead", key="uri"
            )
        if uri.startswith("gcs://") and not is_package_name(uri.removeprefix("gcs://")):
            raise InvalidInputError(f"{quoted(uri)} is not a package that can have been uploaded")


def packages_of(env: Mapping[str, Any]) -> list[str]:
    """Return the names of the uploaded packages that a checked runtime_env uses."""
    return [uri.removeprefix("gcs://") for uri in _uris(env) if uri.startswith("gcs://")]


def _uris(env: Mapping[str, Any]) -> Iterator[Any]:
    if env.get("working_dir"):
        yield env["working_dir"]
    yield from env.get("py_modules", [])


def _check_env_vars(variables: Mapping[str, Any]) -> None:
    if len(variables) > MAX_ENV_VARS:
        raise InvalidInputError(f"runtime_env: more than {MAX_ENV_VARS} env_vars")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise InvalidInputError(f"env_vars: {quoted(name)} must be text, not {type(value).__name__}")
        if not name or "=" in name:
            raise InvalidInputError(f"env_vars: {quoted(name)} cannot name a variable")
        reason = REFUSED_ENV.get(name)
        if reason is None and not name.startswith(ALLOWED_RAY_PREFIXES):
            reason = next(
                (why for prefix, why in REFUSED_ENV_PREFIXES.items() if name.startswith(prefix)), None
            )
        if reason is not None:
            raise ForbiddenKeyError(f"env_vars: {quoted(name)} is not allowed here: {reason}", key=name[:80])
