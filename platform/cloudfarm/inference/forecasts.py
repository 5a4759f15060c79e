"""The wind power forecast service: readings of a turbine in, the power of the next hour out.

Request (times ISO 8601 with an offset, readings in time order, exactly 10 minutes apart, none missing)::

    {"turbine": "R80711",                                  # optional, given back as it is
     "observations": [                                     # at least the model's lookback (18), at most 1008
        {"time_utc": "2015-07-01T00:00:00Z", "power_kw": 312.4, "wind_speed_m_s": 6.1,
         "wind_direction_deg": 214.0, "outdoor_temperature_c": 17.3}, ...]}

Answer::

    {"model": "windpower-forecaster", "version": "7c0f2b6d9a11", "turbine": "R80711",
     "from_utc": "2015-07-01T02:50:00Z",                   # the last reading: "now"
     "forecast": [{"minutes_ahead": 10, "power_kw": 331.2}, ...]}

A request that is not valid is answered, not raised::

    {"error": {"status": 422, "code": "invalid_input", "detail": "observations.0.power_kw: ..."}}

because an exception that crosses a Serve handle arrives as a ``RayTaskError`` with a traceback, and fills the
replica's log with tracebacks for what is the caller's mistake; a dictionary arrives as it is.

One forecast of this model takes well under a millisecond, less than the wait for a batch would, so requests
are not batched.
"""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cloudfarm.inference.plain_errors import told_plainly
from cloudfarm.training import windows
from cloudfarm.training.bundle import BundleError, read_bundle
from cloudfarm.training.forecaster import KIND, ForecasterSpec
from cloudfarm.training.forecaster import Forecaster as ForecasterNet

MAX_OBSERVATIONS = 1008  # a week


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a text such as 2015-07-01T00:00:00Z")  # noqa: TRY004 - pydantic reports a ValueError
    return value


def _number(minimum: float, maximum: float) -> Any:
    return Field(strict=True, ge=minimum, le=maximum, allow_inf_nan=False)


class Observation(BaseModel):
    """One 10-minute reading of a turbine. The bounds are those of any turbine, not of one type."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    time_utc: Annotated[AwareDatetime, BeforeValidator(_text)]
    power_kw: float = _number(-1_000, 30_000)
    wind_speed_m_s: float = _number(0, 100)
    wind_direction_deg: float = _number(0, 360)
    outdoor_temperature_c: float = _number(-60, 60)


class ForecastRequest(BaseModel):
    """What ``Forecaster.handle`` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    turbine: str | None = Field(default=None, max_length=100)
    observations: list[Observation] = Field(max_length=MAX_OBSERVATIONS)


class Forecaster:
    """A model in memory. It is a plain class: ``services/forecasts.py`` makes a Serve deployment of it.

    Args:
        model_uri: path or URI of a model bundle of kind ``windpower-forecaster``.
        digest: of the manifest that was registered (``manifest_digest``); None: whichever is there.

    Raises:
        NotFoundError: there is no bundle.
        BundleError: the bundle is not valid or is not a wind power forecaster.
    """

    def __init__(self, model_uri: str, *, digest: str | None = None) -> None:
        torch.set_num_threads(1)
        bundle = read_bundle(model_uri, digest)
        self._manifest = bundle.manifest
        if self._manifest.kind != KIND:
            raise BundleError(f"{model_uri} is a {self._manifest.kind}, not a {KIND}")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._spec = ForecasterSpec.model_validate(self._manifest.spec)
            net = ForecasterNet(self._spec)
            net.load_state_dict({name: torch.from_numpy(array) for name, array in bundle.weights.items()})
        except (ValidationError, RuntimeError) as bad:
            raise BundleError(f"{model_uri}: spec and weights do not make a {KIND}: {bad}") from bad
        self._net = net.to(self._device).eval()

    async def handle(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Answer one request in the form of the module's docstring; what the caller sent never raises."""
        try:
            request = ForecastRequest.model_validate(payload)
            series = self._series(request)
        except ValidationError as bad:
            first = bad.errors(include_url=False, include_input=False)[0]
            return _refusal(f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}")
        except windows.DataError as bad:
            return _refusal(f"observations: {bad.detail}")
        power = self._power_kw(series)
        return {
            "model": self._manifest.name,
            "version": self._manifest.version,
            "turbine": request.turbine,
            "from_utc": _utc(request.observations[-1].time_utc),
            "forecast": [
                {"minutes_ahead": self._spec.step_minutes * step, "power_kw": round(kw, 2)}
                for step, kw in enumerate(power, start=1)
            ],
        }

    async def answer(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Yield what :meth:`handle` returns: as a stream, by which Serve spreads its calls better."""
        with told_plainly():
            yield await self.handle(payload)

    async def describe(self) -> dict[str, Any]:
        """Return the model's card: what it is, how good, trained on what, and a request that it answers."""
        manifest = self._manifest
        return {
            "model": manifest.name,
            "version": manifest.version,
            "kind": manifest.kind,
            "created_at": _utc(manifest.created_at),
            "framework": manifest.framework,
            "device": str(self._device),
            "lookback_steps": self._spec.lookback_steps,
            "horizon_steps": self._spec.horizon_steps,
            "step_minutes": self._spec.step_minutes,
            "metrics": manifest.metrics,
            "data": manifest.data.model_dump(mode="json"),
            "example_input": manifest.example_input,
        }

    def _series(self, request: ForecastRequest) -> windows.Series:
        seen = request.observations[-self._spec.lookback_steps :]
        if len(seen) < self._spec.lookback_steps:
            raise windows.DataError(
                f"the model needs the last {self._spec.lookback_steps} readings, got {len(seen)}"
            )
        times = np.array([reading.time_utc.timestamp() for reading in seen])
        if (np.diff(times) != windows.STEP_MINUTES * 60).any():
            raise windows.DataError(
                f"the readings must be in time order and {windows.STEP_MINUTES} minutes apart"
            )
        readings = {name: np.array([getattr(reading, name) for reading in seen]) for name in windows.READINGS}
        return windows.series([(request.turbine or "", times.astype(np.int64), readings)])

    def _power_kw(self, series: windows.Series) -> list[float]:
        """Return the forecast ``[horizon]`` in kW after the last reading."""
        last = np.array([len(series.times) - 1])
        window = torch.from_numpy(series.windows(last, self._spec.lookback_steps)).to(self._device)
        with torch.inference_mode():
            forecast: list[float] = self._net.forecast(window)[0].tolist()
        return forecast


def _refusal(detail: str) -> dict[str, Any]:
    return {"error": {"status": 422, "code": "invalid_input", "detail": detail}}


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
