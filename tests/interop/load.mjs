// What both benchmarks of money present to a server.

import assert from 'node:assert/strict'
import { ask, signV2 } from './partners/payers.mjs'
import { sleep } from './stage.mjs'

const POST = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"amount":0.05}' }

export const median = list => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)]

/** Payments for top-ups, asked for and signed but not presented. */
export async function payments(chain, server, howMany) {
    const agent = await server.agent()
    const payers = []
    for (let at = 0; at < Math.min(howMany, 50); at += 1) payers.push(await chain.rich(1_000_000_000, 0n))
    const made = []
    const init = { ...POST, headers: { ...POST.headers, 'x-api-key': server.key } }
    for (let at = 0; at < howMany; at += 1) {
        const asked = await ask(server.topup(agent), init)
        assert.equal(asked.status, 402, asked.text)
        made.push({ url: server.topup(agent), init: { ...init, headers: { ...init.headers, ...await signV2(payers[at % payers.length].key, asked) } } })
    }
    return made
}

/** Presents a payment until it is taken. */
export async function present({ url, init }) {
    for (;;) {
        const answer = await ask(url, init)
        if (answer.status < 300) return
        assert.ok([503, 429].includes(answer.status), `${answer.status} ${answer.text}`)
        await sleep(50)
    }
}
