"""Wholly free GPUs standing together: what they are worth to requests for several GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.demand import Outlook
from cloudfarm.scheduler.packing.prices import Floats, Ints
from cloudfarm.scheduler.packing.shapes import Request

BLOCK = 300
"""Milli-GPUs that a group of free GPUs is worth to gangs when there are no more such groups than gangs to come."""

MAX_PRICED = 6
"""Kinds of gangs whose groups have a price: the scarcest."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Prices of groups of free GPUs."""

    table: Floats
    """By gang, kind of node and number of wholly free GPUs: what the groups among them are worth, in milli."""
    need: Ints
    """Two rows: milli-CPUs and MiB that each gang wants beside its GPUs."""


def worth_of_blocks(blocks: Blocks, kind: Ints, beside: Ints, whole: Ints) -> Floats:
    """Return what the groups of free GPUs on nodes are worth, in milli.

    Args:
        blocks: prices.
        kind: of each node.
        beside: two rows: free milli-CPUs and free MiB.
        whole: number of wholly free GPUs.
    """
    value: Floats = _by_gang(blocks, kind, beside, whole).sum(axis=0)
    return value


def price_blocks(
    outlook: Outlook, models: Sequence[frozenset[str]], kind: Ints, beside: Ints, free_gpu: Ints
) -> Blocks:
    """Return the price of a group for each gang that is expected: as much of ``BLOCK`` as groups are scarce.

    Scarcity is how many such gangs will come while what is free is filled, for each group that could hold one. In an
    empty farm that is little, so nodes are opened as CPUs and sizes have it; the last groups are kept.

    Args:
        outlook: what is expected of future requests.
        models: the GPU models on each kind of node.
        kind: of each node.
        beside: two rows by node: free milli-CPUs and free MiB.
        free_gpu: milli left, by node and GPU.
    """
    groups, need = _groups(tuple(gang for gang, _ in outlook.gangs), tuple(models), free_gpu.shape[1])
    whole = (free_gpu == MILLI).sum(axis=1)
    there = _by_gang(Blocks(groups, need), kind, beside, whole).sum(axis=1)
    free = free_gpu.sum() / MILLI
    coming = np.array([share * free / gang.num_gpu for gang, share in outlook.gangs])
    prices = BLOCK * np.minimum(1, coming / np.maximum(there, 1))
    dearest = np.sort(np.argsort(-prices, kind="stable")[:MAX_PRICED])
    return Blocks(groups[dearest] * prices[dearest, None, None], need[:, dearest])


@lru_cache(maxsize=8)
def _groups(
    gangs: tuple[Request, ...], models: tuple[frozenset[str], ...], width: int
) -> tuple[Floats, Ints]:
    """Return how many groups for each gang are among the free GPUs of a node, and what each wants beside them.

    Kept: what is expected changes seldom, and prices are looked at with each placement. Not to be changed.
    """
    counts = np.arange(width + 1)
    groups = np.zeros((len(gangs), len(models), len(counts)))
    need = np.zeros((2, len(gangs), 1), dtype=np.int64)
    for row, gang in enumerate(gangs):
        runs = [not gang.models or bool(gang.models & each) for each in models]
        groups[row] = np.outer(runs, counts // gang.num_gpu)
        need[:, row, 0] = gang.cpu_milli, gang.memory_mib
    return groups, need


def _by_gang(blocks: Blocks, kind: Ints, beside: Ints, whole: Ints) -> Floats:
    gangs, kinds, width = blocks.table.shape
    enough = (beside[0] >= blocks.need[0]) & (beside[1] >= blocks.need[1])
    value: Floats = blocks.table.reshape(gangs, kinds * width).take(kind * width + whole, axis=1)
    value *= enough
    return value
