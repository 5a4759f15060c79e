"""The worth of a node: milli-GPUs that can still be sold there."""

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.demand import Outlook
from cloudfarm.scheduler.packing.prices import Floats, Ints

CHOICE = 0.25
"""Of the variance of needs: who may choose among requests for a node meets less of it. Measured in docs/packing.md."""


def worth(outlook: Outlook, sellable: Floats, beside: Ints) -> Floats:
    """Return the worth of nodes in milli-GPUs, but for groups of free GPUs (``blocks.py``).

    Args:
        outlook: what is expected of future requests.
        sellable: worth of a node's free pieces of GPU, in milli (``Outlook.pieces``).
        beside: two rows: free milli-CPUs and free MiB.
    """
    value: Floats = sellable - stranded(outlook, sellable, beside)
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
