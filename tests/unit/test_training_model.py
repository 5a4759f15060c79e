"""The model starts as persistence, and a run's settings say what they mean."""

from datetime import UTC, date, datetime
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cloudfarm.training.forecaster import Forecaster, ForecasterSpec
from cloudfarm.training.runs import one_cycle
from cloudfarm.training.windpower import TrainingConfig


def spec(**changes):
    values = {"lookback_steps": 3, "horizon_steps": 2, "hidden": (4,), "mean": (0.0,) * 7, "std": (1.0,) * 7}
    return ForecasterSpec(**(values | {"power_min_kw": -20.0, "power_max_kw": 2050.0} | changes))


def test_an_untrained_model_is_the_persistence_forecast():
    window = torch.rand(5, 3, 7) * 100
    model = Forecaster(spec())
    torch.testing.assert_close(model(window), window[:, -1, :1].expand(5, 2))


def test_forecasts_stay_within_what_was_ever_seen():
    model = Forecaster(spec())
    torch.nn.init.constant_(model.layers[-1].bias, 1e6)
    assert model.forecast(torch.rand(1, 3, 7)).tolist() == [[2050.0, 2050.0]]


def test_the_normalisation_is_in_the_spec_and_not_in_the_weights():
    assert set(Forecaster(spec()).state_dict()) == {
        "layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.0,) * 6},
        {"std": (0.0,) * 7},
        {"channels": ("power_kw",)},
        {"hidden": (100_000,)},
        {"horizon_steps": 0},
    ],
)
def test_a_spec_that_makes_no_model_is_refused(changes):
    with pytest.raises(ValidationError):
        spec(**changes)


def test_periods_follow_each_other_and_never_overlap():
    fit, selection, validation = TrainingConfig(data="x").periods()
    assert fit.end == selection.start == datetime(2015, 4, 1, tzinfo=UTC)
    assert selection.end == validation.start == datetime(2015, 7, 1, tzinfo=UTC)
    with pytest.raises(ValidationError, match="before"):
        TrainingConfig(data="x", selection_start=date(2015, 7, 1))


def test_the_learning_rate_rises_and_falls():
    factors = [one_cycle(done) for done in np.linspace(0, 1, 101)]
    assert 0 < factors[0] < 0.1
    assert max(factors) == factors[20] == 1
    assert factors[-1] == pytest.approx(0, abs=1e-9)
    assert all(later < earlier for earlier, later in pairwise(factors[20:]))
