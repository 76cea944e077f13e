// What a stranger may send as a payment: everything that is not the payment asked for is refused without a fault of the
// server, without a transfer and without a credit; what only looks different is taken.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { ask, signV1, signV2 } from '../partners/payers.mjs'
import { ASSET, stage, startServer, wallet } from '../stage.mjs'

const CURVE = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n
const TYPES = {
    TransferWithAuthorization: [
        { name: 'from', type: 'address' }, { name: 'to', type: 'address' }, { name: 'value', type: 'uint256' },
        { name: 'validAfter', type: 'uint256' }, { name: 'validBefore', type: 'uint256' }, { name: 'nonce', type: 'bytes32' },
    ],
}
const decode = header => JSON.parse(Buffer.from(header, 'base64'))
const encode = value => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64')
const flipped = hex => hex.slice(0, 10) + (hex[10] === '0' ? '1' : '0') + hex.slice(11)

let chain, server, agent, payer
before(async () => {
    chain = await stage()
    server = await startServer({ chain })
    agent = await server.agent()
    payer = await chain.rich(1_000_000_000)
})
after(async () => {
    await server.audit()
    await server.stop()
    await chain.stop()
})

const topup = (headers = {}) => ask(server.topup(agent), {
    method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: '{"amount":1}',
})

/** Signs an authorization again after a change, as its owner could. */
async function resign(payment, change, { name = 'USD Coin', version = '2', chainId = 8453, asset = ASSET, by = payer } = {}) {
    const authorization = { ...payment.payload.authorization, ...change }
    const domain = { name, version, chainId, verifyingContract: asset }
    const signature = await by.account.signTypedData({ domain, types: TYPES, primaryType: 'TransferWithAuthorization', message: authorization })
    return { ...payment, payload: { ...payment.payload, authorization, signature } }
}

function highS(signature) {
    const s = CURVE - BigInt(`0x${signature.slice(66, 130)}`)
    const v = signature.slice(130) === '1b' ? '1c' : '1b'
    return signature.slice(0, 66) + s.toString(16).padStart(64, '0') + v
}

const now = () => Math.floor(Date.now() / 1000)
const bad = {
    'another signer': payment => resign(payment, {}, { by: wallet() }),
    'a flipped signature': async payment => ({ ...payment, payload: { ...payment.payload, signature: flipped(payment.payload.signature) } }),
    'a high s': async payment => ({ ...payment, payload: { ...payment.payload, signature: highS(payment.payload.signature) } }),
    'a short signature': async payment => ({ ...payment, payload: { ...payment.payload, signature: '0x1234' } }),
    'an empty signature': async payment => ({ ...payment, payload: { ...payment.payload, signature: '0x' } }),
    'a signature of contract length': async payment => ({ ...payment, payload: { ...payment.payload, signature: `0x${'ab'.repeat(500)}` } }),
    'a changed nonce': async payment => ({ ...payment, payload: { ...payment.payload, authorization: { ...payment.payload.authorization, nonce: `0x${'11'.repeat(32)}` } } }),
    'a changed payer': async payment => ({ ...payment, payload: { ...payment.payload, authorization: { ...payment.payload.authorization, from: wallet().address } } }),
    'another payee, signed': payment => resign(payment, { to: wallet().address }),
    'less, signed': payment => resign(payment, { value: '999999' }),
    'more, signed': payment => resign(payment, { value: '1000001' }),
    'nothing, signed': payment => resign(payment, { value: '0' }),
    'a time that is over, signed': payment => resign(payment, { validBefore: String(now() - 1) }),
    'a time that is almost over, signed': payment => resign(payment, { validBefore: String(now() + 2) }),
    'a time to come, signed': payment => resign(payment, { validAfter: String(now() + 600) }),
    'another token\'s domain, signed': payment => resign(payment, {}, { name: 'USDC' }),
    'another version, signed': payment => resign(payment, {}, { version: '1' }),
    'another chain, signed': payment => resign(payment, {}, { chainId: 1 }),
    'another token, signed': payment => resign(payment, {}, { asset: wallet().address }),
    'numbers beyond 256 bits': async payment => ({ ...payment, payload: { ...payment.payload, authorization: { ...payment.payload.authorization, value: '9'.repeat(100) } } }),
    'a number as a number': async payment => ({ ...payment, payload: { ...payment.payload, authorization: { ...payment.payload.authorization, value: 1e308 } } }),
    'no authorization': async payment => ({ ...payment, payload: { signature: payment.payload.signature } }),
    'Permit2': async payment => ({ ...payment, payload: { signature: payment.payload.signature, permit2Authorization: {} } }),
    'no payload': async ({ payload, ...rest }) => rest,
    'null everywhere': async payment => Object.fromEntries(Object.keys(payment).map(name => [name, null])),
    'a version from the future': async payment => ({ ...payment, x402Version: 3 }),
    'a list': async payment => [payment],
    'depth': async () => '['.repeat(5000) + ']'.repeat(5000),
    'half of it': async payment => JSON.stringify(payment).slice(0, 200),
    'not UTF-8': async () => Buffer.from([0x7b, 0xff, 0xfe, 0x7d]).toString('latin1'),
}
const badV2 = {
    'another price accepted': async payment => ({ ...payment, accepted: { ...payment.accepted, amount: '1' } }),
    'another payee accepted': async payment => ({ ...payment, accepted: { ...payment.accepted, payTo: wallet().address } }),
    'another network accepted': async payment => ({ ...payment, accepted: { ...payment.accepted, network: 'eip155:1' } }),
    'another token accepted': async payment => ({ ...payment, accepted: { ...payment.accepted, asset: wallet().address } }),
    'another scheme accepted': async payment => ({ ...payment, accepted: { ...payment.accepted, scheme: 'upto' } }),
}

