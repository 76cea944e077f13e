// What every test stands on: a chain with money on it, the two programs, and PostgreSQL.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createCipheriv, createHash, randomBytes, randomUUID, scryptSync } from 'node:crypto'
import { chownSync, existsSync, mkdtempSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { request as httpRequest } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { keccak256 } from 'viem'
import { generatePrivateKey, privateKeyToAccount } from 'viem/accounts'
import { call } from './abi.mjs'
import { ACCOUNTS, ASSET, rpcAt, startChain } from './chain.mjs'
import { guarded, until } from './guard.mjs'

export { ASSET, guarded, until }
export { sleep } from './guard.mjs'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const PROGRAMS = resolve(ROOT, process.env.OTONIX_BIN_DIR ?? 'target/debug')
const TRANSFER = '0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef'

const folders = []
process.on('exit', () => folders.forEach(folder => rmSync(folder, { recursive: true, force: true })))

export function folder(name) {
    const made = mkdtempSync(join(tmpdir(), `otonix-interop-${name}-`))
    folders.push(made)
    return made
}

/** USDC as a number or text, in micro-USDC. */
export const micros = usdc => Math.round(Number(usdc) * 1e6)

/** A fresh key with its address. */
export function wallet() {
    const key = generatePrivateKey()
    const account = privateKeyToAccount(key)
    return { key, address: account.address, account }
}

/** A chain, and what tests do with it. Amounts are micro-USDC. */
export async function stage(options) {
    const chain = await startChain(options)
    const rpc = rpcAt(chain.rpc)
    const padded = address => address.slice(2).toLowerCase().padStart(64, '0')
    const mined = hash => until(`${hash} is mined`, 30_000, async () => {
        const receipt = await rpc('eth_getTransactionReceipt', hash)
        if (receipt) assert.equal(receipt.status, '0x1', `transaction ${hash} failed`)
        return receipt
    })
    const send = async (from, data, to = ASSET) => {
        await rpc('anvil_impersonateAccount', from)
        return rpc('eth_sendTransaction', { from, to, data, gas: '0x7a120' })
    }
    return {
        ...chain, rpc, url: chain.rpc, mined, send,
        async mint(address, amount) {
            const hash = await send(chain.minter, call('0x40c10f19', address, amount))
            if (!await rpc('eth_getTransactionReceipt', hash)) await rpc('anvil_mine', '0x1')
            return mined(hash)
        },
        /** A key with USDC, and ETH for gas unless told otherwise. */
        async rich(amount, ether = 1n) {
            const made = wallet()
            if (amount) await this.mint(made.address, amount)
            await this.ether(made.address, ether)
            return made
        },
        ether: (address, amount) => rpc('anvil_setBalance', address, `0x${(amount * 10n ** 18n).toString(16)}`),
        balance: async address => Number(BigInt(await rpc('eth_call', { to: ASSET, data: call('0x70a08231', address) }, 'latest'))),
        /** `transfer(to, amount)` by `from`, followed in the calldata by `suffix` (hex without 0x). The hash, mined. */
        async transfer(from, to, amount, suffix = '') {
            const hash = await send(from, call('0xa9059cbb', to, amount) + suffix)
            await mined(hash)
            return hash
        },
        mine: (blocks = 1) => rpc('anvil_mine', `0x${blocks.toString(16)}`),
        /** A block every half second beside those of transactions, as larger payments need to be final. Returns its end. */
        ticking() {
            const timer = setInterval(() => rpc('anvil_mine', '0x1').catch(() => {}), 500)
            return () => clearInterval(timer)
        },
        async advance(seconds) {
            await rpc('evm_increaseTime', seconds)
            await rpc('anvil_mine', '0x1')
        },
        /** Every USDC transfer so far, optionally only from or to an address: [{ hash, from, to, amount }]. */
        async transfers({ from, to } = {}) {
            const topic = address => address ? `0x${padded(address)}` : null
            const logs = await rpc('eth_getLogs', {
                fromBlock: '0x0', toBlock: 'latest', address: ASSET, topics: [TRANSFER, topic(from), topic(to)],
            })
            return logs.map(log => ({
                hash: log.transactionHash, amount: Number(BigInt(log.data)),
                from: `0x${log.topics[1].slice(26)}`, to: `0x${log.topics[2].slice(26)}`,
            }))
        },
    }
}

/** What an order's transfer carries after its arguments. */
export const orderSuffix = orderId => createHash('sha256').update(orderId).digest('hex')

let nextPort = 10_000 + Math.floor(Math.random() * 20_000)
/** A port for a program that comes back on it: below the range from which the kernel serves whoever asks for any. */
const freePort = () => new Promise(done => {
    const port = nextPort++
    const server = createServer().listen(port, '127.0.0.1', () => server.close(() => done(port)))
    server.on('error', () => done(freePort()))
})

/** An environment without any setting of ours. */
function environment(more = {}) {
    const kept = Object.entries(process.env).filter(([name]) => !name.startsWith('OTONIX_') || name.startsWith('OTONIX_TEST_'))
    return { ...Object.fromEntries(kept), ...more }
}

/** Runs a program to its end: { code, stdout, stderr }. */
export function run(program, args, { input = '', env = {}, timeout = 90_000, cwd } = {}) {
    return new Promise(done => {
        const child = execFile(join(PROGRAMS, program), args.map(String), {
            env: environment(env), timeout, killSignal: 'SIGKILL', maxBuffer: 64 << 20, cwd,
        }, (error, stdout, stderr) => done({ code: error ? error.code ?? 137 : 0, stdout, stderr }))
        child.stdin.on('error', () => {})
        child.stdin.end(input)
    })
}

/**
 * Starts a control plane. `chain` is a stage; `settle` is `'key'` (its own), `'none'` (orders only) or a facilitator.
 * `database` is a PostgreSQL URL or nothing. The answer has `call`, `key` (an owner's API key), `agent()` and more.
 */
export async function startServer({
    chain, rpc = chain?.url, treasury = wallet().address, settle = 'key', database, flags = [], env = {}, like,
} = {}) {
    const dir = like?.dir ?? folder('server')
    const operator = like?.operator ?? `operator-${generatePrivateKey().slice(2, 34)}`
    const port = like && !database ? like.port : await freePort()
    const args = [
        '--listen', `127.0.0.1:${port}`, '--data-dir', dir, '--operator-token', operator, '--mode', 'guarded',
        '--rate-limit', '0', '--log', process.env.OTONIX_TEST_LOG ?? 'info', '--log-format', 'json',
    ]
    if (database) args.push('--database', database)
    let settler
    if (chain) {
        args.push('--chain-rpc', rpc, '--treasury', treasury, '--chain-start-block', '0')
        if (settle === 'key') {
            settler = like?.settler ?? wallet()
            await chain.ether(settler.address, 10n)
            const file = join(dir, 'settle-key')
            writeFileSync(file, `${settler.key}\n`, { mode: 0o600 })
            args.push('--settle-key-file', file)
        } else if (settle !== 'none') args.push('--facilitator', settle.url)
    }
    args.push(...flags)
    const url = `http://127.0.0.1:${port}`
    const server = {
        dir, operator, port, url, treasury, settler, database, args, process: null,
        async start(sign = '/readyz') {
            this.process = await guarded(join(PROGRAMS, 'otonix-control-plane'), args, { env: environment(env) })
            await until('the server is ready', 30_000, async () => {
                if (this.process.over()) throw new Error(`the server ended: ${this.process.output()}`)
                return fetch(url + sign).then(answer => answer.ok, () => false)
            })
            return this
        },
        log: () => server.process.output(),
        stop: async () => { server.process.signal('SIGTERM'); return server.process.ended },
        kill: () => server.process.kill(),
        async call(method, path, { body, key = server.key, headers = {}, operator: asOperator } = {}) {
            const answer = await fetch(url + path, {
                method,
                headers: {
                    ...(body === undefined ? {} : { 'content-type': 'application/json' }),
                    ...(asOperator ? { authorization: `Bearer ${operator}` } : key ? { 'x-api-key': key } : {}),
                    ...headers,
                },
                body: body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body),
            })
            const text = await answer.text()
            let value = text
            try { value = JSON.parse(text) } catch { /* as it is */ }
            return { status: answer.status, headers: Object.fromEntries(answer.headers), body: value, text }
        },
        async newKey(name = 'interop') {
            const made = await this.call('POST', '/api/keys/generate', { operator: true, body: { name } })
            assert.equal(made.status, 201, made.text)
            return made.body.key
        },
        /** Registers an agent; with `owner` (a wallet) its address is proven. */
        async agent(name = `agent-${generatePrivateKey().slice(2, 10)}`, { owner, key = server.key } = {}) {
            const body = { name }
            if (owner) {
                const unixTime = Math.floor(Date.now() / 1000)
                const message = `Otonix wallet ${owner.address} for ${name} at ${url} ${unixTime}`
                body.walletAddress = owner.address
                body.walletProof = { signature: await owner.account.signMessage({ message }), unixTime }
            } else body.walletAddress = wallet().address
            const made = await this.call('POST', '/api/agents/register', { body, key })
            assert.equal(made.status, 201, made.text)
            if (owner) assert.equal(made.body.agent.walletProven, true, made.text)
            return made.body.agent.id
        },
        credits: async id => micros((await server.call('GET', `/api/agents/${id}`, { operator: true, key: null })).body.credits),
        ledger: async id => (await server.call('GET', `/api/agents/${id}/ledger`, { operator: true, key: null })).body,
        topup: id => `${url}/api/agents/${id}/topup`,
        /** The books balance and agree with the chain. */
        async audit({ fails = false } = {}) {
            const told = await run('otonix-control-plane', ['audit', ...args], { env })
            assert.equal(told.code !== 0, fails, `audit: ${told.code}\n${told.stdout}\n${told.stderr}`)
            return told.stdout
        },
        /** A second replica on the same PostgreSQL. */
        replica: () => startServer({ chain, rpc, treasury, settle, database, flags, env, like: { ...server, dir: folder('replica') } }),
    }
    await server.start()
    server.key = like?.key ?? await server.newKey()
    return server
}

