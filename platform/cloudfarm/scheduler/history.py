"""Past use, decayed: who has had much lately stands further back when what is left over is shared out.

Use counts with a half-life: ``m`` milli-GPUs held from ``a`` to ``b`` count, at ``now``, as
``m * T * (2^-((now - b) / H) - 2^-((now - a) / H))`` with ``T = H / ln 2``, the integral of the decay.
Divided by the farm's ``capacity * T``, the use of the whole farm since ever is 1.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cloudfarm.domain.quota import QuotaTree


@dataclass(frozen=True, slots=True)
class Use:
    """GPUs that a quota held for a time."""

    quota: str
    milli_gpus: int
    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Memory:
    """How past use is remembered."""

    half_life_ms: int = 7 * 86_400_000
    entry_ms: int = 60_000
    """What every start costs on top, as if it had run so much longer: many small leases gain nothing over one."""


def past_shares(
    uses: Iterable[Use], tree: QuotaTree, capacity_milli_gpus: int, now_ms: int, memory: Memory
) -> Mapping[str, float]:
    """Return the decayed past use of every quota and of those above it, as a share of the farm."""
    mean_life_ms = memory.half_life_ms / math.log(2)
    shares: dict[str, float] = defaultdict(float)
    for use in uses:
        kept = _decay(now_ms - use.until_ms, memory) - _decay(now_ms - use.from_ms, memory)
        entry = memory.entry_ms / mean_life_ms * _decay(now_ms - use.from_ms, memory)
        share = use.milli_gpus / max(1, capacity_milli_gpus) * (kept + entry)
        for quota in tree.path(use.quota):
            shares[quota.id] += share
    return shares


def _decay(age_ms: int, memory: Memory) -> float:
    return math.exp2(-max(0, age_ms) / memory.half_life_ms)


@dataclass(slots=True)
class PastUse:
    """Past use added up: all that has ended decays alike, so looking back costs the same however much there was."""

    tree: QuotaTree
    capacity_milli_gpus: int
    memory: Memory
    _at_ms: int = 0
    _shares: Mapping[str, float] = field(default_factory=dict)
    """Of all that was added, at that moment."""

    def add(self, use: Use) -> None:
        """Count a use that has ended."""
        at_ms = max(self._at_ms, use.until_ms)
        self._shares, self._at_ms = self.shares(at_ms, [use]), at_ms

    def shares(self, now_ms: int, more: Iterable[Use] = ()) -> Mapping[str, float]:
        """Return what :func:`past_shares` would, of all uses that were added and some more; not of an earlier time."""
        shares = past_shares(more, self.tree, self.capacity_milli_gpus, now_ms, self.memory)
        kept = _decay(now_ms - self._at_ms, self.memory)
        return {
            quota: kept * self._shares.get(quota, 0.0) + shares.get(quota, 0.0)
            for quota in {**self._shares, **shares}
        }
