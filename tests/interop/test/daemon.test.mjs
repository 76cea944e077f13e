// The daemon as a buyer: official merchants are paid once, and a merchant that misbehaves gets nothing that policy does
// not allow, never anything twice, and the outcome is told as it is.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { startFacilitator } from '../partners/facilitator.mjs'
import { startMerchant, startMerchantV1 } from '../partners/merchants.mjs'
import { payV2 } from '../partners/payers.mjs'
import { offer, offerV1, startRogue } from '../partners/rogue.mjs'
import { startRpc } from '../partners/rpc.mjs'
import { ACCOUNTS, machine, sleep, stage, startServer, until, wallet } from '../stage.mjs'

const REFUSED = 3
const UNKNOWN = 4

let chain, server
before(async () => {
    chain = await stage()
    server = await startServer({ chain })
})
after(async () => {
    await server.audit()
    await server.stop()
    await chain.stop()
})

/** What an address has paid so far: [{ to, amount }], in micro-USDC. */
const paid = async address => (await chain.transfers({ from: address })).map(({ to, amount }) => ({ to, amount }))
const nonces = visits => new Set(visits.filter(each => each.payment).map(each => each.payment.payload.authorization.nonce))

describe('official merchants', { concurrency: 4 }, () => {
    const kinds = { '@x402/express 2.27.0': startMerchant, 'x402-express 1.2.0': startMerchantV1 }
    const open = []
    /** A merchant with a facilitator and a payee of its own. */
    const shop = async (name = '@x402/express 2.27.0') => {
        const facilitator = await startFacilitator({ rpc: chain.url, key: (await chain.rich(0)).key })
        const payTo = wallet().address
        const merchant = await kinds[name]({ facilitator, payTo })
        open.push(merchant, facilitator)
        return { facilitator, payTo, url: merchant.url }
    }
    after(async () => { for (const each of open) await each.stop() })

    for (const name of Object.keys(kinds)) {
        test(`${name} is paid, settled, and its receipt kept`, async () => {
            const { url, payTo } = await shop(name)
            const buyer = await machine(server, { chain, usdc: 5_000_000, ether: 0n })
            const told = await buyer.pay(`${url}/paid?q=1`, '0.05', '--method', 'POST', '--data', 'hello')
            assert.equal(told.code, 0, told.stderr)
            const answer = JSON.parse(told.stdout)
            assert.equal(answer.body, 'hello')
            assert.equal(answer.query.q, '1')
            assert.equal(await chain.balance(payTo), 10_000)
            const [moved] = await chain.transfers({ from: buyer.address })
            const journal = await buyer.journal()
            assert.equal(journal.length, 1)
            assert.ok(JSON.stringify(journal).includes(moved.hash), 'the receipt is kept')
            assert.match(JSON.stringify(journal), /settled/i)
        })

        test(`${name}: a handler that fails costs nothing`, async () => {
            const { url } = await shop(name)
            const buyer = await machine(server, { chain, usdc: 5_000_000 })
            const told = await buyer.pay(`${url}/broken`, '0.05')
            assert.notEqual(told.code, 0)
            assert.deepEqual(await paid(buyer.address), [])
        })

        test(`${name}: settled but the answer to the merchant lost: never paid twice, and told as it is`, async () => {
            const { url, facilitator } = await shop(name)
            const buyer = await machine(server, { chain, usdc: 5_000_000 })
            facilitator.mood.settle = 'lose'
            const told = await buyer.pay(`${url}/paid`, '0.05')
            assert.deepEqual((await paid(buyer.address)).map(each => each.amount), [10_000])
            assert.equal(told.code, UNKNOWN, `${told.code} ${told.stderr}`)
        })
    }

    test('a critical agent pays only the control plane and what is essential', async () => {
        const buyer = await machine(server, { chain, usdc: 5_000_000, credits: 5, settings: { OTONIX_PAY_ESSENTIAL: '["example.com"]' } })
        const told = await buyer.pay(`${(await shop()).url}/paid`, '0.05')
        assert.equal(told.code, REFUSED, told.stderr)
        assert.deepEqual(await paid(buyer.address), [])
    })

    test('the command line knows the tier of now, and lists of hosts may be texts', async () => {
        const { url } = await shop()
        const settings = { OTONIX_PAY_HOSTS: 'example.com,127.0.0.1', OTONIX_PAY_ESSENTIAL: 'example.com, example.org' }
        const buyer = await machine(server, { chain, usdc: 5_000_000, credits: 0, settings })
        assert.equal((await buyer.pay(`${url}/paid`, '0.05')).code, REFUSED)
        const granted = await server.call('POST', `/api/agents/${buyer.id}/grant`, { operator: true, body: { amount: 20, reason: 'interop' } })
        assert.equal(granted.status, 201, granted.text)
        const told = await buyer.pay(`${url}/paid`, '0.05')
        assert.equal(told.code, 0, told.stderr)
    })

    test('what is free is not paid, and free in every tier', async () => {
        const buyer = await machine(server, { chain, usdc: 5_000_000, credits: 0, settings: { OTONIX_PAY_ESSENTIAL: '[]' } })
        const told = await buyer.pay(`${(await shop()).url}/free`, '0.05')
        assert.equal(told.code, 0, told.stderr)
        assert.deepEqual(JSON.parse(told.stdout), { free: true })
        assert.deepEqual(await paid(buyer.address), [])
    })

    test('through the running daemon, by the local API', async () => {
        const buyer = await machine(server, { chain, usdc: 5_000_000, settings: { OTONIX_PAY_ALLOW_SHARED_UID: 'true' } })
        await buyer.run()
        const url = `${(await shop()).url}/paid`
        const body = { url, method: 'POST', body: 'again', maxAmount: '0.05', idempotencyKey: 'one' }
        const answers = await Promise.all([1, 2, 3].map(() => buyer.local('POST', '/v1/pay', body)))
        for (const answer of answers) {
            assert.equal(answer.status, 200, answer.text)
            assert.equal(answer.body.status, 200)
            assert.equal(answer.body.intentId, answers[0].body.intentId)
        }
        const [first] = answers
        assert.equal(JSON.parse(first.body.body).body, 'again')
        const [moved, ...more] = await chain.transfers({ from: buyer.address })
        assert.deepEqual(more, [])
        assert.equal(first.body.payment.txHash, moved.hash)
        const later = await buyer.local('GET', `/v1/payments/${first.body.intentId}`)
        assert.equal(later.status, 200, later.text)
        await buyer.stop()
    })
})

