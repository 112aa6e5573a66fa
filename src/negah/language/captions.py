"""Pictures and what is said of them: caption files, and batches of pictures with one of their texts each.

    captions.csv: file,caption                      a row for each text: a picture may have several
    captions.csv: file,caption1,caption2,...        a row for each picture
    "captions.csv:split=train"                      only rows with that value in that column
    "scenes:500"                                    generated scenes, described in words

The pictures lie beside the csv, in folders or in zips.  What is missing or cannot be read is left out and told.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from negah.errors import InputError
from negah.images.listed import SOUGHT, beside, some, table
from negah.images.pool import SCENES, Pool
from negah.images.scenes.town import mix
from negah.images.scenes.words import Composition, compositions, described, held_out
from negah.images.sources import Source, find_sources
from negah.images.views import View, crop, views
from negah.language.tokens import Tokenizer
from negah.progress import Progress, silent

FILE = ("file", "image", "filename", "filepath", "path")
TEXT = re.compile(r"(caption|text|sentence|title)[ _]?\d*", re.IGNORECASE)
ROWS = re.compile(r"(.+\.csv)(?::([^:=]+)=([^:=]*))?", re.IGNORECASE)
PAINTED_PX = 128


@runtime_checkable
class Images(Protocol):
    """Pictures by number, all of one size, as uint8."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> UInt8[Tensor, "3 side side"]: ...


@dataclass(frozen=True)
class Captions:
    """Pictures with at least one text each.

    images: by number.  names: what each is called.  texts: all different ones.  said: of each picture, the numbers of
    its texts.  failures: (name, reason) of pictures that are left out.
    """

    images: Images
    names: Sequence[str]
    texts: Sequence[str]
    said: Sequence[Int[Tensor, " _"]]
    failures: Sequence[tuple[str, str]] = ()

    @classmethod
    def read(
        cls, path: str | Path, side: int, *, progress: Progress = silent
    ) -> "Captions":  # fmt: skip
        """From a caption file, or generated scenes (see the head of this file), as squares of `side` pixels.

        Of files the middle square is taken.  Scenes show compositions that are not held out (`scenes.words`).

        Raises InputError for a file without such columns or rows, and where no picture can be read.
        """
        if match := SCENES.fullmatch(str(path)):
            seen = [what for what in compositions() if not held_out(what)]
            return drawn(int(match[1]), int(match[2] or 0), side, seen, progress=progress)
        if not (match := ROWS.fullmatch(str(path))):
            raise InputError(f"{path} is no caption file: give a csv with columns file,caption, or scenes:COUNT")
        file, failures = Path(match[1]), []
        told = _texts(file, match[2], match[3], failures)
        found = beside(list(told), file)
        failures += [(name, f"{name}, which {file} names, is not there") for name in told if name not in found]
        if not found:
            raise InputError(f"none of the {len(told)} pictures of {file} is there ({some(list(told))}): {SOUGHT}")
        sources = _sources(set(found.values()))
        failures += [(name, f"{name} is no picture that can be read") for name in found if found[name] not in sources]
        # A picture may have several names in a file, such as a.jpg and ./a.jpg: it has the texts of all.
        named: dict[Source, str] = {}
        for name, at in found.items():
            if at in sources and (first := named.setdefault(sources[at], name)) != name:
                told[first] += told[name]
        if not named:
            raise InputError(f"none of the {len(told)} pictures of {file} can be read (first: {failures[0][1]})")
        pool = Pool(list(named), side, cut="none", progress=progress)
        names = [named[tile.source] for tile in pool.tiles]  # pyright: ignore[reportAttributeAccessIssue] (no scenes)
        return cls.of(pool, names, [told[name] for name in names], [*failures, *pool.failures])

    @classmethod
    def of(
        cls, images: Images, names: Sequence[str], texts: Sequence[Sequence[str]],
        failures: Sequence[tuple[str, str]] = (),
    ) -> "Captions":  # fmt: skip
        """With the texts of each picture.  Raises InputError for a picture without any."""
        if lacking := [name for name, its in zip(names, texts, strict=True) if not its]:
            raise InputError(f"{some(lacking)}: no text is given")
        number: dict[str, int] = {}
        said = [torch.tensor([number.setdefault(text, len(number)) for text in its]) for its in texts]
        return cls(images, list(names), list(number), said, list(failures))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 side side"], Int[Tensor, " _"]]:
        """A picture and the numbers of its texts."""
        return self.images[range(len(self))[index]], self.said[index]

    def right(self) -> Bool[Tensor, "text image"]:
        """Which texts are said of which pictures: a text that several share is right for all of them."""
        found = torch.zeros(len(self.texts), len(self), dtype=torch.bool)
        for image, its in enumerate(self.said):
            found[its, image] = True
        return found


