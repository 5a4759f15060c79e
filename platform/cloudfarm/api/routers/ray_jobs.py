"""Ray's Jobs REST API, as Ray's own clients speak it (``ray/dashboard/modules/job/job_head.py``).

Paths, fields and statuses are Ray's; the ids are the tenant's own, and each tenant sees its own jobs only.
"""

import asyncio
import logging
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from cloudfarm.api.auth import Member, Viewer, get_caller, get_secret
from cloudfarm.api.context import ApiContext, Context
from cloudfarm.api.problem import deny
from cloudfarm.api.schemas import JsonBody
from cloudfarm.errors import CloudfarmError
from cloudfarm.usecases import jobs, logs
from cloudfarm.usecases.access import Principal

API_VERSION = "4"
"""Version of the protocol that Ray 2.60's clients expect (``CURRENT_VERSION`` in Ray)."""
FRAME_CHARS = 256 * 1024
"""Most characters of one frame. The stock client breaks off at a frame over 4 MiB."""

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api", tags=["Ray Jobs API"])


@router.get("/version")
async def version(_caller: Viewer, context: Context) -> dict[str, str]:
    """Tell Ray's clients what they talk to."""
    return {
        "version": API_VERSION,
        "ray_version": context.ray_version,
        "ray_commit": context.ray_commit,
        "session_name": context.session_name,
    }


@router.post("/jobs/")
@router.post("/jobs", include_in_schema=False)
async def submit(caller: Member, context: Context, body: JsonBody) -> dict[str, str]:
    """Queue a job and answer with its id at once."""
    job = await jobs.submit_job(
        context.store, context.clock, context.settings, context.artifacts, caller, body=body
    )
    context.nudge.nudge()
    return {"job_id": job.submission_id, "submission_id": job.submission_id}


@router.get("/jobs/")
@router.get("/jobs", include_in_schema=False)
async def list_jobs(caller: Viewer, context: Context) -> list[dict[str, Any]]:
    """Return the tenant's jobs."""
    return [job_details(view) for view in await jobs.list_jobs(context.store, caller)]


@router.get("/jobs/{submission_id}")
async def show(submission_id: str, caller: Viewer, context: Context) -> dict[str, Any]:
    """Return a job; while it waits its message says for what."""
    return job_details(await jobs.get_job(context.store, caller, submission_id))


@router.post("/jobs/{submission_id}/stop")
async def stop(submission_id: str, caller: Member, context: Context) -> dict[str, bool]:
    """Ask for a job to be stopped."""
    stopped = await jobs.stop_job(context.store, context.clock, caller, submission_id)
    context.nudge.nudge()
    return {"stopped": stopped}


@router.delete("/jobs/{submission_id}")
async def delete(submission_id: str, caller: Member, context: Context) -> dict[str, bool]:
    """Forget an ended job."""
    await jobs.delete_job(context.store, context.clock, context.artifacts, caller, submission_id)
    context.nudge.nudge()
    return {"deleted": True}


@router.get("/jobs/{submission_id}/logs")
async def read_log(submission_id: str, caller: Viewer, context: Context) -> dict[str, str]:
    """Return a job's log so far."""
    text = await logs.read_log(context.store, context.artifacts, context.live_logs, caller, submission_id)
    return {"logs": text}


@router.websocket("/jobs/{submission_id}/logs/tail")
async def tail_log(websocket: WebSocket, submission_id: str, context: Context) -> None:
    """Follow a job's log, from before it starts until it has ended."""
    try:
        caller = await get_caller(await get_secret(websocket), context)
        # Refuse before the handshake is over: afterwards a client cannot tell a refusal from an empty log.
        await jobs.get_job(context.store, caller, submission_id)
    except CloudfarmError as error:
        await deny(websocket, error)
        return
    await websocket.accept()
    relay = asyncio.create_task(_relay(websocket, context, caller, submission_id))
    gone = asyncio.create_task(_until_gone(websocket))
    try:
        await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
        if relay.done():
            relay.result()
    except WebSocketDisconnect:
        log.debug("the client went away while a frame was sent")
    finally:
        for task in (relay, gone):
            task.cancel()
        await asyncio.gather(relay, gone, return_exceptions=True)


@router.get("/component_activities")
async def component_activities(caller: Viewer, context: Context) -> dict[str, Any]:
    """Tell autoscalers and idle checks whether anything of the tenant's runs."""
    running, last_ended_ms = await jobs.count_active(context.store, caller)
    return {
        "driver": {
            "is_active": "ACTIVE" if running else "INACTIVE",
            "reason": f"Number of active drivers: {running}" if running else None,
            "timestamp": context.clock.now_ms() / 1000,
            "last_activity_at": None if last_ended_ms is None else last_ended_ms / 1000,
        },
    }


def job_details(view: jobs.JobView) -> dict[str, Any]:
    """Return a job as Ray's ``JobDetails``."""
    job = view.job
    return {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": job.submission_id,
        "driver_info": None,
        "status": job.status.value,
        "entrypoint": job.entrypoint,
        "message": view.message or None,
        "error_type": job.error_type,
        "start_time": job.started_ms if job.started_ms is not None else job.created_ms,
        "end_time": job.ended_ms,
        "metadata": dict(job.metadata),
        "runtime_env": dict(job.runtime_env),
        "driver_agent_http_address": None,
        "driver_node_id": None,
        "driver_exit_code": job.driver_exit_code,
    }


async def _relay(websocket: WebSocket, context: ApiContext, caller: Principal, submission_id: str) -> None:
    following = logs.follow_log(
        context.store,
        context.artifacts,
        context.live_logs,
        caller,
        submission_id,
        pause=lambda: asyncio.sleep(context.log_poll_s),
    )
    try:
        async with aclosing(following) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), FRAME_CHARS):
                    await websocket.send_text(piece[start : start + FRAME_CHARS])
    except CloudfarmError as error:
        # Deleted while it was followed, say: the stock client prints frames as they come, so it can be told.
        await websocket.send_text(f"cloudfarm: {error.detail}\n")
    await websocket.close(code=1000)


async def _until_gone(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass  # clients have nothing to say here
