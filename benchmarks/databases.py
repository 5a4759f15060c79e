"""What the store does in a second: PostgreSQL beside SQLite, in turns, both with their commits safe on the disk."""

import asyncio
import tempfile
from collections.abc import Callable

from benchmarks import store
from benchmarks.figures import Row, Series
from benchmarks.postgres import running_postgres

FIGURES = {
    "leases_added_per_s": "leases added a second",
    "transitions_per_s": "status changes a second",
    "reads_of_one_per_s": "single reads a second",
}
WRITERS = (1, 16)


def measure(turns: int, leases: int, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of the store; here "stock" is SQLite."""
    seen: dict[tuple[int, str], dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="cf-bench-db-") as folder, running_postgres() as server:
        for turn in range(turns):
            urls = {
                "sqlite": f"sqlite:///{folder}/farm{turn}.db",
                "postgresql": server.create(f"farm{turn}"),
            }
            for writers in WRITERS:
                for database, url in urls.items():
                    figures = asyncio.run(store.measure(url, leases, writers))
                    for figure in FIGURES:
                        of_it = seen.setdefault((writers, figure), {"sqlite": [], "postgresql": []})
                        of_it[database].append(figures[figure])
            say(f"  turn {turn + 1} of {turns}")
    return [
        Row(
            5,
            f"{text}, {writers} at once: PostgreSQL v SQLite",
            "1/s",
            Series.of(seen[writers, figure]["postgresql"]),
            Series.of(seen[writers, figure]["sqlite"]),
            lower_is_better=False,
        )
        for writers in WRITERS
        for figure, text in FIGURES.items()
    ]
