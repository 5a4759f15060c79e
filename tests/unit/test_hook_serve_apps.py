"""The guard over a tenant's use of Serve, on Ray's own classes."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve._private.build_app import BuiltApplication
from ray.serve._private.client import ServeControllerClient
from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    DeploymentActorConfig,
    GangSchedulingConfig,
    RequestRouterConfig,
)
from ray.serve.request_router import RequestRouter

from cloudfarm.raylayer.hook import HookError
from cloudfarm.raylayer.hook.rules import ConfinementError
from cloudfarm.raylayer.hook.serve_apps import keep_to_own_applications


class Model:
    """A tenant's deployment."""


class OwnRouter(RequestRouter):
    """A tenant's router: Serve would run it in the front door."""


def own_policy(ctx: Any) -> Any:
    """Return what a tenant thinks; Serve would run it in its controller."""
    return default_autoscaling_policy(ctx)


def application(name: str, *, route_prefix: str | None = "/", **options: Any) -> BuiltApplication:
    deployment = serve.deployment(**options)(Model)
    return BuiltApplication(
        name=name,
        route_prefix=route_prefix,
        logging_config=None,
        ingress_deployment_name="Model",
        deployments=[deployment],
        deployment_handles={},
        external_scaler_enabled=False,
    )


class Recording(ServeControllerClient):
    """Serve's client without a Serve: keeps what gets through to it."""

    def __init__(self) -> None:
        self.let_through: list[Any] = []

    def deploy_applications(self, built_apps: Any, *, wait_for_applications_running: bool = True) -> None:
        self.let_through.append((built_apps, wait_for_applications_running))

    def delete_apps(self, names: list[str], blocking: bool = True) -> None:
        self.let_through.append((names, blocking))

    def get_handle(self, deployment_name: str, app_name: str = "default") -> None:
        self.let_through.append((deployment_name, app_name))


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_TENANT", "kaist")
    kind = type("ServeControllerClient", (Recording,), {})
    keep_to_own_applications(SimpleNamespace(ServeControllerClient=kind))
    return kind()


def test_own_applications_go_through_without_a_route(client):
    client.deploy_applications([application("kaist.sea")], wait_for_applications_running=False)
    client.delete_apps(["kaist.sea"], blocking=False)
    client.get_handle("Model", app_name="kaist.sea")
    (deployed, waits), deleted, asked = client.let_through
    assert [(app.name, app.route_prefix) for app in deployed] == [("kaist.sea", None)]
    assert (waits, deleted, asked) == (False, (["kaist.sea"], False), ("Model", "kaist.sea"))


@pytest.mark.parametrize("name", ["snu.sea", "default", "kaist", "kaistsea", "front-door", ""])
def test_other_applications_are_refused(client, name):
    calls = (
        lambda: client.deploy_applications([application("kaist.sea"), application(name)]),
        lambda: client.delete_apps(["kaist.sea", name]),
        lambda: client.get_handle("Model", name),
    )
    for call in calls:
        with pytest.raises(ConfinementError, match=r"kaist\."):
            call()
    assert client.let_through == []


def test_a_handle_of_no_application_is_that_of_the_default_one(client):
    with pytest.raises(ConfinementError, match="default"):
        client.get_handle("Model")


@pytest.mark.parametrize(
    "method", ["shutdown", "shutdown_async", "delete_all_apps", "deploy_apps", "update_global_logging_config"]
)
def test_what_concerns_every_tenant_is_refused(client, method):
    with pytest.raises(ConfinementError, match=method):
        getattr(client, method)()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            {"autoscaling_config": AutoscalingConfig(policy=AutoscalingPolicy(policy_function=own_policy))},
            "policy",
        ),
        ({"request_router_config": RequestRouterConfig(request_router_class=OwnRouter)}, "router"),
        (
            {"deployment_actors": [DeploymentActorConfig(name="a", actor_class=ray.remote(Model))]},
            "deployment_actors",
        ),
        ({"gang_scheduling_config": GangSchedulingConfig(gang_size=2), "num_replicas": 2}, "gang"),
    ],
)
def test_options_that_run_code_elsewhere_are_refused(client, options, what):
    with pytest.raises(ConfinementError, match=what):
        client.deploy_applications([application("kaist.sea", **options)])
    assert client.let_through == []


def test_ordinary_options_are_let_through(client):
    autoscaling = AutoscalingConfig(min_replicas=1, max_replicas=3)
    app = application("kaist.sea", autoscaling_config=autoscaling, user_config={"a": [1, None, "b"]})
    client.deploy_applications([app])
    assert len(client.let_through) == 1


def test_the_hook_knows_this_rays_client(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_TENANT", "kaist")
    keep_to_own_applications(SimpleNamespace(ServeControllerClient=type("Own", (ServeControllerClient,), {})))


def test_an_unknown_serve_or_tenant_is_refused(monkeypatch):
    monkeypatch.setenv("CLOUDFARM_TENANT", "kaist")
    with pytest.raises(HookError, match="delete_apps"):
        keep_to_own_applications(SimpleNamespace(ServeControllerClient=object))
    renamed = type("Renamed", (Recording,), {"delete_apps": lambda _self, _apps: None})
    with pytest.raises(HookError, match="names"):
        keep_to_own_applications(SimpleNamespace(ServeControllerClient=renamed))
    monkeypatch.delenv("CLOUDFARM_TENANT")
    with pytest.raises(HookError, match="CLOUDFARM_TENANT"):
        keep_to_own_applications(SimpleNamespace(ServeControllerClient=Recording))
