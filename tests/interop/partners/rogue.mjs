// A merchant that misbehaves. A test gives each path a script: a function of (visit, request, response) where `visit`
// has what it needs to ask, settle, and cut. Money is really moved, by the official facilitator.

import { ASSET } from '../chain.mjs'
import { body, facilitator, listen } from './facilitator.mjs'

const base64 = value => Buffer.from(JSON.stringify(value)).toString('base64')

/** A requirement (v2) as an honest merchant states it, with whatever a test changes. */
export function offer(payTo, changes = {}) {
    return {
        scheme: 'exact', network: 'eip155:8453', amount: '10000', asset: ASSET, payTo, maxTimeoutSeconds: 120,
        extra: { name: 'USD Coin', version: '2' }, ...changes,
    }
}

/** The same as a v1 requirement. */
export function offerV1(payTo, resource, changes = {}) {
    return {
        scheme: 'exact', network: 'base', maxAmountRequired: '10000', resource, description: 'an echo',
        mimeType: 'application/json', payTo, maxTimeoutSeconds: 120, asset: ASSET,
        extra: { name: 'USD Coin', version: '2' }, ...changes,
    }
}

/**
 * Starts one. `on(path, script)` sets the script of a path. `visits` holds every request: { path, method, payment,
 * header }, where `payment` is the decoded payment if there was one.
 */
export async function startRogue({ rpc, key }) {
    const official = facilitator(rpc, key)
    const scripts = new Map()
    const visits = []
    const listening = await listen(async (request, response) => {
        const url = new URL(request.url, `http://${request.headers.host}`)
        const sent = await body(request)
        const header = request.headers['payment-signature'] ?? request.headers['x-payment']
        const payment = header ? JSON.parse(Buffer.from(header, 'base64')) : null
        const seen = { path: url.pathname, method: request.method, payment, header, body: sent.toString(), headers: request.headers }
        visits.push(seen)
        const json = (status, value, headers = {}) => {
            response.writeHead(status, { 'content-type': 'application/json', ...headers })
            response.end(JSON.stringify(value))
        }
        const visit = {
            ...seen, url, json,
            // Asks for payment by offers of v2, and of v1 in the body when there are any.
            ask: (accepts, { v1 = [], error = 'Payment required' } = {}) => json(402,
                v1.length ? { x402Version: 1, error, accepts: v1 } : {},
                accepts.length ? { 'payment-required': base64({
                    x402Version: 2, error, accepts, resource: { url: url.href, description: 'an echo', mimeType: 'application/json' },
                }) } : {}),
            settle: requirements => official.settle(payment, requirements ?? payment.accepted),
            receipt: settled => ({ [payment.x402Version === 1 ? 'x-payment-response' : 'payment-response']: base64(settled) }),
            cut: () => request.socket.destroy(),
        }
        const script = scripts.get(url.pathname)
        if (!script) return json(404, { error: 'no such thing' })
        try {
            await script(visit, request, response)
        } catch (error) {
            json(500, { error: String(error.message) })
        }
    })
    return { ...listening, visits, on: (path, script) => { scripts.set(path, script); return `${listening.url}${path}` } }
}
