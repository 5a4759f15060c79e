"""What Pollux's artifact promises: every published completion time under Tiresias, job by job. 4 s in all."""

from pathlib import Path

import pytest

from benchmarks.pollux import DATA, compare, every_workload
from cloudfarm.simulate.pollux.files import ArtifactFiles

FILES = ArtifactFiles(DATA)
WORKLOADS = every_workload(FILES)


def test_all_32_workloads_are_there():
    assert len(WORKLOADS) == 32
    assert DATA.stat().st_size < 1_000_000
    assert "Apache License 2.0" in Path(DATA.parent / "README.md").read_text()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_job_completes_at_the_published_second(workload):
    (found,) = compare(FILES, [workload])
    assert found.differing == []
    assert {job.submission.name for job in found.outcome.jobs} == found.published_s.keys()
    assert found.outcome.mean_completion_s == pytest.approx(found.published_mean_s, abs=1e-9)
