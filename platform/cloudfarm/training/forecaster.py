"""The wind power model: a small network that corrects the persistence forecast."""

from itertools import pairwise
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from cloudfarm.training.windows import CHANNELS, STEP_MINUTES

KIND = "windpower-forecaster"
MAX_WIDTH = 4096  # bounds what a stranger's bundle may ask a replica to hold


class ForecasterSpec(BaseModel):
    """All that building the model needs besides the weights: the ``spec`` of a bundle of kind ``KIND``.

    ``mean`` and ``std`` are those of the fitting period, in the order and units of ``channels``.
    ``power_min_kw`` and ``power_max_kw`` are the extremes of the fitting period; a forecast is kept between
    them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    channels: tuple[str, ...] = CHANNELS
    step_minutes: int = STEP_MINUTES
    lookback_steps: int = Field(ge=1, le=1008)
    horizon_steps: int = Field(ge=1, le=1008)
    hidden: tuple[int, ...] = Field(max_length=8)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    power_min_kw: float
    power_max_kw: float

    @model_validator(mode="after")
    def _consistent(self) -> "ForecasterSpec":
        if self.channels != CHANNELS or self.step_minutes != STEP_MINUTES:
            raise ValueError("the model was made for other channels or another step than this version knows")
        if len(self.mean) != len(CHANNELS) or len(self.std) != len(CHANNELS) or min(self.std) <= 0:
            raise ValueError(f"mean and std must each have {len(CHANNELS)} numbers, std above 0")
        if any(width < 1 or width > MAX_WIDTH for width in self.hidden):
            raise ValueError(f"hidden widths must be 1..{MAX_WIDTH}")
        return self


class Forecaster(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Power of the next steps = the power now + a correction that a perceptron reads off the window.

    The last layer starts at zero, so an untrained model is the persistence forecast exactly.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ForecasterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)
        widths = [spec.lookback_steps * len(spec.channels), *spec.hidden]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.SiLU()]
        last = nn.Linear(widths[-1], spec.horizon_steps)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, window: Tensor) -> Tensor:
        """Return the power ``[batch, horizon]`` in kW for windows ``[batch, lookback, channel]``."""
        scaled = ((window - self.mean) / self.std).flatten(1)
        return cast("Tensor", window[:, -1, :1] + self.std[0] * self.layers(scaled))

    def forecast(self, window: Tensor) -> Tensor:
        """Return ``forward`` kept within the power of the fitting period: what is evaluated and served."""
        return cast("Tensor", self(window).clamp(self.spec.power_min_kw, self.spec.power_max_kw))
