"""The seams of the farm: what the core needs of the world. Each has a real implementation and a shipped fake.

Every method may raise :class:`~cloudfarm.errors.CloudfarmError`; what else it raises is a bug.
"""

from cloudfarm.ports.farm import (
    Apps,
    Artifacts,
    Hosts,
    Inference,
    LiveLogs,
    Nudge,
    RayJobs,
    Serving,
    UsageJournal,
    Watch,
)
from cloudfarm.ports.store import (
    CredentialRepository,
    EventRepository,
    JobRepository,
    LeaseRepository,
    LedgerRepository,
    ModelRepository,
    QuotaRepository,
    RevisionRepository,
    ServedRepository,
    ServiceRepository,
    Store,
    TenantRepository,
    UnitOfWork,
)

__all__ = [
    "Apps",
    "Artifacts",
    "CredentialRepository",
    "EventRepository",
    "Hosts",
    "Inference",
    "JobRepository",
    "LeaseRepository",
    "LedgerRepository",
    "LiveLogs",
    "ModelRepository",
    "Nudge",
    "QuotaRepository",
    "RayJobs",
    "RevisionRepository",
    "ServedRepository",
    "ServiceRepository",
    "Serving",
    "Store",
    "TenantRepository",
    "UnitOfWork",
    "UsageJournal",
    "Watch",
]
