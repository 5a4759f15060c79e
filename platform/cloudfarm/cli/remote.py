"""Commands that talk to a farm's API: see ``session`` for which farm and whose token."""

from typing import Annotated, Any

import typer

from cloudfarm.cli.session import JsonOption, TenantOption, connect, out, show

LEASE_COLUMNS = (
    "id",
    "name",
    "tenant",
    "project",
    "kind",
    "shape",
    "status",
    "grade",
    "ends",
    "preempted",
    "message",
)

TENANT_COLUMNS = ("id", "title", "limit_milli_gpus", "limit_tokens_per_month", "closed")
SERVED_COLUMNS = (
    "day",
    "tenant",
    "key",
    "service",
    "model",
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "busy_s",
    "milli_gpu_seconds",
)
KEY_COLUMNS = (
    "id",
    "user",
    "services",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_month",
    "expires",
    "revoked",
)

lease = typer.Typer(no_args_is_help=True, help="Leases: the right to slices of GPUs until a time.")
tenant = typer.Typer(no_args_is_help=True, help="Tenants (operators).")
token = typer.Typer(no_args_is_help=True, help="Tokens for people.")
key = typer.Typer(no_args_is_help=True, help="API keys for services.")
host = typer.Typer(no_args_is_help=True, help="Hosts (operators).")

GROUPS = {"lease": lease, "tenant": tenant, "host": host, "token": token, "key": key}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, group in GROUPS.items():
        app.add_typer(group, name=name)
    for command in (whoami, models, usage, events):
        app.command()(command)


def whole_or_none(text: str) -> int | None:
    """Return the whole number that was written, or None for ``none``."""
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit():
        raise typer.BadParameter(f"{text!r} is neither a whole number nor 'none'")
    return int(text)


