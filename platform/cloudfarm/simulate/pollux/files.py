"""The artifact's files, from a folder or a zip, read as tables whose faults are named with their line."""

import csv
import math
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cloudfarm.errors import InvalidInputError, NotFoundError

Floats = NDArray[np.float64]


class ArtifactFiles:
    """The files below the artifact's ``simulator`` folder.

    Args:
        path: that folder, or a zip of it in which every name may have one and the same leading folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            found = {each.relative_to(path).as_posix(): each for each in path.rglob("*") if each.is_file()}
            self._texts: dict[str, Path | str] = dict(found)
            return
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                self._texts = {_below_top(name, names): archive.read(name).decode() for name in names}
        except FileNotFoundError:
            raise NotFoundError(f"there is no {path}") from None
        except (zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
            raise InvalidInputError(f"{path} is neither a folder nor a zip of texts: {error}") from error

    def names(self, pattern: str) -> list[str]:
        """Return the names that match a pattern, sorted; ``*`` matches within one part of a name only."""
        parts = pattern.split("/")
        return sorted(
            name
            for name in self._texts
            if len(name.split("/")) == len(parts) and all(map(fnmatch, name.split("/"), parts))
        )

    def text(self, name: str) -> str:
        """Return the content of a file.

        Raises:
            NotFoundError: there is no such file.
        """
        try:
            held = self._texts[name]
        except KeyError:
            raise NotFoundError(f"{self.path} has no {name}") from None
        return held if isinstance(held, str) else held.read_text()

    def table(self, name: str, columns: Sequence[str]) -> "Table":
        """Read a file with a header as a table; other columns than the named are left out."""
        return Table.parse(name, self.text(name), columns)


class Table:
    """Rows of named fields that remember their lines."""

    def __init__(self, name: str, rows: list[tuple[int, dict[str, str]]]) -> None:
        self.name = name
        self.rows = rows

    @classmethod
    def parse(cls, name: str, text: str, columns: Sequence[str]) -> "Table":
        """Read text with a header line.

        Raises:
            InvalidInputError: no row, a column is missing, or a line has more or fewer fields than the header.
        """
        lines = csv.reader(text.splitlines())
        header = next(lines, [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise fault(name, 1, f"the header lacks {', '.join(missing)}")
        rows = []
        for fields in lines:
            if not fields:
                continue
            if len(fields) != len(header):
                raise fault(name, lines.line_num, f"{len(fields)} fields where the header has {len(header)}")
            by_name = dict(zip(header, fields, strict=True))
            rows.append((lines.line_num, {column: by_name[column] for column in columns}))
        if not rows:
            raise fault(name, 2, "there is no row")
        return cls(name, rows)

    def words(self, column: str) -> list[str]:
        """Return a column of non-empty words.

        Raises:
            InvalidInputError: a field is empty.
        """
        for line, row in self.rows:
            if not row[column]:
                raise fault(self.name, line, f"{column} is empty")
        return [row[column] for _, row in self.rows]

    def integers(self, column: str, least: int = 1) -> list[int]:
        """Return a column of whole numbers.

        Raises:
            InvalidInputError: a field is no whole number, or below ``least``.
        """
        values = []
        for line, row in self.rows:
            try:
                value = int(row[column])
            except ValueError:
                raise fault(self.name, line, f"{column} {row[column]!r} is no whole number") from None
            if value < least:
                raise fault(self.name, line, f"{column} {value} is below {least}")
            values.append(value)
        return values

    def numbers(self, column: str, least: float = 0.0) -> Floats:
        """Return a column of finite numbers.

        Raises:
            InvalidInputError: a field is no finite number, or below ``least``.
        """
        values = np.empty(len(self.rows))
        for index, (line, row) in enumerate(self.rows):
            try:
                value = float(row[column])
            except ValueError:
                raise fault(self.name, line, f"{column} {row[column]!r} is no number") from None
            if not math.isfinite(value) or value < least:
                raise fault(self.name, line, f"{column} {value} is not a finite number of {least} or more")
            values[index] = value
        return values


def fault(name: str, line: int, what: str) -> InvalidInputError:
    """Return the error for a fault in a line of a file (counted from 1, the header is line 1)."""
    return InvalidInputError(f"{name}, line {line}: {what}", file=name, line=line)


def _below_top(name: str, names: Sequence[str]) -> str:
    top = PurePosixPath(name).parts[0]
    return name.removeprefix(f"{top}/") if all(each.startswith(f"{top}/") for each in names) else name
