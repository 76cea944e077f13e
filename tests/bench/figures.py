"""One function for each group of figures. Each returns rows: (figure, must, aim, measured, holds)."""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import time

from machine import Echo, Fleet, cpu_seconds, rss

BEAT = '{"status":"active","load":0.12,"uptime":86400}'


class Bench:
    """What all figures share."""

    def __init__(self, options, programs, folder, postgres, server):
        self.options, self.programs, self.folder = options, programs, pathlib.Path(folder)
        self.postgres, self.server = postgres, server
        self.key = server.call("POST", "/api/keys/generate", {"name": "bench"})["key"]

    def fleet(self, *flags, server=None, pid=None):
        watched = ("--pid", pid or self.server.process.pid)
        if server is None:
            watched += ("--pgdata", self.postgres.data)
        return Fleet(self.programs, server or self.server.url, "--api-key", self.key, *watched, *flags)

    def load(self, transport, *flags, **named):
        base = ("--transport", transport, "--agents", self.options.agents)
        return self.fleet(*base, "--duration", self.options.seconds, *flags, **named).report()


def row(figure, must, aim, value, text, lower_is_better=True):
    sign = "<=" if lower_is_better else ">="
    shown = lambda bound: "" if bound is None else f"{sign} {text(bound)}"
    if value is None:
        return (figure, shown(must), shown(aim), "not measured", "?")
    better = (lambda bound: value <= bound) if lower_is_better else (lambda bound: value >= bound)
    holds = "?" if must is None else "aim" if better(aim) else "must" if better(must) else "MISSED"
    return (figure, shown(must), shown(aim), text(value), holds)


micros = "{:.1f} us".format
percent = "{:.0f} %".format
per_second = "{:,.0f}/s".format
megabytes = lambda value: f"{value / 1e6:.1f} MB"
kilobytes = lambda value: f"{value / 1e3:.1f} kB"
seconds = "{:.2f} s".format


def registration(bench):
    """Registers the fleet; everything after works on it."""
    flags = ("--register", "--transport", "rest-heartbeat", "--agents", bench.options.agents, "--concurrency", 64)
    report = bench.fleet(*flags, "--duration", 1).report()
    rate = bench.options.agents / report["prepared_s"]
    return [row("registrations, 64 at a time", None, None, rate, per_second, False)]


def heartbeat(bench):
    """CPU of a heartbeat, and its rate beside a bare handler's, taken in turns."""
    bare = bench.load("rest-heartbeat")
    cpu = bare["server"]["cpu_us_per_event"]
    rows = [row("REST heartbeat, CPU of server + database", 25, 8, cpu, micros)]
    echo = Echo(bench.programs)
    ours, theirs = [], []
    for _ in range(3):
        theirs.append(bench.load("rest-heartbeat", "--no-agents", "--body", BEAT, server=echo.url,
                                 pid=echo.process.pid)["acked_per_s"])
        ours.append(bench.load("rest-heartbeat", "--body", BEAT)["acked_per_s"])
    echo.stop()
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    name = f"REST heartbeat throughput against echo ({ours:,.0f}/s of {theirs:,.0f}/s)"
    return rows + [row(name, 40, 75, ours / theirs * 100, percent, False)]


def action(bench):
    """CPU of an action that is on disk when it is answered."""
    rows = []
    for name, flags, bounds in (
        ("durable REST action, CPU of server + database", ("--unkeyed",), (90, 30)),
        ("  the same with an Idempotency-Key", (), (None, None)),
    ):
        report = bench.load("rest-action", *flags)
        cpu = report["server"]["cpu_us_per_event"]
        rows.append(row(f"{name} ({report['acked_per_s']:,.0f}/s)", *bounds, cpu, micros))
    return rows


