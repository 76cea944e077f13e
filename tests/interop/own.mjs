// The server's own time per paid request: `node own.mjs [--count N] [--database URL]`. Prints one line of JSON.
// A process of its own: whatever else a process has done, it collects in the time of who is measured.

import assert from 'node:assert/strict'
import { parseArgs } from 'node:util'
import { median, payments, present } from './load.mjs'
import { ask } from './partners/payers.mjs'
import { startRpc } from './partners/rpc.mjs'
import { stage, startServer } from './stage.mjs'

const { values } = parseArgs({ options: { count: { type: 'string', default: '600' }, database: { type: 'string' } } })
const count = Number(values.count)

const chain = await stage()
// What the chain needs to make a block is the chain's time, not that of who waits for it.
const node = await startRpc(chain.url, { mined: true })
const server = await startServer({ chain, rpc: node.url, database: values.database })
/** Milliseconds that the server has waited for the chain so far, by its own counter. */
const waited = async () => 1000 * /^otonix_chain_request_seconds_total (.+)$/m.exec((await ask(`${server.url}/metrics`)).text)[1]

const own = [], asking = []
for (const payment of await payments(chain, server, count)) {
    // What asking takes by itself, on this machine and in this process: it is not the server's.
    const asked = performance.now()
    assert.equal((await ask(`${server.url}/healthz`)).status, 200)
    asking.push(performance.now() - asked)
    const before = await waited()
    const began = performance.now()
    await present(payment)
    const took = performance.now() - began
    own.push(took - (await waited() - before))
}
// The first part makes this process warm.
const warm = list => list.slice(Math.floor(count / 3))
console.log(JSON.stringify({ asking_ms: median(warm(asking)), server_own_ms: median(warm(own)) - median(warm(asking)) }))
for (const each of [server, node, chain]) await each.stop()
process.exit()
