"""From what a user names (files, folders, archives, addresses) to the list of pictures to look at.

Members of zip and tar archives are read in place: nothing is ever unpacked to disk, so a member's name (../../etc, an
absolute path, a link) can lead nowhere.  What looks like a picture but cannot be read stays in the list, and says why
when it is opened: the survey then reports it, and nothing is lost in silence.
"""

import bz2
import difflib
import gzip
import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from negah.errors import InputError
from negah.images.decode import HEAD, kind_of
from negah.images.raster import AUX, WORLD_FILES, Raster

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2")
REMOTE = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".jp2": "jp2"}  # by its ending; anything else is a TIFF
VRT = ".vrt"  # names other files, so it is read from a folder but not out of an archive
ZIPS = (".zip",)
TARS = (".tar",)
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MASK = "_mask"  # what a mask's name has behind its picture's, where both lie in one folder
MAX_MEMBER = 2**29  # bytes of a member that are unpacked into memory; larger TIFFs are read through GDAL, by windows
READABLE = "PNG, JPEG, TIFF, JPEG 2000, VRT, and zip or tar archives of them"

# What reading a damaged archive raises.
ARCHIVE_DAMAGE = (
    OSError, EOFError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile, tarfile.TarError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """Where a picture lies in an archive.

    name: in the archive.  offset: of its data (in a zip: of its local header; in a compressed tar: in what the tar
    unpacks to).  stored, size: bytes in the archive and unpacked.  packing: "zip stored", "zip deflated", "tar" or
    "packed tar".  crc: of a zip's member.  located: a file beside it in the archive may say where on earth it lies.
    shown: its name for people, where that is another one.
    """

    name: str
    offset: int
    stored: int
    size: int
    packing: str
    crc: int = 0
    located: bool = False
    shown: str = ""


@dataclass(frozen=True)
class Source:
    """A picture to look at.

    name: what it is called in tables, as the user gave it.  path: the file (or archive) on disk, None for an address.
    url: the address.  problem: why it cannot be opened, where that is known from the start.
    """

    name: str
    path: Path | None = None
    url: str | None = None
    member: Member | None = None
    problem: str | None = None

    def state(self) -> tuple[int, int]:
        """Size and time of change (ns) of its file, to notice when it is exchanged; (-1, -1) where nobody can tell."""
        try:
            found = os.stat(self.path) if self.path is not None else None
        except OSError:
            found = None
        return (-1, -1) if found is None else (found.st_size, found.st_mtime_ns)

    def open(self) -> Raster:
        """Open it, in whatever thread calls.  Raises InputError where that cannot be done."""
        if self.problem is not None:
            raise InputError(self.problem)
        if self.url is not None:
            ending = os.path.splitext(urlsplit(self.url).path)[1].lower()
            return Raster(f"/vsicurl/{self.url}", name=self.name, kind=REMOTE.get(ending, "tiff"))
        assert self.path is not None
        if self.member is None:
            return Raster(self.path, name=self.name)
        return _open_member(self.path, self.member, self.name)


def find_sources(paths: Sequence[str | Path], *, root: Path | None = None) -> list[Source]:
    """All pictures that the paths lead to, each once, sorted by name (those of a compressed tar in its order).

    A path is a picture, a folder (with all below it, hidden files aside), a zip or tar archive, or an http(s) address
    of a raster.  With `root`, what lies below this folder is named by its place in it.

    Raises InputError for a path that does not exist or cannot be read, and where no picture is found.
    """
    found: dict[object, Source] = {}
    for given in paths:
        some = False
        for identity, source in _under(str(given)):
            if root is not None:
                source = replace(source, name=source.name.removeprefix(f"{clean(str(root))}/"))
            found.setdefault(identity, source)
            some = True
        if not some:
            raise InputError(f"no pictures in {clean(str(given))}: looked for {READABLE}")
    if not found:
        raise InputError(f"nothing to look at: name pictures ({READABLE}) or folders of them")
    return sorted(found.values(), key=_order)


def find_source(path: str | Path) -> Source:
    """The one picture that a path leads to.  Raises InputError as `find_sources` does, and where there are more."""
    sources = find_sources([path])
    if len(sources) != 1:
        raise InputError(f"{path} holds {len(sources)} pictures: give one")
    return sources[0]


def clean(name: str) -> str:
    """A file's name as text that can be printed and stored: undecodable bytes and control characters become '?'."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else "?" for c in text)


def _order(source: Source) -> tuple[str, int, str]:
    if source.member is not None and source.member.packing == "packed tar":
        return source.name[: -len(clean(source.member.name))], source.member.offset, ""
    return source.name, 0, ""


def _under(given: str) -> Iterator[tuple[object, Source]]:
    """(identity, source) of all that one path leads to."""
    if given.lower().startswith(("http://", "https://")):
        # without user name and query, which may hold a password or a signature: names end up in reports
        parts = urlsplit(given)
        host = parts.netloc.rpartition("@")[2]
        yield given, Source(clean(f"{parts.scheme}://{host}{parts.path}"), url=given)
        return
    path = Path(given)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{clean(given)} cannot be read: {error.strerror or error}{_near(path)}") from None
    if stat.S_ISDIR(mode):
        try:
            os.scandir(path).close()
        except OSError as error:
            raise InputError(f"the folder {clean(given)} cannot be read: {error.strerror or error}") from None
        yield from _in_folder(path, set())
    else:
        yield from _in_file(path)


def _near(path: Path) -> str:
    """Offers a name beside a file that is not there, where one is nearly the same."""
    try:
        beside = [] if path.exists() else os.listdir(path.parent)
    except OSError:  # a folder that may not be read, a name that is too long
        return ""
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return f"; did you mean {clean(str(path.with_name(near[0])))}?" if near else ""


def _in_folder(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[object, Source]]:
    """Links to folders are followed, each folder is entered once: a link to a parent does not lead in circles."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        name = clean(str(folder))
        yield folder, Source(name, folder, problem=f"the folder {name} cannot be read: {error.strerror or error}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _in_folder(path, seen)
        elif path.name.lower().endswith((*PICTURES, VRT, *ZIPS, *TARS, *PACKED_TARS)):
            yield from _in_file(path)


def _in_file(path: Path) -> Iterator[tuple[object, Source]]:
    identity, ending = os.path.realpath(path), path.name.lower()
    if not ending.endswith((*ZIPS, *TARS, *PACKED_TARS)):
        yield identity, Source(clean(str(path)), path)
        return
    try:
        for member, problem in _in_zip(path) if ending.endswith(ZIPS) else _in_tar(path):
            name = clean(f"{path}/{member.shown or member.name}")
            yield (
                (identity, member.name, member.offset),
                Source(name, path, member=member, problem=f"{name} {problem}" if problem else None),
            )
    except ARCHIVE_DAMAGE as error:
        name = clean(str(path))
        text = " ".join(str(error).split()) or type(error).__name__
        problem = f"the archive {name} is damaged or cannot be read: {text}"
        yield (identity, "", -1), Source(name, path, problem=problem)


def _in_zip(path: Path) -> Iterator[tuple[Member, str | None]]:
    """The pictures of a zip archive, each with what keeps it from being read."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
    names = {info.filename for info in members}
    for info in members:
        if not _is_picture(info.filename):
            continue
        packing, problem = "zip stored", _trap(info.filename)
        if info.flag_bits & 1:
            problem = "is encrypted: unpack the archive"
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            packing = "zip deflated"
        elif info.compress_type != zipfile.ZIP_STORED:
            problem = f"is compressed by zip's method {info.compress_type}, which is not read: pack it with deflate"
        member = Member(
            info.filename, info.header_offset, info.compress_size, info.file_size, packing, info.CRC,
            _located(info.filename, names), _zip_name(info),
        )  # fmt: skip
        yield member, problem


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name as it was meant: without zip's flag for UTF-8 it should be in a code page of DOS, and seldom is.

    GDAL, like Python, takes such names at their word, so members are still asked for by `filename`.
    """
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _in_tar(path: Path) -> Iterator[tuple[Member, str | None]]:
    """The pictures of a tar archive, each with what keeps it from being read; those before a damaged place first."""
    packed = path.name.lower().endswith(PACKED_TARS)
    entries: list[tarfile.TarInfo] = []
    failure = None
    with tarfile.open(path, "r:*" if packed else "r:") as archive:
        try:
            while (info := archive.next()) is not None:  # iterating over the archive would hide where it breaks off
                if not info.isdir():
                    entries.append(info)
        except ARCHIVE_DAMAGE as error:
            failure = error
    names = {info.name for info in entries}
    for info in entries:
        if not _is_picture(info.name):
            continue
        problem = _trap(info.name)
        if not info.isreg() or info.issparse():
            problem = "is a link or a special file in its archive, not a picture: unpack the archive"
        packing = "packed tar" if packed else "tar"
        # a compressed tar cannot be read by GDAL at any bearable speed, so what lies beside a picture is not looked at
        located = not packed and _located(info.name, names)
        yield Member(info.name, info.offset_data, info.size, info.size, packing, located=located), problem
    if failure is not None:
        raise failure


def _is_picture(name: str) -> bool:
    """Whether an archive's member is called like a picture; those that macOS adds for itself (._a.png) are none."""
    parts = name.split("/")
    return name.lower().endswith(PICTURES) and "__MACOSX" not in parts and not parts[-1].startswith(".")


def _trap(name: str) -> str | None:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]:
        return "has a name that leads out of its archive: it is not read"
    return None


def _located(name: str, names: set[str]) -> bool:
    """Whether a PNG or JPEG in an archive has a file beside it that may say where on earth it lies."""
    stem = os.path.splitext(name)[0]
    endings = {end for ends in WORLD_FILES.values() for e in ends for end in (e, e.upper())}
    return name + AUX in names or any(stem + end in names for end in endings)


def _open_member(path: Path, member: Member, name: str) -> Raster:
    try:
        head = _unpack(path, member, HEAD)
        kind = kind_of(head, name=name)
        # GDAL reads archives by itself, by windows; a name with a brace would end its own quoting
        by_windows = member.packing != "packed tar" and "}" not in str(path)
        if by_windows and (member.located or kind in ("tiff", "jp2")):
            handler = "vsitar" if member.packing == "tar" else "vsizip"
            return Raster(f"/{handler}/{{{os.path.abspath(path)}}}/{member.name}", name=name, kind=kind)
        if member.size > MAX_MEMBER:
            raise InputError(f"{name} unpacks to {member.size:,} bytes, more than are taken into memory: unpack it")
        content = _unpack(path, member, member.size)
    except ARCHIVE_DAMAGE as error:
        raise InputError(f"{name} cannot be unpacked: {' '.join(str(error).split())}") from None
    return Raster(content, name=name)


def _unpack(path: Path, member: Member, size: int) -> bytes:
    """The first `size` bytes of a member, never more, whatever the packed data would grow to.

    A zip's member is checked against its CRC when all of it is asked for.  Raises one of ARCHIVE_DAMAGE.
    """
    if member.packing == "packed tar":
        stream = _stream(path)
        stream.seek(member.offset)
        content = stream.read(size)
    else:
        with open(path, "rb") as file:
            file.seek(member.offset)
            if member.packing.startswith("zip"):
                header = file.read(30)
                if header[:4] != b"PK\3\4":
                    raise zipfile.BadZipFile("there is no member where the archive's index says")
                file.seek(sum(struct.unpack("<HH", header[26:30])), os.SEEK_CUR)
            if member.packing == "zip deflated":
                unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
                packed = file.read(member.stored if size == member.size else min(member.stored, 4 * size + 4096))
                content = unpacker.decompress(packed, size) if size else b""
            else:
                content = file.read(min(size, member.stored))
    if len(content) < min(size, member.size):
        raise EOFError(f"it breaks off after {len(content):,} of {member.size:,} bytes")
    if size == member.size and member.packing.startswith("zip") and zlib.crc32(content) != member.crc:
        raise zipfile.BadZipFile("its checksum is wrong")
    return content


_streams = threading.local()


def _stream(path: Path) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    """What a compressed tar unpacks to, as a file that seeks forward cheaply and backward from the start.

    Each thread keeps the last one open: members are asked for in the archive's order, so that each thread unpacks the
    archive once, and not once for every picture.
    """
    identity = (os.path.realpath(path), os.stat(path).st_mtime_ns)
    if getattr(_streams, "identity", None) != identity:
        if hasattr(_streams, "file"):
            _streams.file.close()
        ending = path.name.lower()
        opener = gzip.open if ending.endswith("gz") else bz2.open if ending.endswith("bz2") else lzma.open
        _streams.file, _streams.identity = opener(path, "rb"), identity
    return _streams.file
