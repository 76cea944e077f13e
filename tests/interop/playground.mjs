// A place to try payments on one's own machine, with the real USDC contract and official merchants, and no money:
//
//   node playground.mjs                       runs until Ctrl-C (or the end of its input when that is no terminal)
//   node playground.mjs mint ADDRESS USDC     gives an address USDC, and one ETH for gas
//
// `--port` (8545) is the chain's; the merchants get the two after it. Requires that ./setup has run.

import { parseArgs } from 'node:util'
import { call } from './abi.mjs'
import { ACCOUNTS, ASSET, rpcAt, startChain } from './chain.mjs'

const { values, positionals } = parseArgs({ allowPositionals: true, options: { port: { type: 'string', default: '8545' } } })
const port = Number(values.port)
const [what, address, usdc] = positionals

if (what === 'mint') {
    const rpc = rpcAt(`http://127.0.0.1:${port}`)
    if (!/^0x[0-9a-fA-F]{40}$/.test(address ?? '') || !(Number(usdc) > 0)) {
        console.error('usage: node playground.mjs mint ADDRESS USDC')
        process.exit(2)
    }
    const amount = BigInt(Math.round(Number(usdc) * 1e6))
    await rpc('eth_sendTransaction', { from: ACCOUNTS[0].address, to: ASSET, data: call('0x40c10f19', address, amount), gas: '0x7a120' })
    await rpc('anvil_setBalance', address, '0xde0b6b3a7640000')
    const has = BigInt(await rpc('eth_call', { to: ASSET, data: call('0x70a08231', address) }, 'latest'))
    console.log(`${address} has ${Number(has) / 1e6} USDC and 1 ETH`)
} else {
    const { startFacilitator } = await import('./partners/facilitator.mjs')
    const { startMerchant, startMerchantV1 } = await import('./partners/merchants.mjs')
    const chain = await startChain({ port, onExit: () => process.exit(1) })
    const facilitator = await startFacilitator({ rpc: chain.rpc, key: ACCOUNTS[4].key })
    const payTo = ACCOUNTS[2].address
    const v2 = await startMerchant({ facilitator, payTo, port: port + 1 })
    const v1 = await startMerchantV1({ facilitator, payTo, port: port + 2 })
    console.log(`chain      ${chain.rpc}  id 8453, USDC at ${ASSET}`)
    console.log(`merchant   ${v2.url}/paid  x402 v2, @x402/express 2.27.0, 0.01 USDC`)
    console.log(`merchant   ${v1.url}/paid  x402 v1, x402-express 1.2.0, 0.01 USDC`)
    console.log(`treasury   ${ACCOUNTS[1].address}  an address to use; its key, to settle with, is ${ACCOUNTS[1].key}`)
    console.log('USDC       node tests/interop/playground.mjs mint ADDRESS USDC')
    if (!process.stdin.isTTY) process.stdin.on('end', () => process.exit(0)).resume()
}
