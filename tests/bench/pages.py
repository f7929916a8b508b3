#!/usr/bin/env python3
"""What a harvest costs: CPU and memory of whole processes, next to `curl` fetching the same urls.

    cargo build --release && python3 tests/bench/pages.py [PAGES [RUNS]]

A page server with prebuilt bodies (1,000 organisation units of about 400 bytes each) answers `system/info`, `me` and
lists with `filter=id:gt:<id>`, by a map from the last id of a page to the body behind it. Prints medians.
"""
import http.server, json, os, pathlib, re, shutil, socketserver, statistics, subprocess, sys, tempfile, threading, urllib.parse

SERVES = sys.argv[1:2] == ["--serve"]
NUMBERS = [int(text) for text in sys.argv[2 if SERVES else 1:]]
PAGES = NUMBERS[0] if NUMBERS else 200
RUNS = NUMBERS[1] if len(NUMBERS) > 1 else 5
ROWS = 1000
ROOT = pathlib.Path(__file__).resolve().parents[2]
HARVESTER = os.environ.get("HARVESTER", ROOT / "target" / "release" / "harvester")


def row(number):
    return json.dumps({
        "id": "B%010d" % number, "name": "Unité de santé n° %d \"Nord\"" % number, "shortName": "US %d" % number,
        "code": "OU_%d" % number, "path": "/ImspTQPwCqd/O6uvpzGd5pu/B%010d" % number, "level": 3,
        "openingDate": "1990-02-01T00:00:00.000", "lastUpdated": "2024-03-01T08:00:00.123",
        "created": "2012-11-13T12:20:53.028", "parent": {"id": "O6uvpzGd5pu"},
        "geometry": {"type": "Point", "coordinates": [-11.4197, 8.1039]}, "translations": [],
    }, ensure_ascii=False)


BODIES = {}


def build():
    total = PAGES * ROWS
    last = ""
    for page in range(PAGES):
        rows = [row(number) for number in range(page * ROWS, (page + 1) * ROWS)]
        pager = {"page": 1, "pageCount": PAGES - page, "total": total - page * ROWS, "pageSize": ROWS}
        text = '{"pager":%s,"organisationUnits":[%s]}' % (json.dumps(pager), ",".join(rows))
        BODIES[last] = text.encode()
        last = "B%010d" % ((page + 1) * ROWS - 1)
    BODIES[last] = b'{"pager":{"page":1,"pageCount":0,"total":0,"pageSize":1000},"organisationUnits":[]}'


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.endswith("/system/info"):
            body = b'{"version":"2.40.1","systemId":"b0a1","serverDate":"2024-05-01T10:11:12.345"}'
        elif path.endswith("/me"):
            body = b'{"id":"abcdefghijk","username":"admin","authorities":["ALL"]}'
        else:
            after = [f[6:] for f in urllib.parse.parse_qs(query).get("filter", []) if f.startswith("id:gt:")]
            body = BODIES.get(after[0] if after else "", b"")
        self.send_response(200)
        self.send_header("Content-Type", "application/json;charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


def last_ids():
    return [""] + ["B%010d" % ((page + 1) * ROWS - 1) for page in range(PAGES)]


def serve():
    build()
    server = Server(("127.0.0.1", 0), Pages)
    print(server.server_port, sum(map(len, BODIES.values())), flush=True)
    server.serve_forever()


def measured(command, **options):
    process = subprocess.Popen(command, **options)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("%s ended with %s" % (command[0], os.waitstatus_to_exitcode(status)))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    # A process of its own: the memory of this one would count as that of its children until they begin.
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(PAGES)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port, size = map(int, server.stdout.readline().split())
    url = "http://127.0.0.1:%d" % port
    megabytes = size / 1e6
    results = {"harvester": [], "curl": []}
    with tempfile.TemporaryDirectory() as folder:
        job = pathlib.Path(folder, "job.toml")
        job.write_text(
            'version = 1\n[source]\nurl = "%s"\nusername = "admin"\npassword = { env = "PW" }\n'
            '[limits]\nrequests_per_second = 10000\n'
            '[[extract]]\nkind = "metadata"\ncollections = ["organisationUnits"]\n'
            '[sink]\nkind = "files"\ndirectory = "out"\n' % url)
        urls = "".join(
            'url = "%s/api/organisationUnits?filter=id:gt:%s"\noutput = "page"\n' % (url, last) for last in last_ids())
        config = pathlib.Path(folder, "curl.txt")
        config.write_text(urls)
        for _ in range(RUNS):
            shutil.rmtree(pathlib.Path(folder, "state"), ignore_errors=True)
            shutil.rmtree(pathlib.Path(folder, "out"), ignore_errors=True)
            results["harvester"].append(measured(
                [str(HARVESTER), "run", "job.toml", "-q"], cwd=folder, stdout=subprocess.DEVNULL,
                env={"PW": "x", "STATE_DIRECTORY": folder + "/state"}))
            results["curl"].append(measured(["curl", "-s", "-K", str(config)], cwd=folder))
        manifest = json.loads(pathlib.Path(folder, "out", "manifest.json").read_text())
        assert manifest["streams"]["organisationUnits"]["rows"] == PAGES * ROWS, manifest
    print("%d pages of %d rows, %.1f MB, medians of %d runs" % (PAGES, ROWS, megabytes, RUNS))
    medians = {}
    for name, figures in results.items():
        cpu, rss = (statistics.median(column) for column in zip(*figures))
        medians[name] = cpu
        print("%-10s CPU %.3f s (%.2f us/row)  peak RSS %.1f MiB" % (name, cpu, cpu * 1e6 / PAGES / ROWS, rss))
    print("CPU of harvester / curl: %.1f" % (medians["harvester"] / medians["curl"]))
    server.kill()


serve() if SERVES else main()