/** A PostgreSQL of our own, or nothing when there is none. `database()` makes a database and returns its URL. */
export async function startPostgres() {
    const named = process.env.TEST_DATABASE_URL
    const versions = existsSync('/usr/lib/postgresql') ? readdirSync('/usr/lib/postgresql').sort().reverse() : []
    const bin = [...versions.map(each => `/usr/lib/postgresql/${each}/bin`), ...process.env.PATH.split(delimiter), '/usr/local/pgsql/bin']
        .find(each => ['initdb', 'postgres', 'psql'].every(program => existsSync(join(each, program))))
    if (!bin) return null
    const sql = (url, text) => new Promise((done, fail) => {
        execFile(join(bin, 'psql'), ['-qAt', '-v', 'ON_ERROR_STOP=1', '-c', text, url], (error, stdout) => error ? fail(error) : done(stdout))
    })
    let admin = named, server, dir
    if (!named) {
        dir = folder('postgres')
        let user = {}
        if (process.getuid() === 0) {
            const [, , uid, gid] = (/^postgres:.*$/m.exec(readFileSync('/etc/passwd', 'utf8')) ?? /^nobody:.*$/m.exec(readFileSync('/etc/passwd', 'utf8')))[0].split(':')
            user = { uid: Number(uid), gid: Number(gid) }
            chownSync(dir, user.uid, user.gid)
        }
        await new Promise((done, fail) => execFile(join(bin, 'initdb'), [
            '--no-sync', '--auth=trust', '--username=otonix', '--encoding=UTF8', '--locale=C', '--pgdata', join(dir, 'data'),
        ], { ...user, cwd: dir, env: { ...process.env, LC_ALL: 'C' } }, error => error ? fail(error) : done()))
        const port = await freePort()
        const settings = { port, listen_addresses: '127.0.0.1', unix_socket_directories: dir, max_connections: 200, fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' }
        server = await guarded(join(bin, 'postgres'), ['-D', join(dir, 'data'), ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])], { ...user, cwd: dir, env: { ...process.env, LC_ALL: 'C' } })
        admin = `postgres://otonix@127.0.0.1:${port}/postgres`
        await until('PostgreSQL accepts', 30_000, () => sql(admin, 'SELECT 1').then(() => true, () => false))
    }
    let count = 0
    return {
        async database() {
            const name = `otonix_interop_${process.pid}_${count++}`
            await sql(admin, `CREATE DATABASE ${name}`)
            const url = new URL(admin)
            url.pathname = `/${name}`
            return url.href
        },
        stop: async () => { server?.signal('SIGQUIT'); await server?.ended },
    }
}

