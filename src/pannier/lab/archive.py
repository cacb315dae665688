"""Debian's packages for bare machines: a server on the lab's bridge, in front of this host's mirror.

A machine's network ends at the bridge, so it installs packages from here, as a fresh host does from
its mirror. Only the archive is served. Packages are kept in the cache, beside the root file systems.

Started by :mod:`pannier.lab.mirror` as ``python -m pannier.lab.archive ADDRESS PORT MIRROR FOLDER``.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections import defaultdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_TIMEOUT_S = 60
_fetching: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """Answers for one archive."""

    protocol_version = "HTTP/1.1"

    def __init__(self, upstream: str, kept: Path, *args: Any) -> None:
        self._upstream = upstream.rstrip("/")
        self._kept = kept
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if ".." in path.split("/"):
            self.send_error(404)
            return
        try:
            # A package has its version in its name, so it can be kept; all else may change.
            if path.endswith(".deb"):
                content = self._package(path).read_bytes()
            else:
                with self._open(path) as answer:
                    content = answer.read()
        except urllib.error.HTTPError as error:
            self.send_error(error.code)
        except OSError as error:
            self.send_error(502, str(error)[:200])
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _package(self, path: str) -> Path:
        """The package's file; it gets its name only when it is whole."""
        file = self._kept / path.rpartition("/")[2]
        with _fetching[file]:
            if not file.exists():
                draft = file.with_name(f"{file.name}.{os.getpid()}.new")
                with self._open(path) as answer, draft.open("wb") as out:
                    shutil.copyfileobj(answer, out, 1 << 20)
                draft.replace(file)
        return file

    def _open(self, path: str) -> Any:
        return urllib.request.urlopen(self._upstream + path, timeout=_TIMEOUT_S)


def main(listen: str, port: str, upstream: str, folder: str) -> None:
    """Serve the archive at ``upstream``, for ever."""
    kept = Path(folder)
    kept.mkdir(parents=True, exist_ok=True)
    handler = partial(Handler, upstream, kept)
    ThreadingHTTPServer((listen, int(port)), handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
