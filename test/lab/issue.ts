/**
 * The certificate agent's parts against the lab's authority, the challenge published by a native client.
 *
 *     node issue.ts DIRECTORY CA-FILE NAME CLIENT-SOCKET STATE-DIR             one certificate by src/certs/acme.ts: prints the PEM
 *     node issue.ts DIRECTORY CA-FILE NAME CLIENT-SOCKET STATE-DIR OPTIONS     a run of src/certs/agent.ts: prints its record
 */
import { appendFile, readFile, writeFile } from 'node:fs/promises'
import http from 'node:http'
import path from 'node:path'
import { createIssuer } from '../../src/certs/acme.ts'
import { IssueError } from '../../src/certs/failure.ts'
import { renew } from '../../src/certs/agent.ts'
import { Plans } from '../../src/certs/ari.ts'
import { Ledger } from '../../src/certs/ledger.ts'

/** The OPTIONS, as JSON. */
export interface RunOptions {
  /** Directory of the certificates. */
  tls: string
  /** Milliseconds certificates are to be valid. */
  lifetime?: number
  /** Milliseconds the agent's clock is ahead. */
  ahead?: number
  profile?: string
  /** Publish another value than the challenge's. */
  wrong?: boolean
  /** File to add a line to each time a challenge is published. */
  log?: string
  /** File that is made as large as there is space once the challenge is published. */
  fill?: string
}

const [directory, caFile, name, socketPath, state, json] = process.argv.slice(2) as [string, string, string, string, string, string | undefined]
const options = json === undefined ? undefined : JSON.parse(json) as RunOptions

const setDNS = async (record: string, value: string): Promise<void> => await new Promise((resolve, reject) => {
  const request = http.request({ socketPath, path: '/setdns', method: 'POST' }, (response) => {
    response.resume()
    if (response.statusCode! < 300) resolve()
    else reject(new IssueError('GH_CERTS_CHALLENGE', `${record} was not published: ${response.statusCode}`, 'Ask for a name of this node'))
  })
  request.on('error', reject)
  request.end(JSON.stringify({ name: record, value }))
})

const publish = async (record: string, value: string): Promise<void> => {
  if (options?.log !== undefined) await appendFile(options.log, `${record}\n`)
  await setDNS(record, options?.wrong === true ? 'A'.repeat(43) : value)
  if (options?.fill !== undefined) for (const size of [65536, 1024, 1]) await fill(options.fill, size)
}

async function fill (file: string, size: number): Promise<void> {
  for (let i = 0; i < 1024; i++) {
    try {
      await writeFile(`${file}-${size}-${i}`, Buffer.alloc(size))
    } catch {
      return
    }
  }
}

try {
  const issuer = async (): ReturnType<typeof createIssuer> => await createIssuer({
    directory, authorities: await readFile(caFile, 'utf8'), email: undefined, state, publish, profile: options?.profile,
    ...(options?.lifetime === undefined ? {} : { lifetime: options.lifetime }),
  })
  if (options === undefined) {
    process.stdout.write(await (await issuer()).issue(name))
  } else {
    const record = await renew({
      names: [name],
      tls: path.resolve(options.tls),
      ledger: await Ledger.open(state, directory),
      plans: await Plans.open(state, directory),
      issuer,
      now: () => new Date(Date.now() + (options.ahead ?? 0)),
      say: (line) => { process.stderr.write(`${line}\n`) },
    })
    process.stdout.write(`${JSON.stringify(record)}\n`)
  }
} catch (err) {
  process.stderr.write(err instanceof IssueError ? `${err.code}: ${err.message}\n` : `${String((err as Error).stack)}\n`)
  process.exit(1)
}
