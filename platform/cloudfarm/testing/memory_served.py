"""What callers used of services, in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple

from cloudfarm.domain.ledger import DAY_MS
from cloudfarm.domain.served import MINUTE_MS, Account, DayUse, Note, Used
from cloudfarm.errors import AlreadyExistsError, InvalidInputError
from cloudfarm.testing.memory_repositories import Unit


class Served:
    """See :class:`cloudfarm.ports.ServedRepository`."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def append(self, batch: str, notes: Sequence[Note]) -> None:
        """Store a batch."""
        state = self._unit.writing()
        if batch in state.served:
            raise self._unit.refused(AlreadyExistsError(f"the batch {batch} was handed over before"))
        for note in notes:
            minutes = (note.start_ms // MINUTE_MS, note.end_ms // MINUTE_MS)
            if note.end_ms < note.start_ms or minutes[0] != minutes[1] or min(astuple(note.used)) < 0:
                raise self._unit.refused(InvalidInputError("the database refused a value"))
        if notes:
            state.served[batch] = tuple(
                Note(
                    self._unit.stored(note.account), note.start_ms, note.end_ms, self._unit.stored(note.used)
                )
                for note in notes
            )

    async def days(
        self,
        *,
        tenant: str | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Sequence[DayUse]:
        """Return the sums of each day and account."""
        sums: dict[tuple[int, Account], Used] = {}
        for note in self._ended(from_ms, until_ms):
            if tenant in (None, note.account.tenant, note.account.service_tenant):
                key = note.end_ms // DAY_MS, note.account
                sums[key] = sums.get(key, Used()) + note.used
        ordered = sorted(sums.items(), key=lambda item: (item[0][0], astuple(item[0][1])))
        return [DayUse(day, account, used) for (day, account), used in ordered]

    async def tokens(self, *, tenant: str, key_id: str | None, from_ms: int, until_ms: int) -> int:
        """Return how many tokens a tenant's calls used, or those with one of its keys."""
        return sum(
            note.used.tokens
            for note in self._ended(from_ms, until_ms)
            if note.account.tenant == tenant and key_id in (None, note.account.key_id)
        )

    def _ended(self, from_ms: int | None, until_ms: int | None) -> Iterator[Note]:
        for notes in self._unit.reading().served.values():
            for note in notes:
                if (from_ms is None or note.end_ms >= from_ms) and (
                    until_ms is None or note.end_ms < until_ms
                ):
                    yield note
