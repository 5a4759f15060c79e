"""Which jobs arrive when."""

from dataclasses import dataclass

from cloudfarm.simulate.pollux.files import ArtifactFiles, fault


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as its owner submits it: tuned beforehand, with GPUs and batch size that stay."""

    name: str
    submitted_s: int
    """Seconds since the start of the workload."""
    application: str
    gpus: int
    samples: int
    """The batch size of the whole job."""


def read_workload(files: ArtifactFiles, name: str) -> tuple[Submission, ...]:
    """Read a workload such as ``workloads/workload-6.csv``, in the order of its lines.

    Raises:
        InvalidInputError: the file is malformed; says the line.
        NotFoundError: there is no such file.
    """
    table = files.table(name, ["name", "time", "application", "num_replicas", "batch_size"])
    submissions = tuple(
        Submission(*fields)
        for fields in zip(
            table.words("name"),
            table.integers("time", least=0),
            table.words("application"),
            table.integers("num_replicas"),
            table.integers("batch_size"),
            strict=True,
        )
    )
    seen: set[str] = set()
    for (line, _), submission in zip(table.rows, submissions, strict=True):
        if submission.name in seen:
            raise fault(name, line, f"there is another job {submission.name}")
        seen.add(submission.name)
    return submissions
