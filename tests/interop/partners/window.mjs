// A seller seen through a window: requests pass to it and answers back, unless a test holds one.

import { PAYMENT_HEADERS, body, listen } from './facilitator.mjs'

/**
 * Starts one in front of the seller at an address. `hold(fn)`: for each request `fn(paid)` returns nothing (it passes),
 * `'before'` (the seller never gets it) or `'after'` (the seller's answer gets no further). `holding()` tells whether
 * one was held since.
 */
export async function startWindow(upstream) {
    let rule = () => undefined
    let held = false
    const listening = await listen(async (request, response) => {
        const paid = PAYMENT_HEADERS.some(name => request.headers[name])
        const does = rule(paid)
        const sent = await body(request)
        if (does === 'before') return void (held = true)
        const headers = Object.entries(request.headers).filter(([name]) => !['host', 'connection', 'content-length'].includes(name))
        const answer = await fetch(upstream + request.url, {
            method: request.method, headers, body: sent.length ? sent : undefined, redirect: 'manual',
        }).catch(() => null)
        if (!answer) return request.socket.destroy()
        const text = Buffer.from(await answer.arrayBuffer())
        if (does === 'after') return void (held = true)
        const back = Object.fromEntries([...answer.headers].filter(([name]) => !['transfer-encoding', 'content-encoding', 'connection'].includes(name)))
        response.writeHead(answer.status, { ...back, 'content-length': text.length })
        response.end(text)
    })
    const hold = next => { [rule, held] = [next ?? (() => undefined), false] }
    return { ...listening, hold, holding: () => held }
}
