"""Creates the steward's actor and ends: ``python -m cloudfarm.raylayer.start_steward GCS_ADDRESS < PICKLED_BUILDER``.

A process of its own, with the farm's environment from its first import on; the farm itself starts it.
"""

import pickle
import sys

import ray

from cloudfarm.raylayer.hosts import NAMESPACE
from cloudfarm.raylayer.steward_actor import ensure_steward

ANSWER_TIMEOUT_S = 110.0
"""A little less than whoever started this waits, so that Ray's own words get there."""


def main() -> None:
    """Create the steward if there is none, and see that it answers."""
    build = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    ray.init(address=sys.argv[1], namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    ray.get(ensure_steward(build).nudge.remote(), timeout=ANSWER_TIMEOUT_S)


if __name__ == "__main__":
    main()
