/**
 * The certificate agent's parts against the lab's authority, the challenge published by a native
 * client.
 *
 *     node issue.ts DIRECTORY CA-FILE NAME CLIENT-SOCKET STATE-DIR one certificate by
 *     src/certs/acme.ts: prints the PEM node issue.ts DIRECTORY CA-FILE NAME CLIENT-SOCKET
 *     STATE-DIR OPTIONS a run of src/certs/agent.ts: prints its record
 */
import { appendFile, readFile, writeFile } from 'node:fs/promises'
import http from 'node:http'
import path from 'node:path'
import { createIssuer } from '../../src/certs/acme.ts'
import { IssueError } from '../../src/certs/failure.ts'
import { renew } from '../../src/certs/agent.ts'
import { Plans } from '../../src/certs/ari.ts'
import { tailnetProver } from '../../src/certs/proof.ts'
import { Ledger } from '../../src/certs/ledger.ts'
import { parseCertificate } from '../../src/certs/pem.ts'
import type { CertsRecord } from '../../src/certs/record.ts'

/** The OPTIONS, as JSON. */
export interface RunOptions {
  /** Directory of the certificates. */
  tls: string
  /** Milliseconds certificates are to be valid. */
  lifetime?: number
  /** Milliseconds the agent's clock is ahead. */
  ahead?: number
  profile?: string
  /** What is published: the challenge's value, another, or nothing. Default `right`. */
  publish?: 'right' | 'wrong' | 'nothing'
  /** See IssuerOptions. */
  binding?: { keyId: string; hmacKey: string }
  /** Another directory than the first argument. */
  directory?: string
  /**
   * Runs through so many days, a run each six hours, in a time of its own, and prints what came of
   * it as {@link Journey}. The certificates are of that time.
   */
  days?: number
  /** With `days`: spans, in days from the start, in which the agent's clock is wrong. */
  wrongClock?: Array<{ from: number; to: number; clock: number | { ahead: number } }>
  /** File to add a line to each time a challenge is published. */
  log?: string
  /** File that is made as large as there is space once the challenge is published. */
  fill?: string
}

/** What came of a run through many days. */
export interface Journey {
  runs: number
  /** Day and serial number of each certificate that was put in place. */
  certificates: Array<{ day: number; serial: string }>
  /** Days on which the certificate in place had expired by the true time. */
  expired: number[]
  /** Day and code of each run that failed or was held back. */
  troubles: Array<{ day: number; code: string | undefined; wrongClock: boolean }>
  last: CertsRecord
}

const [firstDirectory, caFile, name, socketPath, state, json] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string | undefined,
]
const options = json === undefined ? undefined : (JSON.parse(json) as RunOptions)

const directory = options?.directory ?? firstDirectory

const setDNS = async (record: string, value: string): Promise<void> =>
  await new Promise((resolve, reject) => {
    const request = http.request({ socketPath, path: '/setdns', method: 'POST' }, (response) => {
      response.resume()
      if (response.statusCode! < 300) resolve()
      else
        reject(
          new IssueError(
            'GH_CERTS_CHALLENGE',
            `${record} was not published: ${response.statusCode}`,
            'Ask for a name of this node',
          ),
        )
    })
    request.on('error', reject)
    request.end(JSON.stringify({ name: record, value }))
  })

const publish = async (record: string, value: string): Promise<void> => {
  if (options?.log !== undefined) await appendFile(options.log, `${record}\n`)
  if (options?.publish !== 'nothing')
    await setDNS(record, options?.publish === 'wrong' ? 'A'.repeat(43) : value)
  if (options?.fill !== undefined)
    for (const size of [65536, 1024, 1]) await fill(options.fill, size)
}

async function fill(file: string, size: number): Promise<void> {
  for (let i = 0; i < 1024; i++) {
    try {
      await writeFile(`${file}-${size}-${i}`, Buffer.alloc(size))
    } catch {
      return
    }
  }
}

try {
  const issuer = async (now?: () => Date): ReturnType<typeof createIssuer> =>
    await createIssuer({
      directory,
      authorities: await readFile(caFile, 'utf8'),
      email: undefined,
      state,
      prover: tailnetProver(publish),
      profile: options?.profile,
      binding: options?.binding,
      ...(options?.lifetime === undefined ? {} : { lifetime: options.lifetime }),
      ...(now === undefined ? {} : { now }),
    })
  const run = async (
    options: RunOptions,
    now: () => Date,
    made: () => ReturnType<typeof createIssuer>,
  ): Promise<CertsRecord> =>
    await renew({
      names: [name],
      tls: path.resolve(options.tls),
      ledger: await Ledger.open(state, directory),
      plans: await Plans.open(state, directory),
      issuer: made,
      now,
      say: (line) => {
        process.stderr.write(`${line}\n`)
      },
    })
  if (options === undefined) {
    process.stdout.write(await (await issuer()).issue(name))
  } else if (options.days === undefined) {
    process.stdout.write(
      `${JSON.stringify(
        await run(
          options,
          () => new Date(Date.now() + (options.ahead ?? 0)),
          async () => await issuer(),
        ),
      )}\n`,
    )
  } else {
    process.stdout.write(`${JSON.stringify(await travel(options, options.days))}\n`)
  }

  async function travel(options: RunOptions, days: number): Promise<Journey> {
    const day = 86_400_000
    const begin = Date.now()
    let time = begin
    // The authority's clock is right, whatever the agent's says.
    const made = issuer(() => new Date(time))
    const journey: Journey = {
      runs: 0,
      certificates: [],
      expired: [],
      troubles: [],
      last: undefined as never,
    }
    for (; time < begin + days * day; time += day / 4) {
      const passed = (time - begin) / day
      const wrong = options.wrongClock?.find(({ from, to }) => passed >= from && passed < to)?.clock
      let clock = time
      if (typeof wrong === 'number') clock = wrong
      else if (wrong !== undefined) clock = time + wrong.ahead
      const record = await run(
        options,
        () => new Date(clock),
        async () => await made,
      )
      journey.runs++
      journey.last = record
      if (record.result !== 'ok')
        journey.troubles.push({ day: passed, code: record.code, wrongClock: wrong !== undefined })
      const certificate = parseCertificate(
        await readFile(path.join(options.tls, `${name}.pem`), 'utf8'),
        name,
      )
      if (certificate.notAfter.getTime() <= time) journey.expired.push(passed)
      if (journey.certificates.at(-1)?.serial !== certificate.serial)
        journey.certificates.push({ day: passed, serial: certificate.serial })
    }
    return journey
  }
} catch (err) {
  process.stderr.write(
    err instanceof IssueError
      ? `${err.code}: ${err.message}\n`
      : `${String((err as Error).stack)}\n`,
  )
  process.exit(1)
}
