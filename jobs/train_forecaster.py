"""Train a wind power forecaster: an ordinary Ray Train job.

    python jobs/train_forecaster.py --data DIR                                        # on this machine
    ray job submit --working-dir . -- python jobs/train_forecaster.py --data DIR      # on a cluster or a farm

The data are made by ``python -m cloudfarm.training.datasets la-haute-borne --out DIR``. The last line of the
output is a JSON object with the mean absolute errors, an hour ahead, of the model and of the persistence
forecast on the very same held-out rows. Nothing here is about the farm: a lease looks like a cluster.
"""

import argparse
import json
import logging

import ray
import ray.train
from pydantic import ValidationError
from ray.train.torch import TorchConfig, TorchTrainer

from cloudfarm.errors import CloudfarmError
from cloudfarm.training.windpower import Split, TrainingConfig, publish_best, train


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, help="Parquet data set: a path or URI that every worker can read"
    )
    parser.add_argument("--turbines", default="", help="only these turbines, with commas between")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=6, help="steps of 10 minutes to forecast")
    parser.add_argument(
        "--selection-start", default="2015-04-01", help="data from here choose the best epoch"
    )
    parser.add_argument("--validation-start", default="2015-07-01", help="data from here are only measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--use-gpu", action=argparse.BooleanOptionalAction, help="default: if the cluster has a GPU"
    )
    parser.add_argument("--run-name", help="submit again with the same name and storage path to resume")
    parser.add_argument("--storage-path", help="where checkpoints go (default: Ray's, or the lease's)")
    parser.add_argument("--max-failures", type=int, default=2, help="lost workers to recover from")
    parser.add_argument("--model-name", default="windpower-forecaster")
    parser.add_argument(
        "--outbox", help="where the model goes (default: $CLOUDFARM_MODEL_OUTBOX or ./models)"
    )
    return parser.parse_args()


def main() -> None:
    """Train, publish the best checkpoint and print the summary."""
    args = parse_args()
    try:  # here and once, not in every worker and at every retry
        config = TrainingConfig(
            data=args.data,
            turbines=tuple(filter(None, args.turbines.split(","))),
            model_name=args.model_name,
            epochs=args.epochs,
            horizon=args.horizon,
            selection_start=args.selection_start,
            validation_start=args.validation_start,
            seed=args.seed,
        )
        split = Split(config)
    except (ValidationError, CloudfarmError) as bad:
        raise SystemExit(f"train_forecaster: {bad}") from bad
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0 if args.use_gpu is None else args.use_gpu
    trainer = TorchTrainer(
        train,
        train_loop_config=config.model_dump(mode="json"),
        # gloo, because NCCL refuses two workers on one GPU, which is what two slices of one GPU are.
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=args.workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name=args.run_name,
            storage_path=args.storage_path,
            failure_config=ray.train.FailureConfig(max_failures=args.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="selection_mae_kw", checkpoint_score_order="min"
            ),
        ),
    )
    result = trainer.fit()
    print(json.dumps(publish_best(result, config, split, args.outbox)), flush=True)


if __name__ == "__main__":
    main()
