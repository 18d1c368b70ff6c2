"""A stand-in for the Hugging Face hub on loopback: one dataset repository, and the ways in which a hub can fail.

It answers the requests that `datasets.load_dataset(..., streaming=True)` makes (datasets 5.2 and huggingface_hub 2.4
were observed): HEAD and GET of resolve/<revision>/<file> with Range, /api/datasets/<repo>[/revision/<r>], its tree, and
paths-info. Modes: "fine"; "silent" accepts and never answers; after `budget` bytes of parquet files, "dies" closes the
connection in the middle of the body, and all later ones at once, and "stalls" keeps it open and sends nothing more.
"""

import hashlib
import io
import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = hashlib.sha1(b"stand-in").hexdigest()
REPO = "HuggingFaceFW/fineweb"
README = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
A stand-in with FineWeb's configurations and columns.
"""


def parquet(texts: list[str]) -> bytes:
    """A file of FineWeb's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, sink = len(texts), io.BytesIO()
    columns = {"text": texts, "id": [str(i) for i in range(n)]}
    columns |= {name: ["-"] * n for name in ("dump", "url", "date", "file_path", "language")}
    columns |= {"language_score": [0.9] * n, "token_count": [300] * n}
    pq.write_table(pa.table(columns), sink, row_group_size=200, compression="none")
    return sink.getvalue()


def fineweb_files(shards: list[list[str]]) -> dict[str, bytes]:
    """A repository with these texts in its configuration sample-10BT, a file each."""
    files = {"README.md": README, "data/CC-MAIN/000_00000.parquet": parquet(["not this one"])}
    for i, texts in enumerate(shards):
        files[f"sample/10BT/{i:03d}_00000.parquet"] = parquet(texts)
    return files


class Hub:
    """with Hub("me/texts", {"README.md": b"...", "data/0.parquet": b"..."}) as hub: hub.url, hub.requests"""

    def __init__(self, repo: str, files: dict[str, bytes], mode: str = "fine", budget: int = 0):
        self.repo, self.files, self.mode, self.budget = repo, files, mode, budget
        self.requests, self.served, self.died = [], 0, False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.mode = "closed"
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def answer(self):
        hub, url = self.hub, urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        self.wait_while("silent")
        if hub.mode == "dies" and hub.died:
            self.close_connection = True
            return
        path = urllib.parse.unquote(url.path)
        resolve, api = f"/datasets/{hub.repo}/resolve/", f"/api/datasets/{hub.repo}"
        if path.startswith(resolve):
            self.send_file(path.removeprefix(resolve).partition("/")[2])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in hub.files]
            self.send_json({"id": hub.repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                            "siblings": siblings})  # fmt: skip
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            recursive = urllib.parse.parse_qs(url.query).get("recursive", [""])[0].lower() in ("true", "1")
            self.send_tree(folder, recursive)
        elif path.startswith(f"{api}/paths-info/"):
            form = urllib.parse.parse_qs(body.decode())
            paths = form.get("paths") or json.loads(body).get("paths", [])
            entries = [self.entry(p) for p in paths]
            self.send_json([entry for entry in entries if entry])
        elif path == "/":
            self.send_json({})
        else:
            self.send_json({"error": "Not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD = do_POST = answer

    def entry(self, path: str) -> dict | None:
        if path in self.hub.files:
            raw = self.hub.files[path]
            return {"type": "file", "path": path, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
        if any(name.startswith(path + "/") for name in self.hub.files):
            return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        return None

    def send_tree(self, folder: str, recursive: bool):
        inside = [name for name in self.hub.files if not folder or name.startswith(folder + "/")]
        if folder and not inside:
            return self.send_json({"error": "Not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        paths = set(inside)
        for name in inside:
            parts = name.split("/")
            paths |= {"/".join(parts[:i]) for i in range(1, len(parts))}
        depth = len(folder.split("/")) if folder else 0
        paths = {p for p in paths if p != folder and not folder.startswith(p + "/")}
        if not recursive:
            paths = {p for p in paths if len(p.split("/")) == depth + 1}
        self.send_json([self.entry(p) for p in sorted(paths)])

    def send_json(self, value, status: int = 200, headers: dict | None = None):
        raw = json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json", "Content-Length": len(raw)} | (headers or {})).items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def send_file(self, name: str):
        hub = self.hub
        if name not in hub.files:
            return self.send_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        raw = whole = hub.files[name]
        status, span = 200, self.headers.get("Range")
        headers = {"ETag": f'"{hashlib.sha1(raw).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if span and self.command == "GET":
            first, _, last = span.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or len(whole) - 1), len(whole) - 1)
            raw, status = whole[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(whole)}"
        self.send_response(status)
        for key, text in (headers | {"Content-Length": len(raw)}).items():
            self.send_header(key, str(text))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.mode in ("dies", "stalls") and name.endswith(".parquet") and hub.served + len(raw) > hub.budget:
            raw, hub.died, self.close_connection = raw[: hub.budget - hub.served], True, True
        self.wfile.write(raw)
        hub.served += len(raw) if name.endswith(".parquet") else 0
        if hub.died:
            self.wait_while("stalls")

    def wait_while(self, mode: str):
        while self.hub.mode == mode:
            time.sleep(0.02)

    def log_message(self, *args):
        pass
