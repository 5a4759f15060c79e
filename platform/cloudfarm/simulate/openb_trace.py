"""The openb benchmark's files: node list, pod list, arrival orders.

The formats are those of hkust-adsl/kubernetes-scheduler-simulator (Apache-2.0), the artifact of Weng et al., Beware of
Fragmentation, USENIX ATC 2023, made from Alibaba's cluster-trace-gpu-v2023. ``docs/packing.md`` describes the protocol.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.quantities import MILLI
from cloudfarm.errors import InvalidInputError

DEMAND = 1.3
"""Pods arrive until their GPUs are this many times the cluster's."""

Ints = npt.NDArray[np.int64]
PodTuple = tuple[int, int, int, int, str, str]
"""milli-CPUs, MiB, number of GPUs, milli of each, models as ``A|B`` or empty, name."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes with GPUs, sorted by name."""

    cpu: Ints
    mem: Ints
    ngpu: Ints
    model: npt.NDArray[np.str_]

    @property
    def gpu_milli(self) -> int:
        """Milli-GPUs of all nodes."""
        return int(self.ngpu.sum()) * MILLI


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One seed: the order of pods (positions in the pod list) and the rank of each node, which breaks ties."""

    order: Ints
    rank: Ints


def read_nodes(path: Path) -> Cluster:
    """Read a node list; nodes without GPUs are left out, as in the published runs.

    Raises:
        InvalidInputError: it cannot be read; the line is named.
    """
    rows = []
    for line, row in _rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        amounts = [_number(path, line, row, key) for key in ("cpu_milli", "memory_mib", "gpu")]
        if amounts[2]:
            rows.append((row["sn"], *amounts, row["model"]))
    if not rows:
        raise InvalidInputError(f"{path.name}: no node has a GPU")
    rows.sort()
    names, cpu, mem, ngpu, model = zip(*rows, strict=True)
    if len(set(names)) < len(names):
        raise InvalidInputError(f"{path.name}: two nodes have the same name")
    return Cluster(_ints(cpu), _ints(mem), _ints(ngpu), np.array(model, dtype=np.str_))


def read_pods(path: Path) -> list[PodTuple]:
    """Read a pod list, in the file's order. The column ``gpu_spec`` may be missing.

    Raises:
        InvalidInputError: it cannot be read; the line is named.
    """
    pods = []
    for line, row in _rows(path, ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")):
        cpu, mem, num, milli = (
            _number(path, line, row, key) for key in ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
        )
        if num and not 1 <= milli <= MILLI:
            raise InvalidInputError(f"{path.name}, line {line}: gpu_milli is 1 to {MILLI}, not {milli}")
        milli = MILLI if num > 1 else milli * num
        pods.append((cpu, mem, num, milli, row.get("gpu_spec") or "", row["name"]))
    if not pods:
        raise InvalidInputError(f"{path.name}: no pods")
    return pods


def read_arrivals(path: Path, seed: int, pods: int, nodes: int) -> Arrivals:
    """Read the arrival order and node ranks of a seed (keys ``<seed>`` and ``rank<seed>``).

    Raises:
        InvalidInputError: the file has no such seed, or does not belong to these lists.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            order, rank = (arrays[key].astype(np.int64) for key in (str(seed), f"rank{seed}"))
    except (OSError, ValueError, BadZipFile, KeyError) as error:
        raise InvalidInputError(
            f"{path.name}: no arrivals of seed {seed} can be read there: {error}"
        ) from error
    if order.ndim != 1 or not len(order) or order.min() < 0 or order.max() >= pods:
        raise InvalidInputError(
            f"{path.name}, seed {seed}: these are not the arrivals of a list of {pods} pods"
        )
    if sorted(rank.tolist()) != list(range(nodes)):
        raise InvalidInputError(f"{path.name}, seed {seed}: these are not the ranks of {nodes} nodes")
    return Arrivals(order, rank)


def make_arrivals(cluster: Cluster, pods: list[PodTuple], seed: int) -> Arrivals:
    """Make a seed's arrivals in the way of the published ones, with numpy's generator instead of Go's.

    The pods in random order; then pods drawn with replacement as long as the demand stays within ``DEMAND`` times the
    cluster. Of a list with more demand than that, as many pods of the random order as stay within it.
    """
    rng = np.random.default_rng(seed)
    by_name = _ints(sorted(range(len(pods)), key=lambda position: pods[position][5]))
    demand = _ints([pod[2] * pod[3] for pod in pods])
    limit = DEMAND * cluster.gpu_milli
    if not demand.any():
        raise InvalidInputError("no pod asks for a GPU, so the demand never reaches the cluster's")
    order = rng.permutation(by_name)
    total = int(demand.sum())
    while total <= limit:
        more = rng.choice(by_name, size=len(pods))
        order, total = np.concatenate([order, more]), total + int(demand[more].sum())
    within = np.cumsum(demand[order]) <= limit
    return Arrivals(order[within], rng.permutation(len(cluster.ngpu)))


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InvalidInputError(f"{path.name}, line 1: no column {', '.join(missing)}")
            for row in reader:
                if None in row or None in row.values():
                    raise InvalidInputError(
                        f"{path.name}, line {reader.line_num}: not as many values as columns"
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path.name} cannot be read: {error}") from error


def _number(path: Path, line: int, row: dict[str, str], key: str) -> int:
    text = row[key].strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 15):  # noqa: PLR2004  # fits 64 bits, with sums
        raise InvalidInputError(f"{path.name}, line {line}: {key} is a whole number from 0 on, not {text!r}")
    return int(text)


def _ints(values: object) -> Ints:
    return np.asarray(values, dtype=np.int64)
