// Kill points: boundary.c loaded into a program counts what it writes, flushes, sends and receives, and kills it there.

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { folder } from './stage.mjs'

/** How many points of a matrix are tried: a number, or `all`. */
export const POINTS = process.env.OTONIX_TEST_POINTS ?? '20'
/** How long a test of so many minutes may take: with every point, for hours. */
export const minutes = count => (POINTS === 'all' ? 180 : count) * 60_000

let seed = Number(process.env.OTONIX_TEST_SEED ?? Date.now() % 1_000_000)

/** Compiles boundary.c; what `trigger` takes. */
export function compiled() {
    console.log(`OTONIX_TEST_SEED=${seed}`)
    const dir = folder('boundary')
    const source = fileURLToPath(new URL('boundary.c', import.meta.url))
    execFileSync(process.env.CC ?? 'cc', ['-O1', '-shared', '-fPIC', '-o', join(dir, 'boundary.so'), source, '-ldl'])
    return dir
}

/** Some of the items, spread over all of them, shifted by chance. */
export function some(items) {
    const count = POINTS === 'all' ? items.length : Math.min(items.length, Number(POINTS))
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648
    const shift = seed / 2_147_483_648
    return Array.from({ length: count }, (_, at) => items[Math.floor((at + shift) * items.length / count)])
}

/** The boundaries of a clean run that differ: of a row of writes to one file only the first and the last. */
function boundaries(trace) {
    const lines = readFileSync(trace, 'utf8').trim().split('\n').map(line => {
        const [number, when, call, name] = line.split(' ')
        return { number: Number(number), text: `${when} ${call} ${name.replace(/\d+/g, '')}`, same: `${call} ${name}` }
    })
    return lines.filter((line, at) => lines[at - 1]?.same !== line.same || lines[at + 1]?.same !== line.same
        || lines[at - 2]?.same !== line.same || lines[at + 2]?.same !== line.same)
}

/** A boundary file of a name, armed by `arm(number)`. With `only`, only files whose names begin so count. */
export function trigger(dir, name, only) {
    const file = join(dir, name)
    return {
        env: {
            LD_PRELOAD: join(dir, 'boundary.so'), OTONIX_TEST_BOUNDARY: file,
            ...(only ? { OTONIX_TEST_BOUNDARY_OF: only } : {}),
        },
        arm: number => writeFileSync(file, String(number)),
        disarm: () => rmSync(file, { force: true }),
        clear: () => rmSync(`${file}.trace`, { force: true }),
        boundaries: () => existsSync(`${file}.trace`) ? boundaries(`${file}.trace`) : [],
    }
}
