// The control plane as a seller: official clients pay it, and whatever they or thieves repeat is used once.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { call, word } from '../abi.mjs'
import { ask, payPython, payV1, payV2, signV1, signV2 } from '../partners/payers.mjs'
import { startFacilitator } from '../partners/facilitator.mjs'
import { ACCOUNTS, micros, orderSuffix, sleep, stage, startPostgres, startServer, until, wallet } from '../stage.mjs'

const JSON_TYPE = { 'content-type': 'application/json' }
const request = amount => ({ method: 'POST', headers: JSON_TYPE, body: JSON.stringify({ amount }) })
const decoded = header => JSON.parse(Buffer.from(header, 'base64'))

let chain
before(async () => { chain = await stage() })
after(() => chain.stop())

/** The 402 of a top-up. */
async function unpaid(server, agent, amount, key) {
    const init = request(amount)
    if (key) init.headers = { ...init.headers, 'x-api-key': key }
    const answer = await ask(server.topup(agent), init)
    assert.equal(answer.status, 402, answer.text)
    return answer
}

/** Presents payment headers for a top-up. */
function present(server, agent, amount, headers, key) {
    const init = request(amount)
    init.headers = { ...init.headers, ...headers, ...(key ? { 'x-api-key': key } : {}) }
    return ask(server.topup(agent), init)
}

/** Presents until the outcome is known: 503 says "ask again". */
async function presentUntilKnown(server, agent, amount, headers, key) {
    return until('the outcome is known', 60_000, async () => {
        const answer = await present(server, agent, amount, headers, key).catch(() => null)
        if (!answer || answer.status === 503) {
            if (answer) assert.ok(Number(answer.headers['retry-after']) > 0, 'a 503 says when to come back')
            await sleep(200)
            return null
        }
        return answer
    })
}

/** The header of an order proof. */
function proof(orderId, txHash, payer, signature) {
    return { 'X-PAYMENT': Buffer.from(JSON.stringify({ orderId, txHash, payer, ...(signature ? { signature } : {}) })).toString('base64') }
}

const signedOrder = (payer, orderId, hash) =>
    payer.account.signMessage({ message: `Otonix order ${orderId} paid by ${hash} on eip155:8453` })

describe('official clients pay a top-up', () => {
    let server
    before(async () => { server = await startServer({ chain }) })
    after(async () => { await server.audit(); await server.stop() })

    const clients = {
        '@x402/fetch 2.27.0': payV2, 'x402-fetch 1.2.0': payV1,
        'PyPI x402 2.25.0 with httpx': payPython('httpx'), 'PyPI x402 2.25.0 with requests': payPython('requests'),
    }
    for (const [name, pay] of Object.entries(clients)) {
        test(name, async () => {
            const payer = await chain.rich(5_000_000, 0n)
            const agent = await server.agent()
            const had = await chain.balance(server.treasury)
            const answer = await pay(payer.key, server.topup(agent), request(1.25))
            assert.equal(answer.status, 201, answer.text)
            assert.equal(answer.body.agentId, agent)
            assert.equal(micros(answer.body.credited), 1_250_000)
            assert.equal(micros(answer.body.credits), 1_250_000)
            assert.equal(await chain.balance(payer.address), 3_750_000)
            assert.equal(await chain.balance(server.treasury) - had, 1_250_000)
            assert.equal(await server.credits(agent), 1_250_000)
            const [moved] = await chain.transfers({ from: payer.address })
            assert.equal(answer.body.receipt.txHash, moved.hash)
            assert.equal(answer.body.receipt.payer.toLowerCase(), payer.address.toLowerCase())
            assert.equal(answer.body.receipt.scheme, 'exact')
            const told = decoded(answer.headers['payment-response'] ?? answer.headers['x-payment-response'])
            assert.equal(told.success, true)
            assert.equal(told.transaction, moved.hash)
            const ledger = await server.ledger(agent)
            assert.equal(ledger.length, 1)
            assert.equal(micros(ledger[0].amount), 1_250_000)
        })
    }

    test('the 402 is the one that every kind of client understands', async () => {
        const agent = await server.agent()
        const answer = await unpaid(server, agent, 2)
        assert.match(answer.headers['content-type'], /^application\/json/)
        assert.match(answer.headers['cache-control'], /no-store/)
        assert.equal(answer.body.x402Version, 1)
        assert.equal(answer.body.accepts.length, 1)
        assert.equal(answer.body.accepts[0].maxAmountRequired, '2000000')
        assert.equal(answer.body.maxAmountRequired, '2000000')
        assert.equal(answer.body.treasury.toLowerCase(), server.treasury.toLowerCase())
        assert.ok(answer.body.orderId.length <= 512)
        const v2 = decoded(answer.headers['payment-required'])
        assert.equal(v2.accepts[0].amount, '2000000')
        assert.equal(v2.accepts[0].network, 'eip155:8453')
        assert.equal(decoded(answer.headers['x-payment-required']).orderId, answer.body.orderId)
    })

    test('both kinds of payment header at once are refused', async () => {
        const agent = await server.agent()
        const payer = await chain.rich(1_000_000)
        const answer = await unpaid(server, agent, 1)
        const headers = { ...await signV2(payer.key, answer), ...await signV1(payer.key, answer) }
        assert.equal((await present(server, agent, 1, headers)).status, 400)
        assert.equal(await chain.balance(payer.address), 1_000_000)
    })

    test('an empty wallet gets nothing and pays nothing', async () => {
        const agent = await server.agent()
        const payer = await chain.rich(999_999)
        for (const sign of [signV2, signV1]) {
            const answer = await present(server, agent, 1, await sign(payer.key, await unpaid(server, agent, 1)))
            assert.equal(answer.status, 402, answer.text)
        }
        assert.equal(await server.credits(agent), 0)
        assert.equal(await chain.balance(payer.address), 999_999)
    })
})

