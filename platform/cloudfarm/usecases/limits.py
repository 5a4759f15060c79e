"""What keys and tenants may still use: rates by buckets that may run into debt, months by counting."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from cloudfarm.domain.served import Used
from cloudfarm.domain.tenant import Limits
from cloudfarm.errors import InvalidInputError, TooManyError

MOST = 10**12
"""The largest limit that is worth setting."""
LONGEST_RETRY_S = 86_400
"""Whose month is used up is told to come back in a day at the latest: the limit may be raised meanwhile."""
HELD_RETRY_S = 1
"""When what requests under way hold may be free again."""
_MINUTE_MS = 60_000


def checked_limit(value: int | None, *, what: str) -> int | None:
    """Return a limit that can be kept; None means that there is none.

    Raises:
        InvalidInputError: otherwise.
    """
    if value is not None and not 1 <= value <= MOST:
        raise InvalidInputError(f"{what}: 1 to {MOST:,}, or null for no limit")
    return value


def checked_limits(limits: Limits) -> Limits:
    """Return limits that can be kept.

    Raises:
        InvalidInputError: otherwise.
    """
    for each in fields(limits):
        checked_limit(getattr(limits, each.name), what=each.name)
    return limits


def month_of(now_ms: int) -> tuple[int, int]:
    """Return the first millisecond of the calendar month (UTC) and of the next one."""
    now = datetime.fromtimestamp(now_ms / 1000, tz=UTC)
    first = datetime(now.year, now.month, 1, tzinfo=UTC)
    following = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return int(first.timestamp()) * 1000, int(following.timestamp()) * 1000


@dataclass(slots=True)
class Bucket:
    """So many a minute, of which at most a minute's worth is saved up.

    What a request will use is not known when it comes. So it is admitted while there is something left, and what it
    uses is taken off then, into debt if need be; nothing more is admitted until the debt is made good. In any T minutes
    at most ``per_minute * (T + 1)`` is used, and what those requests still use that are under way when it runs out.
    """

    per_minute: int
    at_ms: int
    level: int
    """What is left, in 60,000ths: of these a millisecond brings ``per_minute``, a whole number."""

    @classmethod
    def full(cls, per_minute: int, now_ms: int) -> "Bucket":
        """Return one that nobody has used yet."""
        return cls(per_minute, now_ms, per_minute * _MINUTE_MS)

    def change(self, per_minute: int, now_ms: int) -> None:
        """Fill it at another rate from now on; what was used stays used."""
        used = self.used(now_ms)
        self.per_minute = per_minute
        self.level = (per_minute - used) * _MINUTE_MS

    def take(self, amount: int, now_ms: int) -> None:
        """Take off what was used."""
        self._fill(now_ms)
        self.level -= amount * _MINUTE_MS

    def wait_ms(self, now_ms: int, least: int) -> int:
        """Return in how many milliseconds at least so many 60,000ths will be there; 0 if they are."""
        self._fill(now_ms)
        return max(0, -((self.level - least) // self.per_minute))

    def used(self, now_ms: int) -> int:
        """Return how much of a minute's worth is used, rounded up; with debt it is more than that."""
        self._fill(now_ms)
        return self.per_minute - self.level // _MINUTE_MS

    def _fill(self, now_ms: int) -> None:
        passed_ms = max(0, now_ms - self.at_ms)  # a clock that is set back fills nothing
        self.at_ms = now_ms
        self.level = min(self.level + passed_ms * self.per_minute, self.per_minute * _MINUTE_MS)


@dataclass(slots=True)
class Budget:
    """Tokens of a calendar month."""

    limit: int
    used: int


@dataclass(slots=True, eq=False)
class Admission:
    """A request that was let in, until it leaves."""

    tenant: str
    key_id: str
    held: int = 0
    """Tokens that it may still use."""
    begun: bool = False
    """Whether anything was asked for it."""


@dataclass(slots=True)
class _Key:
    requests: Bucket | None = None
    tokens: Bucket | None = None


