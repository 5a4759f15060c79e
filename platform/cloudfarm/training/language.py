"""Fine-tuning a causal language model with LoRA under Ray Train: what ``jobs/finetune_lm.py`` calls.

The base model's weights stay as they are; low-rank matrices beside some of them are trained (Hu et al., LoRA, 2021)
and published as a bundle of kind ``lora-adapter``, which is served on the base model that it was made for. The
held-out pairs are only measured, before and after: nothing is chosen by them, the last step's adapter is published.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from cloudfarm.domain.bundles import CAUSAL_LM, LORA_ADAPTER
from cloudfarm.errors import InvalidInputError
from cloudfarm.training.bundle import Manifest, Name, read_manifest
from cloudfarm.training.hf_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MAX_RANK,
    fetch_bundle,
)
from cloudfarm.training.pairs import Batch, Example, answer_loss, encode, figures, load_pairs, measure
from cloudfarm.training.publish import publish_folder
from cloudfarm.training.runs import ResumeError, data_card, one_cycle
from cloudfarm.training.windows import DataError

logger = logging.getLogger(__name__)

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of a block of the Llama family."""
_STATE = "state.pt"


class FineTuningConfig(BaseModel):
    """The settings of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str = Field(description="bundle of the model to tune, as every worker can read it")
    data: str
    language: str = "en"
    system: str = Field(default="", description="system message before each prompt")
    model_name: Name = "census-lora"
    steps: int = Field(default=80, ge=1)
    batch_size: int = Field(default=4, ge=1, description="pairs a worker takes in one step")
    learning_rate: float = Field(default=1.5e-3, gt=0)
    rank: int = Field(default=8, ge=1, le=MAX_RANK)
    target_modules: tuple[str, ...] = Field(default=LINEAR_LAYERS, min_length=1)
    held_out: int = Field(default=70, ge=1, description="at most so many held-out pairs are measured")
    checkpoint_steps: int = Field(default=20, ge=1)
    seed: int = 0


def check(config: FineTuningConfig) -> Manifest:
    """Return the base model's manifest if a run with ``config`` can start.

    Raises:
        CloudfarmError: no such base, one of another kind, or data without the pairs.
    """
    manifest = read_manifest(config.base)
    if manifest.kind != CAUSAL_LM:
        raise InvalidInputError(f"{config.base} is a model of kind {manifest.kind}, not {CAUSAL_LM}")
    for part in ("train", "held-out"):
        load_pairs(config.data, part, config.language)
    return manifest


class _Worker:
    """One worker's view of a run: the model on its device, and its share of the pairs."""

    def __init__(self, config: FineTuningConfig, device: torch.device) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.config, self.device = config, device
        disable_progress_bar()
        with _fetched(config.base) as (folder, self.base):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=2 * config.rank,
            target_modules=list(config.target_modules),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(config.seed)
        self.model = get_peft_model(model, lora).to(device)
        self.model.peft_config[
            "default"
        ].base_model_name_or_path = self.base.name  # not a folder of this host

        digest = hashlib.sha256()

        def examples(part: str) -> list[Example]:
            rows = load_pairs(config.data, part, config.language)
            digest.update(json.dumps(rows).encode())
            return encode(tokenizer, rows, config.system)

        self.train = examples("train")
        held_out = examples("held-out")
        self.pairs_sha256 = digest.hexdigest()
        self.held_out = held_out[:: -(-len(held_out) // config.held_out)]
        self.kinds = sorted({example.kind for example in self.held_out})
        if len(self.train) < config.batch_size * self.world:
            raise DataError(
                f"{len(self.train)} pairs are fewer than a batch of {config.batch_size} for each worker"
            )

    def batch(self, step: int) -> Batch:
        """Return this worker's examples of a step; the seed fixes their order, so a run can go on anywhere."""
        together = self.config.batch_size * self.world
        epoch, place = divmod(step, len(self.train) // together)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train))
        mine = order[place * together :][:together][self.rank :: self.world]
        return Batch.of([self.train[index] for index in mine], self.device)

    def figures(self) -> dict[str, float]:
        """Return the model's figures on the held-out pairs; each worker measures its share of them."""
        share = self.held_out[self.rank :: self.world]
        sums = measure(self.model, share, self.kinds, 2 * self.config.batch_size, self.device)
        if self.world > 1:
            shared = sums.to(self.device)
            dist.all_reduce(shared)
            sums = shared.cpu()
        return figures(sums, self.kinds) | {"pairs": float(len(self.held_out))}

    def identity(self) -> dict[str, JsonValue]:
        """Return what must be the same for a checkpoint to be gone on with: all that the figures depend on."""
        return {
            **self.config.model_dump(mode="json", exclude={"base", "model_name", "checkpoint_steps"}),
            "base": self.base.version,
            "world": self.world,
            "pairs": self.pairs_sha256,
        }


def train(settings: dict[str, Any]) -> None:
    """Train on this worker: the function that Ray Train runs, once for each worker of the group.

    Every ``checkpoint_steps``, at a notice of preemption and at the end there is a ``ray.train.report`` with a
    checkpoint, from which the next start goes on: after a lost worker, or when the run is submitted again with the
    same name and storage path.

    Args:
        settings: a ``FineTuningConfig`` as JSON-able dict.
    """
    config = FineTuningConfig.model_validate(settings)
    worker = _Worker(config, ray.train.torch.get_device())
    model = ray.train.torch.prepare_model(worker.model)
    parameters = [each for each in worker.model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)

    done, base_figures = _resume(worker, optimizer)
    base_figures = base_figures or worker.figures()  # its matrices are zero still: this is the base model
    warned = None
    while done < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * one_cycle(done / config.steps)
        loss = answer_loss(model, worker.batch(done))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done += 1
        preemption = ray.train.get_preemption_info()  # the same for all workers
        if done % config.checkpoint_steps == 0 or done == config.steps or preemption != warned:
            warned = preemption
            said = {"steps": float(done), "loss": float(loss.detach())}
            if done == config.steps:
                said |= _prefixed("base", base_figures) | _prefixed("tuned", worker.figures())
            _report(worker, optimizer, said, base_figures)


def publish_adapter(
    result: ray.train.Result, config: FineTuningConfig, base: Manifest, outbox: str | None = None
) -> dict[str, Any]:
    """Publish the last checkpoint's adapter of a finished run and return its summary.

    Returns:
        The figures of the base and of the tuned model on the same held-out pairs, and ``model`` (where the bundle
        is).
    """
    if result.checkpoint is None or result.metrics is None:
        raise InvalidInputError("the run has no checkpoint to publish")
    measured = {name: value for name, value in result.metrics.items() if name.startswith(("base_", "tuned_"))}
    with result.checkpoint.as_directory() as folder, tempfile.TemporaryDirectory() as only:
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            shutil.copyfile(Path(folder) / name, Path(only) / name)
        where = publish_folder(
            config.model_name,
            Path(only),
            kind=LORA_ADAPTER,
            spec={"base": base.version, "base_name": base.name, "rank": config.rank},
            metrics=measured,
            card=data_card(config.data),
            config=config.model_dump(mode="json"),
            outbox=outbox,
        )
    return {name: round(value, 4) for name, value in measured.items()} | {"model": where}


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}


@contextmanager
def _fetched(base: str) -> Iterator[tuple[Path, Manifest]]:
    """Copy the bundle ``base`` to this host, checked, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="base-") as folder:
        yield Path(folder) / "base", fetch_bundle(base, Path(folder) / "base")


def _report(
    worker: _Worker,
    optimizer: torch.optim.Optimizer,
    said: dict[str, float],
    base_figures: dict[str, float],
) -> None:
    if worker.rank:
        ray.train.report(said)
        return
    with tempfile.TemporaryDirectory() as folder:
        # Else peft asks the Hub whether the base has other embeddings.
        worker.model.save_pretrained(folder, save_embedding_layers=False)
        state = {
            "optimizer": optimizer.state_dict(),
            "steps": int(said["steps"]),
            "base_figures": base_figures,
            "identity": json.dumps(worker.identity()),
        }
        torch.save(state, Path(folder) / _STATE)
        ray.train.report(said, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _resume(worker: _Worker, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, float] | None]:
    """Load the run's last checkpoint, if it has one; return the steps done and the base model's figures."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, None
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _STATE, map_location=worker.device, weights_only=True)
        adapter = load_file(Path(folder) / ADAPTER_WEIGHTS)
    if state["identity"] != json.dumps(worker.identity()):
        raise ResumeError(
            "this run's checkpoint has another base, other settings or other data; give the run another --run-name"
        )
    set_peft_model_state_dict(worker.model, adapter)
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resumed after %d of %d steps", state["steps"], worker.config.steps)
    return int(state["steps"]), dict(state["base_figures"])
