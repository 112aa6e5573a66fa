"""Tables that list pictures, and where the pictures of a table lie: beside it, in folders or in zips."""

import csv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from negah.errors import InputError

SOUGHT = "they are looked for beside it, and in the zips beside it"


def table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a csv with a header.  Raises InputError when it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
            return [name for name in reader.fieldnames or [] if name], rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a csv ({error}): give comma-separated text in UTF-8") from error


def beside(names: Sequence[str], path: Path) -> dict[str, tuple[Path, str | None]]:
    """Where files that a table at `path` names lie: file on disk, or zip and member; without those that are missing.

    Raises InputError for a zip beside the table that cannot be read, where one has to be looked into.
    """
    found: dict[str, tuple[Path, str | None]] = {}
    inside: dict[str, Path] | None = None
    for name in names:
        file = path.parent / name
        if name and there(file):
            found[name] = file, None
            continue
        if inside is None:  # opened only when they are needed
            archives = sorted(path.parent.glob("*.zip"), reverse=True)  # of two that hold a name, the first is asked
            inside = {member: archive for archive in archives for member in members(archive)}
        if name in inside:
            found[name] = inside[name], name
    return found


def there(name: str | Path, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Whether that is a file, or of another `kind`; what no file can be called, like a long sentence, is none."""
    try:
        return kind(Path(name))
    except OSError:  # the name is too long, or its folder is not to be looked into
        return False


def members(archive: Path) -> list[str]:
    """Names of the files in a zip.  Raises InputError when it cannot be read."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return [info.filename for info in opened.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive} is not a readable zip ({error}): repack it or unpack it into a folder") from error


def some(names: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")
