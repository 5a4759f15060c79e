"""Training the wind power forecaster under Ray Train: what ``jobs/train_forecaster.py`` calls.

The year and a half before ``validation_start`` is for fitting, except for its last part, from
``selection_start``, by which the best epoch is chosen. The rows from ``validation_start`` on are only
measured, never chosen by.
"""

import logging
import tempfile
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from torch import Tensor

from cloudfarm.training import windows
from cloudfarm.training.bundle import Name
from cloudfarm.training.forecaster import KIND, Forecaster, ForecasterSpec
from cloudfarm.training.publish import publish_model
from cloudfarm.training.runs import ResumeError, data_card, one_cycle
from cloudfarm.training.windows import DataError, Indices, Period, Series

logger = logging.getLogger(__name__)

_STATE = "state.pt"
_EVALUATION_BATCH = 8192


class TrainingConfig(BaseModel):
    """The settings of a run. Steps are 10 minutes; dates are UTC, the first day of their period."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: str
    turbines: tuple[str, ...] = ()
    model_name: Name = KIND
    epochs: int = Field(default=4, ge=1)
    horizon: int = Field(default=6, ge=1, le=144)
    lookback: int = Field(default=18, ge=1, le=1008)
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (128, 128)
    batch_size: int = Field(default=512, ge=1, description="windows a worker takes in one step")
    learning_rate: float = Field(default=3e-3, gt=0)
    selection_start: date = date(2015, 4, 1)
    validation_start: date = date(2015, 7, 1)
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> "TrainingConfig":
        if self.selection_start >= self.validation_start:
            raise ValueError("selection_start must be before validation_start")
        return self

    def periods(self) -> tuple[Period, Period, Period]:
        """Return the periods for fitting, for choosing the epoch and for the reported figures."""
        first, last = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
        selection = datetime.combine(self.selection_start, time(), UTC)
        validation = datetime.combine(self.validation_start, time(), UTC)
        return Period(first, selection), Period(selection, validation), Period(validation, last)


class Split:
    """The data of one run: the series and the rows at which the windows of each period end.

    Attributes:
        fit, selection, validation: rows ``[k]`` of the series.
        spec: of the model, with the normalisation of the fitting period.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.series: Series = windows.load(config.data, config.turbines)
        fit, selection, validation = config.periods()
        ends = [
            self.series.window_ends(config.lookback, config.horizon, p) for p in (fit, selection, validation)
        ]
        for name, rows in zip(("fitting", "selection", "validation"), ends, strict=True):
            if not len(rows):
                raise DataError(
                    f"{config.data} has no whole window in the {name} period; see --validation-start"
                )
        self.fit, self.selection, self.validation = ends
        mean, std = self.series.normalisation(fit)
        power = self.series.channels[self.fit, 0]
        self.spec = ForecasterSpec(
            lookback_steps=config.lookback,
            horizon_steps=config.horizon,
            hidden=config.hidden,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            power_min_kw=float(power.min()),
            power_max_kw=float(power.max()),
        )


