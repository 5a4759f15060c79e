"""What training runs have in common, whatever they train."""

import math
from typing import ClassVar

import pyarrow.fs
from pydantic import ValidationError

from cloudfarm.errors import CloudfarmError
from cloudfarm.training.bundle import DataCard, resolve
from cloudfarm.training.datasets import CARD, DatasetCard
from cloudfarm.training.windows import DataError


class ResumeError(CloudfarmError):
    """The run's checkpoint was made with other settings or other data."""

    code: ClassVar[str] = "cannot_resume"
    status: ClassVar[int] = 409
    title: ClassVar[str] = "The run cannot be resumed"


def data_card(data: str) -> DataCard:
    """Return what the data set at ``data`` says of itself, or what little is known when it has no card."""
    filesystem, path = resolve(data)
    if filesystem.get_file_info(f"{path}/{CARD}").type == pyarrow.fs.FileType.NotFound:
        return DataCard(name="unnamed", source=data, licence="unknown")
    with filesystem.open_input_stream(f"{path}/{CARD}") as stream:
        try:
            card = DatasetCard.model_validate_json(stream.read())
        except ValidationError as bad:
            raise DataError(f"the card of {data} cannot be read: {bad}") from bad
    return DataCard(
        name=card.name,
        source=card.source,
        licence=card.licence,
        attribution=card.attribution,
        sha256=card.source_sha256,
    )


def one_cycle(done: float) -> float:
    """Return the factor of the learning rate when the part ``done`` (0..1) of the run is over: up, then down.

    Linear warm-up over the first fifth, then a half cosine (Loshchilov and Hutter, SGDR, 2017, equation 5, no
    restart).
    """
    warm = 0.2
    return (
        max(done, 0.01) / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
    )
