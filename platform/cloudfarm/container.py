"""The composition root: builds the farm's parts from its settings, each replaceable by keyword.

Heavy imports are inside the functions: the CLI builds few of these parts.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudfarm.clock import Clock, SystemClock
from cloudfarm.domain.quantities import parse_shape
from cloudfarm.errors import NotFoundError
from cloudfarm.ports import Artifacts, Store
from cloudfarm.scheduler.foreseeing import foreseeing
from cloudfarm.scheduler.history import Memory
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.settings import Settings
from cloudfarm.steward.decide import Admission
from cloudfarm.steward.view import Policy

if TYPE_CHECKING:
    from cloudfarm.api.context import ApiContext
    from cloudfarm.steward.loop import Steward


def load_settings(state_dir: Path) -> Settings:
    """Return the settings that a running farm was started with."""
    return Settings.model_validate_json((state_dir / "settings.json").read_text())


def open_store(settings: Settings) -> Store:
    """Open the store, whose schema was brought up to date when the farm was started."""
    from cloudfarm.store import SqlStore  # noqa: PLC0415
    from cloudfarm.store.connections import make_engines  # noqa: PLC0415

    return SqlStore(*make_engines(settings.database))


async def open_past(settings: Settings) -> Store:
    """Open the store of a farm that need not run, to read from it.

    Raises:
        NotFoundError: if there is none.
        UnavailableError: if it does not answer, or was left by another version.
    """
    from cloudfarm.store import SqlStore  # noqa: PLC0415
    from cloudfarm.store.connections import read_url  # noqa: PLC0415

    url = read_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():  # noqa: ASYNC240 - a look
        raise NotFoundError(f"there is no database {url.database}")  # the driver would make an empty one
    return await SqlStore.open(settings.database)


def open_artifacts(settings: Settings) -> Artifacts:
    """Open the artifact store."""
    from cloudfarm.artifacts import FileArtifacts  # noqa: PLC0415

    return FileArtifacts(settings.artifacts)


def policy_of(settings: Settings) -> Policy:
    """Return the steward's knobs."""
    return Policy(
        start_timeout_ms=settings.start_timeout_s * 1000,
        notice_ms=settings.notice_s * 1000,
        host_lost_ms=settings.host_lost_s * 1000,
    )


def rules_of(settings: Settings) -> Rules:
    """Return the queue's knobs."""
    return Rules(
        min_run_ms=settings.min_run_s * 1000,
        preempt_notice_ms=settings.preempt_notice_s * 1000,
        spare_gpus=settings.spare_gpus,
        moves=settings.defrag_moves,
        power_weight=settings.power_weight,
    )


def memory_of(settings: Settings) -> Memory:
    """Return how past use counts."""
    return Memory(half_life_ms=int(settings.past_half_life_days * 86_400_000))


def default_limit_of(settings: Settings) -> int:
    """Return the milli-GPUs that a tenant may hold that has neither a quota nor a limit of its own."""
    return parse_shape(settings.default_limit_gpus).total_milli_gpus


def admission_of(settings: Settings) -> Admission:
    """Return the farm's own admission: the fair queue, and forecasts for those who wait."""
    rules = rules_of(settings)
    return foreseeing(fair(rules, lambda view: view.quotas), rules, lambda view: view.quotas)


