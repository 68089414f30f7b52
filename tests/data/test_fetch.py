"""Downloads from a server on this machine that breaks off, changes its file, or sends another one."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from ipcnn_ray.data.datasets.dataset import Archive, registered
from ipcnn_ray.data.fetch import DOWNLOADS, MIB, download, fetch, fetch_file, progress_lines
from ipcnn_ray.errors import DataError


def tarball(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


FILES = {"top-1/data/neg/00001.JPEG": bytes(range(256)) * 40, "top-1/data/neg/00002.JPEG": b"two", "top-1/x": b"no"}


class Server:
    """Serves `content`; the next answers stop after `stops_after` bytes of their body."""

    def __init__(self) -> None:
        self.content = tarball(FILES)
        self.stops_after: list[int] = []
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/set.tgz":
                    self.send_error(404)
                    return
                tag, asked = f'"{hashlib.md5(outer.content).hexdigest()}"', self.headers.get("Range")
                outer.ranges.append(asked)
                start = 0
                if asked and outer.knows_ranges and self.headers.get("If-Range") == tag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start and start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", tag)
                self.end_headers()
                self.wfile.write(body[: outer.stops_after.pop(0)] if outer.stops_after else body)

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def archive(self, name: str = "set.tgz", *, md5: str | None = None, inside: str = "*/data/neg") -> Archive:
        right = hashlib.md5(self.content).hexdigest()
        return Archive(f"http://127.0.0.1:{self.http.server_port}/{name}", ((inside, "voc"),), md5 or right)

    def archives(self, **changed) -> list[Archive]:
        return [self.archive(**changed)]


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def told(caught) -> str:
    (problem,) = caught.value.issues
    return f"{problem.what}\n{problem.advice}"


def test_what_is_fetched_lies_in_its_place(server, tmp_path):
    heard = []
    archives = server.archives()
    assert fetch(archives, tmp_path, lambda *step: heard.append(step)) == [tmp_path / "voc/neg"]
    found = {path.name: path.read_bytes() for path in (tmp_path / "voc/neg").iterdir()}
    assert found == {"00001.JPEG": FILES["top-1/data/neg/00001.JPEG"], "00002.JPEG": b"two"}
    assert heard[-1][1] == heard[-1][2] == len(server.content)
    assert {path.suffix for path in (tmp_path / DOWNLOADS).iterdir()} <= {".done", ""}, "nothing big stays"
    assert fetch(archives, tmp_path) == [] and len(server.ranges) == 1


def test_a_download_that_broke_off_goes_on_where_it_stopped(server, tmp_path):
    server.stops_after = [300, 200]
    for stopped in (300, 500):
        with pytest.raises(DataError) as caught:
            fetch(server.archives(), tmp_path)
        assert told(caught).startswith(f"broke off after {stopped} bytes: ")
        assert told(caught).endswith("The same command resumes it.")
        assert not (tmp_path / "voc").exists()
    fetch(server.archives(), tmp_path)
    assert server.ranges == [None, "bytes=300-", "bytes=500-"]
    assert (tmp_path / "voc/neg/00001.JPEG").read_bytes() == FILES["top-1/data/neg/00001.JPEG"]


@pytest.mark.parametrize("why", ["another file", "no ranges"])
def test_a_download_begins_anew_where_it_cannot_go_on(server, tmp_path, why):
    server.stops_after = [300]
    with pytest.raises(DataError, match="broke off after 300 bytes"):
        fetch(server.archives(), tmp_path)
    if why == "another file":
        server.content = tarball(FILES | {"top-1/data/neg/00003.JPEG": b"three"})
    else:
        server.knows_ranges = False
    assert download(server.archive(), tmp_path / DOWNLOADS).read_bytes() == server.content


def test_bytes_that_reach_beyond_the_file_are_thrown_away(server, tmp_path):
    archive = server.archive()
    (tmp_path / f"{archive.name}.part").write_bytes(bytes(len(server.content)))
    (tmp_path / f"{archive.name}.version").write_text(f'"{archive.md5}"')
    assert download(archive, tmp_path).read_bytes() == server.content


def test_a_wrong_checksum(server, tmp_path):
    with pytest.raises(DataError) as caught:
        fetch(server.archives(md5="0" * 32), tmp_path)
    right = hashlib.md5(server.content).hexdigest()
    assert told(caught) == (
        f"has the md5 sum {right}, expected {'0' * 32}\n"
        "It was deleted. Fetch again; if that does not help, the file at this address has changed."
    )
    assert not (tmp_path / "voc").exists() and not list((tmp_path / DOWNLOADS).glob("*.part"))


def test_an_address_that_is_gone(server, tmp_path):
    with pytest.raises(DataError) as caught:
        fetch(server.archives(name="gone.tgz"), tmp_path)
    assert told(caught) == "answers 404 Not Found\nTry again later, or unpack it by hand."


def test_a_file_that_is_no_archive(server, tmp_path):
    server.content = b"<html>not found</html>"
    with pytest.raises(DataError) as caught:
        fetch(server.archives(), tmp_path)
    assert told(caught).startswith("does not unpack: ") and told(caught).endswith("It was deleted. Fetch again.")
    assert not (tmp_path / "voc").exists()


def test_an_archive_of_something_else(server, tmp_path):
    with pytest.raises(DataError, match=r"does not hold \*/data/positive"):
        fetch(server.archives(inside="*/data/positive"), tmp_path)


def test_an_archive_that_reaches_outside_is_refused(server, tmp_path):
    server.content = tarball({"../../evil": b"x", **FILES})
    with pytest.raises(DataError, match="does not unpack"):
        fetch(server.archives(), tmp_path)
    assert not list(tmp_path.rglob("evil")) and not (tmp_path.parent / "evil").exists()


def test_what_is_there_is_not_touched(server, tmp_path):
    mine = tmp_path / "voc/neg/00002.JPEG"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert fetch(server.archives(), tmp_path) == [tmp_path / "voc/neg/00001.JPEG"]
    assert mine.read_bytes() == b"mine"


def test_two_processes_do_not_fetch_into_one_folder(server, tmp_path):
    (tmp_path / DOWNLOADS).mkdir()
    with FileLock(tmp_path / DOWNLOADS / "lock"), pytest.raises(DataError, match="another process downloads"):
        fetch(server.archives(), tmp_path)


def test_every_dataset_comes_from_an_official_address_and_fills_its_folders():
    hosts = (
        "host.robots.ox.ac.uk",
        "codeload.github.com/zqs1022",
        "roozbehm.info",
        "data.caltech.edu",
    )
    datasets = {kind: dataset for kind, dataset in registered().items() if dataset.archives}
    assert set(datasets) == {"voc_part", "ilsvrc_animal_part", "cub200"}
    for dataset in datasets.values():
        for archive in dataset.archives:
            assert archive.url.split("://")[1].startswith(hosts)
        targets = {str(Path(folder)) for archive in dataset.archives for _, folder in archive.moves}
        for folder in dataset.folders:
            parents = {str(parent) for parent in (Path(folder), *Path(folder).parents)}
            assert parents & targets, folder


def test_a_broken_connection_counts_what_arrived(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match=r"broke off after 0 bytes: .*refused"):
        fetch(server.archives(), tmp_path)
    assert Path(tmp_path / DOWNLOADS).is_dir()


def whole(server: Server, name: str = "set.tgz") -> Archive:
    """A file with the first digits of its SHA-256, as those of torchvision's weights."""
    url = f"http://127.0.0.1:{server.http.server_port}/{name}"
    return Archive(url, (), sha256=hashlib.sha256(server.content).hexdigest()[:8])


