"""A tenant's script that publishes small wind power models; their weights are as they are made, without training."""

import sys

from cloudfarm.training.bundle import DataCard
from cloudfarm.training.forecaster import KIND, Forecaster, ForecasterSpec
from cloudfarm.training.publish import publish_model
from cloudfarm.training.windows import CHANNELS

SPEC = ForecasterSpec(
    lookback_steps=6,
    horizon_steps=6,
    hidden=(8,),
    mean=(0.0,) * len(CHANNELS),
    std=(1.0,) * len(CHANNELS),
    power_min_kw=0,
    power_max_kw=2050,
)
EXAMPLE = {
    "turbine": "R80711",
    "observations": [
        {
            "time_utc": f"2026-01-01T00:{10 * step:02}:00Z",
            "power_kw": 300.0 + step,
            "wind_speed_m_s": 6.0,
            "wind_direction_deg": 180.0,
            "outdoor_temperature_c": 10.0,
        }
        for step in range(6)
    ],
}


def publish(name: str) -> str:
    return publish_model(
        name,
        {name: value.numpy() for name, value in Forecaster(SPEC).state_dict().items()},
        kind=KIND,
        spec=SPEC.model_dump(mode="json"),
        config={},
        metrics={"validation_mae_kw": 1.0},
        card=DataCard(name="none", source="none: the weights are not trained", licence="none"),
        example_input=EXAMPLE,
    )


def main() -> None:
    for name in sys.argv[1:]:
        print("published", publish(name), flush=True)


if __name__ == "__main__":
    main()
