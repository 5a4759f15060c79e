"""Batch inference: a folder of Parquet files with prompts in, the same rows with answers out.

The work is cut into parts, each a run of rows of one row group of one input file, always the same ones for the same
input. A part's output file bears its name and appears by rename when it is whole, so a file that is there is done: a
job that is killed at any point and started again does the missing parts only, and each row is in the output once.
``_job.json`` in the output says which job it is the output of; another job is refused there.

Ray Data deals the parts out to actors with an engine each. Should an actor be lost, Ray does its part again, which
writes the same file.
"""

import asyncio
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import ray.data
from pydantic import BaseModel

from cloudfarm.domain.bundles import CAUSAL_LM, LORA_ADAPTER
from cloudfarm.domain.generation import Adapter, Generation, Message, Refusal, Sampling
from cloudfarm.errors import InvalidInputError
from cloudfarm.inference.asked import check_sampling
from cloudfarm.inference.batch_plan import BatchConfig, Part, fingerprints, plan
from cloudfarm.inference.completions import Completions
from cloudfarm.inference.engine import EngineName
from cloudfarm.training.bundle import read_manifest, resolve
from cloudfarm.training.hf_folder import AdapterSpec, CausalLmSpec, checked_spec

JOB = "_job.json"
"""In the output folder; what reads folders of Parquet files skips names that begin with an underscore or a dot."""
ANSWERS = pa.schema(
    [
        ("answer", pa.string()),  # null where the engine refused
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("refusal", pa.string()),
    ]
)
"""The columns that the output has beside those of the input."""


class Progress(BaseModel):
    """How far a job is: since it was first started, and how fast since this start."""

    rows: int = 0
    of_rows: int
    tokens: int = 0
    """Generated since this start."""
    refused: int = 0
    """Rows since this start that the engine refused."""
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0


def claim(config: BatchConfig, parts: Sequence[Part]) -> list[Part]:
    """Make the output folder this job's, and return the parts that are not in it yet.

    Raises:
        InvalidInputError: the folder holds the output of a job with other settings, models or input, or the model
            could answer no row with these settings.
        CloudfarmError: a model or an adapter that is not there, of another kind, or not of the other.
    """
    if refusal := check_sampling(_sampling(config)):
        raise InvalidInputError(refusal.detail)
    _check_schema(config)
    filesystem, folder = resolve(config.output)
    model, adapter = _versions(config)
    job = _Job(
        settings=config.model_copy(update={"output": ""}),
        model=model,
        adapter=adapter,
        files=fingerprints(config.data, {part.file for part in parts}),
        rows={part.name: part.rows for part in parts},
    )
    content = job.model_dump_json(indent=1).encode()
    if filesystem.get_file_info(f"{folder}/{JOB}").type == pyarrow.fs.FileType.NotFound:
        filesystem.create_dir(folder, recursive=True)
        _write_whole(filesystem, folder, JOB, content)
    else:
        with filesystem.open_input_stream(f"{folder}/{JOB}") as stream:
            if stream.read() != content:
                raise InvalidInputError(f"{config.output} holds the output of another job; see its {JOB}")
    done = {info.base_name for info in filesystem.get_file_info(pyarrow.fs.FileSelector(folder))}
    return [part for part in parts if part.name not in done]


def run(
    config: BatchConfig, workers: int, *, use_gpu: bool, engine: EngineName | None = None
) -> Iterator[Progress]:
    """Do the missing parts on ``workers`` actors and yield the progress: at once, and after each part.

    Raises:
        CloudfarmError: as :func:`plan` and :func:`claim` do.
    """
    if config.json_schema is not None:
        engine = engine or "vllm"  # which says so where it is not installed; the other would refuse every row
    parts = plan(config)
    missing = claim(config, parts)
    of_rows = sum(part.rows for part in parts)
    progress = Progress(rows=of_rows - sum(part.rows for part in missing), of_rows=of_rows)
    yield progress
    if missing:
        before, started = progress.rows, time.monotonic()
        for done in _answered(config, missing, workers, engine, use_gpu=use_gpu):
            seconds = time.monotonic() - started
            rows, tokens = progress.rows + done["rows"], progress.tokens + done["tokens"]
            progress = Progress(
                rows=rows,
                of_rows=of_rows,
                tokens=tokens,
                refused=progress.refused + done["refused"],
                rows_per_s=(rows - before) / seconds,
                tokens_per_s=tokens / seconds,
            )
            yield progress
    _sweep(config.output)


