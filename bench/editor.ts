/**
 * Opens the Node-RED editor as a browser with an empty cache does, over a line of 20 Mbit/s and 10
 * ms each way: the page, what it names, then what its script asks for. HTTP/2 where the server has
 * it, else six connections. Prints JSON: `{ms, bytes}` of the median of the loads, bytes as they
 * came over the line.
 *
 * Usage: node bench/editor.ts PORT LOADS (https://gatehouse.tail.ts.net:PORT on 127.0.0.1, not
 * verified)
 */
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { brotliDecompressSync, gunzipSync, zstdDecompressSync } from 'node:zlib'
import { Agent, buildConnector, request } from 'undici'

const [port, loads] = process.argv.slice(2) as [string, string]
const bytesPerMs = 20_000_000 / 8 / 1_000
const delay = 10

/** A line with a rate that all connections share and a delay; counts what comes down. */
class Line {
  down = 0
  #free = { down: 0, up: 0 }
  readonly server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    const server = connect({
      host: '127.0.0.1',
      port: Number(port),
      noDelay: true,
      allowHalfOpen: true,
    })
    this.#carry(client, server, 'up')
    this.#carry(server, client, 'down')
  })

  #carry(from: Socket, to: Socket, way: 'down' | 'up'): void {
    // In order: timers of different lengths need not be.
    const queue: Array<{ due: number; data: Buffer | undefined }> = []
    let timer: NodeJS.Timeout | undefined
    const pump = (): void => {
      timer = undefined
      for (let first = queue[0]; first !== undefined; first = queue[0]) {
        const wait = first.due - performance.now()
        if (wait > 0.5) {
          timer = setTimeout(pump, wait)
          return
        }
        queue.shift()
        if (first.data === undefined) to.end()
        else if (!to.destroyed) to.write(first.data)
      }
    }
    const put = (data: Buffer | undefined): void => {
      const now = performance.now()
      this.#free[way] = Math.max(now, this.#free[way]) + (data?.length ?? 0) / bytesPerMs
      queue.push({ due: this.#free[way] + delay, data })
      timer ??= setTimeout(pump, delay)
      // What is on its way is bounded, as by a router's queue.
      if (this.#free[way] - now > 50) {
        from.pause()
        setTimeout(() => from.resume(), this.#free[way] - now - 25)
      }
    }
    from.on('error', () => to.destroy())
    from.on('data', (data: Buffer) => {
      if (way === 'down') this.down += data.length
      put(data)
    })
    from.on('end', () => put(undefined))
    from.on('close', () => setTimeout(() => to.destroy(), 1_000).unref())
  }
}

const line = new Line()
await new Promise<void>((resolve) => line.server.listen(0, '127.0.0.1', resolve))
const { port: linePort } = line.server.address() as AddressInfo
// As peers ask for it: the gateway takes no other port for its own.
const origin = 'https://gatehouse.tail.ts.net'
/**
 * What the editor of Node-RED 5 asks for when its script runs, in the order of its dependencies.
 */
const waves = [
  [
    '/locales/editor?lng=en-US',
    '/locales/infotips?lng=en-US',
    '/locales/node-red?lng=en-US',
    '/locales/jsonata?lng=en-US',
    '/settings',
    '/theme',
  ],
  ['/plugins', '/red/keymap.json', '/icons', '/nodes'],
  ['/nodes#html', '/locales/nodes?lng=en-US', '/flows'],
]

const connector = buildConnector({ rejectUnauthorized: false, allowH2: true })

async function load(): Promise<{ ms: number; bytes: number; requests: number }> {
  const agent = new Agent({
    allowH2: true,
    connections: 6,
    pipelining: 1,
    connect: (options, done) => {
      connector({ ...options, hostname: '127.0.0.1', port: String(linePort) }, done)
    },
  })
  const before = line.down
  const begun = performance.now()
  let requests = 0
  const get = async (path: string): Promise<string> => {
    let accept = '*/*'
    if (path.endsWith('#html')) accept = 'text/html'
    else if (path === '/nodes' || path === '/plugins') accept = 'application/json'
    const answer = await request(origin + path.split('#', 1)[0], {
      dispatcher: agent,
      headers: { accept, 'accept-encoding': 'gzip, deflate, br, zstd', 'accept-language': 'en-US' },
    })
    requests++
    if (answer.statusCode !== 200) throw new Error(`${path}: ${answer.statusCode}`)
    const bytes = Buffer.from(await answer.body.arrayBuffer())
    return answer.headers['content-encoding'] === undefined
      ? bytes.toString()
      : decode(String(answer.headers['content-encoding']), bytes)
  }
  const page = await get('/')
  const named = [...page.matchAll(/(?:src|href)="([^"#:]+)"/g)]
    .map((match) => new URL(match[1]!, `${origin}/`))
    .filter((url) => url.origin === origin)
    .map((url) => url.pathname + url.search)
  await Promise.all([...new Set(named)].map(get))
  for (const wave of waves) await Promise.all(wave.map(get))
  const ms = performance.now() - begun
  await agent.close()
  return { ms, bytes: line.down - before, requests }
}

function decode(coding: string, bytes: Buffer): string {
  const decoders = { br: brotliDecompressSync, zstd: zstdDecompressSync, gzip: gunzipSync }
  return decoders[coding as keyof typeof decoders](bytes).toString()
}

await load()
// What the gateway does in the background after the first.
await new Promise((resolve) => setTimeout(resolve, 3_000))
const results: Array<Awaited<ReturnType<typeof load>>> = []
for (let i = 0; i < Number(loads); i++) results.push(await load())
results.sort((a, b) => a.ms - b.ms)
console.log(JSON.stringify(results[Math.floor(results.length / 2)]))
process.exit(0)
