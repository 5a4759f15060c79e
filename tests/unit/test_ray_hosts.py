"""Which agent a host is asked through, on a cluster and with agents that a test makes up."""

from collections import deque
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from cloudfarm.raylayer import hosts as module
from cloudfarm.testing.fake_farm import make_host

HERE = make_host("h0")
DIED, UNAVAILABLE = ActorDiedError(), ActorUnavailableError("restarting", None)


@pytest.fixture
def cluster(monkeypatch):
    """A base node of one host; `agents` has for each agent that can be made what it says, and goes on saying."""
    cluster = SimpleNamespace(
        agents=deque(), node={"Alive": True, "Labels": {"farm": "control", "host": "h0"}}
    )

    def make():
        says = cluster.agents.popleft()

        async def observe():
            said = says.pop(0) if len(says) > 1 else says[0]
            if isinstance(said, Exception):
                raise said
            return said

        return SimpleNamespace(observe=SimpleNamespace(remote=observe))

    ray = SimpleNamespace(
        nodes=lambda: [cluster.node],
        get_runtime_context=lambda: SimpleNamespace(gcs_address=""),
        remote=lambda **_: lambda _agent: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make)),
    )
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(module, "GcsClient", lambda **_: None)
    return cluster


async def test_an_agent_that_died_is_made_anew_at_the_next_look(cluster):
    cluster.agents.extend([[DIED], [HERE]])
    hosts = module.RayHosts()
    assert await hosts.observe() == []
    assert await hosts.observe() == [HERE]


async def test_an_agent_that_is_restarted_is_asked_again(cluster):
    cluster.agents.append([UNAVAILABLE, HERE])
    hosts = module.RayHosts()
    assert await hosts.observe() == []
    assert await hosts.observe() == [HERE]


async def test_a_host_that_is_gone_with_its_agent_is_still_told(cluster):
    cluster.agents.append([HERE, DIED])
    hosts = module.RayHosts()
    assert [host.reachable for host in await hosts.observe()] == [True]
    cluster.node["Alive"] = False
    for _ in range(2):
        assert [(host.id, host.reachable) for host in await hosts.observe()] == [("h0", False)]
