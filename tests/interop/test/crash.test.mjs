// The crash matrix: SIGKILL at every boundary between a program and the world (see boundary.c), on both sides of a
// payment. Afterwards at most one transfer per intent, every intent ended, one grant per payment, books that balance.
//
// A clean run tells which boundaries there are; OTONIX_TEST_POINTS of them are tried per matrix (default 20, spread and
// shifted by chance; `all` for every one). OTONIX_TEST_SEED repeats the choice of an earlier run.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { POINTS, compiled, minutes, some, trigger } from '../boundary.mjs'
import { startFacilitator } from '../partners/facilitator.mjs'
import { ask, signV2 } from '../partners/payers.mjs'
import { offer, startRogue } from '../partners/rogue.mjs'
import { startRpc } from '../partners/rpc.mjs'
import { ACCOUNTS, machine, orderSuffix, sleep, stage, startServer, until, wallet } from '../stage.mjs'

const JSON_TYPE = { 'content-type': 'application/json' }

let chain, dir
before(async () => {
    chain = await stage()
    dir = compiled()
})
after(() => chain.stop())

describe('the server is killed while it is paid', () => {
    const amount = 2
    const present = (server, agent, headers) => ask(server.topup(agent), {
        method: 'POST', headers: { ...JSON_TYPE, ...headers }, body: JSON.stringify({ amount }),
    })

    /** A payment ready to be presented: an agent, the payer, the headers. */
    const made = {
        async exact(server) {
            const [agent, payer] = [await server.agent(), await chain.rich(5_000_000, 0n)]
            const asked = await present(server, agent, {})
            assert.equal(asked.status, 402, asked.text)
            return { agent, payer, headers: await signV2(payer.key, asked) }
        },
        async order(server) {
            const [agent, payer] = [await server.agent(), await chain.rich(5_000_000)]
            const { body: { orderId } } = await present(server, agent, {})
            const txHash = await chain.transfer(payer.address, server.treasury, amount * 1e6, orderSuffix(orderId))
            const proof = JSON.stringify({ orderId, txHash, payer: payer.address })
            return { agent, payer, headers: { 'X-PAYMENT': Buffer.from(proof).toString('base64') } }
        },
    }

    async function granted(server, { agent, payer, headers }, at) {
        const answer = await until(`an outcome after ${at}`, 60_000, async () => {
            const told = await present(server, agent, headers).catch(() => null)
            if (told && told.status !== 503) return told
            await sleep(100)
            return null
        })
        assert.equal(answer.status, 201, `${at}: ${answer.text}`)
        assert.equal(await server.credits(agent), amount * 1e6, at)
        assert.equal((await chain.transfers({ from: payer.address })).length, 1, at)
    }

    const flows = [
        ['an order proved by its hash', 'order', async () => 'none'],
        ['exact, settled by its own key', 'exact', async () => 'key'],
        ['exact, settled by a facilitator', 'exact', () => startFacilitator({ rpc: chain.url, key: ACCOUNTS[5].key })],
    ]
    for (const [name, kind, settler] of flows) {
        test(name, { timeout: minutes(10) }, async () => {
            const settle = await settler()
            const at = trigger(dir, `server-${name.replace(/\W/g, '-')}`)
            const server = await startServer({ chain, settle, env: at.env })
            const clean = await made[kind](server)
            at.arm(0)
            await present(server, clean.agent, clean.headers)
            const points = some(at.boundaries())
            await granted(server, clean, 'a clean run')
            assert.ok(points.length > 0, 'there are boundaries')
            let killed = 0
            for (const point of points) {
                at.disarm()
                await server.kill()
                await server.start()
                const payment = await made[kind](server)
                at.arm(point.number)
                const answer = await present(server, payment.agent, payment.headers).catch(() => null)
                if (!answer) await Promise.race([server.process.ended, sleep(5_000)])
                if (server.process.over()) killed += 1
                at.disarm()
                await server.kill()
                await server.start()
                await granted(server, payment, `${point.number} ${point.text}`)
            }
            assert.ok(killed >= points.length / 2, `killed ${killed} of ${points.length} times`)
            await server.audit()
            await server.stop()
            await settle.stop?.()
        })
    }
})