describe('a merchant that misbehaves', { concurrency: 6 }, () => {
    const payTo = wallet().address

    /** A path of its own for each test, on an origin that other tests' pins do not touch. */
    const at = async (script, options) => {
        const own = await startRogue({ rpc: chain.url, key: (await chain.rich(0)).key })
        return { own, url: own.on('/', script), payer: await machine(server, { chain, usdc: 500_000_000, ...options }) }
    }
    const serve = async visit => {
        const settled = await visit.settle()
        visit.json(settled.success ? 200 : 402, { settled: settled.success }, visit.receipt(settled))
    }
    /** Refused by policy: exit 3, no payment shown to anyone, nothing moved. */
    const refused = async (offers, most = '1', options) => {
        const { own, url, payer } = await at(visit => visit.payment ? serve(visit) : visit.ask(...offers(`http://${visit.headers.host}`)), options)
        const told = await payer.pay(url, most)
        await own.stop()
        assert.equal(told.code, REFUSED, `${told.code} ${told.stderr}`)
        assert.ok(told.stderr.trim().length > 0, 'it says why')
        assert.doesNotMatch(told.stderr, /paused/)
        assert.equal(own.visits.filter(each => each.header).length, 0)
        assert.deepEqual(await paid(payer.address), [])
    }

    test('overprices: above the caller\'s maximum', () => refused(() => [[offer(payTo, { amount: '1000001' })]]))
    test('overprices: above the policy\'s, whatever the caller says', () => refused(() => [[offer(payTo, { amount: '1500000' })]], '100'))
    test('asks another token', () => refused(() => [[offer(payTo, { asset: '0x50c5725949A6F0c72E6C4a641F24049A917DB0Cb' })]]))
    test('asks on another chain', () => refused(() => [[offer(payTo, { network: 'eip155:1' })]]))
    test('asks on a testnet', () => refused(() => [[offer(payTo, { network: 'eip155:84532' })]]))
    test('names another domain', () => refused(() => [[offer(payTo, { extra: { name: 'USDC', version: '2' } })]]))
    test('names another version of the domain', () => refused(() => [[offer(payTo, { extra: { name: 'USD Coin', version: '1' } })]]))
    test('asks another scheme', () => refused(() => [[offer(payTo, { scheme: 'upto' })]]))
    test('asks by Permit2', () => refused(() => [[offer(payTo, { extra: { name: 'USD Coin', version: '2', assetTransferMethod: 'permit2' } })]]))
    test('asks a negative amount', () => refused(() => [[offer(payTo, { amount: '-1' })]]))
    test('asks an amount beyond 256 bits', () => refused(() => [[offer(payTo, { amount: '9'.repeat(90) })]]))
    test('v1: overprices', () => refused(url => [[], { v1: [offerV1(payTo, `${url}/`, { maxAmountRequired: '1000001' })] }]))
    test('v1: asks another token', () => refused(url => [[], { v1: [offerV1(payTo, `${url}/`, { asset: wallet().address })] }]))
    test('is not on the list of hosts: the agent\'s process may not pay it', async () => {
        const settings = { OTONIX_PAY_HOSTS: '["example.com"]', OTONIX_PAY_ALLOW_SHARED_UID: 'true' }
        const { own, url, payer } = await at(visit => visit.payment ? serve(visit) : visit.ask([offer(payTo)]), { settings })
        await payer.run()
        const answer = await payer.local('POST', '/v1/pay', { url, maxAmount: '1' })
        assert.ok(answer.status >= 400, answer.text)
        assert.equal(own.visits.filter(each => each.header).length, 0)
        // `pay` on the command line is the machine's owner, whom the list does not bind.
        const told = await payer.pay(url, '1')
        assert.equal(told.code, 0, told.stderr)
        await payer.stop()
        await own.stop()
    })

    test('asked by a process that could read the wallet: off unless allowed', async () => {
        const { own, url, payer } = await at(visit => visit.ask([offer(payTo)]), {})
        await payer.run()
        const answer = await payer.local('POST', '/v1/pay', { url, maxAmount: '1' })
        assert.ok(answer.status >= 400, answer.text)
        assert.equal(own.visits.filter(each => each.header).length, 0)
        await payer.stop()
        await own.stop()
    })

    test('swaps the payee', async () => {
        let payee = payTo
        const { own, url, payer } = await at(visit => visit.payment ? serve(visit) : visit.ask([offer(payee)]))
        assert.equal((await payer.pay(url, '1')).code, 0)
        payee = wallet().address
        const told = await payer.pay(url, '1')
        assert.equal(told.code, REFUSED, told.stderr)
        assert.doesNotMatch(told.stderr, /paused/)
        assert.deepEqual((await paid(payer.address)).map(each => each.to), [payTo.toLowerCase()])
        const pins = await payer.cli(['pins', 'list'])
        assert.ok(pins.stdout.toLowerCase().includes(payTo.toLowerCase()), pins.stdout)
        await own.stop()
    })

    test('swaps price and payee when the payment is shown', async () => {
        const { own, url, payer } = await at(visit => visit.ask([visit.payment ? offer(wallet().address, { amount: '900000' }) : offer(payTo)]))
        const told = await payer.pay(url, '1')
        assert.notEqual(told.code, 0)
        assert.equal(nonces(own.visits).size, 1)
        assert.deepEqual(await paid(payer.address), [])
        await own.stop()
    })

    test('asks a year\'s validity', async () => {
        const { own, url, payer } = await at(visit => visit.payment ? serve(visit) : visit.ask([offer(payTo, { maxTimeoutSeconds: 31_536_000 })]))
        await payer.pay(url, '1')
        for (const { payment } of own.visits.filter(each => each.payment))
            assert.ok(Number(payment.payload.authorization.validBefore) <= Date.now() / 1000 + 301)
        await own.stop()
    })

    test('offers a dearer option first', async () => {
        const { own, url, payer } = await at(visit => visit.payment ? serve(visit)
            : visit.ask([offer(payTo, { amount: '500000' }), offer(payTo, { amount: '10000' }), offer(payTo, { amount: '20000' })]))
        const told = await payer.pay(url, '1')
        assert.equal(told.code, 0, told.stderr)
        assert.deepEqual((await paid(payer.address)).map(each => each.amount), [10_000])
        await own.stop()
    })

    for (const [status, when] of [[302, 'before'], [307, 'before'], [308, 'before'], [301, 'after'], [303, 'after'], [307, 'after'], [308, 'after']]) {
        test(`redirects to another origin (${status}, ${when} the payment)`, async () => {
            const other = await startRogue({ rpc: chain.url, key: (await chain.rich(0)).key })
            const elsewhere = other.on('/', visit => visit.payment ? serve(visit) : visit.ask([offer(payTo)]))
            const { own, url, payer } = await at((visit, _, response) => {
                if (when === 'after' && !visit.payment) return visit.ask([offer(payTo)])
                response.writeHead(status, { location: elsewhere }).end()
            })
            const told = await payer.pay(url, '1')
            if (when === 'after') {
                assert.notEqual(told.code, 0)
                assert.deepEqual(other.visits.filter(each => each.header), [])
            }
            // Before the payment a redirect may be followed; what is paid then is the other origin's own price.
            assert.ok(nonces(other.visits).size <= 1)
            const shown = new Set(own.visits.filter(each => each.header).map(each => each.header))
            for (const visit of other.visits) assert.ok(!shown.has(visit.header), 'a payment header crossed')
            await own.stop()
            await other.stop()
        })
    }

    test('drops the connection after settling, then serves', async () => {
        let settled
        const { own, url, payer } = await at(async visit => {
            if (!visit.payment) return visit.ask([offer(payTo)])
            if (settled) return visit.json(200, { served: true }, visit.receipt(settled))
            settled = await visit.settle()
            visit.cut()
        })
        const told = await payer.pay(url, '1')
        assert.equal(told.code, 0, told.stderr)
        assert.deepEqual(JSON.parse(told.stdout), { served: true })
        assert.deepEqual((await paid(payer.address)).map(each => each.amount), [10_000])
        assert.equal(nonces(own.visits).size, 1)
        await own.stop()
    })

    for (const [name, then] of [
        ['drops the connection after settling, for ever', visit => visit.cut()],
        ['answers 500 after settling, for ever', visit => visit.json(500, { error: 'sorry' })],
        ['asks again after settling, for ever', visit => visit.ask([offer(payTo)])],
    ]) {
        test(name, { timeout: 120_000 }, async () => {
            let settled
            const { own, url, payer } = await at(async visit => {
                if (!visit.payment) return visit.ask([offer(payTo)])
                settled ??= visit.settle()
                await settled
                then(visit)
            })
            const told = await payer.pay(url, '1')
            assert.equal(told.code, UNKNOWN, `${told.code} ${told.stderr}`)
            // Asked again, it is the same intent: still the same authorization.
            await payer.pay(url, '1')
            assert.deepEqual((await paid(payer.address)).map(each => each.amount), [10_000])
            assert.equal(nonces(own.visits).size, 1)
            await own.stop()
        })
    }

    test('asks again and again without settling', { timeout: 120_000 }, async () => {
        const { own, url, payer } = await at(visit => visit.ask([offer(payTo)]))
        const told = await payer.pay(url, '1')
        assert.notEqual(told.code, 0)
        assert.equal(nonces(own.visits).size, 1, 'never a second authorization while the first can settle')
        assert.deepEqual(await paid(payer.address), [])
        await own.stop()
    })

    test('answers nonsense', async () => {
        for (const header of ['%%%', 'e30=', Buffer.from('[]').toString('base64'), Buffer.from('{"x402Version":2,"accepts":[]}').toString('base64'), 'A'.repeat(7000)]) {
            const { own, url, payer } = await at((visit, _, response) => {
                response.writeHead(402, { 'payment-required': header }).end('{"x402Version":')
            })
            const told = await payer.pay(url, '1')
            assert.ok(told.code > 0 && told.code < 100, `${told.code} ${told.stderr}`)
            assert.equal(own.visits.filter(each => each.header).length, 0)
            await own.stop()
        }
    })

    test('points at private addresses', async () => {
        const own = await startRogue({ rpc: chain.url, key: (await chain.rich(0)).key })
        own.on('/', visit => visit.ask([offer(payTo)]))
        const payer = await machine(server, { chain, usdc: 1_000_000, loopback: false })
        const hosts = ['127.0.0.1', 'localhost', '0.0.0.0', '[::ffff:127.0.0.1]', '2130706433', '0x7f.1', '127.1', '[::1]']
        for (const host of hosts) {
            const told = await payer.pay(`http://${host}:${own.port}/`, '1')
            assert.notEqual(told.code, 0, host)
        }
        for (const host of ['169.254.169.254', '10.0.0.1', '192.168.0.1', '[fe80::1]', '[fd00::1]', '100.64.0.1']) {
            const began = Date.now()
            const told = await payer.pay(`http://${host}/`, '1')
            assert.equal(told.code, REFUSED, `${host}: ${told.code} ${told.stderr}`)
            assert.ok(Date.now() - began < 5_000, `${host}: refused before connecting`)
        }
        assert.deepEqual(own.visits, [])
        await own.stop()
    })
})

