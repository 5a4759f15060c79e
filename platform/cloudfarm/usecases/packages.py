"""Working-dir packages, each tenant's in a folder of its own.

The stock client names a package by a hash that nobody checks, so a shared folder would let one tenant put a
package under a name that another is going to use.
"""

import re
from collections.abc import AsyncIterator

from cloudfarm.domain.tenant import Role
from cloudfarm.errors import InvalidInputError
from cloudfarm.ports import Artifacts
from cloudfarm.settings import Settings
from cloudfarm.usecases import paths
from cloudfarm.usecases.access import Principal, missing, quoted

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,190}\.(?:zip|whl)")


def is_package_name(name: str) -> bool:
    """Whether a package may have the name."""
    return _NAME.fullmatch(name) is not None


async def find_package(artifacts: Artifacts, principal: Principal, protocol: str, name: str) -> None:
    """Return if the tenant has the package.

    Raises:
        NotFoundError: if not.
    """
    principal.need(Role.VIEWER)
    if (
        protocol != "gcs"
        or not is_package_name(name)
        or not await artifacts.exists(*paths.package(principal.home, name))
    ):
        raise missing("package", name)


async def put_package(
    artifacts: Artifacts,
    settings: Settings,
    principal: Principal,
    *,
    protocol: str,
    name: str,
    data: AsyncIterator[bytes],
) -> int:
    """Store a package whole or not at all and return its size.

    Raises:
        TooLargeError, StorageFullError: nothing was kept.
    """
    principal.need(Role.MEMBER)
    if protocol != "gcs":
        raise InvalidInputError(f"packages are uploaded to gcs, not {quoted(protocol)}")
    if not is_package_name(name):
        raise InvalidInputError(
            f"{quoted(name)} is not a package's name: letters, digits, '_.+-', ending in .zip or .whl"
        )
    return await artifacts.write(
        *paths.package(principal.home, name), data=data, max_bytes=settings.max_package_bytes
    )
