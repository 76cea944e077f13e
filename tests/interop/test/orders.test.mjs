// The finer terms of an order: amounts, times, what it binds.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { ask, signV2 } from '../partners/payers.mjs'
import { orderSuffix, sleep, stage, startServer, until } from '../stage.mjs'

let chain
before(async () => { chain = await stage() })
after(() => chain.stop())

const post = (url, amount, headers = {}) => ask(url, {
    method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: `{"amount":${amount}}`,
})
const proof = (orderId, txHash, payer) => ({ 'X-PAYMENT': Buffer.from(JSON.stringify({ orderId, txHash, payer })).toString('base64') })
const known = work => until('the outcome is known', 60_000, async () => {
    const answer = await work()
    if (answer.status !== 503) return answer
    await sleep(200)
    return null
})

describe('amounts', () => {
    let server
    before(async () => { server = await startServer({ chain }) })
    after(async () => { await server.audit(); await server.stop() })

    for (const [name, moved, credited] of [
        ['the price', 2_000_000, 2_000_000], ['more than the price', 2_500_000, 2_500_000], ['99 % of the price', 1_980_000, 1_980_000],
        ['less than 99 %', 1_979_999, null], ['almost nothing', 1, null],
    ]) {
        test(`a transfer of ${name}`, async () => {
            const [agent, payer] = [await server.agent(), await chain.rich(5_000_000)]
            const { body: { orderId } } = await post(server.topup(agent), 2)
            const hash = await chain.transfer(payer.address, server.treasury, moved, orderSuffix(orderId))
            const answer = await known(() => post(server.topup(agent), 2, proof(orderId, hash, payer.address)))
            assert.equal(answer.status, credited === null ? 402 : 201, answer.text)
            assert.equal(await server.credits(agent), credited ?? 0)
        })
    }
})

describe('times', () => {
    test('mined in time is honoured later; mined too late is not', { timeout: 60_000 }, async () => {
        const server = await startServer({ chain, flags: ['--order-ttl', '3'] })
        const [agent, payer] = [await server.agent(), await chain.rich(5_000_000)]
        const early = (await post(server.topup(agent), 1)).body.orderId
        const inTime = await chain.transfer(payer.address, server.treasury, 1_000_000, orderSuffix(early))
        await sleep(5_000)
        assert.equal((await known(() => post(server.topup(agent), 1, proof(early, inTime, payer.address)))).status, 201)
        const late = (await post(server.topup(agent), 1)).body.orderId
        await sleep(5_000)
        const tooLate = await chain.transfer(payer.address, server.treasury, 1_000_000, orderSuffix(late))
        const refused = await known(() => post(server.topup(agent), 1, proof(late, tooLate, payer.address)))
        assert.ok(refused.status >= 400 && refused.status < 500, refused.text)
        assert.equal(await server.credits(agent), 1_000_000)
        await server.audit()
        await server.stop()
    })

    test('a transfer that is older than its order', async () => {
        const server = await startServer({ chain })
        const owner = await chain.rich(5_000_000)
        const agent = await server.agent(undefined, { owner })
        const hash = await chain.transfer(owner.address, server.treasury, 1_000_000)
        await sleep(2_100)
        const headers = { 'x-api-key': server.key }
        const { body: { orderId } } = await post(server.topup(agent), 1, headers)
        const refused = await post(server.topup(agent), 1, { ...headers, ...proof(orderId, hash, owner.address) })
        assert.equal(refused.status, 402, refused.text)
        await server.stop()
    })
})

describe('what an order binds', () => {
    let server
    before(async () => { server = await startServer({ chain }) })
    after(async () => { await server.audit(); await server.stop() })

    test('the agent, the query and the body', async () => {
        const [agent, other, payer] = [await server.agent(), await server.agent(), await chain.rich(5_000_000)]
        const { body: { orderId } } = await post(server.topup(agent), 2)
        const hash = await chain.transfer(payer.address, server.treasury, 2_000_000, orderSuffix(orderId))
        const headers = proof(orderId, hash, payer.address)
        for (const [url, amount] of [[server.topup(other), 2], [`${server.topup(agent)}?a=1`, 2], [server.topup(agent), 1], [server.topup(agent), '2.0']]) {
            const refused = await post(url, amount, headers)
            assert.ok(refused.status >= 400 && refused.status < 500, `${url} ${amount}: ${refused.status} ${refused.text}`)
        }
        assert.equal((await known(() => post(server.topup(agent), 2, headers))).status, 201)
        assert.equal(await server.credits(agent), 2_000_000)
        assert.equal(await server.credits(other), 0)
    })

    test('an order of another server', async () => {
        const stranger = await startServer({ chain, treasury: server.treasury })
        const [agent, theirs, payer] = [await server.agent(), await stranger.agent(), await chain.rich(5_000_000)]
        const { body: { orderId } } = await post(stranger.topup(theirs), 2)
        const hash = await chain.transfer(payer.address, server.treasury, 2_000_000, orderSuffix(orderId))
        const refused = await post(server.topup(agent), 2, proof(orderId, hash, payer.address))
        assert.ok(refused.status >= 400 && refused.status < 500, refused.text)
        assert.equal(await server.credits(agent), 0)
        await stranger.stop()
    })

    test('an Idempotency-Key: the 402 is not stored, the grant is', async () => {
        const [agent, payer] = [await server.agent(), await chain.rich(5_000_000)]
        const headers = { 'x-api-key': server.key, 'idempotency-key': 'once' }
        const asked = await post(server.topup(agent), 1, headers)
        assert.equal(asked.status, 402, asked.text)
        assert.equal((await post(server.topup(agent), 1, headers)).status, 402)
        const served = await known(async () => post(server.topup(agent), 1, { ...headers, ...await signV2(payer.key, asked) }))
        assert.equal(served.status, 201, served.text)
        const again = await post(server.topup(agent), 1, headers)
        assert.equal(again.status, 201, again.text)
        assert.equal(again.text, served.text)
        assert.equal((await post(server.topup(agent), 2, headers)).status, 409)
        assert.equal(await server.credits(agent), 1_000_000)
        assert.equal((await chain.transfers({ from: payer.address })).length, 1)
    })

    test('what was paid is listed, and known to the ledger and the transactions', async () => {
        const [agent, payer] = [await server.agent(), await chain.rich(5_000_000)]
        const served = await known(async () => post(server.topup(agent), 1, await signV2(payer.key, await post(server.topup(agent), 1))))
        assert.equal(served.status, 201, served.text)
        const { txHash } = served.body.receipt
        for (const path of ['/api/orders', '/api/transactions']) {
            const list = await server.call('GET', path, { operator: true })
            assert.equal(list.status, 200, list.text)
            assert.ok(list.text.includes(txHash), `${path} ${list.text}`)
        }
        const refunds = await server.call('GET', '/api/refunds', { operator: true })
        assert.equal(refunds.status, 200)
        assert.ok(Array.isArray(refunds.body))
    })
})