def build_steward(settings: Settings, *, clock: Clock | None = None, **overrides: Any) -> "Steward":
    """Build a steward in a process that is connected to the cluster.

    Args:
        settings: of the farm.
        clock: instead of the host's.
        **overrides: any of ``store``, ``artifacts``, ``hosts``, ``ray_jobs``, ``serving``, ``watch``, ``admit``.
    """
    from cloudfarm.raylayer.hosts import RayHosts  # noqa: PLC0415
    from cloudfarm.raylayer.jobs import RayJobsClient  # noqa: PLC0415
    from cloudfarm.raylayer.paths import FarmPaths  # noqa: PLC0415
    from cloudfarm.raylayer.ray_http import RayHttp  # noqa: PLC0415
    from cloudfarm.raylayer.serving import ServeClient  # noqa: PLC0415
    from cloudfarm.raylayer.sweeper import RayWatch  # noqa: PLC0415
    from cloudfarm.steward.act import Actor  # noqa: PLC0415
    from cloudfarm.steward.checkpoints import Checkpoints  # noqa: PLC0415
    from cloudfarm.steward.loop import Steward  # noqa: PLC0415
    from cloudfarm.steward.observe import Observer  # noqa: PLC0415
    from cloudfarm.steward.past import Past  # noqa: PLC0415

    clock = clock or SystemClock()
    paths = FarmPaths.of(settings)
    http = RayHttp(f"http://{settings.bind_address}:{paths.dashboard_port}", paths.ray_token_file)
    store = overrides.get("store") or open_store(settings)
    artifacts = overrides.get("artifacts") or open_artifacts(settings)
    hosts = overrides.get("hosts") or RayHosts()
    ray_jobs = overrides.get("ray_jobs") or RayJobsClient(http, artifacts)
    serving = overrides.get("serving") or ServeClient(
        http, settings.bind_address, settings.port, str(settings.state_dir)
    )
    policy, rules = policy_of(settings), rules_of(settings)
    steward = Steward(
        store=store,
        clock=clock,
        observer=Observer(
            store=store,
            clock=clock,
            hosts=hosts,
            ray_jobs=ray_jobs,
            serving=serving,
            checkpoints=Checkpoints(artifacts),
            past=Past(memory_of(settings)),
            default_limit_milli_gpus=default_limit_of(settings),
            gpu_reserve_percent=settings.gpu_reserve_percent,
        ),
        actor=Actor(
            store=store,
            clock=clock,
            hosts=hosts,
            ray_jobs=ray_jobs,
            serving=serving,
            artifacts=artifacts,
            max_log_bytes=settings.max_log_bytes,
        ),
        watch=overrides.get("watch") or RayWatch(ray_jobs, clock),
        admit=overrides.get("admit") or admission_of(settings),
        next_look_ms=lambda view: next_look_ms(view, rules, view.quotas),
        policy=policy,
        tick_s=settings.tick_s,
        watch_s=settings.watch_s,
    )
    if isinstance(hosts, RayHosts):
        hosts.on_change = steward.wake
    return steward


def build_api_context(settings: Settings) -> "ApiContext":
    """Build what the front door needs, inside a Serve replica."""
    from cloudfarm.api.context import ApiContext  # noqa: PLC0415
    from cloudfarm.journal import FileJournal  # noqa: PLC0415
    from cloudfarm.raylayer.jobs import RayLogs  # noqa: PLC0415
    from cloudfarm.raylayer.paths import FarmPaths  # noqa: PLC0415
    from cloudfarm.raylayer.ray_http import RayHttp  # noqa: PLC0415
    from cloudfarm.raylayer.serve_http import ServeApps  # noqa: PLC0415
    from cloudfarm.raylayer.serve_inference import ServeInference  # noqa: PLC0415
    from cloudfarm.raylayer.steward_actor import ActorNudge  # noqa: PLC0415
    from cloudfarm.usecases.metering import Meter  # noqa: PLC0415

    paths = FarmPaths.of(settings)
    http = RayHttp(f"http://{settings.bind_address}:{paths.dashboard_port}", paths.ray_token_file)
    store, clock = open_store(settings), SystemClock()
    return ApiContext(
        store=store,
        clock=clock,
        settings=settings,
        artifacts=open_artifacts(settings),
        live_logs=RayLogs(http),
        inference=ServeInference(),
        apps=ServeApps(),
        nudge=ActorNudge(),
        meter=Meter(store, clock, FileJournal(settings.usage_journal), every_s=settings.usage_flush_s),
        dashboard_url=http.base_url,
        ray_token=paths.ray_token_file.read_text().strip(),
    )
