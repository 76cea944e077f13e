// A node of partners/rpc.mjs in a thread of its own, so that what it does takes no time of who measures: `watched(url)`
// gives its address, and `spans()` when it was busy since the last call, on the caller's clock.

import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { fileURLToPath } from 'node:url'
import { startRpc } from './rpc.mjs'

if (!isMainThread) {
    // What the chain needs to make a block is the chain's time, not that of who waits for it.
    const node = await startRpc(workerData, { mined: true })
    parentPort.on('message', what => {
        if (what === 'spans') parentPort.postMessage(node.spans.splice(0).map(span => span.map(at => at + performance.timeOrigin)))
        else node.stop().then(() => process.exit())
    })
    parentPort.postMessage(node.url)
}

export async function watched(upstream) {
    const worker = new Worker(fileURLToPath(import.meta.url), { workerData: upstream })
    const said = () => new Promise(resolve => worker.once('message', resolve))
    const url = await said()
    const spans = () => {
        const found = said().then(list => list.map(span => span.map(at => at - performance.timeOrigin)))
        worker.postMessage('spans')
        return found
    }
    return { url, spans, stop: () => worker.terminate() }
}
