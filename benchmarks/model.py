"""A wind power model to serve: of the size that the demonstration trains, with weights that nobody trained.

What a forecast costs depends on the shapes only.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cloudfarm.clock import SystemClock
from cloudfarm.container import open_store
from cloudfarm.domain.workload import ModelVersion
from cloudfarm.settings import Settings
from cloudfarm.training.bundle import DataCard
from cloudfarm.training.forecaster import KIND, Forecaster, ForecasterSpec
from cloudfarm.training.publish import publish_model
from cloudfarm.training.windows import CHANNELS

NAME = "bench-forecaster"
LOOKBACK = 18
STOCK_ROUTE = "/bench-model"
STOCK_INGRESS_ROUTE = "/bench-ingress"
SPEC = ForecasterSpec(
    lookback_steps=LOOKBACK,
    horizon_steps=6,
    hidden=(128, 128),
    mean=(0.0,) * len(CHANNELS),
    std=(1.0,) * len(CHANNELS),
    power_min_kw=0,
    power_max_kw=2050,
)


def example_request() -> dict[str, Any]:
    """Return a request of the size that the model needs."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return {
        "turbine": "R80711",
        "observations": [
            {
                "time_utc": (begin + timedelta(minutes=10 * step)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "power_kw": 300.5 + step,
                "wind_speed_m_s": 6.25,
                "wind_direction_deg": 181.5,
                "outdoor_temperature_c": 11.5,
            }
            for step in range(LOOKBACK)
        ],
    }


def make_bundle(outbox: Path) -> tuple[str, dict[str, Any]]:
    """Write the model's bundle and return where it is, and its manifest."""
    uri = publish_model(
        NAME,
        {name: value.numpy() for name, value in Forecaster(SPEC).state_dict().items()},
        kind=KIND,
        spec=SPEC.model_dump(mode="json"),
        config={},
        metrics={},
        card=DataCard(name="none", source="none: the weights are not trained", licence="none"),
        example_input=example_request(),
        outbox=str(outbox),
    )
    return uri, json.loads((Path(uri) / "model.json").read_text())


async def register(settings: Settings, tenant: str, uri: str, manifest: dict[str, Any]) -> ModelVersion:
    """Register the bundle as the steward does after a job."""
    store = open_store(settings)
    try:
        async with store.begin() as uow:
            model = await uow.models.register(
                tenant=tenant,
                name=NAME,
                uri=uri,
                job_id=None,
                manifest=manifest,
                now_ms=SystemClock().now_ms(),
            )
            await uow.commit()
        return model
    finally:
        await store.close()
