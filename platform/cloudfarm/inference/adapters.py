"""The adapters of a served model: fetched and checked once, the longest unused forgotten."""

import asyncio
import re
import shutil
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import safetensors

from cloudfarm.domain.bundles import LORA_ADAPTER
from cloudfarm.domain.generation import Adapter
from cloudfarm.inference.engine import LocalAdapter
from cloudfarm.training.bundle import BundleError, Manifest
from cloudfarm.training.hf_folder import (
    ADAPTER_WEIGHTS,
    AdapterSpec,
    fetch_bundle,
    weight_shapes,
)

MAX_KEPT = 32
"""On disk, besides those in use: an engine may read one again at any time until the answer has ended."""
_MATRIX = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


class Adapters:
    """Keeps adapters of one base model in a folder of its own.

    Args:
        folder: where; made here.
        base: the manifest of the served model.
        base_folder: its files.
    """

    def __init__(self, folder: Path, base: Manifest, base_folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._base = base
        self._shapes = {
            name: shape
            for path in sorted(base_folder.glob("*.safetensors"))
            for name, shape in weight_shapes(path).items()
        }
        self._kept: OrderedDict[str, LocalAdapter] = OrderedDict()
        """By id, the longest unused first."""
        self._fetching: dict[str, asyncio.Task[LocalAdapter]] = {}
        self._fetched = 0
        self._used: Counter[str] = Counter()
        """How many answers use which."""

    @asynccontextmanager
    async def held(self, adapter: Adapter | None) -> AsyncIterator[LocalAdapter | None]:
        """Keep an adapter for as long as an answer is made with it; raises as :meth:`local`."""
        if adapter is None:
            yield None
            return
        self._used[adapter.id] += 1
        try:
            yield await self.local(adapter)
        finally:
            self._used[adapter.id] -= 1
            self._forget()

    async def local(self, adapter: Adapter) -> LocalAdapter:
        """Return an adapter's folder and number, which stays the same for as long as it is kept.

        Raises:
            NotFoundError: there is no such bundle.
            BundleError: it is not valid, or of another model.
        """
        if adapter.id in self._kept:
            self._kept.move_to_end(adapter.id)
            return self._kept[adapter.id]
        fetching = self._fetching.get(adapter.id)
        if fetching is None:
            fetching = self._fetching[adapter.id] = asyncio.create_task(self._fetch(adapter))
        # All who ask meanwhile wait for the same; one who leaves does not end it.
        return await asyncio.shield(fetching)

    async def _fetch(self, adapter: Adapter) -> LocalAdapter:
        self._fetched += 1
        local = LocalAdapter(self._fetched, self._folder / str(self._fetched))
        try:
            await asyncio.to_thread(self._fetch_files, adapter, local.folder)
        except BaseException:
            shutil.rmtree(local.folder, ignore_errors=True)
            raise
        finally:
            del self._fetching[adapter.id]
        self._kept[adapter.id] = local
        self._forget()
        return local

    def _forget(self) -> None:
        """Remove those that are too many, but none that is used."""
        self._used += Counter()  # drops the zeros
        unused = [each for each in self._kept if each not in self._used]
        for each in unused[: max(0, len(self._kept) - MAX_KEPT)]:
            shutil.rmtree(self._kept.pop(each).folder)

    def _fetch_files(self, adapter: Adapter, folder: Path) -> None:
        manifest = fetch_bundle(adapter.uri, folder, adapter.digest)
        if manifest.kind != LORA_ADAPTER:
            raise BundleError(f"{adapter.name} is a {manifest.kind}, not a {LORA_ADAPTER}")
        spec = AdapterSpec.model_validate(manifest.spec)
        if spec.base != self._base.version:
            raise BundleError(
                f"{adapter.name} was trained on {spec.base_name} {spec.base}, and this is {self._base.name} "
                f"{self._base.version}"
            )
        self._check_matrices(adapter.name, folder / ADAPTER_WEIGHTS, spec.rank)

    def _check_matrices(self, name: str, path: Path, rank: int) -> None:
        """Refuse what does not fit the model: an engine may notice it only when it multiplies, and end."""
        with safetensors.safe_open(path, framework="pt") as arrays:
            for key in arrays.keys():  # noqa: SIM118 - no mapping
                found = _MATRIX.fullmatch(key)
                base = self._shapes.get(f"{found['module']}.weight", ()) if found else ()
                array = arrays.get_tensor(key)
                if found is None or len(base) != 2:  # noqa: PLR2004 - a matrix
                    raise BundleError(f"{name}: the model has nothing that {key} adapts")
                if tuple(array.shape) != ((rank, base[1]) if found["part"] == "A" else (base[0], rank)):
                    raise BundleError(f"{name}: {key} has the shape {tuple(array.shape)}, which does not fit")
                if not array.isfinite().all():
                    raise BundleError(f"{name}: {key} holds numbers that are not finite")
