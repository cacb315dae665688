"""The lab's archive server, in front of a mirror that is a folder."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pannier.lab.archive import Handler


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    (folder / "pool").mkdir(parents=True)
    (folder / "pool/a_1.deb").write_bytes(b"package")
    (folder / "InRelease").write_bytes(b"first")
    return folder


@pytest.fixture
def archive(mirror: Path, tmp_path: Path) -> Iterator[str]:
    kept = tmp_path / "kept"
    kept.mkdir()
    with (
        serving(partial(SimpleHTTPRequestHandler, directory=str(mirror))) as upstream,
        serving(partial(Handler, f"{upstream}/", kept)) as address,
    ):
        yield address


def read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def test_packages_are_kept_and_lists_are_not(archive: str, mirror: Path) -> None:
    assert read(f"{archive}/pool/a_1.deb") == b"package"
    assert read(f"{archive}/InRelease") == b"first"
    (mirror / "pool/a_1.deb").unlink()
    (mirror / "InRelease").write_bytes(b"second")
    assert read(f"{archive}/pool/a_1.deb") == b"package"
    assert read(f"{archive}/InRelease") == b"second"


@pytest.mark.parametrize("path", ["pool/b_1.deb", "nothing", "../secret", "a/../../x.deb"])
def test_what_is_not_in_the_archive_is_not_there(archive: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        read(f"{archive}/{path}")
    assert refused.value.code == 404


def test_a_mirror_that_is_away_is_said_so(tmp_path: Path) -> None:
    with (
        serving(partial(Handler, "http://127.0.0.1:1", tmp_path)) as address,
        pytest.raises(urllib.error.HTTPError) as refused,
    ):
        read(f"{address}/pool/a_1.deb")
    assert refused.value.code == 502
    assert list(tmp_path.iterdir()) == []
