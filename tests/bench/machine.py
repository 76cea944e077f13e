"""The machine and what runs on it: the disk, PostgreSQL, the servers, the fleet."""

import contextlib
import glob
import json
import os
import pathlib
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

PAGE = os.sysconf("SC_PAGE_SIZE")


def fdatasync_rate(folder, seconds=2.0):
    """Syncs of a 4 KiB append per second, and their median and 99th percentile in milliseconds."""
    path = pathlib.Path(folder, "fdatasync.probe")
    times = []
    with open(path, "wb", buffering=0) as file:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            file.write(b"x" * 4096)
            start = time.monotonic()
            os.fdatasync(file.fileno())
            times.append(time.monotonic() - start)
    path.unlink()
    times.sort()
    quantile = lambda share: times[int(len(times) * share)] * 1000
    return {"per_s": len(times) / seconds, "p50_ms": quantile(0.5), "p99_ms": quantile(0.99)}


def free_port():
    """Below the range from which the kernel serves whoever asks for any port."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def rss(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Postgres:
    """A PostgreSQL of its own with the defaults of initdb: fsync and synchronous_commit are on."""

    def __init__(self, folder, bin_dir=None):
        self.bin = pathlib.Path(bin_dir or self._newest())
        self.data = pathlib.Path(folder, "pgdata")
        self.port = free_port()
        self.user = self._unprivileged() if os.geteuid() == 0 else None
        self.data.mkdir()
        if self.user:
            shutil.chown(self.data, self.user)
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        log = self.data / "server.log"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", log, "-o", options, "start")
        self.sql("CREATE DATABASE otonix", database="postgres")

    @staticmethod
    def _newest():
        found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
        found.sort(key=lambda path: int(re.search(r"/(\d+)/bin", path)[1]))
        path = found[-1] if found else shutil.which("initdb")
        if not path:
            raise SystemExit("no PostgreSQL found: install it, or name its programs' folder with --pg-bin")
        return os.path.dirname(path)

    @staticmethod
    def _unprivileged():
        """initdb refuses root."""
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_name
        raise SystemExit("PostgreSQL does not run as root and there is no user postgres or nobody")

    def _run(self, program, *args):
        command = [self.bin / program, *args]
        done = subprocess.run(command, user=self.user, cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{program}: {done.stderr or done.stdout}")

    @property
    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/otonix"

    def sql(self, text, database="otonix"):
        url = f"postgres://postgres@127.0.0.1:{self.port}/{database}"
        command = [self.bin / "psql", url, "-qAt", "-v", "ON_ERROR_STOP=1", "-c", text]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def version(self):
        return self.sql("SHOW server_version", database="postgres")

    def stop(self):
        with contextlib.suppress(SystemExit):
            self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")


class Server:
    """A control plane that can be killed and started again on the same address."""

    def __init__(self, programs, folder, database):
        self.program, self.data = programs / "otonix-control-plane", pathlib.Path(folder, "server")
        self.database, self.port, self.process = database, free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready_secs = self.start()
        self.operator_token = (self.data / "operator-token").read_text().strip()

    def start(self):
        """Starts it; returns the seconds until it is ready."""
        self.data.mkdir(exist_ok=True)
        command = [self.program, "serve", "--mode", "guarded", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--data-dir", self.data, "--database", self.database, "--log", "warn"]
        log = open(self.data / "log", "ab")
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.url}/readyz", timeout=5).status == 200:
                    return time.monotonic() - began
            if self.process.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit(f"the control plane did not start, see {self.data / 'log'}")
            time.sleep(0.005)

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def restart(self):
        self.stop()
        return self.start()

    def call(self, method, path, body=None, key=None):
        headers = {"Content-Type": "application/json"}
        headers |= {"X-API-Key": key} if key else {"Authorization": f"Bearer {self.operator_token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


class Echo:
    """The bare handler that heartbeats are compared with."""

    def __init__(self, programs):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen([programs / "examples" / "echo", f"127.0.0.1:{self.port}"],
                                        stderr=subprocess.PIPE)
        self.process.stderr.readline()

    def stop(self):
        self.process.kill()
        self.process.wait()


class Fleet:
    """One run of the load generator."""

    def __init__(self, programs, server, *flags):
        command = [programs / "examples" / "fleet", "--server", server, *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_connected(self):
        """Until it says that all are connected."""
        line = self.process.stderr.readline()
        if not line.startswith("connected"):
            raise SystemExit(f"fleet: {line}{self.process.stderr.read()}")

    def report(self):
        out, error = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"fleet: {error}")
        report = json.loads(out.splitlines()[-1])
        if report["refused"]:
            print(f"  note: {report['refused']} refused, the first: {report['first_refusal'][:300]}")
        return report
