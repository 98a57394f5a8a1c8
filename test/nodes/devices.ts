/**
 * What nodes talk to, in their own protocols: a Modbus device, Home Assistant's WebSocket API, and
 * Telegram's bots. Each answers what the nodes of list.ts ask and no more.
 *
 * Usage: node test/nodes/devices.ts; prints "up" when all listen
 */
import { createServer as createHTTP } from 'node:http'
import { createServer } from 'node:net'
import { createRequire } from 'node:module'
import path from 'node:path'
import type { Duplex } from 'node:stream'

/** Ports of the devices. */
export const devicePorts = { modbus: 502, homeAssistant: 8123, telegram: 8081 } as const

/** What a bot of Telegram's is asked for with, and Home Assistant's clients. */
export const secrets = {
  bot: '123456:secret-of-the-bot',
  homeAssistant: 'long-lived-token',
} as const

/** Modbus TCP: holding registers 0 to 9 have values 100 to 109 (function 3); others are refused. */
function modbus(): ReturnType<typeof createServer> {
  return createServer((socket) => {
    let rest: Buffer = Buffer.alloc(0)
    socket.on('error', () => {})
    socket.on('data', (data: Buffer) => {
      rest = Buffer.concat([rest, data])
      while (rest.length >= 12) {
        const frame = rest.subarray(0, 6 + rest.readUInt16BE(4))
        if (rest.length < frame.length) return
        rest = rest.subarray(frame.length)
        const [code, first, count] = [frame[7]!, frame.readUInt16BE(8), frame.readUInt16BE(10)]
        const good = code === 3 && first + count <= 10
        const values = Buffer.alloc(good ? 2 * count : 0)
        for (let i = 0; i < count && good; i++) values.writeUInt16BE(100 + first + i, 2 * i)
        const body = good
          ? Buffer.concat([Buffer.from([frame[6]!, code, values.length]), values])
          : Buffer.from([frame[6]!, code | 0x80, 2])
        const head = Buffer.from(frame.subarray(0, 6))
        head.writeUInt16BE(body.length, 4)
        socket.write(Buffer.concat([head, body]))
      }
    })
  })
}

interface WebSocketLike {
  send(text: string): void
  close(): void
  on(event: 'message', listener: (data: Buffer) => void): void
}

/** Home Assistant's WebSocket API (developers.home-assistant.io/docs/api/websocket). */
function homeAssistant(): ReturnType<typeof createHTTP> {
  const modules = path.resolve(
    import.meta.dirname,
    `../../out/cache/node-red-${process.arch}/node_modules/node-red/package.json`,
  )
  const { Server } = createRequire(modules)('ws') as {
    Server: new (options: object) => {
      handleUpgrade(
        request: unknown,
        socket: Duplex,
        head: Buffer,
        done: (ws: WebSocketLike) => void,
      ): void
    }
  }
  const wss = new Server({ noServer: true })
  const config = {
    state: 'RUNNING',
    version: '2026.11.0',
    components: [],
    location_name: 'Home',
    time_zone: 'UTC',
    unit_system: {},
  }
  const results: Record<string, unknown> = {
    get_config: config,
    get_states: [],
    get_services: { light: { turn_on: {} } },
    'auth/current_user': { id: 'u', name: 'flows', is_owner: false, is_admin: true },
  }
  const serve = (ws: WebSocketLike): void => {
    const say = (message: object): void => ws.send(JSON.stringify(message))
    say({ type: 'auth_required', ha_version: config.version })
    ws.on('message', (data) => {
      const parsed = JSON.parse(String(data)) as Message | Message[]
      for (const message of Array.isArray(parsed) ? parsed : [parsed]) {
        const { id, type, access_token: token } = message
        if (type === 'auth') {
          if (token === secrets.homeAssistant) say({ type: 'auth_ok', ha_version: config.version })
          else {
            say({ type: 'auth_invalid', message: 'Invalid access token' })
            ws.close()
          }
        } else if (type === 'ping') say({ id, type: 'pong' })
        else {
          const result = results[type] ?? (type.endsWith('/list') ? [] : null)
          say({ id, type: 'result', success: true, result })
          if (type === 'subscribe_entities')
            say({
              id,
              type: 'event',
              event: {
                a: { 'sensor.roof': { s: '21.5', a: { unit: '°C' }, c: 'x', lc: 1, lu: 1 } },
              },
            })
        }
      }
    })
  }
  return createHTTP((_request, response) => {
    response.setHeader('content-type', 'application/json').end('{}')
  }).on('upgrade', (request, socket: Duplex, head) => {
    wss.handleUpgrade(request, socket, head, serve)
  })
}

interface Message {
  id: number
  type: string
  access_token?: string
}

/** Telegram's bot API: says back, as a message that has come, what a bot has sent. */
function telegram(): ReturnType<typeof createHTTP> {
  const updates: object[] = []
  return createHTTP((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (text: string) => (body += text))
    request.on('end', () => {
      const [, token, method] = /^\/bot([^/]+)\/(\w+)/.exec(request.url!) ?? []
      const answer = (result: unknown): void => {
        response
          .setHeader('content-type', 'application/json')
          .end(JSON.stringify({ ok: true, result }))
      }
      console.log(`telegram: ${method} ${body.slice(0, 200)}`)
      if (token !== secrets.bot) {
        response.writeHead(401).end('{"ok":false,"error_code":401,"description":"Unauthorized"}')
      } else if (method === 'getMe') answer({ id: 1, is_bot: true, username: 'gate_bot' })
      else if (method === 'sendMessage') {
        const form = new URLSearchParams(body)
        const text = form.get('text') ?? ''
        const message = {
          message_id: updates.length + 1,
          date: 1,
          chat: { id: 7, type: 'private' },
          from: { id: 7, is_bot: false, username: 'alice' },
          text: `you said ${text}`,
        }
        updates.push({ update_id: updates.length + 1, message })
        answer(message)
      } else if (method === 'getUpdates') {
        const offset = Number(
          new URL(request.url!, 'http://x').searchParams.get('offset') ??
            new URLSearchParams(body).get('offset') ??
            0,
        )
        setTimeout(
          () => answer(updates.filter((one) => (one as { update_id: number }).update_id >= offset)),
          200,
        )
      } else answer(true)
    })
  })
}

if (import.meta.main) {
  const all = [
    [modbus(), devicePorts.modbus],
    [homeAssistant(), devicePorts.homeAssistant],
    [telegram(), devicePorts.telegram],
  ] as const
  await Promise.all(
    all.map(([server, port]) => new Promise<void>((up) => server.listen(port, '::', () => up()))),
  )
  console.log('up')
}
