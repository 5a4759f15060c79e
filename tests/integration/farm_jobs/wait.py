"""A tenant's script that only holds its lease, until the file that it is given appears."""

import sys
import time
from pathlib import Path

import ray

ray.init()
print("holding", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.2)
print("done", flush=True)
