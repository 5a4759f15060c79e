"""A real language model in a lease, asked through the front door by the stock OpenAI client."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import httpx
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field

from .conftest import RunningFarm, Tenant, until

JOBS = Path(__file__).parents[2] / "jobs"

pytestmark = [pytest.mark.farm, pytest.mark.timeout(600)]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Place(BaseModel):
    """What the model is to answer with."""

    city: Annotated[str, Field(max_length=20)]
    country: Literal["France", "대한민국"]


def client_of(farm: RunningFarm, secret: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{farm.url}/v1", api_key=secret, max_retries=0, timeout=120)


def key(tenant: Tenant, **more: object) -> dict:
    with tenant.client as client:
        return client.post("/v1/keys", {"user": "app", **more})


def served(tenant: Tenant, key_id: str) -> dict:
    with tenant.client as client:
        return client.get("/v1/usage")["served"]["by_key"].get(key_id, {})


@pytest.fixture(scope="module")
def chat(farm: RunningFarm, tenants: tuple[Tenant, Tenant]) -> Iterator[dict]:
    """A service of the first tenant's that answers with SmolLM2."""
    univ = tenants[0]
    job = univ.start_job(
        "python",
        "-m",
        "cloudfarm.training.default_models",
        "smollm2",
        metadata={"gpus": "0", "memory": "5GiB"},
    )
    ended = univ.wait_job(job, timeout_s=300)
    assert ended["status"] == "SUCCEEDED", ended["message"] + univ.logs(job)[-2000:]
    with univ.client as client:
        ask = {"model": "smollm2-135m-instruct", "name": "chat", "gpus": "0.5", "memory": "5GiB"}
        client.post("/v1/services", ask)
        found = until(
            lambda: (found := client.get("/v1/services/chat"))["status"] in ("RUNNING", "FAILED") and found,
            "the language model",
            300,
        )
        assert found["status"] == "RUNNING", found["message"]
        yield found
    univ.release_all()


def test_the_stock_client_gets_whole_and_streamed_answers_and_each_token_is_charged(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict
) -> None:
    made = key(tenants[0], services=["chat"])
    client = client_of(farm, made["secret"])
    assert [model.id for model in client.models.list()] == ["chat"]

    whole = client.chat.completions.create(model="chat", messages=QUESTION, temperature=0, max_tokens=40)
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    stream = client.chat.completions.create(
        model="chat",
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == whole.usage

    more = client.completions.create(model="chat", prompt="1, 2, 3, 4,", temperature=0, max_tokens=8)
    assert "5" in more.choices[0].text
    parsed = client.chat.completions.parse(
        model="chat", messages=QUESTION, response_format=Place, temperature=1.5, max_tokens=60
    )
    assert parsed.choices[0].message.parsed.country in ("France", "대한민국")
    asked = (whole, whole, more, parsed)
    tokens = sum(each.usage.completion_tokens for each in asked)
    used = until(
        lambda: (found := served(tenants[0], made["id"])).get("completion_tokens") == tokens and found,
        "the ledger",
        20,
    )
    assert used["requests"] == len(asked)
    assert used["prompt_tokens"] == sum(each.usage.prompt_tokens for each in asked)
    assert used["milli_gpu_ms"] > 0


def test_who_leaves_early_stops_the_engine_and_pays_for_what_was_sent(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict
) -> None:
    made = key(tenants[0])
    client = client_of(farm, made["secret"])
    stream = client.chat.completions.create(
        model="chat", messages=QUESTION, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    taken = 0
    for _ in stream:
        taken += 1
        if taken == 6:
            break
    stream.close()
    first = until(lambda: served(tenants[0], made["id"]), "the ledger", 20)
    # Nothing of it goes on: the next one has the engine for itself, and the ledger stands still.
    client.chat.completions.create(model="chat", messages=QUESTION, max_tokens=1)
    last = until(
        lambda: (found := served(tenants[0], made["id"]))["requests"] == 2 and found, "the second request", 20
    )
    assert taken - 1 <= first["completion_tokens"] < 400
    assert last["completion_tokens"] == first["completion_tokens"] + 1


def test_what_is_wrong_is_told_in_openais_shape_and_others_see_nothing(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict
) -> None:
    client = client_of(farm, key(tenants[0])["secret"])
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "go " * 9000}])
    assert too_long.value.code == "context_length_exceeded"
    stranger = client_of(farm, key(tenants[1])["secret"])
    assert list(stranger.models.list()) == []
    with pytest.raises(openai.NotFoundError) as hidden:
        stranger.chat.completions.create(model="chat", messages=QUESTION)
    with pytest.raises(openai.NotFoundError) as missing:
        stranger.chat.completions.create(model="no-such", messages=QUESTION)
    assert str(hidden.value).replace("chat", "no-such") == str(missing.value)
    limited = client_of(farm, key(tenants[0], requests_per_minute=1)["secret"])
    limited.completions.create(model="chat", prompt="Hello", max_tokens=1)
    with pytest.raises(openai.RateLimitError) as limit:
        limited.completions.create(model="chat", prompt="Hello", max_tokens=1)
    assert int(limit.value.response.headers["Retry-After"]) >= 1