describe('the daemon is killed while it pays', () => {
    let orders, exact, rogue
    const payTo = wallet().address
    before(async () => {
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
    })

    /** A merchant that stores its answers by nonce. */
    const memory = new Map()
    const remembering = async visit => {
        if (!visit.payment) return visit.ask([offer(payTo)])
        const { nonce } = visit.payment.payload.authorization
        if (!memory.has(nonce)) memory.set(nonce, visit.settle())
        const settled = await memory.get(nonce)
        visit.json(settled.success ? 200 : 402, settled, visit.receipt(settled))
    }

    const flows = {
        'an order of the control plane': {
            server: () => orders, amount: 100_000,
            args: buyer => [orders.topup(buyer.id), '1', '--method', 'POST', '--data', '{"amount":0.1}', '--header', 'content-type: application/json'],
        },
        'exact at the control plane': {
            server: () => exact, amount: 100_000,
            args: buyer => [exact.topup(buyer.id), '1', '--method', 'POST', '--data', '{"amount":0.1}', '--header', 'content-type: application/json'],
        },
        'exact at a merchant': { server: () => exact, amount: 10_000, args: () => [rogue.on('/', remembering), '1'] },
    }
    const settings = { OTONIX_PAY_MAX_HOUR: '100', OTONIX_PAY_MAX_DAY: '100' }

    async function buy(buyer, flow, key, env = {}) {
        const [url, most, ...more] = flow.args(buyer)
        return buyer.cli(['pay', url, '--max-amount', most, ...more, '--idempotency-key', key], { env })
    }

    /** After whatever happened: bought once, and only once. */
    async function bought(buyer, flow, key, at, payments) {
        let last
        await until(`paid after ${at}`, 90_000, async () => {
            last = await buy(buyer, flow, key)
            return last.code === 0
        }).catch(error => { throw new Error(`${error.message}: ${last.code} ${last.stderr}`) })
        const moved = await chain.transfers({ from: buyer.address })
        assert.deepEqual(moved.map(each => each.amount), Array(payments).fill(flow.amount), at)
    }

    for (const [name, flow] of Object.entries(flows)) {
        test(name, { timeout: minutes(15) }, async () => {
            const at = trigger(dir, `daemon-${name.replace(/\W/g, '-')}`)
            const buyer = await machine(flow.server(), { chain, usdc: 50_000_000, settings })
            at.arm(0)
            let payments = 1
            const clean = await buy(buyer, flow, 'clean', at.env)
            assert.equal(clean.code, 0, clean.stderr)
            const points = some(at.boundaries())
            assert.ok(points.length > 0, 'there are boundaries')
            for (const point of points) {
                at.clear()
                at.arm(point.number)
                await buy(buyer, flow, `k${point.number}`, at.env)
                at.disarm()
                payments += 1
                await bought(buyer, flow, `k${point.number}`, `${point.number} ${point.text}`, payments)
            }
            if (flow.amount === 100_000) assert.equal(await buyer.bought(), payments * flow.amount)
            const told = await buyer.cli(['journal', 'reconcile'])
            assert.equal(told.code, 0, told.stderr)
            const open = (await buyer.journal()).filter(each => !/settled|refused|expired|undelivered/i.test(JSON.stringify(each)))
            assert.deepEqual(open, [], 'every intent has ended')
        })
    }

    test('the running daemon with ten payments at once, killed again and again', { timeout: 300_000 }, async () => {
        const url = rogue.on('/many', remembering)
        const buyer = await machine(exact, { chain, usdc: 50_000_000, settings: { ...settings, OTONIX_PAY_ALLOW_SHARED_UID: 'true' } })
        const keys = Array.from({ length: 10 }, (_, at) => `many-${at}`)
        const ask = key => buyer.local('POST', '/v1/pay', { url, maxAmount: '1', idempotencyKey: key })
        for (const wait of [150, 400, 20, 800, 60]) {
            await buyer.run()
            const asked = keys.map(key => ask(key).catch(() => null))
            await sleep(wait)
            await buyer.kill()
            await Promise.all(asked)
        }
        await buyer.run()
        const answers = await Promise.all(keys.map(key => until(`${key} is bought`, 90_000, async () => {
            const answer = await ask(key)
            return answer.status === 200 && answer.body.status === 200 ? answer : null
        })))
        assert.equal(new Set(answers.map(each => each.body.intentId)).size, keys.length)
        assert.equal((await chain.transfers({ from: buyer.address })).length, keys.length)
        await buyer.stop()
    })

    test('a journal that was put back pauses payments', { timeout: 120_000 }, async () => {
        const flow = flows['exact at a merchant']
        const buyer = await machine(exact, { chain, usdc: 50_000_000, settings })
        await bought(buyer, flow, 'one', 'a first payment', 1)
        const journal = join(buyer.state, 'pay', 'journal')
        const old = readFileSync(journal)
        await bought(buyer, flow, 'two', 'a second', 2)
        writeFileSync(journal, old)
        const told = await buy(buyer, flow, 'three')
        assert.equal(told.code, 3, `${told.code} ${told.stderr}`)
        assert.match(told.stderr, /reconcile/)
        assert.equal((await chain.transfers({ from: buyer.address })).length, 2)
        const reconciled = await buyer.cli(['journal', 'reconcile'])
        assert.equal(reconciled.code, 0, reconciled.stderr)
        // What the lost journal had signed may still be on its way.
        assert.equal((await buy(buyer, flow, 'three')).code, 3)
        assert.equal((await chain.transfers({ from: buyer.address })).length, 2)
    })

    for (const name of ['an order of the control plane', 'exact at the control plane', 'exact at a merchant']) {
        for (const fault of ['down', 'lose', 'garbage', 'error', 'already known', 'another chain', 'reorg', 2_000]) {
            // They send no transaction of their own.
            if (['already known', 'reorg'].includes(fault) && name.startsWith('exact')) continue
            test(`${name}: the chain fails (${fault}) at each of its calls`, { timeout: minutes(15) }, async () => {
                const flow = flows[name]
                const node = await startRpc(chain.url)
                const buyer = await machine(flow.server(), { chain, rpc: node.url, usdc: 50_000_000, settings })
                let calls = 0
                const methods = []
                node.fault(({ method }) => { methods.push(method) })
                await bought(buyer, flow, 'clean', 'a clean run', 1)
                let numbers = methods.map((method, at) => ({ method, at }))
                const only = { 'already known': 'eth_sendRawTransaction', 'another chain': 'eth_chainId' }[fault]
                if (only) numbers = numbers.filter(each => each.method === only)
                const wrong = fault === 'another chain' ? { result: '0x1' } : fault
                let payments = 1
                for (const { at, method } of some(numbers).slice(0, POINTS === 'all' ? Infinity : 4)) {
                    calls = 0
                    // The newest block is replaced by an empty one just then; what the wallet holds stays.
                    await chain.mine(1)
                    const reorg = () => chain.rpc('anvil_reorg', 1, []).then(() => undefined)
                    node.fault(() => calls++ !== at ? undefined : fault === 'reorg' ? reorg() : wrong)
                    await buy(buyer, flow, `k${at}`)
                    node.fault()
                    payments += 1
                    await bought(buyer, flow, `k${at}`, `${fault} at call ${at}, ${method}`, payments)
                }
                if (flow.amount === 100_000) assert.equal(await buyer.bought(), payments * flow.amount)
                await node.stop()
            })
        }
    }
})

