// The partners work among themselves: what fails elsewhere is not theirs.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startFacilitator } from '../partners/facilitator.mjs'
import { startMerchant, startMerchantV1 } from '../partners/merchants.mjs'
import { ask, payPython, payV1, payV2, signV2 } from '../partners/payers.mjs'
import { offer, startRogue } from '../partners/rogue.mjs'
import { startRpc } from '../partners/rpc.mjs'
import { ACCOUNTS, stage, wallet } from '../stage.mjs'

let chain, facilitator, v1, v2
const payTo = wallet().address
before(async () => {
    chain = await stage()
    facilitator = await startFacilitator({ rpc: chain.url, key: ACCOUNTS[4].key })
    v1 = await startMerchantV1({ facilitator, payTo })
    v2 = await startMerchant({ facilitator, payTo })
})
after(async () => { for (const each of [v1, v2, facilitator, chain]) await each.stop() })

const clients = [['@x402/fetch', payV2, () => v2], ['x402-fetch', payV1, () => v1], ['httpx', payPython('httpx'), () => v2], ['requests', payPython('requests'), () => v2]]
for (const [name, pay, merchant] of clients) {
    test(`${name} pays an official merchant`, async () => {
        const payer = await chain.rich(1_000_000, 0n)
        const answer = await pay(payer.key, `${merchant().url}/paid`, { method: 'POST', body: 'hello', headers: { 'content-type': 'text/plain' } })
        assert.equal(answer.status, 200, answer.text)
        assert.equal(answer.body.body, 'hello')
        assert.equal(await chain.balance(payer.address), 990_000)
    })
}

test('a lost answer of the facilitator is "charged but refused" with the official server', async () => {
    const payer = await chain.rich(1_000_000, 0n)
    facilitator.mood.settle = 'lose'
    const answer = await payV2(payer.key, `${v2.url}/paid`)
    facilitator.mood.settle = 'serve'
    assert.equal(answer.status, 402)
    assert.equal(await chain.balance(payer.address), 990_000)
})

test('the misbehaving merchant can also behave', async () => {
    const rogue = await startRogue({ rpc: chain.url, key: ACCOUNTS[5].key })
    const url = rogue.on('/', async visit => {
        if (!visit.payment) return visit.ask([offer(payTo)])
        const settled = await visit.settle()
        visit.json(settled.success ? 200 : 402, { settled }, visit.receipt(settled))
    })
    const payer = await chain.rich(1_000_000, 0n)
    assert.equal((await payV2(payer.key, url)).status, 200)
    assert.equal((await ask(url, { headers: await signV2(payer.key, await ask(url)) })).status, 200)
    assert.equal(await chain.balance(payer.address), 980_000)
    await rogue.stop()
})

test('the failing node fails as told', async () => {
    const node = await startRpc(chain.url)
    const { rpcAt } = await import('../chain.mjs')
    const rpc = rpcAt(node.url)
    assert.equal(await rpc('eth_chainId'), '0x2105')
    node.fault(({ method }) => method === 'eth_chainId' ? { result: '0x1' } : 'down')
    assert.equal(await rpc('eth_chainId'), '0x1')
    await assert.rejects(rpc('eth_blockNumber'))
    node.fault()
    assert.ok(Number(await rpc('eth_blockNumber')) > 0)
    await node.stop()
})
