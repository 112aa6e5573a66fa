"""Labelled images as people have them: class folders, a csv beside them, or file names that end in the answer.

`read_samples` asks whether there are panels; `read_classes` takes classes of any number as they are named.

    folder/panel/a.png, folder/no_panel/b.png          class folders, in a folder or in a zip
    folder/TQ1234-P.tif, folder/TQ1235-N.tif           the layout of the uk20K set, in a folder or in a zip
    labels.csv: file,label[,group,lat,lon,split,source]    images beside it, in a folder or in a zip

In a csv an empty label or -1 means unlabelled, and the columns `overlap_group` (groups) and `id` are understood too.
GeoTIFFs without lat and lon in a csv give their own location. What is not understood is an error that says where;
nothing is guessed, in particular not which class is the positive one.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import rasterio
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from rasterio.errors import RasterioError
from rasterio.warp import transform

from negah.errors import GeoError, InputError
from negah.images.decode import read_image
from negah.images.geo import pixel_size_m
from negah.images.listed import SOUGHT, beside, members, some, table

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"})
_PANELS = ("panel", "panels", "pv", "solar")
POSITIVE = frozenset({"1", "1.0", "p", "pos", "positive", "true", "yes", "y", *_PANELS})
NEGATIVE = frozenset(
    {"0", "0.0", "n", "neg", "negative", "false", "no", "none", "background"}
    | {f"{no}{gap}{what}" for no in ("no", "non") for gap in ("", "_", "-", " ") for what in _PANELS}
)
UNLABELLED = frozenset({"", "-1", "-1.0", "nan", "na", "null", "unlabelled", "unlabeled", "?"})
GROUP_COLUMNS = ("group", "overlap_group")

Numbering = Callable[[Sequence[str], Callable[[int], str]], list[int]]  # classes, and where the i-th is written


@dataclass(frozen=True)
class Samples:
    """Images that are read when asked for, and what is known of them; all fields are aligned, n long.

    names: as the user wrote them (unique). files: file on disk, or archive and member. labels: 1, 0, or -1 unlabelled;
    of `read_classes` the place of the class in `classes`, which is not aligned.
    groups, lat, lon (degrees), split, source, gsd_m (metres per pixel): None where nothing was said.
    """

    origin: str
    names: tuple[str, ...]
    files: tuple[tuple[Path, str | None], ...]
    labels: Int[ndarray, " n"]
    groups: ndarray | None = None
    lat: Float[ndarray, " n"] | None = None
    lon: Float[ndarray, " n"] | None = None
    split: ndarray | None = None
    source: ndarray | None = None
    gsd_m: Float[ndarray, " n"] | None = None
    classes: tuple[str, ...] = ()
    archives: dict[Path, zipfile.ZipFile] = field(default_factory=dict, repr=False, compare=False)  # open, shared

    def __len__(self) -> int:
        return len(self.names)

    def take(self, keep: ndarray) -> "Samples":
        """Those samples that a boolean mask [n] or a list of positions names."""
        at = np.arange(len(self))[keep]
        picked = {
            name: None if (values := getattr(self, name)) is None else values[at]
            for name in ("labels", "groups", "lat", "lon", "split", "source", "gsd_m")
        }
        return replace(self, names=tuple(self.names[i] for i in at), files=tuple(self.files[i] for i in at), **picked)

    def labelled(self) -> "Samples":
        """Those with a label. Raises InputError unless both labels occur: nothing can be learnt or measured then."""
        kept = self.take(self.labels >= 0)
        if len(np.unique(kept.labels)) < 2:
            which = "no labels" if not len(kept) else f"only label {kept.labels[0]} ({len(kept)} images)"
            raise InputError(f"{self.origin} holds {which}: images with and without panels are needed")
        return kept

    def image(self, i: int) -> UInt8[ndarray, "h w 3"]:
        """The i-th image as RGB. Raises InputError when it cannot be read. Safe to call from several threads."""
        path, member = self.files[i]
        if member is None:
            return read_image(path, name=self.names[i])
        try:
            # Kept open: reading the directory of a large archive takes longer than reading an image.
            if path not in self.archives:
                self.archives[path] = zipfile.ZipFile(path)
            content = self.archives[path].read(member)
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{path.name}: member {member} cannot be read ({error}): repack the archive") from error
        return read_image(content, name=self.names[i])


def read_samples(data: Path | str, *, group: str | None = None, positive: str | None = None) -> Samples:
    """Samples of a csv, a folder or a zip (see the head of this file).

    group: csv column that says which images belong together (default: `group` or `overlap_group` if there).
    positive: the class that counts as 1, all others as 0 (default: what is called positive, panel, P, 1, ...).
    """

    def number(classes: Sequence[str], where: Callable[[int], str]) -> list[int]:
        labels = [_label(name, positive, where(i)) for i, name in enumerate(classes)]
        if positive is not None and positive.lower() not in {c.lower() for c in classes}:
            raise InputError(f"{data} has no class {positive!r} for --positive: it has {some(sorted(set(classes)))}")
        return labels

    return _located(_read(Path(data), group, number))


def read_classes(data: Path | str) -> Samples:
    """Labelled samples of any classes, numbered in the order of their names: `classes` holds these."""
    places: dict[str, int] = {}

    def number(classes: Sequence[str], where: Callable[[int], str]) -> list[int]:
        kinds = sorted({name for name in classes if name.lower() not in UNLABELLED})
        places.update({name: place for place, name in enumerate(kinds)})
        return [places.get(name, -1) for name in classes]

    samples = _read(Path(data), None, number)
    kept = replace(samples.take(samples.labels >= 0), classes=tuple(places))
    if not len(kept):
        raise InputError(f"{samples.origin} holds no labels: class names are needed")
    return kept


def _read(path: Path, group: str | None, number: Numbering) -> Samples:
    if path.is_dir() and (path / "labels.csv").is_file():
        path = path / "labels.csv"
    if path.suffix.lower() == ".csv":
        return _from_csv(path, group, number)
    if group is not None:
        raise InputError(
            f"--group {group} names a column of a csv, but {path} is none: give a csv with file,label,{group}"
        )
    return _from_names(path, number)


def _from_names(path: Path, number: Numbering) -> Samples:
    """Class folders or suffixes, whichever the names show."""
    names, files = _listing(path)
    if not names:
        raise InputError(f"{path} holds no images and no labels.csv: give a folder or zip of images, or a csv")
    parents = [PurePosixPath(name).parent.name for name in names]
    endings = [_suffix(name) for name in names]
    if all(endings):
        classes = endings
    elif len(set(parents)) > 1 and all(parents):
        classes = parents
    else:
        bare = [name for name, ending in zip(names, endings) if not ending]
        raise InputError(
            f"{path}: no labels found in the names ({some(bare)}): sort the images into class folders, end each name "
            "in -P or -N, or give a csv with columns file,label"
        )
    labels = number(classes, lambda i: f"{path}: class {classes[i]!r}")
    return Samples(str(path), tuple(names), tuple(files), np.array(labels, dtype=np.int64))


def _from_csv(path: Path, group: str | None, number: Numbering) -> Samples:
    columns, rows = table(path)
    if not rows:
        raise InputError(f"{path} has no rows: one row per image, with columns file,label")
    for needed in ("file", "label"):
        if needed not in columns:
            raise InputError(f"{path} has no column {needed} (it has {', '.join(columns)}): file and label are needed")
    if group is not None and group not in columns:
        raise InputError(f"{path} has no column {group} for --group: it has {', '.join(columns)}")
    names = [row["file"].strip() for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputError(f"{path} lists {len(twice)} files more than once ({some(twice)}): keep one row for each")
    classes = [row["label"].strip() for row in rows]
    labels = number(classes, lambda i: f"{path}, row {i + 2}: label {classes[i]!r}")

    def column(name: str) -> ndarray | None:
        filled = name in columns and any(row[name].strip() for row in rows)
        return np.array([row[name].strip() for row in rows]) if filled else None

    groups = column(group or next((c for c in GROUP_COLUMNS if c in columns), GROUP_COLUMNS[0]))
    if groups is not None and (groups == "").any():
        # An image that nobody put into a group stands alone; the prefix keeps it apart from every named group.
        groups = np.array([g or f"alone:{name}" for g, name in zip(groups, names)])
    lat, lon = (_degrees(column(name), name, path) for name in ("lat", "lon"))
    if (lat is None) != (lon is None):
        raise InputError(f"{path} has only one of the columns lat and lon: give both or neither")
    return Samples(
        str(path), tuple(names), _files(names, path), np.array(labels, dtype=np.int64),
        groups=groups, lat=lat, lon=lon, split=column("split"), source=column("source"),
    )  # fmt: skip


def _files(names: Sequence[str], path: Path) -> tuple[tuple[Path, str | None], ...]:
    """Where each file of a csv lies.  Raises InputError when one does not."""
    found = beside(names, path)
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{len(missing)} of {len(names)} files of {path} are missing ({some(missing)}): {SOUGHT}")
    return tuple(found[name] for name in names)


def _listing(path: Path) -> tuple[list[str], list[tuple[Path, str | None]]]:
    """Names relative to a folder or inside a zip, sorted, images only."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
        return [p.relative_to(path).as_posix() for p in found], [(p, None) for p in found]
    if path.suffix.lower() == ".zip" and path.is_file():
        names = sorted(m for m in members(path) if PurePosixPath(m).suffix.lower() in IMAGES)
        return names, [(path, name) for name in names]
    what = "is neither a folder, a csv nor a zip" if path.exists() else "does not exist"
    raise InputError(f"{path} {what}: give a folder of images, or a csv with columns file,label")


