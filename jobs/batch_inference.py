"""Answer every prompt of a folder of Parquet files: an ordinary Ray Data job.

    python jobs/batch_inference.py --model BUNDLE --data DIR --output DIR                     # on this machine
    ray job submit --working-dir . -- python jobs/batch_inference.py --model BUNDLE ...       # on a cluster or a farm

Start it again with the same options, after a kill or a preemption, and it does what is missing. The output has the
input's columns and ``answer``, ``finish_reason``, ``prompt_tokens``, ``completion_tokens`` and ``refusal``. The last
line printed is a JSON object. Nothing here is about the farm: a lease looks like a cluster.
"""

import argparse
import logging
from pathlib import Path

import ray
from pydantic import ValidationError

from cloudfarm.errors import CloudfarmError
from cloudfarm.inference.batch_plan import BatchConfig, plan
from cloudfarm.inference.batches import claim, run


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="model bundle: a path or URI that every worker can read"
    )
    parser.add_argument("--adapter", help="bundle of a LoRA adapter on that model")
    parser.add_argument("--data", required=True, help="folder of Parquet files: a path or URI")
    parser.add_argument("--output", required=True, help="folder that the answers go to: a path or URI")
    parser.add_argument("--prompt-column", default="prompt")
    parser.add_argument("--system", default="", help="system message before each prompt")
    parser.add_argument("--max-tokens", type=int, default=128, help="at most so many for each answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json-schema", type=Path, help="file with a JSON schema that every answer follows (vLLM only)"
    )
    parser.add_argument("--part-rows", type=int, default=32, help="rows that are done, or lost, together")
    parser.add_argument(
        "--engine", choices=("vllm", "transformers"), help="default: vLLM where it is installed"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="engines at once, each with a GPU if there are any"
    )
    parser.add_argument(
        "--use-gpu", action=argparse.BooleanOptionalAction, help="default: if the cluster has a GPU"
    )
    return parser.parse_args()


def main() -> None:
    """Do the parts that are missing, saying how far it is."""
    options = vars(parse_args())
    workers, use_gpu, engine = (options.pop(name) for name in ("workers", "use_gpu", "engine"))
    try:  # before Ray is started
        if options["json_schema"] is not None:
            options["json_schema"] = options["json_schema"].read_text(encoding="utf-8")
        config = BatchConfig(**options)
        claim(config, plan(config))
    except (OSError, UnicodeError, ValidationError, CloudfarmError) as bad:
        raise SystemExit(f"batch_inference: {bad}") from bad
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    if use_gpu is None:
        use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    for progress in run(config, workers, use_gpu=use_gpu, engine=engine):
        print(
            f"{progress.rows} of {progress.of_rows} rows; {progress.rows_per_s:.2f} rows/s, "
            f"{progress.tokens_per_s:.1f} tokens/s",
            flush=True,
        )
    print(progress.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
