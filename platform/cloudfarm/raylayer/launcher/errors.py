"""The launcher's one error."""

from cloudfarm.errors import HostError


class LauncherError(HostError):
    """A lease node could not be started, found or killed.

    ``reason`` is a stable word for programs (``bad_spec``, ``port_in_use``, ``temp_dir_in_use``,
    ``disk_full``, ``node_failed``, ``timeout``, ``zygote_failed``, ``unkillable``, ...); the message is for
    people and ends with the tail of the node's log where there is one.
    """

    code = "launcher_failed"
    title = "The lease node could not be handled on its host"

    def __init__(self, detail: str = "", *, reason: str = "failed", log_tail: str = "") -> None:
        """Keep the reason in ``data`` too, for programs on the far side of the API."""
        message = f"{detail}\n--- the end of the node's log ---\n{log_tail}" if log_tail else detail
        super().__init__(message, reason=reason)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild with keywords, which default pickling of exceptions loses."""
        return (_rebuild, (self.detail, self.reason))


def _rebuild(detail: str, reason: str) -> LauncherError:
    return LauncherError(detail, reason=reason)
