"""An ordinary Ray Train script: two workers, a checkpoint after every epoch, no name for its run."""

import json
import tempfile
import time
from pathlib import Path

import ray.train
from ray.train.torch import TorchTrainer

EPOCHS = 300
"""Far more than are done before it is preempted."""
MORE_EPOCHS = 3
"""After it was resumed."""


def train() -> None:
    start, end = 0, EPOCHS
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            start = json.loads((Path(folder) / "state.json").read_text())["epoch"] + 1
            end = start + MORE_EPOCHS
        print(f"resumed at epoch {start}", flush=True)
    for epoch in range(start, end):
        time.sleep(1)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"epoch": epoch}))
            ray.train.report({"epoch": epoch}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if ray.train.get_context().get_world_rank() == 0:
            print(f"epoch {epoch}", flush=True)


trainer = TorchTrainer(train, scaling_config=ray.train.ScalingConfig(num_workers=2, use_gpu=True))
print("finished", trainer.fit().metrics, flush=True)
