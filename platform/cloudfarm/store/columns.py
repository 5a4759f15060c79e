"""Column types that turn the domain's values into text and whole numbers, and back."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from cloudfarm.domain.host import Gpu
from cloudfarm.domain.lease import Ask, ExpectedStart, Slice
from cloudfarm.domain.quantities import Shape
from cloudfarm.store.text import storable

E = TypeVar("E", bound=StrEnum)
KEPT = 4096
"""Values of each column of :class:`FrozenJson` that are kept."""


class Words(TypeDecorator[str]):
    """Text, cleaned of what a database cannot hold, and ordered by its bytes, as Python orders it."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """Return the database's type; PostgreSQL's own order is its locale's, where a hyphen is nothing."""
        return Text(collation="C" if dialect.name == "postgresql" else None)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        """Return what is stored."""
        return None if value is None else storable(value)


class EnumText(TypeDecorator[E]):
    """A text enum by its value: a database enum type would need a migration for each new member.

    Members are looked up in a dictionary: five of them are in every row of a lease.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[E]) -> None:
        super().__init__()
        self.kind = kind
        self._members: Mapping[str | None, E | None] = {
            None: None,
            **{member.value: member for member in kind},
        }

    def process_bind_param(self, value: E | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        """Return what is stored."""
        return None if value is None else self.kind(value).value

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], E | None]:  # noqa: ARG002
        """Return what makes a member of a stored text."""
        return self._members.__getitem__


class Json(TypeDecorator[Any]):
    """Plain data as JSON text.

    Not the databases' own JSON types: PostgreSQL's refuses NaN, which is what a diverged training reports as
    its loss, and JSONB sorts keys and folds numbers, so that a value would not come back as it went in.

    Args:
        decode: makes the domain's value from plain data.
    """

    impl = Text
    cache_ok = True

    def __init__(self, decode: Callable[[Any], Any]) -> None:
        super().__init__()
        self.decode = decode

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's
        """Return what is stored; ASCII only, so that no character can be refused."""
        return None if value is None else _text_of(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's
        """Return the domain's value."""
        return None if value is None else self.decode(json.loads(value))


class FrozenJson(Json):
    """As :class:`Json`, for values that never change and are alike on many rows: asks, no slices, hosts' GPUs."""

    cache_ok = True

    def __init__(self, decode: Callable[[Any], Any]) -> None:
        super().__init__(decode)
        self._text_of = lru_cache(KEPT)(_text_of)
        self._value_of = lru_cache(KEPT)(lambda text: None if text is None else decode(json.loads(text)))

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002 - SQLAlchemy's
        """Return what is stored."""
        return self._text_of(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Return what makes a value of a stored text: of the same text the same value."""
        return self._value_of


def _text_of(value: Any) -> str:
    return json.dumps(value, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


def ask_of(plain: dict[str, Any]) -> Ask:
    """Return an ask from plain data."""
    return Ask(**{**plain, "shape": Shape(**plain["shape"])})


def slices_of(plain: list[dict[str, Any]]) -> tuple[Slice, ...]:
    """Return slices from plain data."""
    return tuple(Slice(**{**each, "gpu_indices": tuple(each["gpu_indices"])}) for each in plain)


def expected_start_of(plain: dict[str, Any]) -> ExpectedStart:
    """Return an expected start from plain data."""
    return ExpectedStart(**plain)


def gpus_of(plain: list[dict[str, Any]]) -> tuple[Gpu, ...]:
    """Return GPUs from plain data."""
    return tuple(Gpu(**each) for each in plain)