def _suffix(name: str) -> str:
    """ "P" or "N" for names that end in -P or -N, else nothing."""
    stem = PurePosixPath(name).stem.upper()
    return stem[-1] if stem[-2:] in ("-P", "-N", "_P", "_N") else ""


def _label(name: str, positive: str | None, where: str) -> int:
    text = name.lower()
    if positive is not None:
        return -1 if text in UNLABELLED else int(text == positive.lower())
    for label, known in ((1, POSITIVE), (0, NEGATIVE), (-1, UNLABELLED)):
        if text in known:
            return label
    raise InputError(
        f"{where} is not understood: use 1, 0 or nothing, or say which is the positive one with --positive NAME"
    )


def _degrees(values: ndarray | None, name: str, path: Path) -> ndarray | None:
    if values is None:
        return None
    try:
        return np.array([float(v) if v else np.nan for v in values])
    except ValueError as error:
        raise InputError(f"{path}: column {name} must hold degrees ({error})") from error


def _located(samples: Samples) -> Samples:
    """With pixel sizes, and centres where a csv did not give them, if every sample is a georeferenced TIFF."""
    if not all(name.lower().endswith((".tif", ".tiff")) for name in samples.names):
        return samples
    found = list(_georeferences(samples))
    if len(found) < len(samples):
        return samples
    lon, lat, gsd_m = np.array(found, dtype=float).T
    return replace(samples, gsd_m=gsd_m) if samples.lat is not None else replace(samples, gsd_m=gsd_m, lat=lat, lon=lon)


def _georeferences(samples: Samples) -> Iterator[tuple[float, float, float]]:
    """Longitude and latitude of each image's centre, metres per pixel there; ends at the first image without them."""
    for path, member in samples.files:
        try:
            with rasterio.open(f"/vsizip/{path.resolve()}/{member}" if member else str(path)) as raster:
                if raster.crs is None or raster.transform.is_identity:
                    return
                centre = raster.width / 2, raster.height / 2
                x, y = raster.transform @ centre
                lon, lat, *_ = transform(raster.crs, "EPSG:4326", [x], [y])
                gsd_m = float(np.mean(pixel_size_m(raster.crs, raster.transform, *centre)))
        except (RasterioError, GeoError):
            return
        yield lon[0], lat[0], gsd_m