describe('the server\'s chain fails while it is paid', () => {
    for (const settle of ['key', 'none']) {
        test(settle === 'key' ? 'exact' : 'orders', { timeout: minutes(15) }, async () => {
            const node = await startRpc(chain.url)
            const server = await startServer({ chain, rpc: node.url, settle })
            const topup = (agent, headers = {}) => ask(server.topup(agent), { method: 'POST', headers: { ...JSON_TYPE, ...headers }, body: '{"amount":1}' })
            const faults = ['down', 'lose', 'garbage', 'error', 2_000, 'already known']
            const methods = ['eth_call', 'eth_getTransactionReceipt', 'eth_getLogs', 'eth_blockNumber', 'eth_getBlockByNumber', 'any']
            const cases = methods.flatMap(method => faults.filter(fault => fault !== 'already known').map(fault => ({ method, fault })))
            if (settle === 'key') {
                faults.forEach(fault => cases.push({ method: 'eth_sendRawTransaction', fault }))
                // The newest block is replaced by an empty one just then; what the server has sent is sent again.
                ;[...methods, 'eth_sendRawTransaction'].forEach(method => cases.push({ method, fault: 'reorg' }))
            }
            for (const { method, fault } of some(cases)) {
                node.fault()
                const [agent, payer] = [await server.agent(), await chain.rich(5_000_000)]
                const asked = await until('it sells', 60_000, async () => {
                    const answer = await topup(agent)
                    return answer.status === 402 ? answer : null
                })
                let headers
                if (settle === 'key') headers = await signV2(payer.key, asked)
                else {
                    const { orderId } = asked.body
                    const txHash = await chain.transfer(payer.address, server.treasury, 1_000_000, orderSuffix(orderId))
                    headers = { 'X-PAYMENT': Buffer.from(JSON.stringify({ orderId, txHash, payer: payer.address })).toString('base64') }
                }
                // What the payer has got stays on the chain.
                await chain.mine(1)
                let left = fault === 'reorg' ? 1 : method === 'any' ? 6 : 2
                node.fault(call => {
                    if (method !== 'any' && call.method !== method || left-- <= 0) return undefined
                    return fault === 'reorg' ? chain.rpc('anvil_reorg', 1, []).then(() => undefined) : fault
                })
                const answer = await until(`an outcome with ${fault} at ${method}`, 60_000, async () => {
                    const told = await topup(agent, headers)
                    if (told.status !== 503) return told
                    assert.ok(told.headers['retry-after'], told.text)
                    await sleep(200)
                    return null
                })
                assert.equal(answer.status, 201, `${fault} at ${method}: ${answer.status} ${answer.text}`)
                node.fault()
                await until(`one transfer and one grant with ${fault} at ${method}`, fault === 'reorg' ? 60_000 : 1_000, async () =>
                    await server.credits(agent) === 1_000_000 && (await chain.transfers({ from: payer.address })).length === 1)
            }
            await server.audit()
            await server.stop()
            await node.stop()
        })
    }

    test('a node of another chain, or none: 503 and no grant; then it recovers', { timeout: 120_000 }, async () => {
        const node = await startRpc(chain.url)
        const server = await startServer({ chain, rpc: node.url })
        const agent = await server.agent()
        const topup = () => ask(server.topup(agent), { method: 'POST', headers: JSON_TYPE, body: '{"amount":1}' })
        for (const fault of [({ method }) => method === 'eth_chainId' ? { result: '0x1' } : undefined, () => 'down', () => 'garbage']) {
            await server.kill()
            node.fault(fault)
            await server.start('/healthz')
            const answer = await topup()
            assert.equal(answer.status, 503, answer.text)
            node.fault()
            await until('it sells again', 60_000, async () => (await topup()).status === 402)
        }
        await server.stop()
        await node.stop()
    })

    test('a granted payment that leaves the chain is reversed, or on it again', { timeout: 120_000 }, async () => {
        const own = await stage()
        const server = await startServer({ chain: own, settle: 'none' })
        const [agent, payer] = [await server.agent(), await own.rich(5_000_000)]
        const topup = headers => ask(server.topup(agent), { method: 'POST', headers: { ...JSON_TYPE, ...headers }, body: '{"amount":1}' })
        const { body: { orderId } } = await topup({})
        const txHash = await own.transfer(payer.address, server.treasury, 1_000_000, orderSuffix(orderId))
        const proof = { 'X-PAYMENT': Buffer.from(JSON.stringify({ orderId, txHash, payer: payer.address })).toString('base64') }
        assert.equal((await topup(proof)).status, 201)
        await own.rpc('anvil_reorg', 1, [])
        assert.equal(await own.balance(server.treasury), 0)
        await own.mine(80)
        await until('the grant is taken back', 60_000, async () => await server.credits(agent) === 0)
        await server.audit()
        await server.stop()
        await own.stop()
    })
})
