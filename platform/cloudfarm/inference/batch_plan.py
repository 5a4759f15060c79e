"""What a batch job reads: its settings, and its input cut into parts."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, Field

from cloudfarm.errors import InvalidInputError
from cloudfarm.training.bundle import COPIED_BYTES, resolve


class BatchConfig(BaseModel):
    """The settings that the output depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(description="bundle of the model, as every actor can read it")
    adapter: str | None = Field(default=None, description="bundle of a LoRA adapter on it")
    data: str = Field(description="folder of Parquet files")
    output: str = Field(description="folder that the answers go to")
    prompt_column: str = "prompt"
    system: str = Field(default="", description="system message before each prompt")
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    json_schema: str | None = Field(default=None, description="JSON schema that every answer follows")
    part_rows: int = Field(default=32, ge=1)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``[start, start + rows)`` of a row group of an input file."""

    file: str
    """Path below the input folder."""
    group: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        """Its output file."""
        flat = self.file.removesuffix(".parquet").replace("/", "--")
        return f"{flat}-{self.group:05}-{self.start:08}.parquet"


def plan(config: BatchConfig) -> list[Part]:
    """Return the parts of the job, always the same ones for the same input.

    As for all who read folders of Parquet files, names that begin with an underscore or a dot are not of the data.

    Raises:
        InvalidInputError: no Parquet files, one without the column of texts, two whose output would have one name, or
            an output that would be input.
    """
    filesystem, folder = resolve(config.data)
    output_filesystem, output = resolve(config.output)
    if output_filesystem.equals(filesystem) and f"{output}/".startswith(f"{folder}/"):
        raise InvalidInputError(f"the output {config.output} is in the input {config.data}")
    try:
        found = filesystem.get_file_info(
            pyarrow.fs.FileSelector(folder, allow_not_found=True, recursive=True)
        )
    except NotADirectoryError:
        found = []
    paths = (info.path[len(folder) + 1 :] for info in found if info.is_file and info.extension == "parquet")
    files = sorted(path for path in paths if not any(name[0] in "_." for name in path.split("/")))
    if not files:
        raise InvalidInputError(f"{config.data} holds no Parquet file")
    parts: list[Part] = []
    for file in files:
        try:
            head = pyarrow.parquet.read_metadata(f"{folder}/{file}", filesystem=filesystem)
        except pa.ArrowException as bad:
            raise InvalidInputError(f"{config.data}/{file} is no Parquet file: {bad}") from bad
        _check_column(config, file, head.schema.to_arrow_schema())
        for group in range(head.num_row_groups):
            rows = head.row_group(group).num_rows
            starts = range(0, rows, config.part_rows)
            parts += [Part(file, group, start, min(config.part_rows, rows - start)) for start in starts]
    if len({part.name for part in parts}) < len(parts):
        raise InvalidInputError(f"two files of {config.data} would have their answers in files of one name")
    return parts


def _check_column(config: BatchConfig, file: str, schema: pa.Schema) -> None:
    where = f"{config.data}/{file}"
    if schema.names.count(config.prompt_column) != 1:
        raise InvalidInputError(f"{where} has no column {config.prompt_column!r}, or several")
    kind = schema.field(config.prompt_column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(plain) or pa.types.is_large_string(plain)):
        raise InvalidInputError(f"the column {config.prompt_column!r} of {where} is {kind}, not text")


def fingerprints(data: str, files: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file.

    Not size and time: a copy has another time, and is the same input. Reading it all once takes no time beside
    answering it.
    """
    filesystem, folder = resolve(data)
    found = {}
    for file in sorted(files):
        digest = hashlib.sha256()
        with filesystem.open_input_stream(f"{folder}/{file}", compression=None) as stream:
            while piece := stream.read(COPIED_BYTES):
                digest.update(piece)
        found[file] = digest.hexdigest()
    return found
