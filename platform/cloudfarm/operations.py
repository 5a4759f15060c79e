"""What an operator's commands do with the store before a farm starts and before it stops."""

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cloudfarm.clock import Clock, SystemClock
from cloudfarm.container import build_steward, open_store
from cloudfarm.domain.tenant import Credential, CredentialKind, Role, hash_secret, new_secret
from cloudfarm.ports import Store
from cloudfarm.raylayer.farm import LocalFarm
from cloudfarm.settings import Settings


def bring_up(settings: Settings, progress: Callable[[str], None]) -> LocalFarm:
    """Start a farm on this machine, or do nothing if it runs; after a crash, recover.

    Raises:
        UnavailableError: if it does not come up; what was started is taken down again.
        ConflictError: if the farm is being started or stopped by another command.
    """
    farm = LocalFarm(settings, progress)
    farm.up(
        prepare=lambda: asyncio.run(prepare(settings, farm.paths.operator_token_file)),
        build_steward=partial(build_steward, settings),
    )
    return farm


async def prepare(settings: Settings, operator_token_file: Path) -> None:
    """Bring the schema up to date, open the farm for work, and make sure that there is an operator's token."""
    from cloudfarm.store import migrate  # noqa: PLC0415 - heavy

    await migrate(settings.database)
    store = open_store(settings)
    try:
        async with store.begin() as uow:
            await uow.set_stopping(stopping=False)
            await uow.commit()
        await ensure_operator(store, SystemClock(), operator_token_file)
    finally:
        await store.close()


async def ensure_operator(store: Store, clock: Clock, file: Path) -> None:
    """Write an operator's token to a private file, unless the one there is good."""
    present = await asyncio.to_thread(_read_secret, file)
    if present is not None:
        async with store.begin(write=False) as uow:
            found = await uow.credentials.find(hash_secret(present))
        if found is not None and found.is_live(clock.now_ms()):
            return
    secret = new_secret(CredentialKind.TOKEN)
    await asyncio.to_thread(_write_secret, file, secret)
    async with store.begin() as uow:
        await uow.credentials.add(
            Credential(
                id=f"c{hash_secret(secret)[:8]}",
                kind=CredentialKind.TOKEN,
                tenant=None,
                user="local-operator",
                role=Role.OPERATOR,
                secret_sha256=hash_secret(secret),
                created_ms=clock.now_ms(),
            ),
        )
        await uow.commit()


def _read_secret(file: Path) -> str | None:
    return file.read_text().strip() if file.exists() else None


def _write_secret(file: Path, secret: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secret)


async def drain(settings: Settings, wait_s: float) -> list[str]:
    """Tell the steward to end every lease, wait until it has, and return the ids of those that still hold capacity."""
    store = open_store(settings)
    try:
        async with store.begin() as uow:
            await uow.set_stopping(stopping=True)
            await uow.commit()
        deadline = time.monotonic() + wait_s
        while True:
            async with store.begin(write=False) as uow:
                left = [
                    lease.id for lease in await uow.leases.list(open_only=True) if lease.status.holds_capacity
                ]
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.2)  # the steward is another process: its work shows in the store only
    finally:
        await store.close()
