import io
import os
import pickle
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin

from negah.errors import InputError
from negah.images import sources
from negah.images.sources import Source, find_sources
from negah.images.windows import Box

RNG = np.random.default_rng(0)
UTM = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_800_000, 0.3, 0.3)}


def png(value: int = 0, size: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def geotiff(path: Path, size: int = 300) -> np.ndarray:
    bands = RNG.integers(0, 256, (3, size, size), dtype=np.uint8)
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", **UTM}
    with rasterio.open(path, "w", width=size, height=size, count=3, dtype="uint8", **profile) as dataset:
        dataset.write(bands)
    return bands.transpose(1, 2, 0)


def red(source: Source) -> int:
    with source.open() as raster:
        return int(raster.read(Box(0, 0, 1, 1)).rgb[0, 0, 0])


def names(found: list[Source], root: Path) -> list[str]:
    return [os.path.relpath(source.name, root) for source in found]


def test_names_can_be_places_in_a_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/x.png", "a/b/y.png"):
        (tmp_path / name).write_bytes(png())
    found = find_sources([tmp_path / "a"], root=tmp_path / "a")
    assert [source.name for source in found] == ["b/y.png", "x.png"] and red(found[0]) == 0
    assert find_sources([tmp_path / "a" / "x.png"], root=tmp_path / "b")[0].name == str(tmp_path / "a" / "x.png")


# -- files and folders ---------------------------------------------------------------------------------------------


def test_folders_are_searched_through_and_sorted(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("b.png", "sub/a.PNG", "sub/deep/c.jpeg", "a.tif", "notes.txt", "labels.csv", ".hidden.png"):
        (tmp_path / name).write_bytes(png())
    found = find_sources([tmp_path])
    assert names(found, tmp_path) == ["a.tif", "b.png", "sub/a.PNG", "sub/deep/c.jpeg"]
    assert all(source.path is not None and source.path.exists() for source in found)


def test_the_same_picture_is_found_once_however_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(find_sources(["a.png", "./a.png", str(tmp_path), "link.png"])) == 1


def test_a_link_to_a_parent_does_not_lead_in_circles(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(png())
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert len(find_sources([tmp_path])) == 1


def test_a_file_that_is_named_is_tried_whatever_its_ending(tmp_path):
    (tmp_path / "picture.dat").write_bytes(png(7))
    (source,) = find_sources([tmp_path / "picture.dat"])
    assert red(source) == 7


def test_where_nothing_is_there_the_message_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="no pictures in .*PNG, JPEG, TIFF"):
        find_sources([tmp_path])
    with pytest.raises(InputError, match="No such file"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="nothing to look at"):
        find_sources([])


def test_a_broken_picture_stays_in_the_list_and_says_why_when_it_is_opened(tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    empty, gone = find_sources([tmp_path])
    with pytest.raises(InputError, match=r"empty\.tif is empty"):
        empty.open()
    with pytest.raises(InputError, match=r"gone\.png cannot be opened: No such file"):
        gone.open()


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder that this process may not list; root, who may do everything, becomes nobody meanwhile."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        outer.chmod(0o755)
        (outer / "a.png").write_bytes(png())
        (outer / "locked").mkdir()
        (outer / "locked" / "b.png").write_bytes(png())
        (outer / "locked").chmod(0)
        if root:
            os.seteuid(65534)
        try:
            yield outer / "locked"
        finally:
            if root:
                os.seteuid(0)
            (outer / "locked").chmod(0o755)


def test_an_unreadable_folder_is_refused_if_named_and_recorded_if_found(locked_folder):
    with pytest.raises(InputError, match="locked cannot be read: Permission denied"):
        find_sources([locked_folder])
    picture, folder = find_sources([locked_folder.parent])
    assert red(picture) == 0
    with pytest.raises(InputError, match="locked cannot be read: Permission denied"):
        folder.open()


def test_names_can_be_printed_and_stored_whatever_the_file_is_called(tmp_path):
    raw = os.fsencode(tmp_path) + b"/a\xff\n\x1b[2J.png"
    with open(raw, "wb") as file:
        file.write(png(5))
    (source,) = find_sources([tmp_path])
    source.name.encode("utf-8")
    assert source.name.isprintable() and red(source) == 5


def test_sources_can_be_sent_to_another_process(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", png(3))
    (source,) = find_sources([tmp_path])
    assert red(pickle.loads(pickle.dumps(source))) == 3  # noqa: S301


# -- archives ------------------------------------------------------------------------------------------------------


def pack(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        kind = zipfile.ZIP_STORED if "stored" in path.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:" + path.suffix[1:].replace("tar", "").replace("tgz", "gz")) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("content", ["png", "tiff"])
def test_names_in_a_zip_are_utf8_also_where_it_does_not_say_so(tmp_path, content):
    name, twin = f"süd/Город.{content}", f"s??d/??????????.{content}"  # as many bytes
    geotiff(tmp_path / "x.tif")
    data = png(7) if content == "png" else (tmp_path / "x.tif").read_bytes()
    path = pack(tmp_path / "a.zip", {twin: data})
    path.write_bytes(path.read_bytes().replace(twin.encode(), name.encode()))  # as Info-ZIP writes it: without the flag
    (source,) = find_sources([str(path)])
    assert source.name.endswith(f"a.zip/{name}")
    with source.open() as raster:
        assert raster.read(Box(0, 0, 4, 4)).valid.all()


ARCHIVES = ["a.zip", "stored.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_pictures_are_read_out_of_archives(tmp_path, name):
    members = {f"tiles/{i}.png": png(i) for i in (3, 1, 2)} | {"tiles/readme.txt": b"hello", "__MACOSX/._1.png": b"x"}
    path = pack(tmp_path / name, members)
    before = sorted(tmp_path.rglob("*"))
    found = find_sources([path])
    order = [1, 2, 3] if name.endswith((".zip", ".tar")) else [3, 1, 2]  # a compressed tar is read from its start
    assert names(found, path) == [f"tiles/{i}.png" for i in order]
    assert [red(source) for source in found] == order
    assert [red(source) for source in reversed(found)] == order[::-1]
    assert {source.path for source in found} == {path}
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


@pytest.mark.parametrize("name", ARCHIVES)
def test_geotiffs_in_archives_keep_their_place(tmp_path, name):
    want = geotiff(tmp_path / "x.tif")
    content = (tmp_path / "x.tif").read_bytes()
    path = pack(tmp_path / name, {"deep/er/x.tif": content, "y.png": png()})
    (source,) = [source for source in find_sources([path]) if source.name.endswith("x.tif")]
    with source.open() as raster:
        assert raster.crs == CRS.from_epsg(32633) and raster.transform == UTM["transform"]
        for box in (Box(180, 20, 100, 90), Box(0, 0, 50, 50)):
            rgb = raster.read(box).rgb
            np.testing.assert_array_equal(rgb, want[box.row : box.row + box.height, box.col : box.col + box.width])


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_files_beside_a_picture_in_an_archive_put_it_on_the_map(tmp_path, name):
    wkt = CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
    members = {
        "x.png": png(),
        "x.pgw": b"0.3\n0\n0\n-0.3\n500000.15\n5799999.85\n",
        "x.png.aux.xml": f"<PAMDataset><SRS>{wkt}</SRS></PAMDataset>".encode(),
    }
    (source,) = find_sources([pack(tmp_path / name, members)])
    with source.open() as raster:
        assert raster.gsd_m(None).metres == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("trap", ["../../escaped.png", "/etc/escaped.png", "a/../../b.png"])
def test_a_name_that_leads_out_of_its_archive_is_not_followed(tmp_path, name, trap):
    found = find_sources([pack(tmp_path / name, {trap: png(), "fine.png": png(4)})])
    fine = [source for source in found if source.problem is None]
    assert [red(source) for source in fine] == [4]
    (bad,) = [source for source in found if source.problem is not None]
    with pytest.raises(InputError, match="leads out of its archive"):
        bad.open()


def test_links_in_a_tar_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    for source in find_sources([tmp_path]):
        with pytest.raises(InputError, match="is a link"):
            source.open()


def test_an_archive_that_unpacks_to_more_than_it_says_is_cut_off(tmp_path):
    path = pack(tmp_path / "a.zip", {"x.png": png() + bytes(10**7)})
    content = bytearray(path.read_bytes())
    end = content.rfind(b"PK\x01\x02")
    content[end + 24 : end + 28] = (200).to_bytes(4, "little")  # the index claims 200 bytes
    path.write_bytes(content)
    (source,) = find_sources([path])
    with pytest.raises(InputError, match="checksum"):
        source.open()


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    (source,) = find_sources([pack(tmp_path / "a.zip", {"x.png": png() + bytes(10**6)})])
    monkeypatch.setattr(sources, "MAX_MEMBER", 10**5)
    with pytest.raises(InputError, match="more than are taken into memory"):
        source.open()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_truncated_archive_is_recorded(tmp_path, name):
    members = {f"{i}.png": png(i) + RNG.bytes(3000) for i in range(5)}
    path = pack(tmp_path / name, members)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = find_sources([path])
    read = []
    for source in found:
        try:
            read.append(red(source))
        except InputError as error:
            assert name in str(error) and "\n" not in str(error)
    assert len(read) < len(found)
    assert read == sorted(read)
    if name == "a.tar":
        assert len(read) >= 2  # what lies before the break can still be read


def test_a_text_called_zip_is_recorded(tmp_path):
    (tmp_path / "a.zip").write_text("hello")
    (source,) = find_sources([tmp_path])
    with pytest.raises(InputError, match=r"a\.zip is damaged"):
        source.open()


def test_encryption_is_named(tmp_path):
    path = pack(tmp_path / "a.zip", {"x.png": png()})
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    (source,) = find_sources([path])
    with pytest.raises(InputError, match="encrypted"):
        source.open()


def test_a_damaged_member_is_not_shown(tmp_path):
    path = pack(tmp_path / "stored.zip", {"x.png": png()})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    (source,) = find_sources([path])
    with pytest.raises(InputError, match="checksum"):
        source.open()


# -- addresses -----------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """A web server that answers range requests; gives its address and a list that grows by (path, bytes sent)."""
    sent: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            path = folder / self.path.split("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content, status = path.read_bytes(), 200
            total = len(content)
            if "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                last = min(int(last), total - 1) if last else total - 1
                content, status = content[int(first) : last + 1], 206
            self.send_response(status)
            self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                sent.append((self.path, len(content)))
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", sent
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_remote_cog_is_read_by_ranges(tmp_path):
    want = geotiff(tmp_path / "plain.tif", 1500)
    with rasterio.open(tmp_path / "plain.tif") as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "town.tif", driver="COG", blocksize=128, compress="deflate")
    with server(tmp_path) as (address, sent):
        (source,) = find_sources([f"{address}/town.tif?signature=secret"])
        assert "secret" not in source.name and source.path is None
        with source.open() as raster:
            assert raster.gsd_m(None).metres == pytest.approx(0.3, rel=1e-3)
            np.testing.assert_array_equal(raster.read(Box(700, 800, 104, 104)).rgb, want[800:904, 700:804])
    assert sum(count for _, count in sent) < (tmp_path / "town.tif").stat().st_size / 5
    assert {path for path, _ in sent} == {"/town.tif?signature=secret"}  # no listing, no sidecars


def test_a_remote_file_that_is_not_there_or_no_raster(tmp_path):
    (tmp_path / "page.tif").write_text("<html>please log in</html>")
    with server(tmp_path) as (address, _):
        for name in ("gone.tif", "page.tif"):
            (source,) = find_sources([f"{address}/{name}"])
            with pytest.raises(InputError, match=f"{name} cannot be opened"):
                source.open()


def test_an_address_that_does_not_answer():
    (source,) = find_sources(["http://127.0.0.1:9/a.tif"])
    with pytest.raises(InputError, match="cannot be opened"):
        source.open()


# -- real data -----------------------------------------------------------------------------------------------------


def test_real_tiles_in_their_zip(data_dir):
    found = find_sources([data_dir / "duke-solar" / "tiles.zip"])
    assert len(found) == 1758
    with found[0].open() as raster:
        rgb, valid = raster.read(Box(0, 0, raster.width, raster.height), (104, 104))
        assert (raster.width, raster.height) == (101, 101) and valid.all() and rgb.std() > 10


def test_a_name_that_is_nearly_right_is_offered(tmp_path):
    (tmp_path / "town.tif").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"twon\.tif cannot be read: No such file or directory; did you mean .*/town\.tif\?"
    ):
        find_sources([tmp_path / "twon.tif"])
    with pytest.raises(InputError, match=r"harbour\.tif cannot be read: No such file or directory$"):
        find_sources([tmp_path / "harbour.tif"])
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        find_sources([tmp_path / f"{'a' * 300}.tif"])
