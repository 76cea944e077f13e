// A JSON-RPC node that fails on demand, in front of a real one.

import { sleep } from '../guard.mjs'
import { body, listen } from './facilitator.mjs'

/**
 * Starts one. `fault(fn)` sets what happens: for each call `fn({ method, params })` returns (or promises) nothing (pass
 * on), or one of
 * `'down'` (cut before it is done), `'lose'` (done, then cut), `'garbage'`, `'error'`, `'already known'` (done, but
 * answered with that error), a number (done, answered so many milliseconds later), or `{ result }` to answer instead.
 * `seen` counts calls by method. With `mined`, a transaction is answered when it is in a block.
 */
export async function startRpc(upstream, { mined = false } = {}) {
    let fault = () => undefined
    const seen = {}
    const pass = call => fetch(upstream, {
        method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(call),
    }).then(from => from.json(), () => null)
    const listening = await listen(async (request, response) => {
        const asked = JSON.parse(await body(request))
        const calls = Array.isArray(asked) ? asked : [asked]
        const told = []
        for (const call of calls) {
            seen[call.method] = (seen[call.method] ?? 0) + 1
            told.push(await fault(call))
        }
        if (told.includes('down')) return request.socket.destroy()
        const answer = text => { response.writeHead(200, { 'content-type': 'application/json' }); response.end(text) }
        if (told.includes('garbage')) return answer('<html>504</html>')
        const answers = []
        for (const [at, call] of calls.entries()) {
            const { id } = call
            const now = told[at]
            if (now === 'error') {
                answers.push({ jsonrpc: '2.0', id, error: { code: -32603, message: 'internal error' } })
                continue
            }
            if (typeof now === 'object' && now) {
                answers.push({ jsonrpc: '2.0', id, ...now })
                continue
            }
            const passed = await pass(call)
            if (mined && call.method === 'eth_sendRawTransaction' && passed?.result) {
                const looked = { jsonrpc: '2.0', id: 0, method: 'eth_getTransactionReceipt', params: [passed.result] }
                while (!(await pass(looked))?.result) await sleep(1)
            }
            if (!passed) return request.socket.destroy()
            if (typeof now === 'number') await sleep(now)
            if (now === 'already known') answers.push({ jsonrpc: '2.0', id, error: { code: -32000, message: 'already known' } })
            else answers.push(passed)
        }
        if (told.includes('lose')) return request.socket.destroy()
        answer(JSON.stringify(Array.isArray(asked) ? answers : answers[0]))
    })
    return { ...listening, seen, fault: now => { fault = now ?? (() => undefined) } }
}
