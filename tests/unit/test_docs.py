"""The documents agree with the code: settings, errors, commands, routes, statuses, links."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_core import PydanticUndefined

from cloudfarm.api.quota_schemas import QuotaBody
from cloudfarm.cli.app import app as cli
from cloudfarm.domain.quota import Amounts, QuotaTree
from cloudfarm.domain.status import (
    TRANSITIONS,
    EndReason,
    JobStatus,
    LeaseStatus,
    RevisionStatus,
    ServiceStatus,
)
from cloudfarm.settings import Settings
from cloudfarm.simulate.workloads import MEMBERS, read_workload
from cloudfarm.testing.front_door import open_front_door
from cloudfarm.usecases.deploying import PROGRAMS
from cloudfarm.usecases.job_request import LEASE_KEY, SHAPE_KEYS
from cloudfarm.usecases.runtime_env import ALLOWED_KEYS, REFUSED_ENV_PREFIXES, REFUSED_KEYS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_IN_OPENAPI = {("GET", "/api/jobs/{submission_id}/logs/tail")}
"""A WebSocket, of which OpenAPI knows nothing."""


def read(name: str) -> str:
    return (ROOT / name).read_text()


GUIDES = {name: read(f"docs/{name}-guide.md") for name in ("tenant", "operator")}


# Settings


def shown(field: Any) -> str:
    if field.default is PydanticUndefined:
        path = field.default_factory()
        return f"~/{path.relative_to(Path.home())}"
    return {None: "none", "": "empty"}.get(field.default, f"`{field.default}`")


def test_every_setting_is_described_with_its_default():
    rows = dict(re.findall(r"^\| `CLOUDFARM_(\w+)` \| ([^|]+?) \|", GUIDES["operator"], re.MULTILINE))
    expected = {name.upper(): shown(field) for name, field in Settings.model_fields.items()}
    expected["STATE_DIR"] = f"`{expected['STATE_DIR']}`"
    assert rows == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_variable_that_nothing_reads(page):
    code = "\n".join(path.read_text() for path in (ROOT / "platform").rglob("*.py"))
    settings = {f"CLOUDFARM_{name.upper()}" for name in Settings.model_fields}
    for name in re.findall(r"CLOUDFARM_[A-Z_]*[A-Z]", page.read_text()):
        assert name in settings or name in code, name


# Commands


def below(command: Any) -> dict[str, Any]:
    """Return a group's commands by name; none for a command. (Typer's groups need not be those of click.)"""
    return getattr(command, "commands", {})


def every_command() -> list[str]:
    def names(command: Any, prefix: str) -> list[str]:
        subs = sorted(below(command).items())
        return [each for name, sub in subs for each in names(sub, f"{prefix} {name}")] or [prefix]

    return names(typer.main.get_command(cli), "cloudfarm")


def shown_commands(text: str) -> list[str]:
    """Return every ``cloudfarm ...`` in a document's console blocks and code spans."""
    blocks = [body for kind, body in FENCE.findall(text) if kind in ("console", "bash", "sh")]
    lines = [line.removeprefix("$ ") for body in blocks for line in body.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", text).replace("\n", " "))
    return [
        part.strip()
        for each in [*lines, *spans]
        for part in each.split(" && ")
        if re.match(r"(\w+=\S+ )*cloudfarm( |$)", part.strip())
    ]


def wrong_with(shown_command: str) -> str | None:
    words = shlex.split(shown_command)
    words = words[words.index("cloudfarm") + 1 :]
    found: Any = typer.main.get_command(cli)
    while words and words[0] in below(found):
        found, words = below(found)[words[0]], words[1:]
    if below(found):
        return f"there is no command {shown_command!r}" if words else None
    known = {option for param in found.params for option in (*param.opts, *param.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
    return f"{shown_command!r} has no option {unknown}" if unknown else None


def test_every_command_is_documented():
    said = " ".join(command for text in GUIDES.values() for command in shown_commands(text)) + " "
    assert [name for name in every_command() if f"{name} " not in said] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists(page):
    assert [wrong for each in shown_commands(page.read_text()) if (wrong := wrong_with(each))] == []


@pytest.mark.parametrize(
    "text", ["`cloudfarm fly`", "`cloudfarm up --gpu 2`", "```console\n$ cloudfarm lease grow\n```\n"]
)
def test_a_command_that_does_not_exist_is_noticed(text):
    (shown_command,) = shown_commands(text)
    assert wrong_with(shown_command) is not None


def consoles(text: str) -> list[str]:
    """Return the command lines of a page, each whole."""
    blocks = [body.replace("\\\n", " ") for kind, body in FENCE.findall(text) if kind == "console"]
    return [line.strip() for body in blocks for line in re.split(r"^\$ ", body, flags=re.MULTILINE) if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_submits_is_a_command_when_ray_has_quoted_its_words(page):
    submitted = [
        shlex.split(line) for line in consoles(page.read_text()) if line.startswith("ray job submit")
    ]
    for words in submitted:
        command = words[words.index("--") + 1 :]
        assert " " not in command[0], command  # Ray quotes it: the name of a program
        if command[:2] != ["bash", "-c"]:
            assert "$" not in " ".join(command), command  # it stays as it is


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_the_farms_cli_has_a_tenants_token_before_it_acts_for_a_tenant(name):
    lines = consoles(read(name))
    token = next(place for place, line in enumerate(lines) if "CLOUDFARM_TOKEN=" in line)
    assert token < min(place for place, line in enumerate(lines) if re.match(r"cloudfarm (deploy|key)", line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_installs_this_project_from_where_it_is_not(page):
    assert re.findall(r"pip install '?cloudfarm", page.read_text()) == []


@pytest.mark.parametrize("name", [".rayignore", ".gitignore"])
def test_what_the_shown_commands_write_is_not_carried_along(name):
    text = read("docs/language-models.md")
    folders = re.findall(r"--(?:outbox|out|output) ([a-z-]+)", text)
    assert sorted(set(folders)) == ["answers", "korean-regions", "models"]
    assert {f"/{folder}/" for folder in folders} <= set(read(name).splitlines())


def test_exit_codes_are_documented():
    assert [int(code) for code in re.findall(r"^\| (\d) \|", read("docs/errors.md"), re.MULTILINE)] == [
        0,
        1,
        2,
        3,
    ]


# Routes


async def test_every_route_is_documented_and_no_other(tmp_path):
    async with open_front_door(tmp_path) as door:
        paths = door.app.openapi()["paths"]
    real = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    pattern = re.compile(r"`(GET|POST|PUT|PATCH|DELETE) (/[^` ]*)`")
    documented = {found for text in GUIDES.values() for found in pattern.findall(text)}
    assert real - documented == set(), "not documented"
    assert documented - real == NOT_IN_OPENAPI, "documented, but not there"


# What a job may say


def test_metadata_keys_are_documented():
    section = GUIDES["tenant"].partition("All values in the metadata")[2].partition("Other keys")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {*SHAPE_KEYS, LEASE_KEY}


def test_the_limits_of_runtime_env_are_documented():
    section = GUIDES["tenant"].partition("## Limits of runtime_env")[2].partition("## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert {key for key in (*ALLOWED_KEYS, *REFUSED_KEYS) if not key.startswith("_")} <= named
    assert set(REFUSED_ENV_PREFIXES) <= named


def test_the_kinds_of_models_are_documented():
    assert all(f"`{kind}`" in GUIDES["tenant"] for kind in PROGRAMS)


# Quotas


def test_the_tree_that_the_operator_guide_shows_can_be_kept():
    (text,) = (body for kind, body in FENCE.findall(GUIDES["operator"]) if kind == "toml")
    tree = [QuotaBody(**row).quota() for row in tomllib.loads(text)["quotas"]]
    QuotaTree.of(tree, capacity=Amounts(24_000, 192, 768 * 2**30))
    assert len(tree) == 6
    described = GUIDES["operator"].partition("| of a quota |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", described, re.MULTILINE) == list(QuotaBody.model_fields)


# Workloads


def test_the_members_of_a_workloads_lines_are_documented(tmp_path):
    section = read("docs/scheduling.md").partition("## Workloads as files")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| ", section, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(MEMBERS)
    (line,) = (body for kind, body in FENCE.findall(section) if kind == "json")
    (tmp_path / "w.jsonl").write_text(line)
    assert [work.id for work in read_workload(tmp_path / "w.jsonl")] == ["l7"]


# Statuses


@pytest.mark.parametrize(
    ("what", "kind"),
    [("lease", LeaseStatus), ("job", JobStatus), ("service", ServiceStatus), ("revision", RevisionStatus)],
)
def test_the_status_tables_are_the_transition_table(what, kind):
    head = rf"^\| {what} \| meaning \| next \|\n\|[-|]+\|\n"
    table = re.search(rf"{head}((?:\|.*\|\n)+)", read("docs/architecture.md"), re.MULTILINE)
    assert table is not None
    documented = {}
    for row in table[1].splitlines():
        name, _meaning, following = (cell.strip() for cell in row.strip("|").split("|"))
        documented[kind(name.strip("`"))] = {kind(each) for each in re.findall(r"`(\w+)`", following)}
    assert documented == {status: set(following) for status, following in TRANSITIONS[kind].items()}


def test_the_reasons_for_an_end_are_documented():
    text = read("docs/architecture.md")
    assert [reason for reason in EndReason if f"`{reason.value}`" not in text] == []


# Pages


def outline(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]


def test_the_korean_readme_has_the_structure_of_the_english_one():
    english, korean = read("README.md"), read("README.ko.md")
    assert outline(korean) == outline(english)
    for what, parts in {
        "commands": lambda text: [body for kind, body in FENCE.findall(text) if kind == "console"],
        "rows of tables": lambda text: len(re.findall(r"^\|", text, re.MULTILINE)),
        "points of lists": lambda text: len(re.findall(r"^- ", text, re.MULTILINE)),
        "links": lambda text: sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.ko.md"}),
    }.items():
        assert parts(korean) == parts(english), f"the {what} are the same in both"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target} of {page.name}"
        if anchor:
            assert anchor in anchors(file), f"{target} of {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    for name in re.findall(r"`((?:tests|jobs|services|docs|platform)/[\w/.]+)`", page.read_text()):
        if name != "platform/__init__.py":
            assert (ROOT / name).exists(), name


def test_every_make_target_of_the_documents_exists():
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text()):
            assert name in targets, f"make {name} in {page.name}"
