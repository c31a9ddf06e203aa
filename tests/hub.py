"""A hub on loopback that speaks the Hugging Face hub's API, as far as its own client asks it.

It has revisions, answers HEAD with ETag and commit, sends parts of a file (Range), cuts connections on request, keeps a
gated repository to those with a token, and takes commits, with large files by git-lfs.
"""

import base64
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"


class Hub:
    """The repositories: {id: {revision: {name: bytes}}}; an id of a data set begins with datasets/."""

    def __init__(self):
        self.repositories, self.objects = {}, {}
        self.gated, self.cut, self.requests = set(), {}, []
        """Ids that need the token; {name: bytes to send before the connection is cut, once}; what was asked."""

    def publish(self, id, folder, revision="main"):
        """Add the files of a folder; return the commit."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.commit(id, files, revision)

    def commit(self, id, files, revision="main"):
        commit = hashlib.sha1(json.dumps({n: oid(b) for n, b in files.items()}).encode()).hexdigest()
        self.repositories.setdefault(id, {}).update({revision: files, commit: files})
        return commit

    def commit_of(self, id, revision):
        files = self.repositories[id][revision]
        return next(name for name, held in self.repositories[id].items() if held is files and len(name) == 40)


def oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_PUT(self):
        self.do_GET()

    def do_POST(self):
        self.do_GET()

    def do_GET(self):
        hub, url = self.hub, urlsplit(self.path)
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(url.path).strip("/")
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if path == "api/repos/create":
            asked = json.loads(self.content)
            id = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            hub.repositories.setdefault(id, {}) or hub.commit(id, {})
            return self.say({"url": f"http://{self.headers['Host']}/{id}"})
        if path == "api/whoami-v2":
            return self.say({"name": "acme", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if path == "api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if path.startswith("objects/"):
            hub.objects[path.removeprefix("objects/")] = self.content
            return self.say({})
        known = sorted(hub.repositories, key=len, reverse=True)
        bare = path.removeprefix("api/").removeprefix("models/")
        id = next((id for id in known if bare.startswith((f"{id}/", f"{id}.git/")) or bare == id), None)
        if id is None:
            return self.refuse(401, "RepoNotFound", "Repository Not Found")
        if id in hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(403, "GatedRepo", f"Access to {id} is restricted")
        verb, *rest = (bare.removeprefix(id).strip("/") or "revision/main").split("/")
        if verb == ".git":
            return self.batch(id)
        revision, name = (rest or ["main"])[0], "/".join(rest[1:])
        if revision not in hub.repositories[id]:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        known = getattr(self, verb.replace("-", "_"), None)
        return known(id, revision, name, parse_qs(url.query)) if known else self.refuse(404, "NotFound", path)

    def revision(self, id, revision, name, query):
        files = self.hub.repositories[id][revision]
        entry = {"id": id.removeprefix("datasets/"), "sha": self.hub.commit_of(id, revision), "private": False}
        self.say({**entry, "siblings": [{"rfilename": n} for n in files], "tags": [], "downloads": 0, "likes": 0})

    def tree(self, id, revision, name, query):
        recursive = query.get("recursive", ["False"])[0].lower() == "true"
        files, under = self.hub.repositories[id][revision], f"{name}/" if name else ""
        found = [
            entry(n, b) for n, b in files.items() if n.startswith(under) and (recursive or "/" not in n[len(under) :])
        ]
        if not recursive:
            folders = {
                under + n[len(under) :].split("/")[0] for n in files if n.startswith(under) and "/" in n[len(under) :]
            }
            found += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        self.say(found) if found or not name else self.refuse(404, "EntryNotFound", name)

    def paths_info(self, id, revision, name, query):
        files = self.hub.repositories[id][revision]
        if "json" in (self.headers.get("Content-Type") or ""):
            asked = json.loads(self.content)["paths"]
        else:
            asked = parse_qs(self.content.decode())["paths"]
        folders = {"/".join(n.split("/")[:i]) for n in files for i in range(1, n.count("/") + 1)}
        found = [entry(n, files[n]) for n in asked if n in files]
        self.say(found + [{"type": "directory", "path": n, "oid": "0" * 40, "size": 0} for n in asked if n in folders])

    def resolve(self, id, revision, name, query):
        files = self.hub.repositories[id][revision]
        if name not in files:
            return self.refuse(404, "EntryNotFound", name)
        content, whole = files[name], self.headers.get("Range")
        first, _, last = (whole or "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if whole else 200)
        if whole:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        for header in (("ETag", f'"{oid(content)}"'), ("X-Repo-Commit", self.hub.commit_of(id, revision))):
            self.send_header(*header)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            at = self.hub.cut.pop(name, None)
            self.wfile.write(part[:at])
            if at is not None:
                self.close_connection = True

    def preupload(self, id, revision, name, query):
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False, "oid": None} for f in json.loads(self.content)["files"]
        ]  # fmt: skip
        self.say({"files": modes})

    def batch(self, id):
        place = f"http://{self.headers['Host']}/objects/"
        objects = json.loads(self.content)["objects"]
        uploads = [{**o, "actions": {"upload": {"href": place + o["oid"], "header": {}}}} for o in objects]
        self.say({"transfer": "basic", "objects": uploads})

    def commit(self, id, revision, name, query):
        files = dict(self.hub.repositories[id][revision])
        for line in filter(None, self.content.decode().splitlines()):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        made = self.hub.commit(id, files, revision)
        self.say({"commitUrl": f"http://{self.headers['Host']}/{id}/commit/{made}", "commitOid": made, "success": True})

    def say(self, value, status=200, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        for header in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, why):
        self.say({"error": why}, status, [("X-Error-Code", code), ("X-Error-Message", why)])


def entry(name, content):
    return {"type": "file", "path": name, "size": len(content), "oid": oid(content)}


@contextmanager
def loopback():
    """Yield (hub, its address) while it serves."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