@dataclass(frozen=True)
class _Joined:
    parts: Sequence[Images]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def joined(parts: Sequence[Captions]) -> Captions:
    """All of them, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    texts = [[part.texts[int(n)] for n in its] for part in parts for its in part.said]
    names = [name for part in parts for name in part.names]
    failures = [failure for part in parts for failure in part.failures]
    return Captions.of(_Joined([part.images for part in parts]), names, texts, failures)


class Told:
    """For `Batches(collate=...)`: views of pictures, tokens of one text of each, drawn, and that text's number.

    Texts that are the same have the same number, so that contrast does not push a picture from its own words.
    numbered: whether the numbers are in the batch; `SimVLM` contrasts nothing and takes none.
    """

    def __init__(self, captions: Captions, tokens: Tokenizer, view: View, *, numbered: bool = True):
        self.ids, self.view, self.numbered = tokens(captions.texts), view, numbered

    def __call__(self, items: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> list[Tensor]:
        drawn = torch.rand(len(items), generator=generator)
        number = torch.stack([its[int(share * len(its))] for share, (_, its) in zip(drawn, items)])
        images = torch.stack([image for image, _ in items])
        seen = views(images, [self.view], generator=generator)[0]
        return [seen, self.ids[number], number] if self.numbered else [seen, self.ids[number]]


def drawn(
    count: int, seed: int, side: int, of: Sequence[Composition], *, metres: float = 51.2,
    progress: Progress = silent,
) -> Captions:  # fmt: skip
    """Described scenes of some compositions, `metres` wide, painted at 128 px a side, where all that is told shows."""
    images, texts = [], []
    for number in range(count):
        mixed = mix(seed, number)
        scene = described(PAINTED_PX, metres / PAINTED_PX, seed=mixed, what=of[mixed % len(of)])
        image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None]
        images.append(crop(image, torch.tensor([[0, 0, PAINTED_PX, PAINTED_PX]]), side)[0])
        texts.append(scene.captions)
        progress("scenes", number + 1, count)
    names = [f"scenes:{seed}/{number}" for number in range(count)]
    return Captions.of(torch.stack(images) if images else torch.empty(0, 3, side, side), names, texts)


def _texts(
    path: Path, column: str | None, value: str | None, failures: list[tuple[str, str]]
) -> dict[str, list[str]]:  # fmt: skip
    """The texts of each picture of a caption file; rows without are told in `failures`."""
    columns, every = table(path)
    rows = list(enumerate(every, 2))  # the header is row 1
    file = next((name for name in columns if name.strip().lower() in FILE), None)
    texts = [name for name in columns if TEXT.fullmatch(name.strip())]
    if file is None or not texts:
        raise InputError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: file and caption (or caption1, ...) are needed"
        )
    if twice := [name for name in texts if texts.count(name) > 1]:
        raise InputError(f"{path} has two columns {twice[0]}: name them caption1, caption2, ...")
    if column is not None:
        if column not in columns:
            raise InputError(f"{path} has no column {column}: it has {', '.join(columns)}")
        there = sorted({row[column] or "(nothing)" for _, row in rows})
        rows = [(at, row) for at, row in rows if row[column] == value]
        if not rows:
            raise InputError(f"no row of {path} has {column} {value}: there are {some(there)}")
    found: dict[str, list[str]] = {}
    for at, row in rows:
        name, said = row[file].strip(), [text for one in texts if (text := " ".join((row[one] or "").split()))]
        if not name or not said:
            failures.append((name or f"row {at}", f"{path}, row {at}: {'no caption' if name else 'no file'}"))
            continue
        found.setdefault(name, []).extend(said)
    if not found:
        raise InputError(f"{path} has no row with a file and a caption")
    return found


def _sources(files: set[tuple[Path, str | None]]) -> dict[tuple[Path, str | None], Source]:
    """What `find_sources` makes of files, and of members of zips; without those that are no pictures."""
    found: dict[tuple[Path, str | None], Source] = {}
    for path in sorted({path for path, _ in files}):
        try:
            sources = find_sources([path])
        except InputError:
            continue
        for source in sources:
            found[path, source.member.name if source.member is not None else None] = source
    return {at: found[at] for at in files if at in found}