describe('budgets', () => {
    test('parallel payers never exceed the hour\'s cap by one unit', { timeout: 120_000 }, async () => {
        const payTo = wallet().address
        const rogue = await startRogue({ rpc: chain.url, key: ACCOUNTS[8].key })
        const url = rogue.on('/', async visit => {
            if (!visit.payment) return visit.ask([offer(payTo)])
            const settled = await visit.settle()
            visit.json(settled.success ? 200 : 402, {}, visit.receipt(settled))
        })
        const buyer = await machine(server, { chain, usdc: 50_000_000, settings: { OTONIX_PAY_MAX_HOUR: '0.055', OTONIX_PAY_ALLOW_SHARED_UID: 'true' } })
        await buyer.run()
        const answers = await Promise.all(Array.from({ length: 20 }, (_, at) =>
            buyer.local('POST', '/v1/pay', { url, maxAmount: '1', idempotencyKey: `k${at}` })))
        assert.equal(answers.filter(each => each.status === 200 && each.body.status === 200).length, 5, answers.map(each => each.text).join('\n'))
        assert.equal(await chain.balance(payTo), 50_000)
        await buyer.stop()
        await rogue.stop()
    })

    test('a reserve is never spent', async () => {
        const payTo = wallet().address
        const rogue = await startRogue({ rpc: chain.url, key: ACCOUNTS[8].key })
        const url = rogue.on('/', visit => visit.ask([offer(payTo, { amount: '600000' })]))
        const buyer = await machine(server, { chain, usdc: 1_000_000, settings: { OTONIX_PAY_RESERVE: '0.5' } })
        const told = await buyer.pay(url, '1')
        assert.equal(told.code, REFUSED, told.stderr)
        assert.equal(rogue.visits.filter(each => each.header).length, 0)
        await rogue.stop()
    })
})

