"""Tenants' own Serve applications, registered in versions as models are."""

import re
from collections.abc import Mapping
from typing import Any

from cloudfarm.clock import Clock
from cloudfarm.domain.bundles import SERVE_APP, kind_of
from cloudfarm.domain.json_values import check_json
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import Role, check_slug
from cloudfarm.domain.workload import ModelVersion
from cloudfarm.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from cloudfarm.ports import Artifacts, Store, UnitOfWork
from cloudfarm.usecases.access import Principal, in_unit, quoted
from cloudfarm.usecases.packages import find_package
from cloudfarm.usecases.runtime_env import check_runtime_env, packages_of

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
MAX_IMPORT_PATH = 200


async def register_app(
    store: Store,
    clock: Clock,
    artifacts: Artifacts,
    principal: Principal,
    *,
    import_path: str,
    name: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Store an application under its name's next number; return the newest one if it is the same.

    Args:
        store: the records.
        clock: the time.
        artifacts: where the packages lie that the runtime_env names.
        principal: whose it is.
        import_path: ``module:application`` or ``module:builder``.
        name: the application's; the module's if not given.
        runtime_env: as of a job; its ``working_dir`` is an uploaded package.
        args: for a builder.

    Raises:
        InvalidInputError: for a path, name or arguments that can never be right.
        ForbiddenKeyError: for a runtime_env that a job may not have either.
        NotFoundError: if a package was not uploaded.
        AlreadyExistsError: if the name is a model's.
    """
    principal.need(Role.MEMBER)
    tenant = principal.home
    if len(import_path) > MAX_IMPORT_PATH or not _IMPORT_PATH.fullmatch(import_path):
        raise InvalidInputError(f"{quoted(import_path)} is not module:application, such as main:app")
    env, arguments = dict(runtime_env or {}), dict(args or {})
    check_json(env, what="runtime_env")
    check_json(arguments, what="args")
    check_runtime_env(env)
    for package in packages_of(env):
        await find_package(artifacts, principal, "gcs", package)
    module = import_path.partition(":")[0].rpartition(".")[2].strip("_").lower().replace("_", "-")
    slug = check_slug(module if name is None else name, what="application")
    spec = {"import_path": import_path, "runtime_env": env, "args": arguments}
    manifest = {"kind": SERVE_APP, "spec": spec}

    async def work(uow: UnitOfWork) -> ModelVersion:
        newest = await _newest(uow, tenant, slug)
        if newest is not None and kind_of(newest.manifest) != SERVE_APP:
            raise AlreadyExistsError(f"{slug} is the name of a model; give the application another one")
        if newest is not None and newest.manifest == manifest:
            return newest
        now_ms = clock.now_ms()
        version = await uow.models.register(
            tenant=tenant,
            name=slug,
            uri=artifacts.uri("tenants", tenant, "packages"),
            job_id=None,
            manifest=manifest,
            now_ms=now_ms,
        )
        await uow.events.append(
            Event(
                now_ms, "app.registered", version.id, tenant, principal.actor, f"{version.ref}: {import_path}"
            )
        )
        return version

    return await in_unit(store, work)


async def _newest(uow: UnitOfWork, tenant: str, name: str) -> ModelVersion | None:
    try:
        return await uow.models.find(tenant, name)
    except NotFoundError:
        return None
