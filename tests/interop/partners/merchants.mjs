// Merchants on the official Express middlewares, @x402/express 2.27.0 (v2) and x402-express 1.2.0 (v1). What they sell
// is an echo of the request; `runs` counts how often their handler ran.

import express from 'express'
import { HTTPFacilitatorClient } from '@x402/core/server'
import { ExactEvmScheme } from '@x402/evm/exact/server'
import { paymentMiddleware, x402ResourceServer } from '@x402/express'
import { paymentMiddleware as paymentMiddlewareV1 } from 'x402-express'
import { ASSET } from '../chain.mjs'

async function open(gate, port) {
    const app = express()
    const runs = { count: 0 }
    // A faulty facilitator is part of the tests; the v1 middleware prints every one of its errors.
    app.use((request, response, next) => { response.on('error', () => {}); next() })
    app.use(gate)
    app.use(express.text({ type: () => true }))
    app.all('/paid', (request, response) => {
        runs.count += 1
        response.json({ run: runs.count, method: request.method, body: request.body ?? null, query: request.query })
    })
    app.all('/broken', (request, response) => { response.status(500).json({ error: 'the handler failed' }) })
    app.get('/free', (request, response) => { response.json({ free: true }) })
    const server = await new Promise(resolve => { const it = app.listen(port, '127.0.0.1', () => resolve(it)) })
    return {
        runs, url: `http://127.0.0.1:${server.address().port}`,
        stop: () => new Promise(resolve => { server.close(resolve); server.closeAllConnections() }),
    }
}

/** A v2 merchant. `price` is like "$0.01"; `facilitator` has a url; `payTo` an address. */
export async function startMerchant({ facilitator, payTo, price = '$0.01', port = 0 }) {
    const resources = new x402ResourceServer(new HTTPFacilitatorClient({ url: facilitator.url }))
    resources.register('eip155:8453', new ExactEvmScheme())
    const accepts = { scheme: 'exact', network: 'eip155:8453', price, payTo, maxTimeoutSeconds: 120 }
    const route = { accepts, description: 'an echo', mimeType: 'application/json' }
    return open(paymentMiddleware({ '/paid': route, '/broken': route }, resources), port)
}

/** A v1 merchant. */
export async function startMerchantV1({ facilitator, payTo, price = '$0.01', port = 0 }) {
    const asset = { address: ASSET, decimals: 6, eip712: { name: 'USD Coin', version: '2' } }
    const amount = String(Math.round(Number(price.slice(1)) * 1e6))
    const route = { price: { amount, asset }, network: 'base', config: { description: 'an echo', maxTimeoutSeconds: 120 } }
    return open(paymentMiddlewareV1(payTo, { '/paid': route, '/broken': route }, { url: facilitator.url }), port)
}
