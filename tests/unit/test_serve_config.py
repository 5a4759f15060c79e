"""What Serve is told of a revision."""

from dataclasses import replace

import pytest

from cloudfarm.domain.bundles import manifest_digest
from cloudfarm.domain.workload import Deployment, ModelVersion, Revision, Service
from cloudfarm.raylayer.serving import _application
from services.completions import CompletionsArgs
from services.embeddings import EmbeddingsArgs
from services.forecasts import ForecastsArgs

MODEL = ModelVersion(
    "m1", "kaist", "wind", 1, "/models/wind/1", "j1", {"kind": "causal-lm", "spec": {"a": 1}}, 10
)
SERVICE = Service("s1", "kaist", "kim", "wind", 250, 1, 1 << 30, 10)
REVISION = Revision("r1", "s1", "kaist", "wind", 1, "m1", "services.completions:app", 10)


def told(**changes):
    return _application(Deployment(SERVICE, replace(REVISION, **changes), MODEL, 2))


def test_a_replica_is_told_which_manifest_was_registered():
    args = told()["args"]
    assert args == {"model_uri": "/models/wind/1", "digest": manifest_digest(MODEL.manifest)}
    assert args["digest"] != manifest_digest(MODEL.manifest | {"spec": {"a": 2}})
    assert args["digest"] == manifest_digest({"spec": {"a": 1}, "kind": "causal-lm"})


@pytest.mark.parametrize("form", [CompletionsArgs, EmbeddingsArgs, ForecastsArgs])
def test_every_program_of_the_farm_takes_what_it_is_told(form):
    assert form.model_validate(told()["args"]).model_dump() == told()["args"]
    assert form.model_validate({"model_uri": "/models/wind"}).digest is None


def test_nothing_but_the_number_of_replicas_changes_while_leases_come_and_go():
    more = _application(Deployment(SERVICE, REVISION, MODEL, 5))
    assert more["deployments"][0].pop("num_replicas") == 5
    less = told()
    assert less["deployments"][0].pop("num_replicas") == 2
    assert more == less
