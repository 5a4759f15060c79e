"""Models, services, and calls to them."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from cloudfarm.api import schemas, service_schemas
from cloudfarm.api.auth import Member, Secret, Viewer
from cloudfarm.api.context import Context, ServiceCalls
from cloudfarm.usecases import apps, deploying, models, services

router = APIRouter(prefix="/v1", tags=["Models and services"])


@router.get("/model-versions")
async def list_models(caller: Viewer, context: Context) -> list[schemas.ModelOut]:
    """Return the tenant's model versions."""
    return [schemas.ModelOut.of(model) for model in await models.list_models(context.store, caller)]


@router.get("/model-versions/{ref}")
async def show_model(ref: str, caller: Viewer, context: Context) -> schemas.ModelOut:
    """Return ``name:number``, or the newest version of ``name``."""
    return schemas.ModelOut.of(await models.get_model(context.store, caller, ref))


@router.post("/apps", status_code=201)
async def register_app(body: service_schemas.AppBody, caller: Member, context: Context) -> schemas.ModelOut:
    """Register an application of one's own, to be deployed as a model is; its packages are uploaded before."""
    version = await apps.register_app(
        context.store,
        context.clock,
        context.artifacts,
        caller,
        import_path=body.import_path,
        name=body.name,
        runtime_env=body.runtime_env,
        args=body.args,
    )
    return schemas.ModelOut.of(version)


@router.post("/services", status_code=201)
async def deploy(
    body: service_schemas.ServiceBody, caller: Member, context: Context
) -> service_schemas.ServiceOut:
    """Deploy a model."""
    view = await deploying.deploy_service(
        context.store,
        context.clock,
        context.settings,
        caller,
        model=body.model,
        name=body.name,
        gpus=body.gpus,
        scaling=body.scaling,
        cpus=body.cpus,
        memory=body.memory,
        project=body.project,
        canary=body.canary,
        replace_model=body.replace,
    )
    context.nudge.nudge()
    return service_schemas.ServiceOut.of(view)


@router.get("/services")
async def list_services(
    caller: Viewer, context: Context, tenant: str | None = None
) -> list[service_schemas.ServiceOut]:
    """Return the services that are not deleted."""
    return [
        service_schemas.ServiceOut.of(view)
        for view in await services.list_services(context.store, caller, tenant=tenant)
    ]


@router.get("/services/{name}")
async def show(
    name: str, caller: Viewer, context: Context, tenant: str | None = None
) -> service_schemas.ServiceOut:
    """Return a service."""
    return service_schemas.ServiceOut.of(
        await services.get_service(context.store, caller, name, tenant=tenant)
    )


@router.patch("/services/{name}")
async def change(
    name: str,
    body: service_schemas.ServiceChanges,
    caller: Member,
    context: Context,
    tenant: str | None = None,
) -> service_schemas.ServiceOut:
    """Change how a service is scaled; for an operator also who may call it."""
    view = await services.change_service(
        context.store,
        context.clock,
        context.settings,
        caller,
        name,
        scaling=body.scaling,
        shared=body.shared,
        tenant=tenant,
    )
    context.nudge.nudge()
    return service_schemas.ServiceOut.of(view)


@router.post("/services/{name}/promote")
async def promote(name: str, caller: Member, context: Context) -> service_schemas.ServiceOut:
    """Let the canary take over all requests."""
    view = await services.promote_service(context.store, context.clock, caller, name)
    context.nudge.nudge()
    return service_schemas.ServiceOut.of(view)


@router.post("/services/{name}/rollback")
async def roll_back(name: str, caller: Member, context: Context) -> service_schemas.ServiceOut:
    """Withdraw what is to take over; if nothing is, deploy anew what ran before."""
    view = await services.roll_back_service(context.store, context.clock, caller, name)
    context.nudge.nudge()
    return service_schemas.ServiceOut.of(view)


@router.delete("/services/{name}", status_code=202)
async def delete(name: str, caller: Member, context: Context) -> dict[str, str]:
    """Let a service end."""
    service = await services.delete_service(context.store, context.clock, caller, name)
    context.nudge.nudge()
    return {"id": service.id, "name": service.name, "target": service.target}


@router.post("/services/{name}/predict")
async def predict(
    name: str, secret: Secret, calls: ServiceCalls, body: schemas.JsonBody
) -> Mapping[str, Any]:
    """Call a service."""
    return await calls.predict(secret, name, body)
