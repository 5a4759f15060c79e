"""Serve's handles as the front door has them: in its own event loop, and over gRPC.

In the caller's event loop no other thread stands between a message and who waits for it. Over gRPC a stream that
nobody reads waits in the replica and not in the front door's memory. It also costs less: measured on two slow cores
with 16 streams of 20 pieces a second each, 0.5 ms of CPU a piece on either side and 0.9 as objects of Ray; a plain call
takes 1.1 to 1.5 ms and 2.7 as an object.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cloudfarm.errors import NoReplicaError, ReplicaLostError, UnavailableError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

MOST_APPS = 1000
"""Applications whose handles are kept: each revision of a service is one."""

log = logging.getLogger(__name__)


class Handles:
    """Handles to applications, kept by application and by how it is called.

    Args:
        from_proxy: call as Serve's HTTP proxy does. Serve sends HTTP to an ingress from nowhere else.
    """

    def __init__(self, *, from_proxy: bool = False) -> None:
        self._from_proxy = from_proxy
        self._kept: dict[str, dict[str, DeploymentHandle[Any]]] = {}
        """The one under "" has the router, which the others share."""
        self._opening: dict[str, asyncio.Task[dict[str, DeploymentHandle[Any]]]] = {}
        """One for all requests that come meanwhile: a router for each of 1,000 would take 350 MB."""

    async def get(self, app_name: str, way: str, options: Mapping[str, Any]) -> "DeploymentHandle[Any]":
        """Return the handle for one way to call an application.

        Args:
            app_name: of the application.
            way: a name of the options.
            options: of the handle.

        Raises:
            NoReplicaError: if Serve has no such application.
        """
        kept = self._kept.get(app_name)
        if kept is None:
            opening = self._opening.get(app_name)
            if opening is None:
                opening = self._opening[app_name] = asyncio.create_task(self._keep(app_name))
                opening.add_done_callback(lambda opened: self._end_opening(app_name, opened))
            kept = await asyncio.shield(opening)  # others may wait for it when this request's client has gone
        if way not in kept:
            kept[way] = kept[""].options(**options, _by_reference=False)
        return kept[way]

    @contextmanager
    def told(self, app_name: str, *expected: type[BaseException]) -> Iterator[None]:
        """Turn what Serve says of an application into an error for the caller.

        Args:
            app_name: of the application.
            expected: what may be raised besides what Serve and Ray raise.
        """
        from ray.exceptions import RayError  # noqa: PLC0415 - only inside a replica
        from ray.serve.exceptions import RayServeException  # noqa: PLC0415

        try:
            yield
        except NoReplicaError:
            raise
        except (RayServeException, RayError, TimeoutError, *expected) as error:
            raise self._silent(app_name, error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: Serve says so of a request whose replica was stopped.
            raise self._silent(app_name, error) from error

    async def _keep(self, app_name: str) -> "dict[str, DeploymentHandle[Any]]":
        handle = await self._open(app_name)
        if len(self._kept) >= MOST_APPS:
            self._kept.clear()  # Serve forgets a router that has no handle
        kept = self._kept[app_name] = {"": handle}
        return kept

    def _end_opening(self, app_name: str, opened: "asyncio.Task[Any]") -> None:
        del self._opening[app_name]
        if not opened.cancelled() and (error := opened.exception()) is not None:
            log.info("%s: %s", app_name, error)  # perhaps no request waits to be told

    async def _open(self, app_name: str) -> "DeploymentHandle[Any]":
        from ray.serve._private.common import DeploymentHandleSource  # noqa: PLC0415 - only inside a replica
        from ray.serve.context import _get_global_client  # noqa: PLC0415
        from ray.serve.handle import DeploymentHandle  # noqa: PLC0415

        # As serve.get_app_handle, which would stand still until the controller answers.
        controller = _get_global_client()._controller  # noqa: SLF001
        ingress = await controller.get_ingress_deployment_name.remote(app_name)
        if ingress is None:
            raise NoReplicaError(f"service {service_of(app_name)} does not run just now")
        handle: DeploymentHandle[Any] = DeploymentHandle(ingress, app_name)
        source = {"_source": DeploymentHandleSource.PROXY} if self._from_proxy else {}
        handle._init(_run_router_in_separate_loop=False, **source)  # noqa: SLF001
        return handle

    def _silent(self, app_name: str, error: BaseException) -> UnavailableError:
        from ray.exceptions import RayActorError, RayError  # noqa: PLC0415 - only inside a replica
        from ray.serve.exceptions import DeploymentUnavailableError, RayServeException  # noqa: PLC0415

        log.warning("%s: %s: %s", app_name, type(error).__name__, error)
        if isinstance(error, RayServeException | RayError | TimeoutError | asyncio.CancelledError):
            self._kept.pop(app_name, None)  # perhaps it is another application by now
        kind = UnavailableError
        if isinstance(error, DeploymentUnavailableError):
            kind = NoReplicaError  # Serve says so before it has chosen a replica, of an application that has ended
        elif isinstance(error, RayActorError | asyncio.CancelledError | ConnectionResetError):
            kind = ReplicaLostError
        return kind(f"service {service_of(app_name)} does not answer just now")


def service_of(app_name: str) -> str:
    """Return the service of an application ``tenant.service.revision``."""
    return app_name.split(".")[1]
