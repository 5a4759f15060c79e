"""What must hold of a farm at every moment; tests call :func:`check_invariants` after whatever they do."""

from collections import Counter

from cloudfarm.domain.ledger import REFUND, amount
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.ports import Store


async def check_invariants(store: Store) -> None:
    """Raise AssertionError if the store contradicts the farm's promises."""
    async with store.begin(write=False) as uow:
        leases = await uow.leases.list()
        entries = await uow.ledger.list()
    held: Counter[tuple[str, int]] = Counter()
    for lease in leases:
        if lease.status.holds_capacity:
            assert len(lease.slices) == lease.ask.shape.count, f"{lease.id} is not whole"
            for piece in lease.slices:
                for gpu in piece.gpu_indices:
                    held[piece.host, gpu] += piece.milli_gpus // len(piece.gpu_indices)
        if lease.status is LeaseStatus.ACTIVE:
            assert lease.started_ms is not None, f"{lease.id} is active and was never started"
            assert all(piece.node_id for piece in lease.slices), f"{lease.id} has a slice without a node"
    over = {gpu: milli for gpu, milli in held.items() if milli > MILLI}
    assert not over, f"GPUs leased beyond 1000 milli: {over}"
    charged = Counter((entry.lease_id, entry.segment) for entry in entries)
    assert all(count == 1 for count in charged.values()), f"charged twice: {charged}"
    owed = {
        (lease.id, lease.segment): amount(lease.milli_gpus, lease.started_ms, lease.ended_ms)
        for lease in leases
        if lease.status is LeaseStatus.ENDED and lease.started_ms is not None and lease.ended_ms is not None
    }
    paid = {(entry.lease_id, entry.segment): entry.milli_gpu_seconds for entry in entries}
    last = {lease.id: lease.segment for lease in leases if lease.status is LeaseStatus.ENDED}
    closed = {key: cost for key, cost in paid.items() if last.get(key[0]) == key[1] and cost >= 0}
    assert closed == owed, f"the ledger says {closed}, the leases say {owed}"
    projects = {lease.id: lease.project for lease in leases}
    for entry in entries:
        assert entry.project == projects[entry.lease_id], f"{entry} is charged to another project"
        if entry.kind == REFUND:
            charged_for = paid[entry.lease_id, entry.segment - 1]
            assert 0 < -entry.milli_gpu_seconds <= charged_for, f"{entry} gives back more than {charged_for}"
