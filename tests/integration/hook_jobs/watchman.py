"""Look for strays and stop them, again and again, as the steward does. usage: watchman.py GCS PERIOD_S

Prints one JSON line a look: when it ended, how long it took, what it found.
"""

import dataclasses
import json
import sys
import time

from cloudfarm.raylayer.watch import Watch


def main() -> None:
    watch = Watch(sys.argv[1])
    while True:
        start = time.time()
        survey = watch.survey()
        took = time.time() - start
        for stray in survey.strays:
            watch.stop_stray(stray)
            if stray.kind == "actor" and not stray.submission_id:
                watch.stop_driver(stray)
        found = [dataclasses.asdict(stray) for stray in survey.strays]
        print(
            json.dumps({"at": time.time(), "took": took, "strays": found, "silent": survey.silent_nodes}),
            flush=True,
        )
        time.sleep(float(sys.argv[2]))


if __name__ == "__main__":
    main()
