"""What the farm's own requests say about those to come: counted as they arrive, never known beforehand."""

from dataclasses import dataclass, field

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.prices import Floats, worth_of_pieces
from cloudfarm.scheduler.packing.shapes import Request

HALF_LIFE = 10_000
"""Requests after which a request counts half."""
MAX_GANGS = 32
"""Kinds of gangs that are expected: those that want most GPUs in all. Eight times as many are remembered."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of future requests."""

    pieces: Floats
    """Worth of a free piece of a GPU, in milli, by its size in milli (0..1000)."""
    gangs: tuple[tuple[Request, float], ...]
    """Requests for several GPUs, those that want most GPUs in all first, and their share of all GPUs wanted."""
    mean: Floats
    """What is wanted beside one GPU. Two rows: milli-CPUs, MiB."""
    variance: Floats
    """What each further GPU adds to the variance of that. Two rows."""
    gpu_of_one: Floats
    """Milli-GPUs that go with one milli-CPU, and with one MiB: 1000 / mean, or 0 while nothing is known. Two rows."""


@dataclass(slots=True)
class Demand:
    """Counts of the requests seen, old ones fading."""

    seen: float = 0.0
    """Requests, faded."""
    sizes: dict[int, float] = field(default_factory=dict)
    """Requests with GPUs by milli of one GPU; 1000 for whole ones."""
    gangs: dict[Request, float] = field(default_factory=dict)
    """GPUs wanted, by request for several of them."""
    _sums: Floats = field(default_factory=lambda: np.zeros((4, 2)))
    """Over requests with GPUs, x GPUs and y milli-CPUs (or MiB): x^2, y, y^2 and xy. ``_gpus`` is that of x."""
    _gpus: float = 0.0
    _fresh: int = 0
    """Requests since the last outlook."""

    def learn(self, request: Request) -> None:
        """Count one request. To be called once for each, however often it is tried."""
        self.seen += 1
        self._fresh += 1
        if not request.num_gpu:
            return
        self.sizes[request.gpu_milli] = self.sizes.get(request.gpu_milli, 0) + 1
        if request.num_gpu > 1:
            self.gangs[request] = self.gangs.get(request, 0) + request.num_gpu
        gpus = request.total_milli / MILLI
        cpu, memory = request.cpu_milli, request.memory_mib
        self._gpus += gpus
        self._sums += (
            (gpus * gpus, gpus * gpus),
            (cpu, memory),
            (cpu * cpu, memory * memory),
            (gpus * cpu, gpus * memory),
        )

    @property
    def is_news(self) -> bool:
        """Whether half of what is known was not known at the last outlook."""
        return 2 * self._fresh >= self.seen > 0

    def outlook(self) -> Outlook:
        """Return what to expect; let what was counted before fade."""
        known = sorted(
            self.gangs.items(), key=lambda item: -item[1]
        )  # equals stay in the order of their arrival
        self.gangs = dict(known[: 8 * MAX_GANGS])
        gangs = tuple((gang, gpus / self._gpus) for gang, gpus in known[:MAX_GANGS])
        mean, variance, gpu_of_one = np.zeros((3, 2, 1))
        if self._gpus:
            xx, y, yy, xy = self._sums[:, :, None]
            mean = y / self._gpus
            variance = np.maximum(yy - 2 * mean * xy + mean * mean * xx, 0) / self._gpus
            np.divide(MILLI, mean, out=gpu_of_one, where=mean > 0)
        self._fade(0.5 ** (self._fresh / HALF_LIFE))
        self._fresh = 0
        return Outlook(worth_of_pieces(self.sizes), gangs, mean, variance, gpu_of_one)

    def _fade(self, factor: float) -> None:
        self.seen *= factor
        self._gpus *= factor
        self._sums *= factor
        self.sizes = {size: number * factor for size, number in self.sizes.items()}
        self.gangs = {gang: gpus * factor for gang, gpus in self.gangs.items()}