describe('the same payment again', () => {
    let server
    before(async () => { server = await startServer({ chain }) })
    after(async () => { await server.audit(); await server.stop() })

    for (const [version, sign] of [['v2', signV2], ['v1', signV1]]) {
        test(`ten at once are one grant, one settlement, one answer (${version})`, async () => {
            const agent = await server.agent()
            const payer = await chain.rich(20_000_000)
            const headers = await sign(payer.key, await unpaid(server, agent, 2))
            const answers = await Promise.all(Array.from({ length: 10 }, () => presentUntilKnown(server, agent, 2, headers)))
            for (const answer of answers) {
                assert.equal(answer.status, 201, answer.text)
                assert.equal(answer.text, answers[0].text)
            }
            assert.equal(await server.credits(agent), 2_000_000)
            assert.equal((await chain.transfers({ from: payer.address })).length, 1)
        })

        test(`another resource or another body is refused (${version})`, async () => {
            const [agent, other] = [await server.agent(), await server.agent()]
            const payer = await chain.rich(20_000_000)
            const headers = await sign(payer.key, await unpaid(server, agent, 2))
            // Before it is used: the other resource has the same price and payee.
            const elsewhere = await present(server, other, 2, headers)
            // v1 payments name no resource; what binds them is their first use.
            const first = version === 'v2' ? agent : elsewhere.status === 201 ? other : agent
            if (version === 'v2') assert.ok(elsewhere.status >= 400 && elsewhere.status < 500, elsewhere.text)
            const used = await presentUntilKnown(server, first, 2, headers)
            assert.equal(used.status, 201, used.text)
            for (const [id, amount] of [[first === agent ? other : agent, 2], [first, 1], [first, 3]]) {
                const refused = await present(server, id, amount, headers)
                assert.ok(refused.status >= 400 && refused.status < 500, `${refused.status} ${refused.text}`)
            }
            assert.equal(await server.credits(agent) + await server.credits(other), 2_000_000)
            assert.equal((await chain.transfers({ from: payer.address })).length, 1)
        })
    }

    test('an order proved ten times at once is one grant, one answer', async () => {
        const agent = await server.agent()
        const payer = await chain.rich(20_000_000)
        const { body } = await unpaid(server, agent, 2)
        const hash = await chain.transfer(payer.address, server.treasury, 2_000_000, orderSuffix(body.orderId))
        const headers = proof(body.orderId, hash, payer.address)
        const answers = await Promise.all(Array.from({ length: 10 }, () => presentUntilKnown(server, agent, 2, headers)))
        for (const answer of answers) {
            assert.equal(answer.status, 201, answer.text)
            assert.equal(answer.text, answers[0].text)
        }
        assert.equal(await server.credits(agent), 2_000_000)
    })

    test('after a restart the stored answer comes, byte for byte', async () => {
        const agent = await server.agent()
        const payer = await chain.rich(20_000_000)
        const headers = await signV2(payer.key, await unpaid(server, agent, 2))
        const first = await presentUntilKnown(server, agent, 2, headers)
        assert.equal(first.status, 201, first.text)
        await server.kill()
        await server.start()
        const again = await presentUntilKnown(server, agent, 2, headers)
        assert.equal(again.status, 201, again.text)
        assert.equal(again.text, first.text)
        assert.equal(again.headers['payment-response'], first.headers['payment-response'])
        assert.equal(await server.credits(agent), 2_000_000)
    })
})

