"""The worth of a node: milli-GPUs that can still be sold there."""

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.demand import Outlook
from cloudfarm.scheduler.packing.prices import Floats, Ints

CHOICE = 0.25
"""Of the variance of needs: who may choose among requests for a node meets less of it. Measured in docs/packing.md."""
BLOCK = 300
"""Milli-GPUs that a group of free GPUs on one node is worth to gangs when there are no more groups than gangs."""


def worth(outlook: Outlook, blocks: Floats, sellable: Floats, beside: Ints, whole: Ints) -> Floats:
    """Return the worth of nodes in milli-GPUs.

    Args:
        outlook: what is expected of future requests.
        blocks: worth of 0, 1, 2, ... wholly free GPUs standing together, in milli (``worth_of_blocks``).
        sellable: worth of a node's free pieces of GPU, in milli (``Outlook.pieces``).
        beside: two rows: free milli-CPUs and free MiB.
        whole: number of wholly free GPUs.
    """
    value: Floats = sellable - stranded(outlook, sellable, beside) + blocks[whole]
    return value


def stranded(outlook: Outlook, sellable: Floats, beside: Ints) -> Floats:
    """Return the milli-GPUs that are expected to be left over for want of CPUs or of memory.

    Requests that fill some GPUs want so many times the mean of it, give or take. The expected lack, when only mean and
    variance are known, is at most ``(sqrt(variance + spare^2) - spare) / 2``: Scarf's bound (A min-max solution of an
    inventory problem, 1958). Divided by the mean it is GPUs.
    """
    gpus = np.maximum(sellable, 0) / MILLI  # what is nothing may be a rounding below it
    spare = beside - outlook.mean * gpus
    lack = (np.sqrt(CHOICE * outlook.variance * gpus + spare * spare) - spare) / 2
    lacking: Floats = (lack * outlook.gpu_of_one).sum(axis=0)
    return lacking


def worth_of_blocks(outlook: Outlook, free_gpu: Ints) -> Floats:
    """Return what 0, 1, 2, ... wholly free GPUs on one node are worth to requests for several GPUs, in milli.

    A group of k is worth as much of ``BLOCK`` as such groups are scarce: how many gangs of k are to be expected while
    what is free is filled, for each group that there is. In an empty farm that is little, so nodes are opened as CPUs
    and sizes have it; the last groups are kept.

    Args:
        outlook: what is expected of future requests.
        free_gpu: milli left, by node and GPU.
    """
    whole = (free_gpu == MILLI).sum(axis=1)
    free = free_gpu.sum() / MILLI
    counts = np.arange(len(outlook.gangs))
    worth = np.zeros(len(counts))
    for size in np.flatnonzero(outlook.gangs):
        gangs = outlook.gangs[size] * free / size
        groups = (whole // size).sum()
        worth += BLOCK * min(1.0, gangs / max(groups, 1)) * (counts // size)
    return worth
