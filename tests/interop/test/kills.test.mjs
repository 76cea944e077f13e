// SIGKILL of the paying daemon at each boundary that has a name: before and after each question to the chain and to the
// seller (the request, the transaction that is sent, the receipt, the proof, the reply), before and after each write and
// flush of its journal, and at each step of the journal's compaction. All of them, in every run; crash.test.mjs takes
// whatever else there is between a program and the world.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { compiled, minutes, trigger } from '../boundary.mjs'
import { offer, startRogue } from '../partners/rogue.mjs'
import { startRpc } from '../partners/rpc.mjs'
import { startWindow } from '../partners/window.mjs'
import { ACCOUNTS, machine, stage, startServer, until, wallet } from '../stage.mjs'

const SETTINGS = { OTONIX_PAY_MAX_HOUR: '100', OTONIX_PAY_MAX_DAY: '100', OTONIX_PAY_ALLOW_SHARED_UID: 'true' }

let chain, dir, orders, exact, rogue
before(async () => {
    chain = await stage()
    dir = compiled()
    orders = await startServer({ chain, settle: 'none' })
    exact = await startServer({ chain })
    rogue = await startRogue({ rpc: chain.url, key: ACCOUNTS[6].key })
})
after(async () => {
    for (const each of [orders, exact]) {
        await each.audit()
        await each.stop()
    }
    await rogue.stop()
    await chain.stop()
})

const payTo = wallet().address
/** A merchant that stores its answers by nonce. */
const memory = new Map()
const remembering = async visit => {
    if (!visit.payment) return visit.ask([offer(payTo)])
    const { nonce } = visit.payment.payload.authorization
    if (!memory.has(nonce)) memory.set(nonce, visit.settle())
    const settled = await memory.get(nonce)
    visit.json(settled.success ? 200 : 402, settled, visit.receipt(settled))
}

const TOPUP = ['--method', 'POST', '--data', '{"amount":0.1}', '--header', 'content-type: application/json']
const flows = {
    'an order of the control plane': { server: () => orders, at: buyer => `/api/agents/${buyer.id}/topup`, more: TOPUP, amount: 100_000 },
    'exact at the control plane': { server: () => exact, at: buyer => `/api/agents/${buyer.id}/topup`, more: TOPUP, amount: 100_000 },
    'exact at a merchant': { server: () => exact, seller: () => rogue, at: () => '/named', more: [], amount: 10_000 },
}

/** A fault of the node: calls of a method are held for good, before or after they are carried out. */
function held(how, method) {
    let holding = false
    const fault = async call => {
        if (call.method !== method) return undefined
        if (how === 'after') await chain.rpc(call.method, ...call.params).catch(() => null)
        holding = true
        return new Promise(() => {})
    }
    return { fault, holding: () => holding }
}

/** A machine, its seller behind a window, its node with faults, and what it buys. */
async function scene(name, env = {}) {
    const flow = flows[name]
    const seller = flow.seller?.() ?? flow.server()
    rogue.on('/named', remembering)
    const [node, window] = [await startRpc(chain.url), await startWindow(seller.url)]
    const buyer = await machine(flow.server(), { chain, rpc: node.url, usdc: 50_000_000, settings: { ...SETTINGS, ...env } })
    let payments = 0
    const args = key => ['pay', window.url + flow.at(buyer), '--max-amount', '1', ...flow.more, '--idempotency-key', key]
    return {
        buyer, node, window, args,
        /** Whatever has happened: bought once, and only once, and nothing left open. */
        async bought(key, what) {
            payments += 1
            let last
            await until(`paid after ${what}`, 90_000, async () => {
                last = await buyer.cli(args(key))
                return last.code === 0
            }).catch(error => { throw new Error(`${error.message}: ${last.code} ${last.stderr}`) })
            const moved = await chain.transfers({ from: buyer.address })
            assert.deepEqual(moved.map(each => each.amount), Array(payments).fill(flow.amount), what)
            if (flow.amount === 100_000) assert.equal(await buyer.bought(), payments * flow.amount, what)
            const states = (await buyer.journal()).map(each => each.state)
            assert.deepEqual(new Set(states), new Set(['settled']), `${what}: ${states}`)
        },
        async end() {
            const told = await buyer.cli(['journal', 'reconcile'])
            assert.equal(told.code, 0, told.stderr)
            await window.stop()
            await node.stop()
        },
    }
}

