"""What a tenant gains by tuning a model on the farm, asked as its users ask: ``python -m benchmarks.tuned``.

On a farm: the base is published and the adapter tuned by jobs in leases, with the defaults of ``jobs/finetune_lm.py``;
the base is served, and the stock OpenAI client asks ``chat`` and ``chat:census-lora`` the held-out pairs that the job
measured. Written to ``build/tuned.json``.
"""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import openai

from benchmarks.language import SERVICE, publish, service
from benchmarks.running_farm import BenchFarm, running_farm
from cloudfarm.training import census
from cloudfarm.training.default_models import SMOLLM2
from cloudfarm.training.pairs import load_pairs
from cloudfarm.training.questions import LANGUAGES, SYSTEM, Language

REPORT = Path("build") / "tuned.json"
JOBS = Path(__file__).parents[1] / "jobs"
ADAPTER, HELD_OUT, MOST_TOKENS = "census-lora", 70, 24
DEADLINE_S = 3600.0

Pair = Mapping[str, str]


def held_out(folder: Path, language: Language) -> Sequence[Pair]:
    """Return the pairs that the fine-tuning job measures."""
    census.main(["--out", str(folder)])
    pairs = load_pairs(str(folder), "held-out", language)
    return pairs[:: -(-len(pairs) // HELD_OUT)]


def tune(farm: BenchFarm, language: Language) -> None:
    """Tune the adapter in a lease."""
    base = farm.tenant.get(f"/v1/model-versions/{SMOLLM2.name}")["uri"]
    data = "$CLOUDFARM_STORAGE_PATH/census"
    job = f"{JOBS}/finetune_lm.py --base {base} --data {data} --language {language} --model-name {ADAPTER}"
    command = f"python -m cloudfarm.training.census --out {data} && python {job} --no-use-gpu"
    publish(farm, f"bash -c '{command}'", print, gpus="0.5", deadline_s=DEADLINE_S)


def matched(client: openai.OpenAI, model: str, pairs: Sequence[Pair], language: Language) -> Counter[str]:
    """Return by kind how many pairs a model answers to the letter."""
    found: Counter[str] = Counter()
    for pair in pairs:
        answer = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": SYSTEM[language]},
                {"role": "user", "content": pair["prompt"]},
            ],
            temperature=0,
            max_tokens=MOST_TOKENS,
        )
        found[pair["kind"]] += answer.choices[0].message.content == pair["answer"]
    return found


def main() -> None:
    """Measure and print."""
    language = LANGUAGES[0]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_farm() as farm:
        pairs = held_out(Path(folder) / "census", language)
        publish(farm, "python -m cloudfarm.training.default_models smollm2", print)
        tune(farm, language)
        tuned_s = time.monotonic() - began_s
        measured = farm.tenant.get(f"/v1/model-versions/{ADAPTER}")["manifest"]["metrics"]
        with service(farm, SMOLLM2.name):
            farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
            key = farm.tenant.post("/v1/keys", {"user": "bench", "services": [SERVICE]})["secret"]
            client = openai.OpenAI(base_url=f"{farm.local.url}/v1", api_key=key, max_retries=0)
            models = [SERVICE, f"{SERVICE}:{ADAPTER}"]
            found = {model: matched(client, model, pairs, language) for model in models}
    asked = Counter(pair["kind"] for pair in pairs)
    report = {
        "pairs": dict(asked),
        "matched": {model: dict(each) for model, each in found.items()},
        "share": {model: round(each.total() / len(pairs), 3) for model, each in found.items()},
        "the job's own figures": measured,
        "seconds until tuned": round(tuned_s),
        "seconds": round(time.monotonic() - began_s),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
