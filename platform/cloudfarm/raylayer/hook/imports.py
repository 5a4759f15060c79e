"""Run a function right after a module is imported, without importing it now.

Kept free of imports of its own (`importlib.abc`, `dataclasses` and `typing` cost more than all the rest),
because it runs at the start of every Python process of a lease node.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def after_import(module_name: str, patch: str) -> None:
    """Have `patch` (`module:function`) called with the module right after its import; at once if it is past.

    An exception of the patch is an exception of the import: the process learns that it cannot be confined.
    """
    module = sys.modules.get(module_name)
    if module is not None:
        _apply(patch, module)
        return
    for finder in sys.meta_path:
        if isinstance(finder, PatchingFinder):
            finder.patches[module_name] = patch
            return
    sys.meta_path.insert(0, PatchingFinder({module_name: patch}))


def _apply(patch: str, module: ModuleType) -> None:
    """Import the patch function and call it."""
    where, _, name = patch.partition(":")
    __import__(where)
    getattr(sys.modules[where], name)(module)


class PatchingFinder:
    """A meta path finder that finds nothing itself: it lets the others find and adds the patch."""

    def __init__(self, patches: dict[str, str]) -> None:
        self.patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the other finders' spec with the patch added; None for a module of no interest."""
        patch = self.patches.get(fullname)
        if patch is None:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _run_after_exec(spec, patch)
                return spec
        return None


def _run_after_exec(spec: ModuleSpec, patch: str) -> None:
    """Make the spec's loader call the patch after it has executed the module.

    The method is replaced on this one loader instance. A wrapping loader would hide the loader's other
    abilities (`get_source`, `get_data`, resource readers) from `inspect` and `importlib.resources`.
    """
    loader = spec.loader
    assert loader is not None  # noqa: S101 - the caller looked
    execute = loader.exec_module

    def execute_and_patch(module: ModuleType) -> None:
        execute(module)
        _apply(patch, module)

    loader.exec_module = execute_and_patch  # type: ignore[method-assign]
