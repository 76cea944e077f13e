#!/usr/bin/env python3
"""A small agent for otonix-agent: it works in rounds, reports what it did and what its model calls cost, shows that
it gets on, and does less when its tier falls. Python's standard library only.

    otonix-agent run -- python3 deploy/examples/agent.py

It talks to the daemon over the unix socket in OTONIX_SOCKET. ROUND_SECONDS and ROUND_COST change its pace.
"""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid

SOCKET = os.environ.get("OTONIX_SOCKET", "")
ROUND_SECONDS = float(os.environ.get("ROUND_SECONDS", "2"))
ROUND_COST = os.environ.get("ROUND_COST", "")  # USDC per model call; empty: by the price table

stopping = threading.Event()
standing = {"survivalTier": os.environ.get("OTONIX_SURVIVAL_TIER", "full"), "optionalWork": True}


class Connection(http.client.HTTPConnection):
    """HTTP over the daemon's unix socket."""

    def __init__(self, timeout=30):
        super().__init__("localhost", timeout=timeout)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def call(method, path, body=None):
    """One request to the daemon. A POST that got no answer is sent again with the same key: it is recorded once."""
    headers = {"Content-Type": "application/json"}
    if method == "POST":
        headers["Idempotency-Key"] = str(uuid.uuid4())
    for attempt in range(5):
        connection = Connection()
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            data = json.loads(answer.read() or b"null")
            if answer.status < 500:
                if answer.status >= 400:
                    print(f"agent: {path}: {data['detail']} ({data['code']})", flush=True)
                    return None
                return data
        except (OSError, http.client.HTTPException) as error:
            print(f"agent: {path}: {error}", flush=True)
        finally:
            connection.close()
        if stopping.wait(0.2 * 2**attempt):
            break
    return None


def listen():
    """Follows the standing: server-sent events, one `event:` and one `data:` line each."""
    while not stopping.is_set():
        connection = Connection(timeout=None)
        try:
            connection.request("GET", "/v1/events")
            answer = connection.getresponse()
            event = ""
            for line in answer:
                line = line.decode().rstrip("\n")
                if line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:"):
                    heard(event, json.loads(line[5:]))
        except (OSError, http.client.HTTPException, ValueError):
            pass
        finally:
            connection.close()
        stopping.wait(1)


def heard(event, data):
    if event == "standing":
        if data["survivalTier"] != standing["survivalTier"]:
            print(f"agent: tier is now {data['survivalTier']} ({data['credits']} USDC)", flush=True)
        standing.update(data)
    elif event == "shutdown":
        print(f"agent: {data['reason']}, {data['graceSeconds']} s left", flush=True)
    elif event == "command":
        print(f"agent: the daemon executed {data['kind']}", flush=True)


def work(number):
    """One round: a model call and what came of it."""
    choice = call("GET", "/v1/model?criticality=normal") or {}
    model = choice.get("model", os.environ.get("OTONIX_MODEL", "claude-opus-4-6"))
    usage = {"model": model, "tokensIn": 1800, "tokensOut": 400}
    if ROUND_COST:
        usage["cost"] = ROUND_COST
    call("POST", "/v1/usage", usage)
    call("POST", "/v1/actions", {
        "action": f"round {number} with {model}",
        "category": "research",
        "details": f"tier {standing['survivalTier']}",
    })
    if standing.get("optionalWork"):
        call("POST", "/v1/actions", {"action": f"tidied up after round {number}", "category": "system"})
    call("POST", "/v1/progress")


def main():
    if not SOCKET:
        sys.exit("agent: OTONIX_SOCKET is not set; start me by `otonix-agent run -- python3 agent.py`")
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    status = call("GET", "/v1/status") or {}
    print(f"agent: I am {status.get('agentId')}, tier {status.get('survivalTier')}", flush=True)
    threading.Thread(target=listen, daemon=True).start()
    number = 0
    while not stopping.is_set():
        number += 1
        work(number)
        # In lower tiers there is less to spend, so there is more to wait for.
        slower = {"full": 1, "conservation": 1.5, "critical": 2}.get(standing["survivalTier"], 1)
        stopping.wait(ROUND_SECONDS * slower)
    call("POST", "/v1/actions", {"action": f"stopped after {number} rounds", "category": "system"})


if __name__ == "__main__":
    main()
