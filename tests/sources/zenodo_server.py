"""A stand-in for Zenodo on this machine: its answers, and its bad days."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Zenodo:
    """One record. ``asked`` holds (path, Range header, status, bytes sent) of every request."""

    def __init__(self, files: dict[str, bytes], record: str = "8199165"):
        self.files, self.record = dict(files), record
        self.stated = {}  # key -> checksum to state instead of the true one
        self.ranges = True  # whether Range requests are served
        self.cuts = []  # bytes after which to close the next connections of files
        self.list_cuts = []  # the same, of lists of files
        self.refusals = []  # (status, headers) to answer first
        self.damaged = []  # for each of the next files served, whether a byte is wrong
        self.pause = 0.0  # s between blocks of 16 KiB
        self.asked, self.agents = [], set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.api = f"http://127.0.0.1:{self.server.server_address[1]}/api"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def sent(self, key: str) -> int:
        """Bytes of a file that went out, over all requests."""
        return sum(n for path, _, _, n in self.asked if path.endswith(f"/{key}/content"))

    def entries(self) -> list[dict]:
        home = f"{self.api}/records/{self.record}/files"
        return [
            {
                "key": key,
                "size": len(content),
                "checksum": self.stated.get(key, f"md5:{hashlib.md5(content).hexdigest()}"),
                "links": {"self": f"{home}/{key}/content"},
            }
            for key, content in self.files.items()
        ]

    def body(self, path: str) -> dict | None:
        """The record's description, at its address."""
        if path == f"/api/records/{self.record}":
            return {"id": int(self.record), "files": self.entries()}
        return None

    def answer(self, request):
        self.agents.add(request.headers.get("User-Agent"))
        path = unquote(request.path)
        body = self.body(path)
        key = path.removesuffix("/content").rsplit("/", 1)[-1]
        content = json.dumps(body).encode() if body else self.files.get(key)
        asked, status, start, headers = request.headers.get("Range"), 200, 0, {}
        if self.refusals:
            (status, headers), content = self.refusals.pop(0), b""
        elif content is None:
            status, content = 404, b""
        elif asked and self.ranges and not body:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            status, total = (206, len(content)) if start < len(content) else (416, len(content))
            span = f"{start}-{total - 1}" if status == 206 else "*"
            headers = {"Content-Range": f"bytes {span}/{total}"}
            content = content[start:] if status == 206 else b""
        if not body and status < 300 and self.damaged and self.damaged.pop(0):
            content = content[:-1] + bytes([content[-1] ^ 255])
        entry = [path, asked, status, 0]
        self.asked.append(entry)
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        cuts = self.list_cuts if body else self.cuts
        end = cuts.pop(0) if status < 300 and cuts else len(content)
        try:
            for at in range(0, min(end, len(content)), 1 << 14):
                block = content[at : min(at + (1 << 14), end)]
                entry[3] += len(block)  # before: the client may be done before this thread goes on
                request.wfile.write(block)
                time.sleep(self.pause)
        except OSError:  # the client is gone
            pass
        request.close_connection = True
