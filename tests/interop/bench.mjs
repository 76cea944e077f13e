// The figures of money, on one machine with everything beside: `node bench.mjs [--seconds S] [--count N] [--database URL]`.
// Prints one line of JSON. tests/bench/run calls it; programs as for ./run (build them with --release).

import assert from 'node:assert/strict'
import { execFile, execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { startFacilitator } from './partners/facilitator.mjs'
import { startMerchant } from './partners/merchants.mjs'
import { ask, signV2 } from './partners/payers.mjs'
import { offer, startRogue } from './partners/rogue.mjs'
import { watched } from './partners/rpc-thread.mjs'
import { ACCOUNTS, machine, sleep, stage, startServer, wallet } from './stage.mjs'

const { values } = parseArgs({
    options: { seconds: { type: 'string', default: '10' }, count: { type: 'string', default: '2000' }, database: { type: 'string' } },
})
const seconds = Number(values.seconds), count = Number(values.count)
const EXAMPLES = join(resolve(fileURLToPath(new URL('../..', import.meta.url)), process.env.OTONIX_BIN_DIR ?? 'target/debug'), 'examples')
const CONNECTIONS = 32
const POST = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"amount":0.05}' }
const note = text => process.stderr.write(`  ${text}\n`)
const median = list => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)]

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

/** Payments for top-ups, asked for and signed but not presented. */
async function payments(server, howMany) {
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

async function present({ url, init }) {
    for (;;) {
        const answer = await ask(url, init)
        if (answer.status < 300) return
        assert.ok([503, 429].includes(answer.status), `${answer.status} ${answer.text}`)
        await sleep(50)
    }
}

const chain = await stage()
const figures = {}
const node = await watched(chain.url)

note('402s')
const server = await startServer({ chain, database: values.database })
figures.unpaid_per_s = await new Promise((done, fail) => execFile(join(EXAMPLES, 'fleet'), [
    '--server', server.url, '--api-key', server.key, '--register', '--agents', '100', '--transport', 'rest-unpaid',
    '--duration', String(seconds), '--connections', '64',
], { env: { PATH: process.env.PATH } }, (error, stdout, stderr) => error ? fail(new Error(stderr)) : done(JSON.parse(stdout.trim().split('\n').pop()).acked_per_s)))

note('paid requests')
figures.paid_per_s = await rate(await payments(server, count), present)
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
await server.stop()

note('the server\'s own time')
const quiet = await startServer({ chain, rpc: node.url, database: values.database, like: values.database ? server : undefined, treasury: server.treasury })
// What asking takes by itself, on this machine and in this process: it is not the server's.
const asking = []
for (let at = 0; at < 300; at += 1) {
    const began = performance.now()
    assert.equal((await ask(`${quiet.url}/healthz`)).status, 200)
    asking.push(performance.now() - began)
}
figures.asking_ms = median(asking)
const own = []
for (const payment of await payments(quiet, Math.min(count, 200))) {
    const began = performance.now()
    await present(payment)
    const ended = performance.now()
    own.push(outside(began, ended, await node.spans()))
}
figures.server_own_ms = median(own) - figures.asking_ms

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
const buyer = await machine(quiet, { chain, rpc: node.url, usdc: 1_000_000_000, settings })
await buyer.run()
const ownOfDaemon = []
for (let at = 0; at < Math.min(count, 100); at += 1) {
    rogue.spans.length = 0
    await node.spans()
    const began = performance.now()
    const answer = await buyer.local('POST', '/v1/pay', { url, maxAmount: '1', idempotencyKey: `bench-${at}` })
    const ended = performance.now()
    assert.equal(answer.body.status, 200, answer.text)
    ownOfDaemon.push(outside(began, ended, [...await node.spans(), ...rogue.spans]))
}
figures.daemon_own_ms = median(ownOfDaemon)
await sleep(seconds * 1000)
figures.daemon_rss = Number(readFileSync(`/proc/${buyer.process.pid}/statm`, 'utf8').split(' ')[1]) * 4096
await buyer.stop()

note('verification')
const { 'PAYMENT-SIGNATURE': header } = (await payments(quiet, 1))[0].init.headers
figures.verify_us = JSON.parse(execFileSync(join(EXAMPLES, 'verify'), { input: header })).p50_us

console.log(JSON.stringify(figures))
for (const each of [quiet, rogue, merchant, facilitator, node, chain]) await each.stop()
process.exit()