describe('two replicas on one PostgreSQL', () => {
    let postgres, servers
    before(async () => {
        postgres = await startPostgres()
        if (!postgres) return
        const first = await startServer({ chain, database: await postgres.database() })
        servers = [first, await first.replica()]
    })
    after(async () => {
        if (!postgres) return
        await servers[0].audit()
        for (const each of servers) await each.stop()
        await postgres.stop()
    })

    test('ten payments at once over both, and a replay on the other', async context => {
        if (!postgres) return context.skip('no PostgreSQL here')
        const agent = await servers[0].agent()
        const payer = await chain.rich(20_000_000)
        const answer = await unpaid(servers[0], agent, 2)
        const headers = await signV2(payer.key, answer)
        // A replica behind the same public URL: what binds is the path.
        const answers = await Promise.all(Array.from({ length: 10 }, (_, at) =>
            presentUntilKnown(servers[at % 2], agent, 2, headers)))
        const granted = answers.filter(each => each.status === 201)
        assert.ok(granted.length >= 1, answers.map(each => each.text).join('\n'))
        for (const each of answers) assert.equal(each.text, granted[0].text)
        assert.equal(await servers[1].credits(agent), 2_000_000)
        assert.equal((await chain.transfers({ from: payer.address })).length, 1)
    })

    test('an order made at one is proved at the other, once', async context => {
        if (!postgres) return context.skip('no PostgreSQL here')
        const agent = await servers[0].agent()
        const payer = await chain.rich(20_000_000)
        const { body } = await unpaid(servers[0], agent, 2)
        const hash = await chain.transfer(payer.address, servers[0].treasury, 2_000_000, orderSuffix(body.orderId))
        const headers = proof(body.orderId, hash, payer.address)
        const answers = await Promise.all([...servers, ...servers].map(each => presentUntilKnown(each, agent, 2, headers)))
        for (const each of answers) {
            assert.equal(each.status, 201, each.text)
            assert.equal(each.text, answers[0].text)
        }
        assert.equal(await servers[0].credits(agent), 2_000_000)
    })
})

describe('one transfer, one use, whichever comes first', { concurrency: 4 }, () => {
    /** A chain of its own, since its clock is moved. */
    const alone = work => async () => {
        const chain = await stage()
        const server = await startServer({ chain })
        // Order time to live, finality and ten minutes later the deposit watcher takes what nothing else has used.
        const later = async () => { await chain.advance(3600); await chain.mine(80); await sleep(5_000) }
        await work({ chain, server, later })
        await server.audit()
        await server.stop()
        await chain.stop()
    }

    test('order proof, then again, then the deposit watcher', { timeout: 120_000 }, alone(async ({ chain, server, later }) => {
        const owner = await chain.rich(20_000_000)
        const agent = await server.agent(undefined, { owner })
        const { body } = await unpaid(server, agent, 2)
        const hash = await chain.transfer(owner.address, server.treasury, 2_000_000, orderSuffix(body.orderId))
        const served = await presentUntilKnown(server, agent, 2, proof(body.orderId, hash, owner.address))
        assert.equal(served.status, 201, served.text)
        // The same hash for another order, whichever way it is tied.
        const next = (await unpaid(server, agent, 2, server.key)).body.orderId
        for (const signature of [undefined, await signedOrder(owner, next, hash)]) {
            const refused = await present(server, agent, 2, proof(next, hash, owner.address, signature), server.key)
            assert.ok(refused.status >= 400 && refused.status < 500, refused.text)
        }
        await later()
        assert.equal(await server.credits(agent), 2_000_000)
    }))

    test('exact, then as an order proof, then the deposit watcher', { timeout: 120_000 }, alone(async ({ chain, server, later }) => {
        const owner = await chain.rich(20_000_000)
        const agent = await server.agent(undefined, { owner })
        const served = await presentUntilKnown(server, agent, 2, await signV2(owner.key, await unpaid(server, agent, 2)))
        assert.equal(served.status, 201, served.text)
        const [{ hash }] = await chain.transfers({ from: owner.address })
        const { body } = await unpaid(server, agent, 2, server.key)
        for (const signature of [undefined, await signedOrder(owner, body.orderId, hash)]) {
            const refused = await present(server, agent, 2, proof(body.orderId, hash, owner.address, signature), server.key)
            assert.ok(refused.status >= 400 && refused.status < 500, refused.text)
        }
        await later()
        assert.equal(await server.credits(agent), 2_000_000)
    }))

    test('the deposit watcher, then an order proof', { timeout: 120_000 }, alone(async ({ chain, server, later }) => {
        const owner = await chain.rich(20_000_000)
        const agent = await server.agent(undefined, { owner })
        const { body } = await unpaid(server, agent, 2)
        await sleep(1100)
        const hash = await chain.transfer(owner.address, server.treasury, 2_000_000)
        await later()
        await until('the deposit is credited', 60_000, async () => await server.credits(agent) === 2_000_000)
        const late = await present(server, agent, 2, proof(body.orderId, hash, owner.address, await signedOrder(owner, body.orderId, hash)), server.key)
        assert.equal(late.status, 409, late.text)
        assert.equal(late.body.code, 'payment_already_credited')
        assert.equal(await server.credits(agent), 2_000_000)
    }))

    test('a stranger\'s money is booked, and nobody\'s', { timeout: 120_000 }, alone(async ({ chain, server, later }) => {
        const stranger = await chain.rich(20_000_000)
        const agent = await server.agent()
        await chain.transfer(stranger.address, server.treasury, 2_000_000)
        await later()
        assert.equal(await server.credits(agent), 0)
        assert.match(await server.audit(), /unmatched/)
    }))
})

