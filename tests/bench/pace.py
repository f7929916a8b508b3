#!/usr/bin/env python3
"""Whether the allowed rate is kept and used: a run of more than 60 s at 50 requests a second, judged by the stand-in's ledger.

    cargo build --release --workspace && python3 tests/bench/pace.py

Ends with 1 when a second holds more than 50 requests, or one from the 3rd to the last full one fewer than 47. Wants a quiet
machine: beside other work a request or two slip from one second to the next.
"""
import bisect, collections, json, os, pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("PROGRAMS", ROOT / "target" / "release"))
LIMIT, LEAST = 50, 47


def main():
    with tempfile.TemporaryDirectory() as folder:
        ledger = pathlib.Path(folder, "ledger")
        server = subprocess.Popen(
            [PROGRAMS / "dhis2-stand-in", "--org-units", "16000", "--ledger", ledger], stdout=subprocess.PIPE, text=True)
        url = server.stdout.readline().strip()
        pathlib.Path(folder, "job.toml").write_text(
            'version = 1\n[source]\nurl = "%s"\nusername = "admin"\npassword = { env = "PW" }\n'
            '[limits]\nrequests_per_second = %d\n'
            '[[extract]]\nkind = "metadata"\ncollections = ["organisationUnits"]\npage_size = 5\n'
            '[sink]\nkind = "files"\ndirectory = "out"\n' % (url, LIMIT))
        code = subprocess.call(
            [PROGRAMS / "harvester", "run", "job.toml", "-q"], cwd=folder,
            env={"PW": "district", "STATE_DIRECTORY": folder + "/state"})
        server.kill()
        arrivals = sorted(json.loads(line)["at_ms"] for line in open(ledger) if '"arrived"' in line)
    most = max(bisect.bisect_left(arrivals, at + 1000) - place for place, at in enumerate(arrivals))
    seconds = collections.Counter((at - arrivals[0]) // 1000 for at in arrivals)
    full = [seconds[second] for second in range(2, max(seconds))]
    print("%d requests in %d s, exit %d: at most %d in any second; from the 3rd to the last full second %d to %d, mean %.2f"
          % (len(arrivals), max(seconds) + 1, code, most, min(full), max(full), sum(full) / len(full)))
    sys.exit(code or most > LIMIT or min(full) < LEAST)


main()
