"""The lease node launcher: Ray nodes as slices of a host, forked warm, caged, and killed as one."""

from cloudfarm.raylayer.launcher.errors import LauncherError
from cloudfarm.raylayer.launcher.launcher import NodeLauncher
from cloudfarm.raylayer.launcher.spec import NodePorts, NodeRecord, NodeSpec, NodeUsage

__all__ = ["LauncherError", "NodeLauncher", "NodePorts", "NodeRecord", "NodeSpec", "NodeUsage"]
