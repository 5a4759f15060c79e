"""A tenant's driver that takes off the start-up hook, which would keep it in its lease, and leaves it."""

import threading

import ray


@ray.remote(num_cpus=0, label_selector={"farm": "control", "role": "host"})
class Stray:
    def __init__(self) -> None:
        threading.Event().wait()  # it is found while it is still starting


ray.init(log_to_driver=False)
confined = type(ray._private.worker.global_worker.core_worker)
del confined.create_actor  # Ray's own is below it
stray = Stray.remote()
threading.Event().wait()
