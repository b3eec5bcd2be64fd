"""A hub on this machine: as much of the real one's HTTP interface as listing and downloading a dataset needs.

Large files are in "LFS": the listing has their SHA-256, and their address redirects to another one that knows ranges.
Faults can be set per file: other content than is listed, a connection that breaks, an address that is gone.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

PAGE = 3
"""Entries of a listing's page; the real hub has 1,000."""


def commit_of(files):
    return hashlib.sha1(b"".join(path.encode() + data for path, data in sorted(files.items()))).hexdigest()


class FakeHub:
    def __init__(self):
        self.repos = {}  # owner/name -> {revision or commit -> {path: bytes}}
        self.served = {}  # path -> bytes sent instead of the listed ones
        self.breaks = {}  # path -> list of byte counts after which the connection breaks, one a request
        self.requests = []  # (path in the repository, first byte asked for)
        self.gated = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # a client that stopped
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repo, files, revision="main"):
        commit = commit_of(files)
        self.repos.setdefault(repo, {}).update({revision: (commit, files), commit: (commit, files)})
        return commit

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def find(self, repo, revision):
        """(commit, files), or the hub's error code."""
        if repo not in self.repos:
            return None, "RepoNotFound"
        if repo in self.gated:
            return None, "GatedRepo"
        if revision not in self.repos[repo]:
            return None, "RevisionNotFound"
        return self.repos[repo][revision], None

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def log_message(self, *args):
                pass

            def send(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def refuse(self, code):
                status = 403 if code == "GatedRepo" else 404
                self.send(status, b"{}", X_Error_Code=code, X_Error_Message=code)

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                url = urlparse(self.path)
                parts = unquote(url.path).strip("/").split("/")
                if parts[:2] == ["api", "datasets"]:
                    self.api("/".join(parts[2:4]), parts[4] if len(parts) > 4 else "revision", parts[5:], url)
                elif parts[0] == "datasets":
                    self.resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
                elif parts[0] == "cdn":
                    self.content("/".join(parts[2:]), parts[1])
                else:
                    self.send(404)

            def api(self, repo, what, rest, url):
                found, error = hub.find(repo, rest[0] if rest else "main")
                if error:
                    self.refuse(error)
                    return
                commit, files = found
                if what == "revision":
                    self.send(200, json.dumps({"id": repo, "sha": commit, "siblings": []}).encode())
                    return
                start = int(parse_qs(url.query).get("cursor", ["0"])[0])
                entries = sorted(files)
                page = [self.entry(path, files[path]) for path in entries[start : start + PAGE]]
                if start == 0:
                    page.append({"type": "directory", "path": "datasets", "oid": "0" * 40, "size": 0})
                more = {}
                if start + PAGE < len(entries):
                    more["Link"] = f'<{hub.endpoint}{url.path}?recursive=true&cursor={start + PAGE}>; rel="next"'
                self.send(200, json.dumps(page).encode(), **more)

            def entry(self, path, data):
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
                if not path.endswith(".json"):
                    entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 133}
                return entry

            def resolve(self, repo, revision, path):
                found, error = hub.find(repo, revision)
                if error:
                    self.refuse(error)
                    return
                commit, files = found
                if path not in files:
                    self.refuse("EntryNotFound")
                elif path.endswith(".json"):
                    self.content(path, revision, commit=commit, data=files[path])
                else:
                    digest = hashlib.sha256(files[path]).hexdigest()
                    self.send(
                        302, Location=f"{hub.endpoint}/cdn/{commit}/{path}", X_Repo_Commit=commit,
                        X_Linked_Etag=f'"{digest}"', X_Linked_Size=len(files[path]),
                    )  # fmt: skip

            def content(self, path, revision, commit="", data=None):
                if data is None:
                    data = next(
                        f[path] for c, f in (v for r in hub.repos.values() for v in r.values()) if c == revision
                    )
                data = hub.served.get(path, data)
                first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
                hub.requests.append((path, first))
                if first > len(data):
                    self.send(416)
                    return
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Content-Length", str(len(data) - first))
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", commit)
                self.end_headers()
                if hub.breaks.get(path):
                    self.wfile.write(data[first : first + hub.breaks[path].pop(0)])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(2)
                else:
                    self.wfile.write(data[first:])

        return Handler
