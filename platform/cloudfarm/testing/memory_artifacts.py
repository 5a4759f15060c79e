"""The artifact store in memory."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from cloudfarm.artifacts import checked_parts
from cloudfarm.clock import Clock
from cloudfarm.errors import InvalidInputError, NotFoundError, StorageFullError, TooLargeError
from cloudfarm.testing.clock import ManualClock


@dataclass(slots=True)
class MemoryArtifacts:
    """Implements :class:`cloudfarm.ports.Artifacts`."""

    files: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    clock: Clock = field(default_factory=ManualClock)
    times_ms: dict[tuple[str, ...], int] = field(default_factory=dict)
    full: bool = False
    """Whether there is no room for another byte."""

    def uri(self, *parts: str) -> str:
        """Return where the parts would lie."""
        return "/".join(("memory:", *checked_parts(parts)))

    async def write(self, *parts: str, data: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a file whole or not at all."""
        checked_parts(parts)
        if self.full:
            raise StorageFullError("no room")
        whole = bytearray()
        async for piece in data:
            whole += piece
            if len(whole) > max_bytes:
                raise TooLargeError(f"more than {max_bytes} bytes")
        self.files[parts] = bytes(whole)
        self.times_ms[parts] = self.clock.now_ms()
        return len(whole)

    async def read(self, *parts: str, max_bytes: int | None = None) -> bytes:
        """Return a file."""
        checked_parts(parts)
        try:
            content = self.files[parts]
        except KeyError:
            raise NotFoundError("/".join(parts)) from None
        if max_bytes is not None and len(content) > max_bytes:
            raise TooLargeError(f"more than {max_bytes} bytes")
        return content

    async def exists(self, *parts: str) -> bool:
        """Whether there is such a file."""
        checked_parts(parts)
        return parts in self.files

    async def modified_ms(self, *parts: str) -> int | None:
        """Return when a file was last written, or None if there is no such file."""
        checked_parts(parts)
        return self.times_ms[parts] if parts in self.files else None

    async def list(self, *parts: str) -> Sequence[str]:
        """Return the names in a folder."""
        checked_parts(parts)
        return sorted(
            {
                path[len(parts)]
                for path in self.files
                if path[: len(parts)] == parts and len(path) > len(parts)
            }
        )

    async def delete(self, *parts: str) -> None:
        """Remove a file or folder."""
        if not checked_parts(parts):
            raise InvalidInputError("the root itself is not deleted")
        self.files = {path: data for path, data in self.files.items() if path[: len(parts)] != parts}
