"""Keep a tenant's use of Serve to its own applications, and its code out of the farm's own processes.

All tenants share one Serve. Without this `serve.run(app)` of one could take another's application over,
`serve.shutdown()` would end everybody's, and some options of a deployment name code that Serve runs in its
controller or in the front door.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from typing import TYPE_CHECKING, Any

from cloudfarm.raylayer.hook import HookError
from cloudfarm.raylayer.hook.rules import ConfinementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_NEEDED_PARAMETERS = {
    "deploy_applications": ("built_apps",),
    "delete_apps": ("names",),
    "get_handle": ("app_name",),
}
_NEVER = {
    "shutdown": "ends the applications of every tenant: delete your own by serve.delete(name)",
    "shutdown_async": "ends the applications of every tenant: delete your own by serve.delete(name)",
    "delete_all_apps": "ends the applications of every tenant: delete your own by serve.delete(name)",
    "deploy_apps": "replaces the applications of every tenant: use serve.run(app, name=...)",
    "update_global_logging_config": "changes the logs of every tenant: set logging_config for your application",
}


def keep_to_own_applications(client: Any) -> None:
    """Refuse what a process in a lease asks of Serve beyond its tenant's applications.

    Raises:
        HookError: The tenant is not known, or Serve's client is not the one that the hook knows.
    """
    tenant = os.environ.get("CLOUDFARM_TENANT")
    if not tenant:
        raise HookError("CLOUDFARM_TENANT is not set: applications of Serve could not be kept apart")
    kind: Any = getattr(client, "ServeControllerClient", None)
    missing = [name for name in (*_NEEDED_PARAMETERS, *_NEVER) if not hasattr(kind, name)]
    for method, needed in _NEEDED_PARAMETERS.items():
        if method not in missing and not set(needed) <= set(
            inspect.signature(getattr(kind, method)).parameters
        ):
            missing.append(f"{method}{needed}")
    if missing:
        raise HookError(f"Serve's client has no {missing}: tenants' applications could not be kept apart")
    prefix = f"{tenant}."

    def deploy(arguments: dict[str, Any]) -> None:
        built = list(arguments["built_apps"])
        check_names((app.name for app in built), prefix)
        for app in built:
            for deployment in app.deployments:
                check_deployment(deployment.name, deployment._deployment_config)  # noqa: SLF001
        # A route leads nowhere, since Serve's proxy does not run here, and two applications cannot have the same.
        arguments["built_apps"] = [dataclasses.replace(app, route_prefix=None) for app in built]

    kind.deploy_applications = _before(kind.deploy_applications, deploy)
    kind.delete_apps = _before(kind.delete_apps, lambda each: check_names(each["names"], prefix))
    kind.get_handle = _before(
        kind.get_handle, lambda each: check_names([each.get("app_name", "default")], prefix)
    )
    for method, why in _NEVER.items():
        setattr(kind, method, _refusal(method, why))


def check_names(names: Iterable[str], prefix: str) -> None:
    """Refuse applications that are not the tenant's.

    Raises:
        ConfinementError: One is not.
    """
    for name in names:
        if not name.startswith(prefix):
            raise ConfinementError(
                f"the application {name!r} of Serve is not yours: yours are named {prefix}NAME, "
                f"as in serve.run(app, name={prefix + 'demo'!r})"
            )


def check_deployment(name: str, config: Any) -> None:
    """Refuse options by which a deployment's code would run in the farm's own processes.

    Raises:
        ConfinementError: There is one.
    """
    autoscaling = config.autoscaling_config
    refused = {
        "a policy of its own in autoscaling_config": autoscaling is not None
        and not autoscaling.policy.is_default_policy_function(),
        "a request router of its own": not config.request_router_config.is_default_request_router(),
        "deployment_actors": bool(config.deployment_actors),
        "gang_scheduling_config": config.gang_scheduling_config is not None,
    }
    for what, is_there in refused.items():
        if is_there:
            raise ConfinementError(
                f"deployment {name} has {what}: on this farm that would run outside of its lease"
            )


def _before(method: Callable[..., Any], check: Callable[[dict[str, Any]], None]) -> Callable[..., Any]:
    """Return the method with a check of its arguments, which may also change them, before it."""
    signature = inspect.signature(method)

    def checked(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        check(bound.arguments)
        return method(*bound.args, **bound.kwargs)

    return checked


def _refusal(method: str, why: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise ConfinementError(f"Serve's {method} {why}")

    return refuse
