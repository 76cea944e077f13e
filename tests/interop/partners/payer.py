"""Pays one request with PyPI's x402: `payer.py httpx|requests`, the request as JSON on the standard input."""

import asyncio
import json
import sys

from eth_account import Account
from x402 import x402Client, x402ClientSync
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact.register import register_exact_evm_client


def client(kind, key):
    made = kind()
    # Its own limit of a dollar a payment would be in the way of larger top-ups.
    made.set_spend_controls(False)
    register_exact_evm_client(made, EthAccountSigner(Account.from_key(key)))
    return made


async def with_httpx(asked):
    from x402.http.clients.httpx import x402HttpxClient

    async with x402HttpxClient(client(x402Client, asked["key"]), timeout=60) as http:
        return await http.request(asked.get("method", "GET"), asked["url"], headers=asked.get("headers"),
                                  content=asked.get("body"))


def with_requests(asked):
    from x402.http.clients.requests import x402_requests

    with x402_requests(client(x402ClientSync, asked["key"])) as http:
        return http.request(asked.get("method", "GET"), asked["url"], headers=asked.get("headers"),
                            data=asked.get("body"), timeout=60)


asked = json.load(sys.stdin)
answer = asyncio.run(with_httpx(asked)) if sys.argv[1] == "httpx" else with_requests(asked)
headers = {name.lower(): value for name, value in answer.headers.items()}
json.dump({"status": answer.status_code, "headers": headers, "text": answer.text}, sys.stdout)