def events(bench):
    """The most events per second over all streams: a frame a second from each, at rising rates."""
    best = None
    for rate in (6, 12, 20, 30):
        report = bench.load("grpc", "--rate", rate, "--concurrency", 256)
        print(f"  offered {rate * bench.options.agents:,}/s: acked {report['acked_per_s']:,.0f}/s, "
              f"p50 {report['p50_ms']} ms, p99 {report['p99_ms']} ms, "
              f"CPU {report['server']['cpu_us_per_event']:.1f} us")
        if best is None or report["acked_per_s"] > best["acked_per_s"]:
            best = report
    name = f"stream events, durable and acknowledged (p99 {best['p99_ms']:.0f} ms)"
    return [row(name, 50_000, 100_000, best["acked_per_s"], per_second, False)]


def memory(bench):
    """Resident memory with the fleet known, and what an idle connection or stream adds."""
    pid = lambda: bench.server.process.pid

    def known():
        bench.server.restart()
        bench.fleet("--transport", "rest-heartbeat", "--agents", bench.options.agents, "--duration", 3).report()
        time.sleep(3)
        return rss(pid())

    figures = [row(f"server RSS, {bench.options.agents:,} agents known", 40e6, 20e6, known(), megabytes)]
    for name, transport, must, aim in (
        ("per idle REST connection", "rest-idle", 10e3, 4.6e3),
        ("per idle stream", "grpc", 25e3, 12e3),
    ):
        known()
        flags = ("--transport", transport, "--agents", bench.options.agents, "--duration", 5)
        report = bench.fleet(*flags, "--concurrency", 64).report()
        if report["connected"] < bench.options.agents:
            print(f"  note: {report['connected']} of {bench.options.agents} connected at the end")
        figures.append(row(f"server RSS, {name}", must, aim, report["server"]["rss_per_stream"], kilobytes))
    return figures


def lists(bench):
    """A page of 100 agents out of few and out of many."""
    quantiles = []
    for count in (bench.options.agents, bench.options.many):
        have = int(bench.postgres.sql("SELECT count(*) FROM agents"))
        if count > have:
            bench.postgres.sql(BULK_AGENTS.format(count=count - have))
        bench.postgres.sql("VACUUM ANALYZE agents")
        runs = [bench.load("rest-list", "--connections", 2) for _ in range(3)]
        quantiles.append((count, statistics.median(run["p50_ms"] for run in runs),
                          statistics.median(run["p99_ms"] for run in runs)))
    few, many = quantiles
    shown = "; ".join(f"{count:,}: p50 {p50:.2f}, p99 {p99:.2f} ms" for count, p50, p99 in quantiles)
    # Noise: half as much again, or half a millisecond.
    holds = "must" if many[2] <= max(few[2] * 1.5, few[2] + 0.5) else "MISSED"
    return [("list of 100 agents out of so many", "equal within noise", "", shown, holds)]


# Copies of one row, each a microsecond older than the last.
BULK_AGENTS = """
INSERT INTO agents SELECT copy.* FROM (SELECT * FROM agents ORDER BY created_at LIMIT 1) a,
    generate_series(1, {count}) n,
    LATERAL jsonb_populate_record(NULL::agents, to_jsonb(a) || jsonb_build_object(
        'id', gen_random_uuid(), 'name', 'bulk-' || n, 'created_at', a.created_at - n * interval '1 microsecond')) copy
"""


def reconnect(bench):
    """The server is killed under a connected fleet and started again at once."""
    flags = ("--transport", "grpc", "--agents", bench.options.agents, "--rate", 0.2, "--batch", 1)
    count = "SELECT count(*) FROM agent_actions"
    before = int(bench.postgres.sql(count))
    fleet = bench.fleet(*flags, "--duration", 30, "--concurrency", 512)
    fleet.wait_connected()
    time.sleep(4)
    bench.server.stop(signal.SIGKILL)
    bench.server.start()
    report = fleet.report()
    stored = int(bench.postgres.sql(count)) - before
    same = "all" if stored == report["sent"] == report["acked_total"] else "NOT ALL"
    print(f"  sent {report['sent']:,}, acknowledged {report['acked_total']:,}, stored {stored:,}: {same} once")
    if report["connected"] < bench.options.agents:
        print(f"  note: {report['connected']} of {bench.options.agents} connected at the end")
    name = f"{bench.options.agents:,} streams back after a server kill"
    return [row(name, 30, 5, report["reconnect_s"], seconds)]