@lease.command("request")
def lease_request(
    gpus: Annotated[str, typer.Argument(help="COUNTxSHARE or SHARE, such as 2x0.5, 0.25, 4, 0.")],
    name: Annotated[str | None, typer.Option(help="A name to use it by.")] = None,
    hours: Annotated[str | None, typer.Option(help="How long, from when it starts.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of each slice.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each slice, such as 4GiB.")] = None,
    gpu_model: Annotated[str | None, typer.Option(help="Only GPUs of this model.")] = None,
    project: Annotated[str | None, typer.Option(help="Whose quota it counts against.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="-100 to 100: the highest of a project goes first.")
    ] = None,
    not_before: Annotated[
        str | None, typer.Option("--from", help="Reserve it from then on: 2026-11-22T09:00+09:00.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Ask for a lease."""
    body = {
        "gpus": gpus,
        "name": name,
        "hours": hours,
        "cpus": cpus,
        "memory": memory,
        "gpu_model": gpu_model,
        "project": project,
        "priority": priority,
        "not_before": not_before,
    }
    with connect() as farm:
        show(
            farm.post("/v1/leases", {k: value for k, value in body.items() if value is not None}),
            as_json=as_json,
        )


@lease.command("list")
def lease_list(
    tenant_id: TenantOption = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List leases, oldest first."""
    with connect() as farm:
        found = farm.get("/v1/leases", tenant=tenant_id, open_only=not every)
    show(found, as_json=as_json, columns=LEASE_COLUMNS)


@lease.command("show")
def lease_show(lease_id: str, *, as_json: JsonOption = False) -> None:
    """Show one lease."""
    with connect() as farm:
        show(farm.get(f"/v1/leases/{lease_id}"), as_json=as_json)


@lease.command("extend")
def lease_extend(lease_id: str, hours: str, *, as_json: JsonOption = False) -> None:
    """Move a lease's time limit further away."""
    with connect() as farm:
        show(farm.post(f"/v1/leases/{lease_id}/extend", {"hours": hours}), as_json=as_json)


@lease.command("release")
def lease_release(lease_id: str, *, as_json: JsonOption = False) -> None:
    """End a lease now; what runs in it is stopped."""
    with connect() as farm:
        show(farm.delete(f"/v1/leases/{lease_id}"), as_json=as_json)


@tenant.command("create")
def tenant_create(
    slug: str,
    title: Annotated[str, typer.Option(help="Name for people.")] = "",
    limit_gpus: Annotated[str | None, typer.Option(help="GPUs it may hold at once.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a tenant."""
    body = {"id": slug, "title": title or slug, "limit_gpus": limit_gpus}
    with connect() as farm:
        show(
            farm.post("/v1/tenants", {k: value for k, value in body.items() if value is not None}),
            as_json=as_json,
        )


@tenant.command("list")
def tenant_list(*, as_json: JsonOption = False) -> None:
    """List tenants."""
    with connect() as farm:
        show(farm.get("/v1/tenants"), as_json=as_json, columns=TENANT_COLUMNS)


@tenant.command("limit")
def tenant_limit(slug: str, gpus: str, *, as_json: JsonOption = False) -> None:
    """Set how many GPUs a tenant may hold at once."""
    with connect() as farm:
        show(farm.patch(f"/v1/tenants/{slug}", {"limit_gpus": gpus}), as_json=as_json)


@tenant.command("budget")
def tenant_budget(
    slug: str,
    tokens_per_month: Annotated[str, typer.Argument(help="Tokens a calendar month, UTC, or none.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Set how many tokens a tenant's calls to services may use in a month."""
    change = {"limit_tokens_per_month": whole_or_none(tokens_per_month)}
    with connect() as farm:
        show(farm.patch(f"/v1/tenants/{slug}", change), as_json=as_json)


@host.command("cordon")
def host_cordon(host_id: str) -> None:
    """Keep new slices off a host; what runs there is left alone."""
    with connect() as farm:
        farm.patch(f"/v1/hosts/{host_id}", {"cordoned": True})
    out.print(f"{host_id} takes no new slices")


@host.command("uncordon")
def host_uncordon(host_id: str) -> None:
    """Let new slices on a host again."""
    with connect() as farm:
        farm.patch(f"/v1/hosts/{host_id}", {"cordoned": False})
    out.print(f"{host_id} takes new slices")


@host.command("forget")
def host_forget(host_id: str) -> None:
    """Remove a host that will not come back."""
    with connect() as farm:
        farm.delete(f"/v1/hosts/{host_id}")
    out.print(f"{host_id} is forgotten")


@token.command("create")
def token_create(
    user: str,
    role: Annotated[str, typer.Option(help="operator, admin, member or viewer.")] = "member",
    hours: Annotated[str | None, typer.Option(help="Valid so long; for ever if not given.")] = None,
    tenant_id: TenantOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Issue a token; its secret is shown this once."""
    body = {"user": user, "role": role, "hours": hours, "tenant": tenant_id}
    with connect() as farm:
        show(
            farm.post("/v1/tokens", {k: value for k, value in body.items() if value is not None}),
            as_json=as_json,
        )


@token.command("list")
def token_list(tenant_id: TenantOption = None, *, as_json: JsonOption = False) -> None:
    """List tokens."""
    with connect() as farm:
        show(
            farm.get("/v1/tokens", tenant=tenant_id),
            as_json=as_json,
            columns=("id", "user", "role", "expires", "revoked"),
        )


@token.command("revoke")
def token_revoke(token_id: str) -> None:
    """Revoke a token now."""
    with connect() as farm:
        farm.delete(f"/v1/tokens/{token_id}")
    out.print("revoked")


@key.command("create")
def key_create(
    user: str,
    service: Annotated[list[str] | None, typer.Option(help="Only for this service; may be repeated.")] = None,
    hours: Annotated[str | None, typer.Option(help="Valid so long.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option("--rpm", help="Requests a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option("--tpm", help="Tokens a minute.")] = None,
    tokens_per_month: Annotated[
        int | None, typer.Option("--tokens-per-month", help="Tokens a calendar month, UTC.")
    ] = None,
    tenant_id: TenantOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Issue an API key; its secret is shown this once."""
    body = {
        "user": user,
        "services": service or [],
        "hours": hours,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_month": tokens_per_month,
        "tenant": tenant_id,
    }
    with connect() as farm:
        show(
            farm.post("/v1/keys", {k: value for k, value in body.items() if value is not None}),
            as_json=as_json,
        )


@key.command("list")
def key_list(tenant_id: TenantOption = None, *, as_json: JsonOption = False) -> None:
    """List API keys."""
    with connect() as farm:
        show(
            farm.get("/v1/keys", tenant=tenant_id),
            as_json=as_json,
            columns=KEY_COLUMNS,
        )


@key.command("limit")
def key_limit(
    key_id: str,
    requests_per_minute: Annotated[
        str | None, typer.Option("--rpm", help="Requests a minute, or none.")
    ] = None,
    tokens_per_minute: Annotated[str | None, typer.Option("--tpm", help="Tokens a minute, or none.")] = None,
    tokens_per_month: Annotated[
        str | None, typer.Option("--tokens-per-month", help="Tokens a calendar month, UTC, or none.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Change limits of an API key; what is not named stays."""
    said = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_month": tokens_per_month,
    }
    with connect() as farm:
        show(
            farm.patch(
                f"/v1/keys/{key_id}",
                {name: whole_or_none(text) for name, text in said.items() if text is not None},
            ),
            as_json=as_json,
            columns=KEY_COLUMNS,
        )


@key.command("revoke")
def key_revoke(key_id: str) -> None:
    """Revoke an API key now."""
    with connect() as farm:
        farm.delete(f"/v1/keys/{key_id}")
    out.print("revoked")


def whoami(*, as_json: JsonOption = False) -> None:
    """Show whose token this is."""
    with connect() as farm:
        show(farm.get("/v1/whoami"), as_json=as_json)


def models(*, as_json: JsonOption = False) -> None:
    """List model versions."""
    with connect() as farm:
        found = farm.get("/v1/model-versions")
    if not as_json:
        found = [
            {**model, **{key: model["manifest"].get(key) for key in ("kind", "metrics")}} for model in found
        ]
    show(found, as_json=as_json, columns=("ref", "kind", "created", "uri", "metrics"))


def usage(
    tenant_id: TenantOption = None,
    lease_id: Annotated[str | None, typer.Option("--lease", help="Of this lease.")] = None,
    first_day: Annotated[str | None, typer.Option("--from", help="First UTC day, YYYY-MM-DD.")] = None,
    last_day: Annotated[str | None, typer.Option("--to", help="Last UTC day.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print the statement: milli-GPU-seconds by day, tenant and lease, and what calls to services used."""
    with connect() as farm:
        found = farm.get("/v1/usage", tenant=tenant_id, lease=lease_id, **{"from": first_day, "to": last_day})
    if as_json:
        show(found, as_json=True)
        return
    show(found["lines"], as_json=False, columns=("day", "tenant", "lease", "kind", "milli_gpu_seconds"))
    out.print(f"total: {found['total']} milli-GPU-seconds", highlight=False)
    for each in found["running"]:
        out.print(
            f"running: {each['lease']} of {each['tenant']}, {each['milli_gpu_seconds']} so far",
            highlight=False,
        )
    served = found["served"]
    if served["lines"]:
        show([with_seconds(line) for line in served["lines"]], as_json=False, columns=SERVED_COLUMNS)
        used = with_seconds(served["total"])
        out.print(
            f"served: {used['requests']} requests in {used['busy_s']} s, {used['prompt_tokens']} tokens read and "
            f"{used['completion_tokens']} made, {used['milli_gpu_seconds']} milli-GPU-seconds",
            highlight=False,
        )


def with_seconds(used: dict[str, Any]) -> dict[str, Any]:
    """Return what calls used with seconds beside the milliseconds."""
    return {
        **used,
        "busy_s": f"{used['busy_ms'] / 1000:.3f}",
        "milli_gpu_seconds": f"{used['milli_gpu_ms'] / 1000:.3f}",
    }


def events(
    tenant_id: TenantOption = None,
    subject: Annotated[str | None, typer.Option(help="Of this lease, job, service or host.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 50,
    *,
    as_json: JsonOption = False,
) -> None:
    """List what happened, newest first."""
    with connect() as farm:
        found = farm.get("/v1/events", tenant=tenant_id, subject=subject, limit=limit)
    show(found, as_json=as_json, columns=("at", "kind", "subject", "tenant", "actor", "message"))