/** A v3 keystore that costs little to open, so that the tests do not mostly derive keys. */
function keystore({ key, address }, passphrase) {
    const [salt, iv, n] = [randomBytes(32), randomBytes(16), 1024]
    const derived = scryptSync(passphrase, salt, 32, { N: n, r: 8, p: 1 })
    const cipher = createCipheriv('aes-128-ctr', derived.subarray(0, 16), iv)
    const ciphertext = Buffer.concat([cipher.update(Buffer.from(key.slice(2), 'hex')), cipher.final()])
    const mac = keccak256(Buffer.concat([derived.subarray(16), ciphertext])).slice(2)
    return JSON.stringify({
        version: 3, id: randomUUID(), address: address.slice(2).toLowerCase(),
        crypto: {
            cipher: 'aes-128-ctr', cipherparams: { iv: iv.toString('hex') }, ciphertext: ciphertext.toString('hex'),
            kdf: 'scrypt', kdfparams: { dklen: 32, n, r: 8, p: 1, salt: salt.toString('hex') }, mac,
        },
    })
}

/**
 * A machine with the daemon's state on it, initialised at `server`. `settings` is added to agent.toml's sections through
 * the environment (`OTONIX_PAY_MAX_DAY`). Chain and loopback peers are allowed unless told otherwise. The agent has
 * `credits` (USDC) from the operator, so that it does not top up by itself; `bought()` is what it has beyond them, micro-USDC.
 */
