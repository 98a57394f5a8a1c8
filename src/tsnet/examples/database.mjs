// A database on another machine of the tailnet: here one that speaks Redis's protocol. Clients that
// take a stream take the connection as it is, such as pg: `new pg.Client({ stream: () => conn })`.
//   TS_AUTHKEY=tskey-auth-… node database.mjs HOST
import { Server } from '@gatehouse/tsnet'

await using server = new Server({ memory: true, hostname: 'reader' })
const conn = await server.dial(process.argv[2], 6379, { signal: AbortSignal.timeout(30_000) })

/** One command, and its answer as it comes (RESP 2). */
async function ask(...words) {
  conn.write(
    `*${words.length}\r\n${words.map((w) => `$${Buffer.byteLength(w)}\r\n${w}\r\n`).join('')}`,
  )
  for await (const part of conn.iterator({ destroyOnReturn: false })) return part.toString().trim()
}

console.log(await ask('PING'))
console.log(await ask('SET', 'greeting', 'from the tailnet'))
console.log(await ask('GET', 'greeting'))
conn.destroy()
