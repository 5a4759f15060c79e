"""Uploads of working-dir packages, as Ray's clients make them before they submit a job."""

from fastapi import APIRouter, Request, Response

from cloudfarm.api.auth import Member, Viewer
from cloudfarm.api.context import Context
from cloudfarm.api.middleware import body_of, drain
from cloudfarm.errors import CloudfarmError
from cloudfarm.usecases import packages

PREFIX = "/api/packages/"

router = APIRouter(tags=["Ray Jobs API"])


@router.get(PREFIX + "{protocol}/{name}")
async def find(protocol: str, name: str, caller: Viewer, context: Context) -> Response:
    """Answer 200 if the tenant has uploaded the package, 404 if not."""
    await packages.find_package(context.artifacts, caller, protocol, name)
    return Response()


@router.put(PREFIX + "{protocol}/{name}")
async def upload(protocol: str, name: str, request: Request, caller: Member, context: Context) -> Response:
    """Store a package as it streams in."""
    body = body_of(request.receive)
    try:
        await packages.put_package(
            context.artifacts, context.settings, caller, protocol=protocol, name=name, data=body
        )
    except CloudfarmError:
        await drain(body)
        raise
    return Response()
