"""The ``cloudfarm`` command: bring a farm up and down on this machine, and use one anywhere.

``app``      the commands, put together; errors become one line and an exit code.
``local``    up, join, status, down: processes on this machine.
``remote``   leases, services, tokens and the rest: the HTTP API.
``session``  which farm and whose token a command uses.
"""

from cloudfarm.cli.app import main

__all__ = ["main"]
