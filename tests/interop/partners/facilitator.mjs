// A facilitator made of the official packages (@x402/core and @x402/evm, v1 and v2), with switches for what a
// facilitator on the internet does: loses its answer, delays it, refuses, answers nonsense.

import { createServer } from 'node:http'
import { x402Facilitator } from '@x402/core/facilitator'
import { toFacilitatorEvmSigner } from '@x402/evm'
import { registerExactEvmScheme } from '@x402/evm/exact/facilitator'
import { createWalletClient, http, publicActions } from 'viem'
import { nonceManager, privateKeyToAccount } from 'viem/accounts'
import { base } from 'viem/chains'
import { sleep } from '../guard.mjs'

/** The official facilitator as an object with `verify(payload, requirements)` and `settle(…)`. */
export function facilitator(rpc, key) {
    const account = privateKeyToAccount(key, { nonceManager })
    const client = createWalletClient({ account, chain: base, transport: http(rpc), pollingInterval: 20 }).extend(publicActions)
    const signer = toFacilitatorEvmSigner({ address: account.address, ...client })
    return registerExactEvmScheme(new x402Facilitator(), { signer, networks: 'eip155:8453' })
}

/** What requests carry payments in. */
export const PAYMENT_HEADERS = ['payment-signature', 'x-payment']

export async function body(request) {
    const chunks = []
    for await (const chunk of request) chunks.push(chunk)
    return Buffer.concat(chunks)
}

/** Listens on a free loopback port. Returns `url`, `stop()` and `spans`, when it was at work (milliseconds, from-to). */
export async function listen(handler) {
    const spans = []
    const server = createServer((request, response) => {
        const began = performance.now()
        let over = false
        const end = () => { if (!over) spans.push([began, performance.now()]); over = true }
        response.on('finish', end).on('close', end)
        handler(request, response)
    })
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
    const stop = () => new Promise(resolve => { server.close(resolve); server.closeAllConnections() })
    return { server, stop, spans, port: server.address().port, url: `http://127.0.0.1:${server.address().port}` }
}

/**
 * Starts one. `mood.verify` and `mood.settle` say what happens to such a request, until set to something else:
 * `'serve'`; `'lose'` (done, then the connection is cut); `'cut'` (cut before anything is done); `'refuse'`;
 * `'garbage'`; `'error'` (500, nothing done); `'lie'` (success with an invented hash, nothing done); a number (done, and
 * answered so many milliseconds later). `calls` counts what was asked.
 */
export async function startFacilitator({ rpc, key }) {
    const official = facilitator(rpc, key)
    const mood = { verify: 'serve', settle: 'serve' }
    const calls = { verify: 0, settle: 0 }
    const did = {
        verify: (payload, requirements) => official.verify(payload, requirements),
        settle: (payload, requirements) => official.settle(payload, requirements),
    }
    const refused = {
        verify: { isValid: false, invalidReason: 'insufficient_funds' },
        settle: { success: false, errorReason: 'insufficient_funds', transaction: '', network: 'eip155:8453' },
    }
    const listening = await listen(async (request, response) => {
        const answer = (status, value) => {
            response.writeHead(status, { 'content-type': 'application/json' })
            response.end(typeof value === 'string' ? value : JSON.stringify(value, (_, v) => typeof v === 'bigint' ? `${v}` : v))
        }
        const what = new URL(request.url, 'http://_').pathname.split('/').pop()
        if (what === 'supported') return answer(200, official.getSupported())
        if (!did[what]) return answer(404, { error: 'no such thing' })
        calls[what] += 1
        const asked = JSON.parse(await body(request))
        const now = mood[what]
        if (now === 'cut') return request.socket.destroy()
        if (now === 'refuse') return answer(200, refused[what])
        if (now === 'garbage') return answer(200, '<html>gateway</html>')
        if (now === 'error') return answer(500, { error: 'out of order' })
        if (now === 'lie') {
            const hash = `0x${'5e'.repeat(32)}`
            return answer(200, what === 'verify' ? { isValid: true } : { success: true, transaction: hash, network: 'eip155:8453' })
        }
        let result
        try {
            result = await did[what](asked.paymentPayload, asked.paymentRequirements)
        } catch (error) {
            return answer(500, { error: String(error.message) })
        }
        if (now === 'lose') return request.socket.destroy()
        if (typeof now === 'number') await sleep(now)
        answer(200, result)
    })
    return { ...listening, mood, calls, address: privateKeyToAccount(key).address }
}
