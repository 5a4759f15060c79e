"""The forecast service without Serve: what it answers, and how it refuses."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cloudfarm.domain.bundles import manifest_digest, parse_manifest
from cloudfarm.inference.forecasts import Forecaster, ForecastRequest
from cloudfarm.training import forecaster as training
from cloudfarm.training.bundle import BundleError, DataCard
from cloudfarm.training.forecaster import KIND, ForecasterSpec
from cloudfarm.training.publish import publish_model

SPEC = ForecasterSpec(
    lookback_steps=3,
    horizon_steps=2,
    hidden=(4,),
    mean=(350.0, 5.0, 0.0, 0.0, 12.0, 0.0, 0.0),
    std=(430.0, 2.5, 0.7, 0.7, 7.0, 0.7, 0.7),
    power_min_kw=-20,
    power_max_kw=2050,
)


def observation(minute, **changes):
    return {
        "time_utc": f"2015-07-01T00:{minute:02}:00Z",
        "power_kw": 300.0 + minute,
        "wind_speed_m_s": 6.1,
        "wind_direction_deg": 214,
        "outdoor_temperature_c": 17.3,
    } | changes


OBSERVATIONS = [observation(minute) for minute in (0, 10, 20, 30)]


def bundle(tmp_path, **changes):
    torch.manual_seed(0)
    net = training.Forecaster(SPEC)
    torch.nn.init.normal_(net.layers[-1].weight)
    options = {
        "kind": KIND,
        "spec": SPEC.model_dump(mode="json"),
        "config": {},
        "metrics": {"validation_mae_kw": 1.0, "persistence_mae_kw": 2.0},
        "card": DataCard(name="x", source="x", licence="x"),
        "example_input": {"turbine": "R1", "observations": OBSERVATIONS},
        "outbox": str(tmp_path),
    }
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    return publish_model("wind", changes.pop("weights", weights), **(options | changes))


@pytest.fixture
def service(tmp_path):
    return Forecaster(bundle(tmp_path))


def ask(service, payload):
    answer = asyncio.run(anext(service.answer(payload)))
    return json.loads(json.dumps(answer))  # plain JSON, whatever happens


def test_an_answer_has_the_documented_form(service):
    answer = ask(service, {"turbine": "R1", "observations": OBSERVATIONS})
    assert answer["model"] == "wind"
    assert len(answer["version"]) == 12
    assert answer["turbine"] == "R1"
    assert answer["from_utc"] == "2015-07-01T00:30:00Z"
    assert [step["minutes_ahead"] for step in answer["forecast"]] == [10, 20]
    assert all(-20 <= step["power_kw"] <= 2050 for step in answer["forecast"])


def test_the_served_forecast_is_the_trained_model_on_training_windows(service):
    series = service._series(service_request(OBSERVATIONS))
    direct = service._net.forecast(torch.from_numpy(series.windows(np.array([2]), 3)))[0].tolist()
    answer = ask(service, {"observations": OBSERVATIONS})
    assert [step["power_kw"] for step in answer["forecast"]] == [round(kw, 2) for kw in direct]
    assert direct[0] != pytest.approx(330)  # the weights do something


def service_request(observations):
    return ForecastRequest.model_validate({"observations": observations})


def test_only_the_last_readings_count(service):
    older = [observation(0, power_kw=1.0), *OBSERVATIONS[1:]]
    assert ask(service, {"observations": older}) == ask(service, {"observations": OBSERVATIONS})


def test_an_offset_is_understood(service):
    korea = [
        reading | {"time_utc": f"2015-07-01T09:{10 * n:02}:00+09:00"}
        for n, reading in enumerate(OBSERVATIONS)
    ]
    assert ask(service, {"observations": korea}) == ask(service, {"observations": OBSERVATIONS})


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({}, "observations: Field required"),
        ([], "the request: "),
        (None, "the request: "),
        ({"observations": []}, "needs the last 3 readings, got 0"),
        ({"observations": OBSERVATIONS[:2]}, "got 2"),
        ({"observations": OBSERVATIONS[::-1]}, "in time order and 10 minutes apart"),
        ({"observations": [OBSERVATIONS[0], *OBSERVATIONS[2:]]}, "10 minutes apart"),
        ({"observations": OBSERVATIONS, "horizon": 3}, "horizon: Extra inputs"),
        ({"observations": OBSERVATIONS * 300}, "at most 1008"),
        ({"observations": [*OBSERVATIONS[:3], observation(30, power_kw="300")]}, "observations.3.power_kw: "),
        ({"observations": [*OBSERVATIONS[:3], observation(30, power_kw=True)]}, "observations.3.power_kw: "),
        ({"observations": [*OBSERVATIONS[:3], observation(30, power_kw=None)]}, "observations.3.power_kw: "),
        ({"observations": [*OBSERVATIONS[:3], observation(30, power_kw=float("nan"))]}, "power_kw: "),
        (
            {"observations": [*OBSERVATIONS[:3], observation(30, wind_direction_deg=361)]},
            "less than or equal to 360",
        ),
        ({"observations": [*OBSERVATIONS[:3], observation(30, time_utc=1435708800)]}, "must be a text"),
        ({"observations": [*OBSERVATIONS[:3], observation(30, time_utc="2015-07-01T00:30:00")]}, "timezone"),
        (
            {"observations": [*OBSERVATIONS[:3], observation(30, time_utc="0001-01-01T00:00:00+14:00")]},
            "time",
        ),
    ],
)
def test_bad_input_is_answered_with_422_and_the_place(service, payload, says):
    error = ask(service, payload)["error"]
    assert (error["status"], error["code"]) == (422, "invalid_input")
    assert says in error["detail"]


def test_describe_is_the_card_with_an_example_that_works(service):
    card = json.loads(json.dumps(asyncio.run(service.describe())))
    assert card["metrics"] == {"validation_mae_kw": 1.0, "persistence_mae_kw": 2.0}
    assert (card["lookback_steps"], card["horizon_steps"], card["step_minutes"]) == (3, 2, 10)
    assert "forecast" in ask(service, card["example_input"])


def test_only_a_bundle_that_makes_this_model_is_served(tmp_path):
    with pytest.raises(BundleError, match="not a windpower-forecaster"):
        Forecaster(bundle(tmp_path, kind="language-model"))
    with pytest.raises(BundleError, match="do not make"):
        Forecaster(bundle(tmp_path, weights={"a": np.zeros(1, dtype=np.float32)}))
    with pytest.raises(BundleError, match="do not make"):
        Forecaster(bundle(tmp_path, spec={"horizon_steps": 1}))


def test_only_the_model_that_was_registered_is_opened(tmp_path):
    where = bundle(tmp_path)
    registered = manifest_digest(parse_manifest((Path(where) / "model.json").read_bytes()))
    assert Forecaster(where, digest=registered)
    with pytest.raises(BundleError, match="has changed since it was registered"):
        Forecaster(where, digest="0" * 64)
