#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ask a running platterd and hold every answer to docs/openapi.json: status listed, required members there, types
right, no member that the file does not know. Usage: openapi_check.py OPENAPI.json SOCKET"""
import http.client
import json
import socket
import sys

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("platter", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


def resolve(document, node):
    while "$ref" in node:
        target = document
        for part in node["$ref"].lstrip("#/").split("/"):
            target = target[part]
        node = target
    return node


def check(document, schema, value, where, closed=True):
    schema = resolve(document, schema)
    wanted = schema.get("type")
    if wanted:
        good = isinstance(value, TYPES[wanted]) and not (wanted in ("integer", "number") and isinstance(value, bool))
        assert good, f"{where}: {value!r} is no {wanted}"
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if "minimum" in schema:
        assert value >= schema["minimum"], f"{where}: {value!r} is too small"
    if "maxProperties" in schema:
        assert len(value) <= schema["maxProperties"], f"{where}: too many members"
    for name in schema.get("required", []):
        assert name in value, f"{where}: '{name}' is missing in {value}"
    properties = schema.get("properties")
    if properties is not None and isinstance(value, dict):
        for name, member in value.items():
            assert name in properties, f"{where}: '{name}' is not described"
            check(document, properties[name], member, f"{where}.{name}")
    if wanted == "array":
        for index, item in enumerate(value):
            check(document, schema["items"], item, f"{where}[{index}]")


class Checker:
    def __init__(self, document, path):
        self.document = document
        self.connection = Connection(path)
        self.called = set()

    def __call__(self, method, pattern, expect, body=None, query="", **names):
        path = pattern
        for name, value in names.items():
            path = path.replace("{" + name + "}", value)
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path + query, text)
        answer = self.connection.getresponse()
        data = answer.read()
        where = f"{method} {path}{query}"
        assert answer.status == expect, f"{where}: {answer.status} instead of {expect}: {data[:300]}"
        operation = self.document["paths"][pattern][method.lower()]
        self.called.add((method, pattern))
        response = resolve(self.document, operation["responses"][str(answer.status)])
        (kind, content), = response["content"].items()
        assert answer.headers["Content-Type"].split(";")[0] == kind, f"{where}: {answer.headers['Content-Type']}"
        if kind == "application/x-ndjson":
            lines = [json.loads(line) for line in data.splitlines() if line]
            for line in lines:
                check(self.document, content["schema"], line, where)
            return lines
        if kind == "text/plain":
            return data.decode()
        value = json.loads(data)
        check(self.document, content["schema"], value, where)
        return value


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        document = json.load(file)
    ask = Checker(document, sys.argv[2])
    ask("GET", "/healthz", 200)
    ask("GET", "/v1", 200)
    ask("GET", "/v1/pools", 200)
    pool = ask("GET", "/v1/pools/{pool}", 200, pool="default")
    ask("POST", "/v1/pools", 200, {"name": "default", "kind": "dir", "path": pool["path"]})
    ask("DELETE", "/v1/pools/{pool}", 404, pool="none")

    spec = {"name": "db", "size": 8 << 20, "format": "qcow2", "filesystem": "none"}
    ask("POST", "/v1/volumes", 201, spec, "?wait=60")
    ask("POST", "/v1/volumes", 200, spec, "?wait=60")
    ask("POST", "/v1/volumes", 409, dict(spec, size=16 << 20), "?wait=60")
    job = ask("POST", "/v1/volumes", 202, {"name": "other", "size": 1 << 20, "format": "raw"})
    ended = ask("GET", "/v1/jobs/{job}", 200, query="?wait=60", job=job["id"])
    assert ended["state"] == "succeeded", ended
    ask("GET", "/v1/volumes", 200)
    page = ask("GET", "/v1/volumes", 200, query="?limit=1")
    assert len(page["volumes"]) == 1 and page["next"] == "db", page
    page = ask("GET", "/v1/volumes", 200, query="?limit=1&after=db")
    assert [volume["name"] for volume in page["volumes"]] == ["other"], page
    volume = ask("GET", "/v1/volumes/{volume}", 200, volume="db")
    ask("GET", "/v1/volumes/{volume}", 200, volume=volume["id"])
    grown = ask("POST", "/v1/volumes/{volume}/resize", 200, {"size": 16 << 20}, "?wait=60", volume="db")
    assert grown["size"] == 16 << 20, grown
    ask("POST", "/v1/volumes/{volume}/resize", 422, {"size": 8 << 20}, "?wait=60", volume="db")
    ask("POST", "/v1/volumes/{volume}/check", 200, {"repair": True}, "?wait=60", volume="db")
    ask("POST", "/v1/volumes/{volume}/compact", 200, None, "?wait=60", volume="db")
    ask("POST", "/v1/volumes/{volume}/compact", 404, volume="none")
    ask("POST", "/v1/volumes/{volume}/check", 400, {"repair": "yes"}, volume="db")
    ask("POST", "/v1/volumes/{volume}/export", 409, {"target": "/dev/null", "format": "raw"}, "?wait=60", volume="db")
    ask("POST", "/v1/volumes/import", 404, {"name": "im", "source": "/nonexistent/x", "source_format": "raw"},
        "?wait=60")
    snapshot = ask("POST", "/v1/snapshots", 201, {"name": "db@one"}, "?wait=60")
    assert snapshot["consistency"] == "detached", snapshot
    ask("POST", "/v1/snapshots", 200, {"name": "db@one"}, "?wait=60")
    ask("POST", "/v1/snapshots", 400, {"name": "db"})
    ask("POST", "/v1/snapshots", 404, {"name": "none@one"})
    ask("POST", "/v1/snapshots", 201, {"name": "db@two"}, "?wait=60")
    page = ask("GET", "/v1/snapshots", 200, query="?limit=1&volume=db")
    assert [s["name"] for s in page["snapshots"]] == ["db@one"], page
    page = ask("GET", "/v1/snapshots", 200, query="?after=" + page["next"])
    assert [s["name"] for s in page["snapshots"]] == ["db@two"], page
    ask("GET", "/v1/snapshots/{snapshot}", 200, snapshot="db@two")
    ask("GET", "/v1/snapshots/{snapshot}", 200, snapshot=snapshot["id"])
    ask("GET", "/v1/snapshots/{snapshot}", 404, snapshot="db@none")
    names = {"names": ["db@both", "other@both"]}
    group = ask("POST", "/v1/snapshots/group", 201, names, "?wait=60")
    assert [s["group"] for s in group["snapshots"]] == [group["group"]] * 2, group
    assert ask("POST", "/v1/snapshots/group", 200, names, "?wait=60")["group"] == group["group"]
    ask("POST", "/v1/snapshots/group", 409, {"names": ["db@both", "other@more"]})
    ask("POST", "/v1/snapshots/group", 400, {"names": ["db@a", "db@b"]})
    ask("POST", "/v1/snapshots/group", 400, {"names": [1]})
    ask("POST", "/v1/snapshots/group", 404, {"names": ["db@a", "none@a"]})
    for name in names["names"]:
        ask("DELETE", "/v1/snapshots/{snapshot}", 200, query="?wait=60", snapshot=name)
    found = ask("GET", "/v1/snapshots/{snapshot}/allocated", 200, snapshot="db@two")
    assert found["ranges"] == [] and found["size"] == 16 << 20 and "next" not in found, found
    ask("GET", "/v1/snapshots/{snapshot}/changed", 200, query="?since=one&offset=4096&limit=1", snapshot="db@two")
    ask("GET", "/v1/snapshots/{snapshot}/changed", 200, query="?since=db@two", snapshot="db@two")
    ask("GET", "/v1/snapshots/{snapshot}/changed", 400, snapshot="db@two")
    ask("GET", "/v1/snapshots/{snapshot}/changed", 422, query="?since=two", snapshot="db@one")
    ask("GET", "/v1/snapshots/{snapshot}/changed", 404, query="?since=none", snapshot="db@two")
    ask("POST", "/v1/volumes/clone", 201, {"name": "twin", "snapshot": "db@one", "size": 32 << 20}, "?wait=60")
    ask("POST", "/v1/volumes/clone", 400, {"name": "less", "snapshot": "db@one", "size": 4096})
    ask("POST", "/v1/volumes/{volume}/restore", 200, {"snapshot": "one"}, "?wait=60", volume="db")
    ask("DELETE", "/v1/volumes/{volume}", 409, query="?wait=60", volume="db")
    ask("DELETE", "/v1/snapshots/{snapshot}", 200, query="?wait=60", snapshot="db@one")
    ask("DELETE", "/v1/snapshots/{snapshot}", 404, query="?wait=60", snapshot="db@one")
    ask("DELETE", "/v1/volumes/{volume}", 200, query="?wait=60", volume="twin")
    ask("GET", "/v1/attachments", 200)
    ask("GET", "/v1/attachments/{attachment}", 404, attachment="att-0")
    ask("POST", "/v1/attachments", 404, {"volume": "none", "kind": "device"}, "?wait=60")
    ask("DELETE", "/v1/attachments/{attachment}", 404, attachment="att-0")
    ask("GET", "/v1/jobs", 200)
    ask("GET", "/v1/jobs", 200, query="?state=active")
    ask("POST", "/v1/jobs/{job}/cancel", 409, job=job["id"])
    ask("DELETE", "/v1/volumes/{volume}", 200, query="?wait=60&snapshots=1", volume="db")
    ask("DELETE", "/v1/volumes/{volume}", 404, query="?wait=60", volume="db")
    assert ask("GET", "/v1/events", 200)
    ask("GET", "/v1/orphans", 200)
    assert 'platter_volumes{state="available"} 1\n' in ask("GET", "/metrics", 200)

    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    missed = described - ask.called
    assert not missed, f"never asked: {missed}"


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit(f"openapi: {error}")