class Answerer:
    """An actor with an engine that does parts.

    Args:
        settings: a ``BatchConfig`` as JSON-able dict.
        engine: another one than ``Completions`` chooses.
    """

    def __init__(self, settings: Mapping[str, Any], engine: EngineName | None = None) -> None:
        self.config = BatchConfig.model_validate(settings)
        self._input, self._data = resolve(self.config.data)
        self._filesystem, self._output = resolve(self.config.output)
        self._adapter: Adapter | None = None
        if self.config.adapter is not None:
            manifest = read_manifest(self.config.adapter)
            self._adapter = Adapter(manifest.version, manifest.name, self.config.adapter)
        self._model = Completions(self.config.model, engine)

    def __del__(self) -> None:
        """Close; Ray Data calls this when an actor has nothing left to do."""
        if hasattr(self, "_model"):  # it was opened
            self._model.close()

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the part that ``row`` describes and return how many rows and tokens it had."""
        part = Part(**row)
        with pyarrow.parquet.ParquetFile(f"{self._data}/{part.file}", filesystem=self._input) as file:
            rows = file.read_row_group(part.group).slice(part.start, part.rows)
        prompts = rows[self.config.prompt_column].to_pylist()
        answers = await asyncio.gather(*map(self._answer, prompts))
        given = pa.Table.from_pylist(answers, schema=ANSWERS)
        for name in ANSWERS.names:
            if name in rows.column_names:  # the data set's own answer, to compare with
                given_name = f"given_{name}"
                while given_name in rows.column_names:
                    given_name = f"given_{given_name}"
                rows = rows.rename_columns({name: given_name})
            rows = rows.append_column(name, given[name])
        content = io.BytesIO()
        pyarrow.parquet.write_table(rows, content, compression="zstd")
        _write_whole(self._filesystem, self._output, part.name, content.getvalue())
        refused = sum("refusal" in answer for answer in answers)
        return {
            "rows": part.rows,
            "refused": refused,
            "tokens": sum(answer["completion_tokens"] for answer in answers),
        }

    async def _answer(self, prompt: str | None) -> dict[str, Any]:
        if prompt is None:
            return {"completion_tokens": 0, "refusal": "there is no prompt (null)"}
        config = self.config
        before = (Message("system", config.system),) if config.system else ()
        text, reason, prompt_tokens, tokens = "", None, 0, 0
        request = Generation(_sampling(config), (*before, Message("user", prompt)), adapter=self._adapter)
        async for piece in self._model.generate(request):
            if isinstance(piece, Refusal):
                return {"completion_tokens": 0, "refusal": piece.detail}
            text += piece.text
            reason = piece.finish_reason or reason
            prompt_tokens += piece.prompt_tokens
            tokens += piece.tokens
        return {
            "answer": text,
            "finish_reason": reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
        }


class _Job(BaseModel):
    """``_job.json``: all that the output depends on."""

    settings: BatchConfig
    model: str
    adapter: str | None
    files: dict[str, str]
    """SHA-256 of each file of the input."""
    rows: dict[str, int]


def _sampling(config: BatchConfig) -> Sampling:
    return Sampling(config.max_tokens, config.temperature, seed=config.seed, json_schema=config.json_schema)


def _check_schema(config: BatchConfig) -> None:
    try:
        found = json.loads(config.json_schema or "{}")
    except (ValueError, RecursionError) as bad:
        raise InvalidInputError(f"the schema is no JSON: {bad}") from bad
    if not isinstance(found, dict):
        raise InvalidInputError("the schema is no object")


def _versions(config: BatchConfig) -> tuple[str, str | None]:
    """Return the versions of the model and of the adapter, which must be its."""
    model = read_manifest(config.model)
    if model.kind != CAUSAL_LM:
        raise InvalidInputError(f"{config.model} is a model of kind {model.kind}, not {CAUSAL_LM}")
    context_tokens = checked_spec(CausalLmSpec, model).context_tokens
    if config.max_tokens >= context_tokens:
        raise InvalidInputError(
            f"max_tokens is {config.max_tokens}: prompt and answer have {context_tokens} tokens together at most"
        )
    if config.adapter is None:
        return model.version, None
    adapter = read_manifest(config.adapter)
    if adapter.kind != LORA_ADAPTER or checked_spec(AdapterSpec, adapter).base != model.version:
        raise InvalidInputError(f"{config.adapter} is no {LORA_ADAPTER} of the model {config.model}")
    return model.version, adapter.version


def _answered(
    config: BatchConfig, missing: Sequence[Part], workers: int, engine: EngineName | None, *, use_gpu: bool
) -> Iterator[dict[str, int]]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    work = ray.data.from_items([asdict(part) for part in missing], override_num_blocks=len(missing))
    done = work.map(
        Answerer,
        fn_constructor_args=(config.model_dump(mode="json"), engine),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    yield from done.iter_rows()


def _write_whole(filesystem: Any, folder: str, name: str, content: bytes) -> None:
    aside = f"{folder}/.{name}.{uuid4().hex}.part"
    with filesystem.open_output_stream(aside) as stream:
        stream.write(content)
    filesystem.move(aside, f"{folder}/{name}")


def _sweep(output: str) -> None:
    """Remove what killed writers left behind, now that nobody writes any more."""
    filesystem, folder = resolve(output)
    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(folder)):
        if info.base_name.startswith(".") and info.base_name.endswith(".part"):
            filesystem.delete_file(info.path)
