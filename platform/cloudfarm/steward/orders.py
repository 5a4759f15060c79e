"""What all orders of the steward have in common: the store first, and never for an older steward."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.steward.view import FarmView

Handler = Callable[[Any, FarmView, int], Awaitable[bool | None]]
"""Carries out one kind of decision in an epoch; False if that changed nothing worth another look."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Handlers for some kinds of decisions. Each may be run again for the same decision after a crash at any point."""

    store: Store

    async def in_store(self, epoch: int, work: Callable[[UnitOfWork], Awaitable[None]]) -> None:
        """Do and keep some work in one transaction; raises FencedError if a newer steward has taken over."""
        async with self.store.begin() as uow:
            await uow.check_epoch(epoch)
            await work(uow)
            await uow.commit()

    async def check(self, epoch: int) -> None:
        """Raise FencedError before an order to Ray, which knows no epochs."""
        async with self.store.begin(write=False) as uow:
            await uow.check_epoch(epoch)
