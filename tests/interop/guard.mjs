// Processes that never outlive the tests: a shell beside each waits for a pipe whose other end is here, and kills the
// process when it closes, however that comes about.

import { spawn } from 'node:child_process'

const WATCH = `exec 9<&0 8>&2 2>/dev/null
"$0" "$@" </dev/null 2>&8 3>&- 8>&- 9<&- &
pid=$!
echo $pid >&3
exec 3>&-
{ cat <&9; kill -9 $pid; } >/dev/null &
exec 9<&-
wait $pid
code=$?
kill -9 $!
exit $code`

export const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds))

/** Repeats `look` until it yields something true. Fails after `within` milliseconds with `what`. */
export async function until(what, within, look) {
    const deadline = Date.now() + within
    for (;;) {
        const found = await look()
        if (found) return found
        if (Date.now() > deadline) throw new Error(`not within ${within} ms: ${what}`)
        await sleep(20)
    }
}

/**
 * Starts a program. Resolves when it has a pid to { pid, output(), ended, signal(name), kill() }: `output()` is all it
 * has written so far, `ended` resolves to its exit code (above 128 for a signal), `kill()` is SIGKILL and waits.
 */
export async function guarded(program, args = [], { env, cwd, uid, gid, quiet = true } = {}) {
    const child = spawn('/bin/sh', ['-c', WATCH, program, ...args.map(String)], {
        env: env ?? process.env, cwd, uid, gid, stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
    })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding('utf8').on('data', text => {
            output = (output + text).slice(-1_000_000)
            if (!quiet) process.stderr.write(text)
        })
    }
    child.stdin.on('error', () => {})
    const ended = new Promise(resolve => child.once('exit', code => { child.stdin.end(); resolve(code) }))
    const pid = await new Promise((resolve, reject) => {
        let text = ''
        child.stdio[3].setEncoding('utf8').on('data', chunk => {
            text += chunk
            if (text.endsWith('\n')) resolve(Number(text))
        })
        child.once('error', reject)
        ended.then(() => reject(new Error(`${program} did not start: ${output}`)))
    })
    let over = false
    ended.then(() => { over = true })
    const signal = name => {
        if (!over) try { process.kill(pid, name) } catch (error) { if (error.code !== 'ESRCH') throw error }
    }
    return {
        pid, ended, signal,
        output: () => output,
        over: () => over,
        kill: () => { signal('SIGKILL'); return ended },
    }
}
