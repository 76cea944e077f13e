// Official clients as payers: @x402/fetch 2.27.0 (v2), x402-fetch 1.2.0 (v1) and PyPI's x402 2.25.0.
// Each takes (key, url, { method, body, headers }) and returns { status, headers, body } of the final answer.

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { x402Client, x402HTTPClient } from '@x402/core/client'
import { ExactEvmScheme } from '@x402/evm/exact/client'
import { wrapFetchWithPayment } from '@x402/fetch'
import { privateKeyToAccount } from 'viem/accounts'
import { createWalletClient, http } from 'viem'
import { base } from 'viem/chains'
import { createPaymentHeader } from 'x402/client'
import { PaymentRequirementsSchema } from 'x402/types'
import { wrapFetchWithPayment as wrapFetchWithPaymentV1 } from 'x402-fetch'

const HERE = fileURLToPath(new URL('.', import.meta.url))
const MOST = 10_000_000_000n

async function plain(response) {
    const text = await response.text()
    let body = text
    try { body = JSON.parse(text) } catch { /* as it is */ }
    return { status: response.status, headers: Object.fromEntries(response.headers), body, text }
}

// Its own limit of a dollar a payment would be in the way of larger top-ups.
const client = key => new x402Client().setSpendControls(false).register('eip155:*', new ExactEvmScheme(privateKeyToAccount(key)))

/** Pays with @x402/fetch. */
export async function payV2(key, url, init = {}) {
    return plain(await wrapFetchWithPayment(fetch, client(key))(url, init))
}

const walletV1 = key => createWalletClient({ account: privateKeyToAccount(key), chain: base, transport: http('http://127.0.0.1:9') })

/** Pays with x402-fetch. */
export async function payV1(key, url, init = {}) {
    return plain(await wrapFetchWithPaymentV1(fetch, walletV1(key), MOST)(url, init))
}

/** Pays with the Python client; `library` is `httpx` or `requests`. */
export function payPython(library) {
    return (key, url, init = {}) => new Promise((resolve, reject) => {
        const child = execFile(`${HERE}../.venv/bin/python`, [`${HERE}payer.py`, library], (error, stdout, stderr) => {
            if (error) reject(new Error(`payer.py: ${stderr}`))
            else {
                const answer = JSON.parse(stdout)
                try { answer.body = JSON.parse(answer.text) } catch { answer.body = answer.text }
                resolve(answer)
            }
        })
        child.stdin.end(JSON.stringify({ key, url, ...init }))
    })
}

/** One request without any payment. */
export const ask = async (url, init) => plain(await fetch(url, init))

/** The v2 payment header that the official client makes for a 402, not sent yet. */
export async function signV2(key, answer) {
    const http = new x402HTTPClient(client(key))
    const required = http.getPaymentRequiredResponse(name => answer.headers[name.toLowerCase()], answer.body)
    return http.encodePaymentSignatureHeader(await http.createPaymentPayload(required))
}

/** The v1 payment header that the official client makes for a 402, not sent yet. */
export async function signV1(key, answer) {
    const requirements = PaymentRequirementsSchema.parse(answer.body.accepts[0])
    return { 'X-PAYMENT': await createPaymentHeader(walletV1(key), 1, requirements) }
}
