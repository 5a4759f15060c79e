"""The shape of the repository."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

REQUIRED = {
    "platform", "services", "jobs", "tests", "docs", "benchmarks",
    "README.md", "README.ko.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
    "Makefile", "pyproject.toml", "constraints.txt", "cluster.yaml",
    ".ci", ".gitignore", ".pre-commit-config.yaml", ".rayignore",
}  # fmt: skip
"""All that lies at the top, and nothing else does."""
MAX_LINES = 500
CODE = ("platform", "services", "jobs", "benchmarks", "tests")


def ignored(name: str) -> bool:
    patterns = (ROOT / ".gitignore").read_text().split()
    return name == ".git" or any(fnmatch(name, pattern.strip("/")) for pattern in patterns)


def python_files() -> Iterator[Path]:
    for folder in CODE:
        yield from (path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def test_the_top_level_is_what_it_should_be():
    present = {path.name for path in ROOT.iterdir() if not ignored(path.name)}
    assert sorted(REQUIRED - present) == [], "missing at the top"
    assert sorted(present - REQUIRED) == [], "a new name at the top needs a reason, and a place in REQUIRED"


@pytest.mark.parametrize("how", [["-c"], ["-I", "-c"]])
def test_pythons_own_platform_module_is_found_from_the_repository(how):
    # `platform/` is a source root. With an `__init__.py` it would hide the standard library's module from
    # whatever is started here, Ray among it.
    code = "import platform; print(platform.__file__); platform.system()"
    run = subprocess.run([sys.executable, *how, code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).name == "platform.py"
    assert ROOT / "platform" not in Path(run.stdout.strip()).parents


def test_the_source_root_is_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert sorted(path.name for path in (ROOT / "platform").iterdir() if path.name != "__pycache__") == [
        "cloudfarm"
    ]


def test_no_job_hides_a_module_of_python_or_of_ray():
    # With `--working-dir jobs` this folder comes first on the path of every process of the job.
    names = {path.stem for path in (ROOT / "jobs").iterdir() if path.suffix == ".py" or path.is_dir()}
    taken = sys.stdlib_module_names | {
        "ray",
        "torch",
        "numpy",
        "pyarrow",
        "pydantic",
        "cloudfarm",
        "services",
    }
    assert names & taken == set()


def test_no_module_is_too_long():
    too_long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in python_files()
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert too_long == {}, f"over {MAX_LINES} lines; the aim is 300"


def test_the_versions_of_tests_and_package_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"ray[default,serve,train]=={version('ray')}" in project["dependencies"]


def test_the_wheel_carries_the_hook_and_the_migrations():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["platform/cloudfarm"]
    for source, target in wheel["force-include"].items():
        assert (ROOT / source).is_file()
        assert "/" not in target, "a .pth works at the top of site-packages only"