export async function machine(server, { chain, rpc = chain?.url, settings = {}, usdc = 0, ether = 1n, credits = 100, loopback = true } = {}) {
    const dir = folder('agent')
    const state = join(dir, 'state')
    const env = {
        OTONIX_STATE_DIR: state, OTONIX_LINK_HEARTBEAT_INTERVAL: '5', OTONIX_LOG: process.env.OTONIX_TEST_LOG ?? 'info',
        ...(rpc ? { OTONIX_CHAIN_RPC: rpc, OTONIX_CHAIN_ID: '8453', OTONIX_ASSET: ASSET } : {}),
        OTONIX_PAY_HOSTS: '["*"]', OTONIX_PAY_ESSENTIAL: '["*"]', ...(loopback ? { OTONIX_PAY_ALLOW_PRIVATE_ADDRESSES: 'true' } : {}), ...settings,
    }
    mkdirSync(state, { mode: 0o700 })
    const cli = (args, options = {}) => run('otonix-agent', args, { cwd: dir, ...options, env: { ...env, ...options.env } })
    const owner = wallet()
    writeFileSync(join(state, 'wallet.passphrase'), 'a passphrase of the tests\n', { mode: 0o600 })
    writeFileSync(join(state, 'keystore.json'), keystore(owner, 'a passphrase of the tests'), { mode: 0o600 })
    const name = `machine-${generatePrivateKey().slice(2, 10)}`
    const made = await cli(['init', '--server', server.url, '--api-key', server.key, '--name', name])
    assert.equal(made.code, 0, `init: ${made.stderr}`)
    const agentToml = readFileSync(join(state, 'agent.toml'), 'utf8')
    const id = /^id\s*=\s*["']([^"']+)/m.exec(agentToml)[1]
    const shown = await cli(['wallet', 'address'])
    assert.equal(shown.code, 0, `wallet address: ${shown.stderr}`)
    const { address } = owner
    assert.equal(shown.stdout.trim(), address)
    if (credits) {
        const body = { amount: credits, reason: 'interop' }
        const granted = await server.call('POST', `/api/agents/${id}/grant`, { operator: true, body })
        assert.equal(granted.status, 201, granted.text)
    }
    if (usdc) await chain.mint(address, usdc)
    if (chain) await chain.ether(address, ether)
    const it = {
        dir, state, id, name, address, env, cli, process: null,
        bought: async () => await server.credits(id) - micros(credits),
        /** `otonix-agent …` as a process that can be killed. */
        begin: args => guarded(join(PROGRAMS, 'otonix-agent'), args, { env: environment(env), cwd: dir }),
        /** `otonix-agent pay`: { code, stdout, stderr }. */
        pay: (url, most, ...more) => cli(['pay', url, '--max-amount', most, ...more]),
        journal: async () => {
            const told = await cli(['journal', 'list', '--json'])
            assert.equal(told.code, 0, `journal: ${told.stderr}`)
            return JSON.parse(told.stdout)
        },
        async run(...command) {
            it.process = await guarded(join(PROGRAMS, 'otonix-agent'), ['run', ...(command.length ? ['--', ...command] : [])], { env: environment(env), cwd: dir })
            await until('the daemon answers', 30_000, () => {
                if (it.process.over()) throw new Error(`the daemon ended: ${it.process.output()}`)
                return it.local('GET', '/v1/status').then(answer => answer.status === 200, () => false)
            })
            return it
        },
        log: () => it.process.output(),
        kill: () => it.process.kill(),
        stop: async () => { it.process.signal('SIGTERM'); return it.process.ended },
        /** A request to the daemon's local API. */
        local: (method, path, body) => new Promise((done, fail) => {
            const text = body === undefined ? undefined : JSON.stringify(body)
            const asked = httpRequest({
                socketPath: join(state, 'agent.sock'), method, path,
                headers: text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) },
            }, answer => {
                let heard = ''
                answer.setEncoding('utf8').on('data', chunk => { heard += chunk }).on('end', () => {
                    let value = heard
                    try { value = JSON.parse(heard) } catch { /* as it is */ }
                    done({ status: answer.statusCode, body: value, text: heard })
                })
                answer.on('error', fail)
            })
            asked.on('error', fail)
            asked.end(text)
        }),
    }
    return it
}

export { ACCOUNTS }