def test_a_file_that_many_processes_need_is_downloaded_once(server, tmp_path):
    target = tmp_path / "weights" / "w.pth"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: fetch_file(whole(server), target), range(8)))
    assert target.read_bytes() == server.content and len(server.ranges) == 1
    assert [path.name for path in (tmp_path / "weights").iterdir() if path.name != DOWNLOADS] == ["w.pth"]


def test_a_file_that_broke_off_goes_on_where_it_stopped(server, tmp_path):
    server.stops_after = [300]
    with pytest.raises(DataError, match=r"broke off after 300 bytes"):
        fetch_file(whole(server), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    fetch_file(whole(server), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == server.content and server.ranges == [None, "bytes=300-"]


def test_a_file_of_another_hash_is_not_put_in_place(server, tmp_path):
    expected, sent = whole(server), hashlib.sha256(b"<html>").hexdigest()
    server.content = b"<html>"
    with pytest.raises(DataError) as caught:
        fetch_file(expected, tmp_path / "w.pth")
    assert told(caught).startswith(
        f"has the SHA-256 {sent}, expected {expected.sha256}...\nIt was deleted. Fetch again;"
    )
    assert [path.name for path in tmp_path.iterdir()] == [DOWNLOADS]
    (tmp_path / "w.pth").write_bytes(b"<html>")
    with pytest.raises(
        DataError, match=rf"w\.pth  has the SHA-256 {sent}, expected .*\n +Delete it, and it is downloaded"
    ):
        fetch_file(expected, tmp_path / "w.pth")
    assert len(server.ranges) == 1


def test_without_a_connection_the_file_and_its_place_are_told(server, tmp_path):
    archive = whole(server, "w-0123.pth")
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError) as caught:
        fetch_file(archive, tmp_path / "w-0123.pth")
    (problem,) = caught.value.issues
    assert problem.where == archive.url and "broke off after 0 bytes: [Errno" in problem.what
    elsewhere = f"Without a connection, fetch it elsewhere and put it here as {tmp_path / 'w-0123.pth'}"
    assert problem.advice == f"The same command resumes it. {elsewhere}"


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "weights").touch()
    with pytest.raises(
        DataError, match=r"w\.pth  cannot be written: .*\n.*put http.*set\.tgz there yourself, as w\.pth"
    ):
        fetch_file(whole(server), tmp_path / "weights" / "w.pth")


def test_a_file_that_is_there_leaves_its_folder_as_it_is(server, tmp_path):
    (tmp_path / "w.pth").write_bytes(server.content)
    fetch_file(whole(server), tmp_path / "w.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"] and not server.ranges


def test_progress_is_a_line_per_tenth():
    lines: list[str] = []
    progress = progress_lines(lines.append)
    for have in range(0, 101):
        progress("url", have * MIB, 100 * MIB)
    assert len(lines) == 11 and lines[0] == "url  0 of 100 MiB" and lines[-1] == "url  100 of 100 MiB"
    progress("other", 350 * MIB, None)
    assert lines[-1] == "other  350 MiB"