def test_a_revoked_key_is_refused_within_a_second(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict
) -> None:
    made = key(tenants[0])
    client = client_of(farm, made["secret"])
    client.completions.create(model="chat", prompt="Hello", max_tokens=1)
    with tenants[0].client as owner:
        owner.delete(f"/v1/keys/{made['id']}")
    time.sleep(1)  # the promise
    with pytest.raises(openai.AuthenticationError):
        client.completions.create(model="chat", prompt="Hello", max_tokens=1)


def test_a_revoked_key_ends_the_streams_that_it_has_open(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict
) -> None:
    made = key(tenants[0])
    stream = client_of(farm, made["secret"]).chat.completions.create(
        model="chat", messages=QUESTION, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(iter(stream)).choices
    with tenants[0].client as owner:
        owner.delete(f"/v1/keys/{made['id']}")
    began_s = time.monotonic()
    with pytest.raises(openai.APIError, match="revoked"):
        list(stream)
    assert time.monotonic() < began_s + 5  # four thousand tokens would take minutes


def test_the_engine_runs_in_its_lease_and_nowhere_else(farm: RunningFarm, chat: dict) -> None:
    (lease,) = chat["leases"]
    engines = set(farm.processes("VLLM_NO_USAGE_STATS=1")) & set(farm.leftovers())
    assert engines
    assert engines <= set(farm.processes(f"CLOUDFARM_LEASE={lease}"))


def test_an_adapter_tuned_in_a_lease_is_its_tenants_alone_also_on_a_model_opened_to_all(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict
) -> None:
    univ, solar = tenants
    with univ.client as client:
        base = client.get(f"/v1/model-versions/{chat['model']}")["uri"]
    data = "$CLOUDFARM_STORAGE_PATH/census"
    tune = f"python finetune_lm.py --base {base} --data {data} --steps 2 --batch-size 1 --held-out 2 --no-use-gpu"
    job = univ.start_job(
        "bash",
        "-c",
        f"python -m cloudfarm.training.census --out {data} && {tune}",
        metadata={"gpus": "0.5", "memory": "5GiB"},
        files=JOBS,
    )
    ended = univ.wait_job(job, timeout_s=400)
    assert ended["status"] == "SUCCEEDED", ended["message"] + univ.logs(job)[-2000:]

    ours = client_of(farm, key(univ)["secret"])
    assert [model.id for model in ours.models.list()] == ["chat", "chat:census-lora"]
    told = ours.chat.completions.create(model="chat:census-lora", messages=QUESTION, max_tokens=4)
    assert (told.model, told.usage.completion_tokens) == ("chat:census-lora", 4)

    with farm.operator as operator:
        operator.patch("/v1/services/chat?tenant=univ", {"shared": True})
    theirs = client_of(farm, key(solar)["secret"])
    assert [(model.id, model.owned_by) for model in theirs.models.list()] == [("chat", "farm")]
    assert theirs.chat.completions.create(model="chat", messages=QUESTION, max_tokens=2).choices
    with pytest.raises(openai.NotFoundError):
        theirs.chat.completions.create(model="chat:census-lora", messages=QUESTION, max_tokens=2)


def test_a_data_set_is_answered_in_a_lease_and_not_a_second_time(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], chat: dict, tmp_path: Path
) -> None:
    univ = tenants[0]
    with univ.client as client:
        base = client.get(f"/v1/model-versions/{chat['model']}")["uri"]
    shutil.copytree(JOBS, tmp_path / "jobs")
    countries, cities = ["France", "Japan", "Italy"], ["Paris", "Tokyo", "Rome"]
    asked = [f"What is the capital of {country}?" for country in countries]
    (tmp_path / "jobs" / "in").mkdir()
    pq.write_table(pa.table({"id": [0, 1, 2], "prompt": asked}), tmp_path / "jobs" / "in" / "0.parquet")
    (tmp_path / "jobs" / "city.json").write_text(json.dumps({"enum": cities}))
    ask = (
        f"python batch_inference.py --model {base} --data $PWD/in --output $CLOUDFARM_STORAGE_PATH/out"
        " --max-tokens 12 --part-rows 2 --json-schema city.json"
    )
    show = (
        "import json, pyarrow.dataset as d; "
        "print(json.dumps(d.dataset('$CLOUDFARM_STORAGE_PATH/out').to_table().to_pylist()))"
    )
    job = univ.start_job(
        "bash",
        "-c",
        f'{ask} && echo again && {ask} && python -c "{show}"',
        metadata={"gpus": "0.5", "memory": "5GiB"},
        files=tmp_path / "jobs",
    )
    ended = univ.wait_job(job, timeout_s=300)
    first, _, second = univ.logs(job).partition("\nagain\n")
    assert ended["status"] == "SUCCEEDED", ended["message"] + first[-2000:] + second[-2000:]
    assert "3 of 3 rows" in first
    done, again = (
        json.loads(next(line for line in said.splitlines() if line.startswith('{"rows"')))
        for said in (first, second)
    )
    assert (done["rows"], done["of_rows"], done["refused"]) == (3, 3, 0)
    assert done["tokens"] > 0
    nothing = {"tokens": 0, "rows_per_s": 0.0, "tokens_per_s": 0.0}
    assert again == {"rows": 3, "of_rows": 3, "refused": 0} | nothing
    rows = json.loads(next(line for line in second.splitlines() if line.startswith('[{"id"')))
    assert [row["prompt"] for row in rows] == asked
    assert all(json.loads(row["answer"]) in cities for row in rows)
    assert json.loads(rows[0]["answer"]) == "Paris"


def test_an_embedding_service_has_its_own_kind(farm: RunningFarm, tenants: tuple[Tenant, Tenant]) -> None:
    solar = tenants[1]
    job = solar.start_job(
        "python", "-m", "cloudfarm.training.default_models", "minilm", metadata={"gpus": "0"}
    )
    assert solar.wait_job(job)["status"] == "SUCCEEDED", solar.logs(job)[-2000:]
    with solar.client as client:
        client.post("/v1/services", {"model": "all-minilm-l6-v2", "name": "embed", "gpus": "0.25"})
        until(lambda: client.get("/v1/services/embed")["status"] == "RUNNING", "the embedder", 200)
    made = client_of(farm, key(solar)["secret"]).embeddings.create(
        model="embed", input=["A wind turbine", "A windmill", "Tax law"]
    )
    turbine, windmill, law = (each.embedding for each in made.data)

    def alike(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert alike(turbine, windmill) > alike(turbine, law) + 0.2
    assert httpx.get(f"{farm.url}/v1/models").status_code == 401
    solar.release_all()