class _Worker:
    """One worker's view of a run: its share of the rows, and the data on its device."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.config = config
        self.split = Split(config)
        self._device = device
        self._channels = torch.from_numpy(self.split.series.channels).to(device)
        self._before = torch.from_numpy(windows.input_offsets(config.lookback)).to(device)
        self._after = torch.from_numpy(windows.target_offsets(config.horizon)).to(device)
        self.batches_an_epoch = len(self.split.fit) // (config.batch_size * self.world)
        if not self.batches_an_epoch:
            raise DataError(
                f"{len(self.split.fit)} windows are fewer than a batch of {config.batch_size} for each worker"
            )

    def epoch(self, number: int) -> Tensor:
        """Return this worker's rows ``[batches_an_epoch, batch_size]``; the seed fixes their order."""
        config = self.config
        order = np.random.default_rng([config.seed, number]).permutation(self.split.fit)
        kept = order[: self.batches_an_epoch * config.batch_size * self.world]
        mine = kept.reshape(self.batches_an_epoch, self.world, config.batch_size)[:, self.rank]
        return torch.from_numpy(mine).to(self._device)

    def windows(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs ``[b, lookback, channel]`` and target ``[b, horizon]`` in kW for rows ``ends``."""
        inputs, targets = ends[:, None] + self._before, ends[:, None] + self._after
        return self._channels[inputs], self._channels[targets, 0]

    def figures(self, model: Forecaster) -> dict[str, float]:
        """Return the errors of the model and of persistence on the same rows, over all workers."""
        selection, _ = self.errors_kw(model, self.split.selection)
        validation, persistence = self.errors_kw(model, self.split.validation)
        return {
            "selection_mae_kw": selection[-1],
            "validation_mae_kw": validation[-1],
            "persistence_mae_kw": persistence[-1],
            "validation_mean_mae_kw": float(np.mean(validation)),
            "persistence_mean_mae_kw": float(np.mean(persistence)),
            "rows": float(len(self.split.validation)),
        }

    def errors_kw(self, model: Forecaster, ends: Indices) -> tuple[list[float], list[float]]:
        """Return the mean absolute error at each step ``[horizon]`` of the model and of persistence.

        Each worker measures its share of ``ends``; the sums are added up, so the result is that of all rows.
        """
        sums = torch.zeros(2, self.config.horizon, dtype=torch.float64)
        with torch.no_grad():
            for part in (
                torch.from_numpy(ends[self.rank :: self.world]).to(self._device).split(_EVALUATION_BATCH)
            ):
                inputs, target = self.windows(part)
                for row, forecast in enumerate((model.forecast(inputs), inputs[:, -1, :1])):
                    sums[row] += (forecast - target).abs().double().sum(0).cpu()
        if self.world > 1:
            shared = sums.to(self._device)
            dist.all_reduce(shared)
            sums = shared.cpu()
        model_mae, persistence_mae = (sums / len(ends)).tolist()
        return model_mae, persistence_mae


def train(settings: dict[str, Any]) -> None:
    """Train on this worker: the function that Ray Train runs, once for each worker of the group.

    Every epoch ends with ``ray.train.report`` of the figures and a checkpoint, from which the next start goes
    on, be it after a lost worker or when the run is submitted again with the same name and storage path.

    Args:
        settings: a ``TrainingConfig`` as JSON-able dict.
    """
    config = TrainingConfig.model_validate(settings)
    device = ray.train.torch.get_device()
    worker = _Worker(config, device)
    torch.manual_seed(config.seed)
    model = ray.train.torch.prepare_model(Forecaster(worker.split.spec))
    bare: Forecaster = getattr(model, "module", model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-2)

    for epoch in range(_resume(bare, optimizer, config, device), config.epochs):
        for batch, ends in enumerate(worker.epoch(epoch)):
            done = (epoch + batch / worker.batches_an_epoch) / config.epochs
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * one_cycle(done)
            inputs, target = worker.windows(ends)
            loss = (model(inputs) - target).abs().mean() / bare.std[0]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        figures = worker.figures(bare) | {"epoch": float(epoch + 1)}
        if worker.rank:
            ray.train.report(figures)
        else:
            _report_with_checkpoint(figures, bare, optimizer, epoch + 1)


def publish_best(
    result: ray.train.Result, config: TrainingConfig, split: Split, outbox: str | None = None
) -> dict[str, Any]:
    """Publish the checkpoint with the least ``selection_mae_kw`` of a finished run and return its summary.

    Returns:
        ``validation_mae_kw``, ``persistence_mae_kw`` (both of the last step, the same rows), ``rows``,
        ``epochs`` and ``model`` (where the bundle is).
    """
    checkpoint, figures = min(result.best_checkpoints or [], key=lambda pair: pair[1]["selection_mae_kw"])
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _STATE, map_location="cpu", weights_only=True)
    series, ends = split.series, split.validation
    example = int(ends[np.argmax(series.channels[ends, 0] > np.median(series.channels[ends, 0]))])
    where = publish_model(
        config.model_name,
        {name: tensor.numpy() for name, tensor in state["model"].items()},
        kind=KIND,
        spec=state["spec"],
        config=config.model_dump(mode="json"),
        metrics=figures,
        card=data_card(config.data),
        framework=f"torch {torch.__version__}",
        example_input={
            "turbine": series.names[series.turbine[example]],
            "observations": cast("list[JsonValue]", series.readings(example, config.lookback)),
        },
        outbox=outbox,
    )
    return {
        "validation_mae_kw": round(figures["validation_mae_kw"], 2),
        "persistence_mae_kw": round(figures["persistence_mae_kw"], 2),
        "rows": int(figures["rows"]),
        "epochs": int(result.metrics["epoch"]),
        "model": where,
    }


def _report_with_checkpoint(
    figures: dict[str, float], model: Forecaster, optimizer: torch.optim.Optimizer, epochs_done: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "model": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "epochs_done": epochs_done,
            "spec": model.spec.model_dump(mode="json"),
        }
        torch.save(state, Path(folder) / _STATE)
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(
    model: Forecaster, optimizer: torch.optim.Optimizer, config: TrainingConfig, device: torch.device
) -> int:
    """Load the run's last checkpoint, if it has one, and return the number of epochs that are done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _STATE, map_location=device, weights_only=True)
    if state["spec"] != model.spec.model_dump(mode="json"):
        raise ResumeError(
            "this run's checkpoint has another shape or other data; give the run another --run-name"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    done = int(state["epochs_done"])
    logger.info("resumed after %d of %d epochs", done, config.epochs)
    return done