for (const name of Object.keys(flows)) {
    describe(name, () => {
        test('killed before and after each question to the chain and to the seller', { timeout: minutes(10) }, async () => {
            const it = await scene(name)
            const methods = new Set()
            it.node.fault(({ method }) => { methods.add(method) })
            await it.bought('clean', 'a clean run')
            it.node.fault()
            const points = [...methods].flatMap(method => ['before', 'after'].map(how => {
                const { fault, holding } = held(how, method)
                return { what: `${how} ${method}`, holding, hold: () => it.node.fault(fault) }
            }))
            for (const how of ['before', 'after']) for (const paid of [false, true]) points.push({
                what: `${how} the ${paid ? 'paid' : 'first'} request`, holding: it.window.holding,
                hold: () => it.window.hold(now => now === paid ? how : undefined),
            })
            const order = name.startsWith('an order')
            for (const needed of order ? ['eth_sendRawTransaction', 'eth_getTransactionReceipt'] : ['eth_call'])
                assert.ok(methods.has(needed), `${needed} is one of ${[...methods]}`)
            for (const [at, { what, hold, holding }] of points.entries()) {
                hold()
                const process = await it.buyer.begin(it.args(`k${at}`))
                await until(`it comes to ${what}: ${process.output()}`, 60_000, () => holding() || process.over())
                assert.ok(holding(), `${what}: ${process.output()}`)
                await process.kill()
                it.node.fault()
                it.window.hold()
                await it.bought(`k${at}`, what)
            }
            await it.end()
        })

        test('killed before and after each write and flush of its journal', { timeout: minutes(10) }, async () => {
            const at = trigger(dir, `journal-${name.replace(/\W/g, '-')}`, 'journal')
            const it = await scene(name)
            at.arm(0)
            const clean = await it.buyer.cli(it.args('clean'), { env: at.env })
            assert.equal(clean.code, 0, clean.stderr)
            const points = at.boundaries()
            at.disarm()
            await it.bought('clean', 'a clean run')
            for (const needed of ['before pwrite64 journal', 'after pwrite64 journal', 'before fdatasync journal', 'after fdatasync journal'])
                assert.ok(points.some(point => point.text === needed), `${needed} is one of ${points.map(point => point.text)}`)
            for (const point of points) {
                at.clear()
                at.arm(point.number)
                await it.buyer.cli(it.args(`k${point.number}`), { env: at.env })
                at.disarm()
                await it.bought(`k${point.number}`, `${point.number} ${point.text}`)
            }
            await it.end()
        })
    })
}

test('killed at each step of the compaction of its journal', { timeout: minutes(10) }, async () => {
    // So large a request is more than a journal may have before it is written anew.
    const body = 'x'.repeat(3_300_000)
    const at = trigger(dir, 'compaction', 'journal,pay')
    const url = rogue.on('/large', remembering)
    const ask = buyer => buyer.local('POST', '/v1/pay', { url, method: 'POST', body, maxAmount: '1', idempotencyKey: 'large' })
    const running = async () => (await machine(exact, { chain, usdc: 1_000_000, settings: { ...SETTINGS, ...at.env } })).run()
    const first = await running()
    at.arm(0)
    const clean = await ask(first)
    assert.equal(clean.body.status, 200, clean.text)
    const points = at.boundaries()
    at.disarm()
    await first.stop()
    for (const needed of ['before write journal.new', 'after fsync journal.new', 'before rename journal', 'after rename journal', 'after fsync pay'])
        assert.ok(points.some(point => point.text === needed), `${needed} is one of ${points.map(point => point.text)}`)
    for (const point of points) {
        const what = `${point.number} ${point.text}`
        let buyer, killed
        // How much is flushed together varies: some runs have a step less, and are made again.
        for (let turn = 0; turn < 3 && !killed; turn += 1) {
            at.clear()
            buyer = await running()
            at.arm(point.number)
            await ask(buyer).catch(() => null)
            await Promise.race([buyer.process.ended, new Promise(resolve => setTimeout(resolve, 5_000))])
            killed = buyer.process.over()
            if (!killed) await buyer.stop()
        }
        assert.ok(killed, `it was killed: ${what}`)
        at.disarm()
        await buyer.run()
        const answer = await until(`bought after ${what}`, 60_000, async () => {
            const told = await ask(buyer)
            return told.status === 200 && told.body.status === 200 ? told : null
        })
        assert.equal(answer.body.payment.state, 'settled', what)
        assert.deepEqual((await chain.transfers({ from: buyer.address })).map(each => each.amount), [10_000], what)
        await buyer.stop()
        assert.deepEqual((await buyer.journal()).map(each => each.state), ['settled'], what)
    }
})
