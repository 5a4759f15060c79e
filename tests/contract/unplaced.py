"""A tenant's driver whose actors fit nowhere. While Ray looks for a place it names any node, as it comes.

usage: unplaced.py FILE: made once all of them wait.
"""

import sys
import threading
import time
from pathlib import Path

import ray


@ray.remote(num_cpus=0, label_selector={"zone": "none"})
class Unplaced:
    pass


ray.init(log_to_driver=False)
actors = [Unplaced.remote() for _ in range(8)]
while sum(each["State"] == "PENDING_CREATION" for each in ray._private.state.actors().values()) < len(actors):
    time.sleep(0.1)
Path(sys.argv[1]).touch()
threading.Event().wait()
