"""The commands, put together; whatever goes wrong becomes one clear line and an exit code."""

import os
import sys

import typer

from cloudfarm.cli import local, quotas, remote, services, simulate
from cloudfarm.cli.session import errors
from cloudfarm.errors import CloudfarmError, UnavailableError

EXIT_REFUSED = 1
EXIT_UNAVAILABLE = 3

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.info.help = "Share one Ray cluster: leases of fractional GPUs, jobs, services, accounts."
local.register(app)
remote.register(app)
services.register(app)
quotas.register(app)
simulate.register(app)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the farm does not answer."""
    try:
        app()
    except CloudfarmError as error:
        if os.environ.get("CLOUDFARM_DEBUG"):
            raise
        errors.print(
            f"cloudfarm: {error.detail} [{error.code}]", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(EXIT_UNAVAILABLE if isinstance(error, UnavailableError) else EXIT_REFUSED)