def daemon(bench):
    """A daemon with nothing to do."""
    program = bench.programs / "otonix-agent"
    state = bench.folder / "daemon"
    base = [program, "--state-dir", state]
    init = ["init", "--server", bench.server.url, "--api-key", bench.key, "--name", "bench-daemon"]
    done = subprocess.run(base + init, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"otonix-agent init: {done.stderr}")
    with open(bench.folder / "daemon.log", "wb") as log:
        process = subprocess.Popen(base + ["run"], stdout=log, stderr=log)
    try:
        time.sleep(15)
        wait, cpu = bench.options.idle, cpu_seconds(process.pid)
        time.sleep(wait)
        share = (cpu_seconds(process.pid) - cpu) / wait * 100
        figures = [
            row("idle daemon, RSS", 10 * 2**20, 6 * 2**20, rss(process.pid), lambda n: f"{n / 2**20:.1f} MiB"),
            row(f"idle daemon, CPU over {wait:.0f} s", 0.1, 0.05, share, "{:.3f} %".format),
        ]
    finally:
        process.terminate()
        process.wait(20)
    size = row("daemon, binary", 15 * 2**20, 15 * 2**20, program.stat().st_size, lambda n: f"{n / 2**20:.1f} MiB")
    return figures + [size]


def start(bench):
    """From the start of the process to the first 200 of /readyz, with the fleet in the database."""
    times = [bench.server.restart() for _ in range(5)]
    return [
        row("server, from start to ready", 2, 0.3, statistics.median(times), seconds),
        row("  the first start, on an empty database", None, None, bench.first_start, seconds),
    ]


def money(bench):
    """What payments cost, beside a local chain that mines at once; see tests/interop/bench.mjs and own.mjs."""
    here = pathlib.Path(__file__).resolve().parent.parent / "interop"
    subprocess.run([here / "setup"], check=True)
    quick = ["--count", "200"] if bench.options.quick else []

    def run(script, *flags):
        name = script.partition(".")[0]
        bench.postgres.sql(f"CREATE DATABASE {name}")
        database = bench.postgres.url.rsplit("/", 1)[0] + f"/{name}"
        command = ["node", here / script, "--database", database, *flags, *quick]
        env = os.environ | {"OTONIX_BIN_DIR": str(bench.programs)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"tests/interop/{script} failed")
        return json.loads(done.stdout.splitlines()[-1])

    told = run("own.mjs") | run("bench.mjs", "--seconds", str(bench.options.seconds))
    beside = told["official_paid_per_s"]
    beside = f" (official Express merchant: {beside:,.0f}/s)" if beside else ""
    millis = "{:.2f} ms".format
    return [
        row("unpaid request to complete 402", 10_000, 30_000, told["unpaid_per_s"], per_second, False),
        row(f"paid requests{beside}", 150, 400, told["paid_per_s"], per_second, False),
        row(f"server's own time per paid request, p50 (without {told['asking_ms']:.1f} ms of who asks)", 3, 1,
            told["server_own_ms"], millis),
        row("daemon's own time per payment, p50", 10, 3, told["daemon_own_ms"], millis),
        row("verification of a signed payment", 200, 80, told["verify_us"], micros),
        row("idle daemon with unlocked wallet, RSS", 12 * 2**20, 8 * 2**20, told["daemon_rss"],
            lambda n: f"{n / 2**20:.1f} MiB"),
    ]


ALL = {
    "registration": registration,
    "heartbeat": heartbeat,
    "action": action,
    "events": events,
    "memory": memory,
    "reconnect": reconnect,
    "start": start,
    "daemon": daemon,
    "lists": lists,
    "money": money,
}
