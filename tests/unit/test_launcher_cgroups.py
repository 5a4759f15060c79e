"""Control groups on a fake tree: the kernel's files are plain files here, made when the directory is."""

from pathlib import Path

import pytest

from cloudfarm.raylayer.launcher.cgroups import Cgroup, Hierarchies, names

V1 = ("cpu", "memory", "pids", "cpuacct", "freezer")


def mountinfo(tree: Path, *, v2: bool) -> str:
    lines = [f"25 1 0:22 / {tree}/unified rw,relatime - cgroup2 cgroup2 rw"] if v2 else []
    lines += [
        f"3{n} 1 0:3{n} / {tree}/{c} rw,relatime shared:9 - cgroup cgroup rw,{c}" for n, c in enumerate(V1)
    ]
    return "\n".join([*lines, "22 1 254:0 / / rw - ext4 /dev/vda rw"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (*V1, "unified"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_version_2_is_taken_when_it_has_the_controllers(tree: Path) -> None:
    (tree / "unified" / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = Hierarchies.detect(mountinfo(tree, v2=True))
    assert (found.kind, found.mounts) == ("v2", {"": tree / "unified"})


def test_a_hybrid_host_falls_back_to_version_1(tree: Path) -> None:
    (tree / "unified" / "cgroup.controllers").write_text("")
    found = Hierarchies.detect(mountinfo(tree, v2=True))
    assert (found.kind, set(found.mounts)) == ("v1", set(V1))


def test_shared_mounts_of_version_1_are_one_directory(tmp_path: Path) -> None:
    (tmp_path / "cpu,cpuacct").mkdir()
    line = f"30 1 0:30 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
    found = Hierarchies.detect(line)
    assert found.mounts == {"cpu": tmp_path / "cpu,cpuacct", "cpuacct": tmp_path / "cpu,cpuacct"}
    assert Cgroup(found, "cloudfarm/f/n").join_paths() == [
        f"{tmp_path}/cpu,cpuacct/cloudfarm/f/n/cgroup.procs"
    ]


def test_no_hierarchy_is_none() -> None:
    found = Hierarchies.detect("22 1 254:0 / / rw - ext4 /dev/vda rw")
    assert found.kind == "none"
    group = Cgroup(found, "cloudfarm/f/n")
    assert group.create(cpus=1, memory_bytes=1, pids=1) == {}
    assert (group.join_paths(), group.binds(), group.pids(), group.usage()) == ([], [], set(), None)
    group.freeze(True)
    group.kill_all()
    group.remove()


def test_limits_of_version_1(tree: Path) -> None:
    group = Cgroup(Hierarchies.detect(mountinfo(tree, v2=False)), "cloudfarm/f/l7k2-0")
    limits = group.create(cpus=3, memory_bytes=4096, pids=0)
    assert limits == {"cpus": 3, "memory_bytes": 4096}
    here = {name: tree / name / "cloudfarm/f/l7k2-0" for name in V1}
    assert (here["cpu"] / "cpu.cfs_quota_us").read_text() == "300000"
    assert (here["cpu"] / "cpu.cfs_period_us").read_text() == "100000"
    assert (here["memory"] / "memory.limit_in_bytes").read_text() == "4096"
    assert not (here["pids"] / "pids.max").exists()
    assert group.binds() == sorted((str(here[name]), str(tree / name)) for name in V1)
    assert names(group.hierarchies, "cloudfarm/f") == {"l7k2-0"}


def test_limits_of_version_2_and_the_controllers_on_the_way(tree: Path) -> None:
    (tree / "unified" / "cgroup.controllers").write_text("cpu memory pids")
    group = Cgroup(Hierarchies.detect(mountinfo(tree, v2=True)), "cloudfarm/f/n")
    assert group.create(cpus=1, memory_bytes=4096, pids=99) == {"cpus": 1, "memory_bytes": 4096, "pids": 99}
    here = tree / "unified" / "cloudfarm" / "f" / "n"
    assert (here / "cpu.max").read_text() == "100000 100000"
    assert (here / "memory.max").read_text() == "4096"
    assert (here / "pids.max").read_text() == "99"
    for level in (here.parent, here.parent.parent, here.parent.parent.parent):
        assert (level / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_what_a_group_holds_and_uses_v1(tree: Path) -> None:
    group = Cgroup(Hierarchies.detect(mountinfo(tree, v2=False)), "cloudfarm/f/n")
    group.create(cpus=0, memory_bytes=0, pids=0)
    here = {name: tree / name / "cloudfarm/f/n" for name in V1}
    (here["cpu"] / "sub").mkdir()
    (here["cpu"] / "cgroup.procs").write_text("12\n13\n")
    (here["cpu"] / "sub" / "cgroup.procs").write_text("14\n")
    (here["memory"] / "cgroup.procs").write_text("12\n15\n")
    (here["cpuacct"] / "cpuacct.usage").write_text("2500000000\n")
    (here["memory"] / "memory.usage_in_bytes").write_text("100\n")
    (here["memory"] / "memory.max_usage_in_bytes").write_text("200\n")
    (here["memory"] / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (here["pids"] / "pids.current").write_text("7\n")
    assert group.pids() == {12, 13, 14, 15}
    assert group.oom_kills() == 3
    usage = group.usage()
    assert usage is not None
    assert (usage.cpu_s, usage.memory_bytes, usage.peak_memory_bytes, usage.pids) == (2.5, 100, 200, 7)


def test_what_a_group_holds_and_uses_v2(tree: Path) -> None:
    (tree / "unified" / "cgroup.controllers").write_text("cpu memory pids")
    group = Cgroup(Hierarchies.detect(mountinfo(tree, v2=True)), "cloudfarm/f/n")
    group.create(cpus=0, memory_bytes=0, pids=0)
    here = tree / "unified" / "cloudfarm" / "f" / "n"
    (here / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (here / "memory.current").write_text("100\n")
    (here / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    (here / "pids.current").write_text("7\n")
    (here / "cgroup.kill").touch()
    usage = group.usage()
    assert usage is not None
    assert (usage.cpu_s, usage.memory_bytes, usage.peak_memory_bytes, usage.pids) == (1.5, 100, None, 7)
    assert group.oom_kills() == 2
    group.kill_all()
    assert (here / "cgroup.kill").read_text() == "1"
