"""Where tenants' files lie on the artifact store. Everything of a tenant is below its own folder."""

from cloudfarm.domain.workload import Job


def package(tenant: str, name: str) -> tuple[str, ...]:
    """Return the place of a working-dir package that a tenant uploaded."""
    return ("tenants", tenant, "packages", name)


def job_log(job: Job) -> tuple[str, ...]:
    """Return the place of an ended job's log."""
    return ("tenants", job.tenant, "logs", f"{job.id}.log")


def job_logs(job: Job) -> list[tuple[str, ...]]:
    """Return every place where something of a job's log may lie: the whole, and those of preempted attempts."""
    attempts = [("tenants", job.tenant, "logs", f"{job.id}.{each}.log") for each in range(job.attempt)]
    return [job_log(job), *attempts]