describe('who may use a transfer', () => {
    let server
    before(async () => { server = await startServer({ chain }) })
    after(async () => { await server.audit(); await server.stop() })

    test('an authorization sent to the chain by a stranger still pays for its request', async () => {
        // Anyone may submit a signed authorization that was seen; the money arrives, the payer is served.
        const payer = await chain.rich(20_000_000)
        const agent = await server.agent()
        const headers = await signV2(payer.key, await unpaid(server, agent, 2))
        const { payload } = decoded(headers['PAYMENT-SIGNATURE'])
        const { authorization: a, signature } = payload
        const vrs = word(`0x${signature.slice(130)}`) + signature.slice(2, 66) + signature.slice(66, 130)
        // transferWithAuthorization(from, to, value, validAfter, validBefore, nonce, v, r, s)
        const data = call('0xe3ee160e', a.from, a.to, a.value, a.validAfter, a.validBefore, a.nonce) + vrs
        await chain.mined(await chain.send(ACCOUNTS[7].address, data))
        const served = await presentUntilKnown(server, agent, 2, headers)
        assert.equal(served.status, 201, served.text)
        assert.equal(await server.credits(agent), 2_000_000)
        assert.equal((await chain.transfers({ from: payer.address })).length, 1)
    })

    for (const tie of ['calldata', 'signature', 'key']) {
        test(`a thief with a victim's hash gets nothing, and the victim is served (by ${tie})`, async () => {
            const victim = await chain.rich(20_000_000)
            const thief = await chain.rich(20_000_000)
            const thiefKey = await server.newKey('thief')
            const theirs = await server.agent(undefined, { key: thiefKey, owner: thief })
            const mine = await server.agent(undefined, tie === 'key' ? { owner: victim } : {})
            const key = tie === 'key' ? server.key : undefined
            const older = (await unpaid(server, theirs, 2, thiefKey)).body.orderId
            const { orderId } = (await unpaid(server, mine, 2, key)).body
            await sleep(1100)
            const suffix = tie === 'calldata' ? orderSuffix(orderId) : ''
            const hash = await chain.transfer(victim.address, server.treasury, 2_000_000, suffix)
            const younger = (await unpaid(server, theirs, 2, thiefKey)).body.orderId
            for (const order of [older, younger]) {
                for (const headers of [
                    proof(order, hash, victim.address),
                    proof(order, hash, thief.address),
                    proof(order, hash, victim.address, await signedOrder(thief, order, hash)),
                    proof(order, hash, thief.address, await signedOrder(thief, order, hash)),
                ]) {
                    const refused = await present(server, theirs, 2, headers, thiefKey)
                    assert.equal(refused.status, 402, refused.text)
                }
            }
            if (tie !== 'calldata') {
                // The victim's order by someone who knows the hash alone.
                const bare = await present(server, mine, 2, proof(orderId, hash, victim.address), tie === 'key' ? thiefKey : undefined)
                assert.ok([402, 404].includes(bare.status), bare.text)
                if (tie === 'signature') assert.equal(bare.body.code, 'payer_not_proven')
            }
            const signature = tie === 'signature' ? await signedOrder(victim, orderId, hash) : undefined
            const served = await presentUntilKnown(server, mine, 2, proof(orderId, hash, victim.address, signature), key)
            assert.equal(served.status, 201, served.text)
            assert.equal(served.body.receipt.scheme, 'otonix-order')
            assert.equal(await server.credits(mine), 2_000_000)
            assert.equal(await server.credits(theirs), 0)
        })
    }

    test('transfers that prove nothing', async () => {
        const payer = await chain.rich(20_000_000)
        const agent = await server.agent()
        const { body } = await unpaid(server, agent, 2)
        const suffix = orderSuffix(body.orderId)
        const elsewhere = await chain.transfer(payer.address, wallet().address, 2_000_000, suffix)
        const tooLittle = await chain.transfer(payer.address, server.treasury, 1_900_000, suffix)
        await chain.rpc('anvil_impersonateAccount', payer.address)
        const failed = await chain.rpc('eth_sendTransaction', {
            from: payer.address, to: chain.asset, gas: '0x7a120',
            data: call('0xa9059cbb', server.treasury, 900_000_000) + suffix,
        })
        const ether = await chain.rpc('eth_sendTransaction', { from: payer.address, to: server.treasury, value: '0x1' })
        for (const hash of [elsewhere, tooLittle, failed, ether, `0x${'ab'.repeat(32)}`]) {
            const refused = await present(server, agent, 2, proof(body.orderId, hash, payer.address))
            assert.ok(refused.status === 402 || refused.status === 503, `${hash}: ${refused.status} ${refused.text}`)
        }
        assert.equal(await server.credits(agent), 0)
    })
})

