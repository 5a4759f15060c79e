"""Prompts and answers as tokens, and what a causal language model makes of the answers.

Only the answer's tokens count, its end among them. An answer is matched exactly when every one of its tokens is the
likeliest after those before it, which is when greedy decoding writes it, token for token: so one pass without
generating measures both the likelihood and the match.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cloudfarm.training.bundle import resolve
from cloudfarm.training.windows import DataError

_NO_LABEL = -100  # what cross_entropy leaves out


@dataclass(frozen=True, slots=True)
class Example:
    """A pair in tokens."""

    kind: str
    prompt: tuple[int, ...]
    """The conversation up to where the answer begins."""
    answer: tuple[int, ...]
    """With the end of the turn."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side, padded on the left so that all answers end together."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    """The answers ``[b, longest answer]``."""

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> "Batch":
        """Return the batch of ``examples`` on ``device``."""
        width, longest = max(map(len, examples)), max(len(each.answer) for each in examples)
        ids = torch.zeros((len(examples), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full((len(examples), longest), _NO_LABEL)
        for row, each in enumerate(examples):
            ids[row, width - len(each) :] = torch.tensor(each.prompt + each.answer)
            mask[row, width - len(each) :] = 1
            labels[row, longest - len(each.answer) :] = torch.tensor(each.answer)
        return cls(ids.to(device), mask.to(device), labels.to(device))


def load_pairs(data: str, part: str, language: str) -> list[dict[str, str]]:
    """Return the rows of one part and language of the Parquet data set at ``data``, in its order.

    Raises:
        DataError: no such data set, or no such rows in it.
    """
    filesystem, path = resolve(data)
    try:
        found = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
        chosen = (pc.field("part") == part) & (pc.field("language") == language)
        table: pa.Table = found.to_table(columns=["kind", "prompt", "answer"], filter=chosen)
    except (pa.ArrowException, OSError, ValueError) as bad:
        raise DataError(f"{data} is not a Parquet data set of prompts and answers: {bad}") from bad
    if not len(table):
        raise DataError(f"{data} has no pairs of part {part!r} in the language {language!r}")
    rows: list[dict[str, str]] = table.to_pylist()
    return rows


def encode(tokenizer: Any, rows: Sequence[Mapping[str, str]], system: str) -> list[Example]:
    """Return ``rows`` (``kind, prompt, answer``) as tokens of the model's own chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template; its end-of-sequence token ends a turn.
        rows: the pairs.
        system: the system message before each prompt; none if empty.
    """
    before = [{"role": "system", "content": system}] if system else []

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(text: str) -> str:
        conversation = [*before, {"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))

    return [
        Example(row["kind"], tokens(prompt(row["prompt"])), (*tokens(row["answer"]), tokenizer.eos_token_id))
        for row in rows
    ]


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """Return the logits ``[b, longest answer, vocabulary]`` at the places of ``batch.labels``.

    The rest of the vocabulary's projection, a fifth of a small model's work, is never computed.
    """
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=positions,
        logits_to_keep=batch.labels.shape[1] + 1,
        use_cache=False,
    )
    logits: Tensor = output.logits[:, :-1]
    return logits.float()


def answer_loss(model: Any, batch: Batch) -> Tensor:
    """Return the mean negative log-likelihood of the answers' tokens, in nats."""
    return cross_entropy(answer_logits(model, batch).flatten(0, 1), batch.labels.flatten())


def measure(
    model: Any, examples: Sequence[Example], kinds: Sequence[str], batch_size: int, device: torch.device
) -> Tensor:
    """Return sums ``[kind, (nats, tokens, matches, examples)]`` over ``examples``; sums of parts may be added."""
    sums = torch.zeros(len(kinds), 4, dtype=torch.float64)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for part in _parts(examples, batch_size):
            batch = Batch.of(part, device)
            logits, counts = answer_logits(model, batch), batch.labels != _NO_LABEL
            nats = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
            matches = ((logits.argmax(-1) == batch.labels) | ~counts).all(1)
            rows = torch.stack(
                [nats.view_as(batch.labels).sum(1), counts.sum(1), matches, torch.ones_like(matches)], 1
            )
            at = torch.tensor([kinds.index(each.kind) for each in part])
            sums.index_add_(0, at, rows.double().cpu())
    model.train(was_training)
    return sums


def figures(sums: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Return what the sums of :func:`measure` mean: fractions of 1, and nats."""
    nats, tokens, matches, examples = sums.sum(0).tolist()
    per_kind = {
        f"exact_match_{kind}": row[2] / row[3]
        for kind, row in zip(kinds, sums.tolist(), strict=True)
        if row[3]
    }
    return {"nll_nats_per_token": nats / tokens, "exact_match": matches / examples, **per_kind}


def _parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
