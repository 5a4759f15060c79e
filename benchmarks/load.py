"""A load generator in a process of its own: as many clients at once, each with one connection that it keeps.

    python -m benchmarks.load URL --body request.json --requests 300 --clients 8

Prints one JSON object: seconds from the first request to the last answer, the latency of each request in
milliseconds, how many answers were not 200, and the CPU seconds that the generator itself took. The key for
``Authorization`` comes in the environment, where no list of processes shows it.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

import aiohttp

KEY_ENV = "BENCH_KEY"
TIMEOUT_S = 60
WARM_UP = 5


async def client(url: str, body: bytes, headers: dict[str, str], left: list[int], took: list[float]) -> int:
    """Send requests, one after another over one connection, while any are left; return how many went wrong."""
    wrong = 0
    connector = aiohttp.TCPConnector(limit=1)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        while left[0] > 0:
            left[0] -= 1
            begun = time.perf_counter()
            async with session.post(url, data=body) as answer:
                await answer.read()
                wrong += answer.status != 200  # noqa: PLR2004 - HTTP's word for good
            took.append((time.perf_counter() - begun) * 1000)
    return wrong


async def load(url: str, body: bytes, requests: int, clients: int) -> dict[str, object]:
    """Make the load and return the figures."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY_ENV):
        headers["Authorization"] = f"Bearer {key}"
    await client(url, body, headers, [WARM_UP], [])
    took: list[float] = []
    left = [requests]
    cpu, begun = time.process_time(), time.perf_counter()
    wrong = await asyncio.gather(*(client(url, body, headers, left, took) for _ in range(clients)))
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "latency_ms": took,
        "wrong": sum(wrong),
        "generator_cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(load(asked.url, asked.body.read_bytes(), asked.requests, asked.clients))))


if __name__ == "__main__":
    main()