describe('settled by a facilitator', { concurrency: 8 }, () => {
    /** A server with a facilitator of its own. */
    const facilitated = work => async () => {
        const facilitator = await startFacilitator({ rpc: chain.url, key: (await chain.rich(0)).key })
        const server = await startServer({ chain, settle: facilitator })
        await work({ server, facilitator })
        await server.audit()
        await server.stop()
        await facilitator.stop()
    }

    test('one that works', { timeout: 120_000 }, facilitated(async ({ server }) => {
        const payer = await chain.rich(5_000_000, 0n)
        const agent = await server.agent()
        const answer = await payV2(payer.key, server.topup(agent), request(1))
        assert.equal(answer.status, 201, answer.text)
        assert.equal(await server.credits(agent), 1_000_000)
        assert.equal(await chain.balance(payer.address), 4_000_000)
    }))

    for (const mood of ['lose', 'cut', 'error', 'garbage', 15_000]) {
        const name = typeof mood === 'number' ? `answers ${mood / 1000} s late` : mood
        test(`one that fails (${name}): no second charge, and the payer gets what was paid for`, { timeout: 120_000 }, facilitated(async ({ server, facilitator }) => {
            const payer = await chain.rich(5_000_000, 0n)
            const agent = await server.agent()
            const headers = await signV2(payer.key, await unpaid(server, agent, 1))
            facilitator.mood.settle = mood
            const first = await present(server, agent, 1, headers)
            // A slow one stays slow; the others come back.
            if (typeof mood !== 'number') facilitator.mood.settle = 'serve'
            assert.ok([201, 503].includes(first.status), `${first.status} ${first.text}`)
            if (first.status === 503) assert.equal(first.body.code, 'payment_pending', first.text)
            const known = await presentUntilKnown(server, agent, 1, headers)
            assert.equal(known.status, 201, known.text)
            assert.equal(await server.credits(agent), 1_000_000)
            assert.equal(await chain.balance(payer.address), 4_000_000)
        }))
    }

    for (const mood of ['refuse', 'lie']) {
        test(`one that ${mood}s grants nothing`, { timeout: 120_000 }, facilitated(async ({ server, facilitator }) => {
            const payer = await chain.rich(5_000_000, 0n)
            const agent = await server.agent()
            const headers = await signV2(payer.key, await unpaid(server, agent, 1))
            facilitator.mood.settle = mood
            const answer = await present(server, agent, 1, headers)
            assert.ok([402, 503].includes(answer.status), `${answer.status} ${answer.text}`)
            assert.equal(await server.credits(agent), 0)
            assert.equal(await chain.balance(payer.address), 5_000_000)
        }))
    }
})
