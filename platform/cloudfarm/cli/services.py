"""Commands about services."""

from typing import Annotated, Any

import typer

from cloudfarm.cli.own_app import register_app
from cloudfarm.cli.session import JsonOption, TenantOption, connect, out, show

COLUMNS = ("name", "tenant", "project", "model", "status", "replicas", "message")
REVISION_COLUMNS = ("number", "model", "status", "percent", "replicas", "leases", "message")

service = typer.Typer(no_args_is_help=True, help="One service: its revisions, and how it is scaled.")

MinOption = Annotated[int | None, typer.Option("--min", help="Fewest replicas; 0 lets it sleep.")]
MaxOption = Annotated[int | None, typer.Option("--max", help="Most replicas.")]
LoadOption = Annotated[int | None, typer.Option(help="Requests at once that each replica is to have.")]
IdleOption = Annotated[float | None, typer.Option(help="Minutes without a request until it sleeps.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(service, name="service")
    for command in (deploy, undeploy, services):
        app.command()(command)


def deploy(
    model: Annotated[str | None, typer.Argument(help="NAME (newest version) or NAME:NUMBER.")] = None,
    app: Annotated[
        str | None, typer.Option(help="Instead of a model a Serve application of your own: MODULE:APP.")
    ] = None,
    working_dir: Annotated[str, typer.Option(help="The application's folder.")] = ".",
    runtime_env_json: Annotated[
        str, typer.Option(help="What else the application needs, as for a job.")
    ] = "{}",
    gpus: Annotated[str | None, typer.Option(help="Share of each replica; none if not given.")] = None,
    replicas: Annotated[int | None, typer.Option(help="How many, always.")] = None,
    name: Annotated[str | None, typer.Option(help="The service's name; the model's if not given.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of each replica.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each replica, such as 2GiB.")] = None,
    project: Annotated[str | None, typer.Option(help="Whose quota it counts against.")] = None,
    min_replicas: MinOption = None,
    max_replicas: MaxOption = None,
    target_load: LoadOption = None,
    idle_minutes: IdleOption = None,
    canary: Annotated[
        int | None, typer.Option(help="With --replace: percent of the requests until it is promoted.")
    ] = None,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Give a running service this model.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Keep a model, or an application of your own, answering requests."""
    if (model is None) == (app is None):
        raise typer.BadParameter("name either a model or --app MODULE:APP")
    body = {
        "model": model,
        "gpus": gpus,
        "replicas": replicas,
        "name": name,
        "cpus": cpus,
        "memory": memory,
        "project": project,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_load": target_load,
        "idle_minutes": idle_minutes,
        "canary": canary,
        "replace": replace,
    }
    with connect() as farm:
        if app is not None:
            found = register_app(
                farm, app, name=name, working_dir=working_dir, runtime_env_json=runtime_env_json
            )
            body |= {"model": found["ref"], "name": found["name"]}
        _show(farm.post("/v1/services", _given(body)), as_json=as_json)


def undeploy(name: str) -> None:
    """Delete a service."""
    with connect() as farm:
        farm.delete(f"/v1/services/{name}")
    out.print(f"{name} is being deleted", highlight=False)


def services(tenant_id: TenantOption = None, *, as_json: JsonOption = False) -> None:
    """List services."""
    with connect() as farm:
        show(farm.get("/v1/services", tenant=tenant_id), as_json=as_json, columns=COLUMNS)


@service.command("show")
def service_show(name: str, tenant_id: TenantOption = None, *, as_json: JsonOption = False) -> None:
    """Show a service and its revisions."""
    with connect() as farm:
        _show(farm.get(f"/v1/services/{name}", tenant=tenant_id), as_json=as_json)


@service.command("scale")
def service_scale(
    name: str,
    replicas: Annotated[int | None, typer.Option(help="How many, always.")] = None,
    min_replicas: MinOption = None,
    max_replicas: MaxOption = None,
    target_load: LoadOption = None,
    idle_minutes: IdleOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Change how many replicas a service may have."""
    body = {
        "replicas": replicas,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_load": target_load,
        "idle_minutes": idle_minutes,
    }
    with connect() as farm:
        _show(farm.patch(f"/v1/services/{name}", _given(body)), as_json=as_json)


@service.command("promote")
def service_promote(name: str, *, as_json: JsonOption = False) -> None:
    """Let a canary take over all requests."""
    with connect() as farm:
        _show(farm.post(f"/v1/services/{name}/promote"), as_json=as_json)


@service.command("rollback")
def service_rollback(name: str, *, as_json: JsonOption = False) -> None:
    """Withdraw what is to take over; if nothing is, deploy anew what ran before."""
    with connect() as farm:
        _show(farm.post(f"/v1/services/{name}/rollback"), as_json=as_json)


@service.command("share")
def service_share(
    name: str,
    tenant_id: Annotated[str, typer.Option("--tenant", help="Whose service it is.")],
    *,
    with_all: Annotated[bool, typer.Option("--all/--none", help="Whether all tenants may call it.")] = True,
) -> None:
    """Open a tenant's service to all tenants, or close it again (operators)."""
    with connect() as farm:
        farm.patch(f"/v1/services/{name}?tenant={tenant_id}", {"shared": with_all})
    whom = "all tenants" if with_all else f"{tenant_id} only"
    out.print(f"{name} of {tenant_id} is open to {whom}", highlight=False)


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show(found, as_json=True)
        return
    show({key: value for key, value in found.items() if key != "revisions"}, as_json=False)
    show(found["revisions"], as_json=False, columns=REVISION_COLUMNS)