describe('the control plane is paid by the daemon', { concurrency: 5 }, () => {
    let still
    before(() => { still = chain.ticking() })
    after(() => still())

    test('by order, with gas of its own, when the server takes orders only', async () => {
        const orders = await startServer({ chain, settle: 'none' })
        const buyer = await machine(orders, { chain, usdc: 5_000_000 })
        const told = await buyer.pay(orders.topup(buyer.id), '1', '--method', 'POST', '--data', '{"amount":1}', '--header', 'content-type: application/json')
        assert.equal(told.code, 0, told.stderr)
        assert.equal(await buyer.bought(), 1_000_000)
        assert.deepEqual((await paid(buyer.address)).map(each => each.amount), [1_000_000])
        await orders.audit()
        await orders.stop()
    })

    test('by exact, without any gas', async () => {
        const buyer = await machine(server, { chain, usdc: 5_000_000, ether: 0n })
        const told = await buyer.pay(server.topup(buyer.id), '1', '--method', 'POST', '--data', '{"amount":1}', '--header', 'content-type: application/json')
        assert.equal(told.code, 0, told.stderr)
        assert.equal(await buyer.bought(), 1_000_000)
        assert.deepEqual((await paid(buyer.address)).map(each => each.amount), [1_000_000])
    })

    test('a daemon that starts with an old standing hears the server before it buys', async () => {
        // Registered with nothing, and given 100 USDC of credits while no daemon ran.
        const buyer = await machine(server, { chain, usdc: 25_000_000 })
        await buyer.run()
        await until('it has heard', 30_000, async () => (await buyer.local('GET', '/v1/status')).body.credits === 100)
        await sleep(2_000)
        assert.deepEqual(await paid(buyer.address), [])
        await buyer.stop()
    })

    for (const settle of ['none', 'key']) {
        test(`a daemon with USDC keeps its agent alive, also from terminated (${settle === 'none' ? 'orders' : 'exact'})`, { timeout: 120_000 }, async () => {
            const own = await startServer({ chain, settle, flags: ['--funding-grace', '1'] })
            const buyer = await machine(own, { chain, usdc: 25_000_000, credits: 0 })
            await sleep(1500)
            await buyer.run('sleep', '600')
            await until('it has bought credits', 60_000, async () => await own.credits(buyer.id) >= 10_000_000)
            await until('it is alive', 60_000, async () => {
                const { body } = await own.call('GET', `/api/agents/${buyer.id}`)
                return body.status === 'active' && body.survivalTier !== 'terminated'
            })
            await until('it stands above the mark', 60_000, async () => await own.credits(buyer.id) === 20_000_000)
            assert.deepEqual((await paid(buyer.address)).map(each => each.amount), [10_000_000, 10_000_000])
            await buyer.stop()
            await own.audit()
            await own.stop()
        })
    }

    test('with an empty wallet it dies as it should, and comes back when someone else pays', { timeout: 120_000 }, async () => {
        const own = await startServer({ chain, flags: ['--funding-grace', '1'] })
        const buyer = await machine(own, { chain, credits: 0 })
        await sleep(1500)
        await buyer.run('sleep', '600')
        await until('it is terminated', 60_000, async () => {
            const { body } = await own.call('GET', `/api/agents/${buyer.id}`)
            return body.survivalTier === 'terminated' && (await buyer.local('GET', '/v1/status')).body.survivalTier === 'terminated'
        })
        const friend = await chain.rich(30_000_000, 0n)
        const answer = await payV2(friend.key, own.topup(buyer.id), { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"amount":15}' })
        assert.equal(answer.status, 201, answer.text)
        await until('it is back', 60_000, async () => (await own.call('GET', `/api/agents/${buyer.id}`)).body.status === 'active')
        await until('the daemon knows', 60_000, async () => (await buyer.local('GET', '/v1/status')).body.survivalTier === 'conservation')
        await buyer.stop()
        await own.stop()
    })
})

describe('the daemon\'s chain fails', () => {
    const payTo = wallet().address
    let rogue
    before(async () => { rogue = await startRogue({ rpc: chain.url, key: ACCOUNTS[9].key }) })
    after(() => rogue.stop())
    const honest = async visit => {
        if (!visit.payment) return visit.ask([offer(payTo)])
        const settled = await visit.settle()
        visit.json(settled.success ? 200 : 402, {}, visit.receipt(settled))
    }

    test('a node of another chain: nothing is signed', async () => {
        const node = await startRpc(chain.url)
        node.fault(({ method }) => method === 'eth_chainId' ? { result: '0x1' } : undefined)
        const url = rogue.on('/wrong-id', honest)
        const buyer = await machine(server, { chain, rpc: node.url, usdc: 1_000_000 })
        assert.notEqual((await buyer.pay(url, '1')).code, 0)
        assert.equal(rogue.visits.filter(each => each.path === '/wrong-id' && each.header).length, 0)
        assert.deepEqual(await paid(buyer.address), [])
        await node.stop()
    })

    for (const fault of ['down', 'garbage', 'error']) {
        test(`a node that is ${fault}: nothing is signed, and it recovers`, { timeout: 120_000 }, async () => {
            const node = await startRpc(chain.url)
            const url = rogue.on(`/${fault}`, honest)
            const buyer = await machine(server, { chain, rpc: node.url, usdc: 1_000_000 })
            node.fault(() => fault)
            assert.notEqual((await buyer.pay(url, '1')).code, 0)
            assert.deepEqual(await paid(buyer.address), [])
            node.fault()
            await until('it pays', 60_000, async () => (await buyer.pay(url, '1')).code === 0)
            assert.equal((await paid(buyer.address)).length, 1)
            await node.stop()
        })
    }

    for (const fault of ['already known', 'lose', 'error']) {
        test(`an order's transaction is answered with ${fault}: one transfer, and credited`, { timeout: 120_000 }, async () => {
            const orders = await startServer({ chain, settle: 'none' })
            const node = await startRpc(chain.url)
            const buyer = await machine(orders, { chain, rpc: node.url, usdc: 5_000_000 })
            let first = true
            node.fault(({ method }) => {
                if (method !== 'eth_sendRawTransaction' || (fault === 'error' && !first)) return undefined
                first = false
                return fault
            })
            const args = [orders.topup(buyer.id), '1', '--method', 'POST', '--data', '{"amount":1}', '--header', 'content-type: application/json']
            await until('it is credited', 90_000, async () => (await buyer.pay(...args)).code === 0 || await buyer.bought() > 0)
            assert.equal((await paid(buyer.address)).length, Math.round(await buyer.bought() / 1e6))
            await orders.stop()
            await node.stop()
        })
    }
})
