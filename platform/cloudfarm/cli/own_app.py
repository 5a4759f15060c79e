"""Registers an application of one's own, for ``cloudfarm deploy --app``."""

import json
from typing import Any

from cloudfarm.client import FarmClient
from cloudfarm.errors import InvalidInputError


def register_app(
    farm: FarmClient, import_path: str, *, name: str | None, working_dir: str, runtime_env_json: str
) -> dict[str, Any]:
    """Upload what the application needs, register it, and return its version.

    Raises:
        InvalidInputError: if the runtime_env is no JSON object.
    """
    from cloudfarm.raylayer.upload import upload_folders  # noqa: PLC0415 - imports Ray

    try:
        env = json.loads(runtime_env_json)
    except ValueError as error:
        raise InvalidInputError(f"--runtime-env-json is not JSON: {error}") from error
    if not isinstance(env, dict):
        raise InvalidInputError("--runtime-env-json is not a JSON object")
    env = upload_folders(farm.url, farm.authorization, {"working_dir": working_dir, **env})
    body = {"import_path": import_path, "name": name, "runtime_env": env}
    version: dict[str, Any] = farm.post(
        "/v1/apps", {key: each for key, each in body.items() if each is not None}
    )
    return version