@dataclass(slots=True)
class Allowances:
    """What of their limits keys and tenants have left. It knows only those that have one.

    What a request may use at most is held for it: only beside requests that leave something over, another is let in.
    So of all that are under way one, the last, may use more than was left.
    """

    _keys: dict[str, _Key] = field(default_factory=dict)
    _budgets: dict[tuple[str, str | None], Budget] = field(default_factory=dict)
    """By tenant, and key or None for the whole tenant."""
    _month_ends_ms: int = 0
    _held: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """Tokens that requests under way may still use, of whoever has any."""

    def put(
        self, keys: Mapping[str, Limits], budgets: Mapping[tuple[str, str | None], Budget], now_ms: int
    ) -> None:
        """Take over the limits now in force, and of the budgets what is used of them."""
        self._month_ends_ms = month_of(now_ms)[1]
        self._budgets = dict(budgets)
        old, self._keys = self._keys, {}
        for key_id, limits in keys.items():
            there = old.get(key_id, _Key())
            self._keys[key_id] = _Key(
                _changed(there.requests, limits.requests_per_minute, now_ms),
                _changed(there.tokens, limits.tokens_per_minute, now_ms),
            )

    def resume(self, lately: Mapping[str, Used], now_ms: int) -> None:
        """Take off the buckets what keys used in the minute before anything was counted here, as if it were now."""
        for key_id, used in lately.items():
            key = self._keys.get(key_id, _NO_LIMITS)
            if key.requests is not None:
                key.requests.take(used.requests, now_ms)
            if key.tokens is not None:
                key.tokens.take(used.tokens, now_ms)

    def admit(self, tenant: str, key_id: str, now_ms: int, most_tokens: int = 0) -> Admission:
        """Let a request in, and take it off the requests that the key may still make.

        Args:
            tenant: whose request it is.
            key_id: and by which key.
            now_ms: the time.
            most_tokens: it may use; they are held until it leaves.

        Raises:
            TooManyError: if a limit is used up, with its name, its value, what was used of it, and when to come back.
        """
        key = self._keys.get(key_id, _NO_LIMITS)
        if key.requests is not None and (wait_ms := key.requests.wait_ms(now_ms, _MINUTE_MS)):
            raise _refusal("requests_per_minute", key.requests.per_minute, key.requests.used(now_ms), wait_ms)
        if key.tokens is not None and (wait_ms := key.tokens.wait_ms(now_ms, 1)):
            raise _refusal("tokens_per_minute", key.tokens.per_minute, key.tokens.used(now_ms), wait_ms)
        held = self._held[tenant, key_id]
        if key.tokens is not None and key.tokens.wait_ms(now_ms, held * _MINUTE_MS + 1):
            raise _held("tokens_per_minute", key.tokens.per_minute, key.tokens.used(now_ms), held)
        for name, whose in (("tokens_per_month", key_id), ("limit_tokens_per_month", None)):
            budget = self._budget(tenant, whose, now_ms)
            if budget is not None and budget.used >= budget.limit:
                raise _refusal(name, budget.limit, budget.used, self._month_ends_ms - now_ms)
            held = self._held[tenant, whose]
            if budget is not None and budget.used + held >= budget.limit:
                raise _held(name, budget.limit, budget.used, held)
        if key.requests is not None:
            key.requests.take(1, now_ms)
        self._held.update({(tenant, key_id): most_tokens, (tenant, None): most_tokens})
        return Admission(tenant, key_id, most_tokens)

    def draw(self, admission: Admission, tokens: int) -> None:
        """Hold so many less for a request, which has used them."""
        drawn = min(tokens, admission.held)
        admission.held -= drawn
        for whose in ((admission.tenant, admission.key_id), (admission.tenant, None)):
            self._held[whose] -= drawn
            if not self._held[whose]:
                del self._held[whose]

    def leave(self, admission: Admission, now_ms: int) -> None:
        """Let a request go; one that never began is not one of those that the key may make."""
        self.draw(admission, admission.held)
        key = self._keys.get(admission.key_id, _NO_LIMITS)
        if not admission.begun and key.requests is not None:
            key.requests.take(-1, now_ms)

    def used(self, tenant: str, key_id: str | None, now_ms: int) -> int | None:
        """Return what of this month's tokens a key, or with None a tenant, has used; None if that has no limit."""
        budget = self._budget(tenant, key_id, now_ms)
        return None if budget is None else budget.used

    def take(self, tenant: str, key_id: str, tokens: int, now_ms: int) -> None:
        """Take tokens off that were used."""
        key = self._keys.get(key_id, _NO_LIMITS)
        if key.tokens is not None:
            key.tokens.take(tokens, now_ms)
        for whose in (key_id, None):
            budget = self._budget(tenant, whose, now_ms)
            if budget is not None:
                budget.used += tokens

    def _budget(self, tenant: str, key_id: str | None, now_ms: int) -> Budget | None:
        if now_ms >= self._month_ends_ms and self._budgets:
            self._month_ends_ms = month_of(now_ms)[1]
            for budget in self._budgets.values():
                budget.used = 0
        return self._budgets.get((tenant, key_id))


_NO_LIMITS = _Key()
_TELL = {
    "requests_per_minute": "this key may make {limit:,} requests a minute, and has made them",
    "tokens_per_minute": "this key may use {limit:,} tokens a minute, and has used {used:,}",
    "tokens_per_month": "this key may use {limit:,} tokens a month, and has used {used:,}",
    "limit_tokens_per_month": "your tenant may use {limit:,} tokens a month, and has used {used:,}",
}


def _held(name: str, limit: int, used: int, held: int) -> TooManyError:
    return TooManyError(
        f"{_TELL[name].format(limit=limit, used=used)}; the rest is held by requests under way, which may still use "
        f"{held:,}: try again in {HELD_RETRY_S} s, or ask for fewer tokens at once",
        limit=name,
        limit_value=limit,
        used=used,
        held=held,
        retry_after_s=HELD_RETRY_S,
    )


def _changed(bucket: Bucket | None, per_minute: int | None, now_ms: int) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket.full(per_minute, now_ms)
    if bucket.per_minute != per_minute:
        bucket.change(per_minute, now_ms)
    return bucket


def _refusal(name: str, limit: int, used: int, wait_ms: int) -> TooManyError:
    retry_after_s = min(-(-wait_ms // 1000), LONGEST_RETRY_S)
    return TooManyError(
        f"{_TELL[name].format(limit=limit, used=used)}; try again in {retry_after_s} s",
        limit=name,
        limit_value=limit,
        used=used,
        retry_after_s=max(1, retry_after_s),
    )