const versions = [['v2', 'PAYMENT-SIGNATURE', signV2, { ...bad, ...badV2 }], ['v1', 'X-PAYMENT', signV1, bad]]
for (const [version, header, sign, changes] of versions) {
    describe(`${version}: what is not the payment asked for is refused`, () => {
        for (const [name, change] of Object.entries(changes)) {
            test(name, async () => {
                const [had, credits] = [await chain.balance(payer.address), await server.credits(agent)]
                const payment = decode((await sign(payer.key, await topup()))[header])
                const answer = await topup({ [header]: encode(await change(payment)) })
                assert.ok(answer.status >= 400 && answer.status < 500, `${answer.status} ${answer.text}`)
                assert.match(answer.headers['content-type'], answer.status === 402 ? /^application\/json/ : /problem\+json/)
                assert.equal(await chain.balance(payer.address), had)
                assert.equal(await server.credits(agent), credits)
            })
        }
    })

    describe(`${version}: what only looks different is taken`, () => {
        const same = {
            'base64 without padding': text => text.replace(/=+$/, ''),
            'base64 for URLs': text => text.replaceAll('+', '-').replaceAll('/', '_'),
            'recovery ids 0 and 1': text => {
                const payment = decode(text)
                const { signature } = payment.payload
                payment.payload.signature = signature.slice(0, 130) + (signature.slice(130) === '1b' ? '00' : '01')
                return encode(payment)
            },
            'addresses in small letters': text => encode(JSON.parse(Buffer.from(text, 'base64').toString().replace(/"0x[0-9a-fA-F]{40}"/g, it => it.toLowerCase()))),
            'fields in another order, and more of them': text => encode({ zz: 1, ...Object.fromEntries(Object.entries(decode(text)).reverse()) }),
        }
        for (const [name, change] of Object.entries(same)) {
            test(name, async () => {
                const [had, credits] = [await chain.balance(payer.address), await server.credits(agent)]
                const text = (await sign(payer.key, await topup()))[header]
                const answer = await topup({ [header]: change(text) })
                assert.equal(answer.status, 201, answer.text)
                assert.equal(had - await chain.balance(payer.address), 1_000_000)
                assert.equal(await server.credits(agent) - credits, 1_000_000)
            })
        }
    })
}

describe('order proofs that are none', () => {
    const proofs = {
        'an empty object': {}, 'no hash': { orderId: 'x' },
        'a made-up order': { orderId: 'x'.repeat(200), txHash: `0x${'11'.repeat(32)}`, payer: wallet().address },
        'an order of megabytes': { orderId: 'x'.repeat(12_000), txHash: `0x${'11'.repeat(32)}`, payer: wallet().address },
        'a hash that is none': { orderId: 'x', txHash: '0x12', payer: wallet().address },
        'a payer that is none': { orderId: 'x', txHash: `0x${'11'.repeat(32)}`, payer: 'me' },
        'SQL': { orderId: "'; DROP TABLE receipts; --", txHash: `0x${'11'.repeat(32)}`, payer: wallet().address },
    }
    for (const [name, proof] of Object.entries(proofs)) {
        test(name, async () => {
            const answer = await topup({ 'X-PAYMENT': encode(proof) })
            assert.ok(answer.status >= 400 && answer.status < 500, `${answer.status} ${answer.text}`)
        })
    }

    test('an order with one letter changed', async () => {
        const { orderId } = (await topup()).body
        const txHash = `0x${'11'.repeat(32)}`
        for (const at of [0, Math.floor(orderId.length / 2), orderId.length - 1]) {
            const changed = orderId.slice(0, at) + (orderId[at] === 'A' ? 'B' : 'A') + orderId.slice(at + 1)
            const answer = await topup({ 'X-PAYMENT': encode({ orderId: changed, txHash, payer: payer.address }) })
            assert.ok(answer.status >= 400 && answer.status < 500, `${answer.status} ${answer.text}`)
        }
    })

    for (const amount of ['0', '-1', '0.001', '10000.01', '"1e3"', 'null', '"NaN"', '1.0000001', '[]']) {
        test(`a top-up of ${amount}`, async () => {
            const answer = await ask(server.topup(agent), { method: 'POST', headers: { 'content-type': 'application/json' }, body: `{"amount":${amount}}` })
            assert.equal(answer.status, 400, answer.text)
        })
    }
})
