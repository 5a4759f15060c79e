"""Every error of the project keeps the promises of ``cloudfarm.errors``.

The classes are found in the source, not in what happens to be imported: an error in a part that no test
imports counts, too.
"""

import ast
import copy
import importlib
import json
import pickle
import re
from pathlib import Path

import pytest

from cloudfarm.errors import CloudfarmError, all_errors

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "platform"
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def written() -> dict[str, str]:
    """Return the module of each error class in the source, by the class's name."""
    bases: dict[str, tuple[str, set[str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = (module, {ast.unparse(base).rpartition(".")[2] for base in node.bases})
    found = {"CloudfarmError"}
    while grown := {name for name, (_, parents) in bases.items() if parents & found} - found:
        found |= grown
    return {name: bases[name][0] for name in found}


def every_error() -> list[type[CloudfarmError]]:
    for module in sorted(set(written().values())):
        importlib.import_module(module)
    return [kind for kind in all_errors() if kind.__module__.startswith("cloudfarm")]


ERRORS = every_error()
each_error = pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)


def documented() -> dict[str, tuple[int, str]]:
    """Return status and title of each code in the table of docs/errors.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\d{3}) \| ([^|]+?) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE
    )
    assert len({code for code, _, _ in rows}) == len(rows), "a code stands twice in docs/errors.md"
    return {code: (int(status), title) for code, status, title in rows}


def test_all_errors_finds_every_class_in_the_source():
    assert {kind.__name__: kind.__module__ for kind in ERRORS} == written()


def test_codes_are_unique():
    codes = [kind.code for kind in ERRORS]
    assert sorted(codes) == sorted(set(codes))


@each_error
def test_an_error_says_code_status_and_title_itself(kind):
    assert CODE.fullmatch(kind.code), kind.code
    assert 400 <= kind.status <= 599
    assert kind.title
    assert not kind.title.endswith(".")
    assert kind.__doc__
    for name in ("code", "title"):
        assert name in vars(kind), f"{kind.__name__} inherits its {name}: programs could not tell it apart"


@each_error
def test_a_client_may_tell_whose_fault_it_is_by_the_parents(kind):
    for parent in kind.__mro__[1:]:
        if issubclass(parent, CloudfarmError) and parent is not CloudfarmError:
            assert kind.status // 100 == parent.status // 100, f"{kind.__name__} is a {parent.__name__}"


@each_error
def test_an_error_survives_a_pickle_with_its_data(kind):
    data = {"reason": "a word", "number": 3}
    error = (
        kind("what happened", **data)
        if kind.__init__ is CloudfarmError.__init__
        else kind("what happened", reason="a word")
    )
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(again) is kind
        assert (again.detail, again.code, again.status) == (error.detail, error.code, error.status)
        assert str(again) == str(error)
        assert again.data == error.data
    assert error.data["reason"] == "a word"
    json.dumps(error.data)


@each_error
def test_an_error_without_words_says_its_title(kind):
    assert (str(kind()), kind().detail) == (kind.title, kind.title)


@each_error
def test_an_error_is_documented(kind):
    assert documented().get(kind.code) == (kind.status, kind.title)


def test_nothing_else_is_documented():
    assert documented().keys() == {kind.code for kind in ERRORS}
