// The figures of money, on one machine with everything beside: `node bench.mjs [--seconds S] [--count N] [--database URL]`.
// Prints one line of JSON. tests/bench/run calls it; programs as for ./run (build them with --release).

import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { median, payments, present } from './load.mjs'
import { startFacilitator } from './partners/facilitator.mjs'
import { startMerchant } from './partners/merchants.mjs'
import { ask, signV2 } from './partners/payers.mjs'
import { offer, startRogue } from './partners/rogue.mjs'
import { startRpc } from './partners/rpc.mjs'
import { ACCOUNTS, machine, sleep, stage, startServer, wallet } from './stage.mjs'

const { values } = parseArgs({
    options: { seconds: { type: 'string', default: '10' }, count: { type: 'string', default: '2000' }, database: { type: 'string' } },
})
const seconds = Number(values.seconds), count = Number(values.count)
const EXAMPLES = join(resolve(fileURLToPath(new URL('../..', import.meta.url)), process.env.OTONIX_BIN_DIR ?? 'target/debug'), 'examples')
const CONNECTIONS = 32
const note = text => process.stderr.write(`  ${text}\n`)

/** Runs `work` for each item, so many at a time; returns items per second. */
async function rate(items, work) {
    const began = performance.now()
    let next = 0
    await Promise.all(Array.from({ length: CONNECTIONS }, async () => { while (next < items.length) await work(items[next++]) }))
    return items.length / ((performance.now() - began) / 1000)
}

/** Milliseconds of [from, to] that none of the spans covers. */
function outside(from, to, spans) {
    const within = spans.filter(([, end]) => end > from).sort(([a], [b]) => a - b)
    let own = 0, at = from
    for (const [begin, end] of within) {
        if (begin > at) own += Math.min(begin, to) - at
        at = Math.max(at, end)
        if (at >= to) return own
    }
    return own + Math.max(0, to - at)
}

const chain = await stage()
const figures = {}
// What the chain needs to make a block is the chain's time, not that of who waits for it.
const node = await startRpc(chain.url, { mined: true })

note('402s')
const server = await startServer({ chain, database: values.database })
figures.unpaid_per_s = await new Promise((done, fail) => execFile(join(EXAMPLES, 'fleet'), [
    '--server', server.url, '--api-key', server.key, '--register', '--agents', '100', '--transport', 'rest-unpaid',
    '--duration', String(seconds), '--connections', '64',
], { env: { PATH: process.env.PATH } }, (error, stdout, stderr) => error ? fail(new Error(stderr)) : done(JSON.parse(stdout.trim().split('\n').pop()).acked_per_s)))

note('paid requests')
figures.paid_per_s = await rate(await payments(chain, server, count), present)
await server.audit()

note('paid requests of the official Express merchant')
const facilitator = await startFacilitator({ rpc: chain.url, key: ACCOUNTS[4].key })
const merchant = await startMerchant({ facilitator, payTo: wallet().address })
const payer = await chain.rich(1_000_000_000, 0n)
const official = []
for (let at = 0; at < Math.min(count, 200); at += 1) {
    const url = `${merchant.url}/paid`
    official.push({ url, init: { headers: await signV2(payer.key, await ask(url)) } })
}
figures.official_paid_per_s = await rate(official, present).catch(error => { note(`the official merchant: ${error.message}`); return null })

note('the daemon\'s own time')
const payTo = wallet().address
const rogue = await startRogue({ rpc: chain.url, key: ACCOUNTS[6].key })
const url = rogue.on('/', async visit => {
    if (!visit.payment) return visit.ask([offer(payTo)])
    const settled = await visit.settle()
    visit.json(settled.success ? 200 : 402, {}, visit.receipt(settled))
})
const settings = {
    OTONIX_PAY_MAX_HOUR: '1000', OTONIX_PAY_MAX_DAY: '1000', OTONIX_PAY_ALLOW_SHARED_UID: 'true',
    OTONIX_LOG: 'warn',
}
const buyer = await machine(server, { chain, rpc: node.url, usdc: 1_000_000_000, settings })
await buyer.run()
const ownOfDaemon = []
for (let at = 0; at < Math.min(count, 100); at += 1) {
    rogue.spans.length = node.spans.length = 0
    const began = performance.now()
    const answer = await buyer.local('POST', '/v1/pay', { url, maxAmount: '1', idempotencyKey: `bench-${at}` })
    const ended = performance.now()
    assert.equal(answer.body.status, 200, answer.text)
    ownOfDaemon.push(outside(began, ended, [...node.spans, ...rogue.spans]))
}
figures.daemon_own_ms = median(ownOfDaemon)
await sleep(seconds * 1000)
figures.daemon_rss = Number(readFileSync(`/proc/${buyer.process.pid}/statm`, 'utf8').split(' ')[1]) * 4096
await buyer.stop()

note('verification')
const { 'PAYMENT-SIGNATURE': header } = (await payments(chain, server, 1))[0].init.headers
figures.verify_us = JSON.parse(execFileSync(join(EXAMPLES, 'verify'), { input: header })).p50_us

console.log(JSON.stringify(figures))
for (const each of [server, rogue, merchant, facilitator, node, chain]) await each.stop()
process.exit()
