"""Every knob of the farm, in one frozen object, read once by the composition root.

A value comes from the argument, else the environment (``CLOUDFARM_<NAME>``), else the default.
"""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_state_dir() -> Path:
    """Return where a farm keeps its state unless told otherwise."""
    return Path.home() / ".local" / "state" / "cloudfarm"


class Settings(BaseSettings):
    """Settings of one farm; ``docs/operator-guide.md`` describes each, held by a test."""

    model_config = SettingsConfigDict(env_prefix="CLOUDFARM_", frozen=True, extra="forbid")

    state_dir: Path = Field(default_factory=default_state_dir)
    """Folder of the store, tokens, logs and artifacts."""
    database_url: str = ""
    """SQLAlchemy URL; empty means SQLite in the state folder."""
    artifacts_uri: str = ""
    """Root of the artifact store: a folder or ``s3://bucket/prefix``; empty means a folder in the state folder."""
    bind_address: str = "127.0.0.1"
    """Address that the front door and Ray listen on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the front door."""
    internal_port_base: int = Field(default=10000, ge=1024, le=60000)
    """First of the ports that Ray uses inside the farm."""
    hosts: int = Field(default=1, ge=0, le=8)
    """Hosts that ``cloudfarm up`` starts on this machine."""
    gpus: int | None = Field(default=None, ge=0, le=64)
    """Simulated GPUs of each such host; None means the real ones found, or 4 simulated."""
    cpus: int | None = Field(default=None, ge=1)
    """CPUs that a simulated host offers; None means 4 for each GPU."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """Memory that a host offers; None means what the machine has."""
    isolation: str = Field(default="best", pattern="^(best|user|none)$")
    """Namespaces of lease nodes: the best that is permitted, user namespaces, or none."""
    gpu_reserve_percent: int = Field(default=3, ge=0, le=50)
    """How much of a shared GPU's memory no slice may use: the driver needs it for the processes of all."""
    tick_s: float = Field(default=1.0, gt=0, le=60)
    """How often the steward looks at the farm without being woken."""
    watch_s: float = Field(default=2.0, gt=0, le=60)
    """How often work outside its lease is looked for."""
    start_timeout_s: int = Field(default=120, ge=1)
    """How long lease nodes may take to come up."""
    notice_s: int = Field(default=60, ge=0)
    """How long before its time limit a lease is told and its nodes drained."""
    min_run_s: int = Field(default=300, ge=0)
    """How long a lease runs at least before what it borrows may be taken back."""
    preempt_notice_s: int = Field(default=60, ge=1)
    """How long before it is stopped a preempted lease is told and its nodes drained."""
    defrag_moves: int = Field(default=0, ge=0, le=16)
    """How many jobs may be on the move at once to make room for a lease that is stuck; 0 means none, ever."""
    power_weight: float = Field(default=0.0, ge=0, le=100)
    """How much packing, in milli-GPUs, is given up to save a watt; 0 means none."""
    spare_gpus: int = Field(default=0, ge=0, le=1024)
    """How many GPUs borrowers leave free for a tenant that asks for nothing and is promised as many."""
    past_half_life_days: float = Field(default=7.0, gt=0, le=3650)
    """After how long past use counts half when borrowers are compared."""
    host_lost_s: int = Field(default=60, ge=5)
    """How long a host may be silent before its lease nodes count as gone."""
    default_hours: str = "4"
    """Length of a lease that does not say."""
    default_cpus: int = Field(default=2, ge=1)
    """CPUs of a slice that does not say."""
    default_memory: str = "3GiB"
    """Memory of a slice that does not say."""
    default_limit_gpus: str = "4"
    """GPUs that a tenant may hold at once, unless set for the tenant."""
    max_waiting: int = Field(default=100, ge=1)
    """Leases that a tenant may have waiting."""
    max_cold_requests: int = Field(default=100, ge=1)
    """Requests to one service that may wait for it to start."""
    cold_start_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """How long each of them waits."""
    max_package_bytes: int = Field(default=100 * 1024**2, ge=1)
    """Largest working-dir package."""
    max_body_bytes: int = Field(default=1024**2, ge=1024)
    """Largest body of any other request, and largest message that a client sends to an application by WebSocket."""
    max_open_requests: int = Field(default=4096, ge=1)
    """Requests to services that the front door answers at once."""
    max_open_requests_of_key: int = Field(default=1024, ge=1)
    """How many of them may be of one key."""
    max_log_bytes: int = Field(default=16 * 1024**2, ge=1024)
    """How much of a job's log is kept, counted from its end."""
    usage_flush_s: float = Field(default=1.0, gt=0, le=60)
    """How often what callers of services use is noted and handed over to the ledger."""

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{self.state_dir / 'farm.db'}"

    @property
    def artifacts(self) -> str:
        """The artifact root in force."""
        return self.artifacts_uri or str(self.state_dir / "artifacts")

    @property
    def usage_journal(self) -> Path:
        """The folder in which the front door notes what callers use until the ledger has it."""
        return self.state_dir / "usage"
