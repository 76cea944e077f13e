// The few ABI encodings that making a chain needs, so that starting one loads no library.

/** One 32-byte word of a number. */
export const word = value => BigInt(value).toString(16).padStart(64, '0')

const tail = {
    string: text => {
        const bytes = Buffer.from(text, 'utf8')
        return word(bytes.length) + bytes.toString('hex').padEnd(Math.ceil(bytes.length / 32) * 64, '0')
    },
    list: items => word(items.length) + items.map(word).join(''),
}

/** Calldata: a selector and arguments. Numbers and addresses are words; `{ string }` and `{ list }` are dynamic. */
export function call(selector, ...args) {
    let heads = '', tails = ''
    for (const arg of args) {
        if (typeof arg === 'object') {
            const [[kind, value]] = Object.entries(arg)
            heads += word(args.length * 32 + tails.length / 2)
            tails += tail[kind](value)
        } else heads += word(arg)
    }
    return selector + heads + tails
}
