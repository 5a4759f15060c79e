"""Fine-tune a language model with LoRA: an ordinary Ray Train job.

    python jobs/finetune_lm.py --base BUNDLE --data DIR                                        # on this machine
    ray job submit --working-dir . -- python jobs/finetune_lm.py --base BUNDLE --data DIR      # on a cluster or a farm

The base is a model bundle of kind ``causal-lm``; the data are made by ``python -m cloudfarm.training.census --out
DIR``. The last line of the output is a JSON object with the figures of the base and of the tuned model on the very
same held-out pairs. Nothing here is about the farm: a lease looks like a cluster.
"""

import argparse
import json
import logging

import ray
import ray.train
from pydantic import ValidationError
from ray.train.torch import TorchConfig, TorchTrainer

from cloudfarm.errors import CloudfarmError
from cloudfarm.training.language import LINEAR_LAYERS, FineTuningConfig, check, publish_adapter, train
from cloudfarm.training.questions import LANGUAGES, SYSTEM


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", required=True, help="model bundle: a path or URI that every worker can read"
    )
    parser.add_argument(
        "--data", required=True, help="Parquet data set: a path or URI that every worker can read"
    )
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the pairs")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=4, help="pairs a worker takes in one step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--rank", type=int, default=8, help="of the LoRA matrices")
    parser.add_argument(
        "--target-modules",
        default=",".join(LINEAR_LAYERS),
        help="layers that get them, with commas between",
    )
    parser.add_argument("--held-out", type=int, default=70, help="measure at most so many held-out pairs")
    parser.add_argument("--checkpoint-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--use-gpu", action=argparse.BooleanOptionalAction, help="default: if the cluster has a GPU"
    )
    parser.add_argument("--run-name", help="submit again with the same name and storage path to resume")
    parser.add_argument("--storage-path", help="where checkpoints go (default: Ray's, or the lease's)")
    parser.add_argument("--max-failures", type=int, default=2, help="lost workers to recover from")
    parser.add_argument("--model-name", default="census-lora")
    parser.add_argument(
        "--outbox", help="where the adapter goes (default: $CLOUDFARM_MODEL_OUTBOX or ./models)"
    )
    return parser.parse_args()


def main() -> None:
    """Train, publish the adapter and print the summary."""
    args = parse_args()
    try:  # here and once, not in every worker and at every retry
        config = FineTuningConfig(
            base=args.base,
            data=args.data,
            language=args.language,
            system=SYSTEM[args.language],
            model_name=args.model_name,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            rank=args.rank,
            target_modules=tuple(filter(None, args.target_modules.split(","))),
            held_out=args.held_out,
            checkpoint_steps=args.checkpoint_steps,
            seed=args.seed,
        )
        base = check(config)
    except (ValidationError, CloudfarmError) as bad:
        raise SystemExit(f"finetune_lm: {bad}") from bad
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
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    print(json.dumps(publish_adapter(trainer.fit(), config, base, args.outbox)), flush=True)


if __name__ == "__main__":
    main()
