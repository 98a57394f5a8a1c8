/**
 * Over the tailnet: the gateway on the bindings beside Go's ReverseProxy on native tsnet
 * (test/lab/proxy.go), each with the same origin, loaded by a native peer: h2load on its unix
 * socket, and from there over pooled TLS connections through the tailnet.
 */
import type { ChildProcess } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import readline from 'node:readline'
import { Lab } from '../test/lab/lab.ts'
import { Authority } from '../test/unit/support/authority.ts'
import type { Load } from './h2load.ts'
import { h2load } from './h2load.ts'

export interface TailnetOptions {
  /** Unix socket of the origin. */
  origin: string
  /** Of one measurement. */
  requests: number
  say: (line: string) => void
}

export interface TailnetResult {
  /** Requests a second, ours / Go's: median of the rounds. */
  ratio: number
  rounds: Array<{ ours: Load; go: Load }>
}

const rounds = 3

export async function measureTailnet({
  origin,
  requests,
  say,
}: TailnetOptions): Promise<TailnetResult> {
  const authority = new Authority()
  const lab = await Lab.start({ name: 'benchgw' })
  const children: ChildProcess[] = []
  try {
    const ca = path.join(lab.dir, 'ca.pem')
    await writeFile(ca, authority.certificate)
    const peer = await lab.client('peer')
    const keyFile = path.join(lab.dir, 'bench-authkey')
    await writeFile(keyFile, lab.ready.authKey, { mode: 0o600 })
    const serve = async (
      hostname: string,
      ip: string,
      argv: (files: { pem: string; chain: string; key: string; name: string }) => string[],
    ): Promise<string> => {
      const name = `${hostname}.${lab.ready.suffix}`
      const text = authority.issue(name)
      const at = (file: string): string => path.join(lab.dir, `${hostname}-${file}`)
      const files = { pem: at('pem'), chain: at('chain'), key: at('key'), name }
      await writeFile(files.pem, text, { mode: 0o600 })
      await writeFile(files.chain, text.slice(0, text.indexOf('-----BEGIN PRIVATE')))
      await writeFile(files.key, text.slice(text.indexOf('-----BEGIN PRIVATE')), { mode: 0o600 })
      const child = lab.exec(await lab.host(hostname, ip), argv(files), {
        stdio: ['pipe', 'pipe', 'inherit'],
        env: { ...process.env, SSL_CERT_FILE: lab.ready.authority },
      })
      children.push(child)
      await new Promise((resolve, reject) => {
        readline.createInterface({ input: child.stdout! }).once('line', resolve)
        child.once('exit', (code) => reject(new Error(`${hostname} ended early (code ${code})`)))
      })
      await peer.browse(`https://${name}`, { roots: ca })
      return path.join(peer.dir, `browser-${children.length}.sock`)
    }
    const ours = await serve('ours', '10.77.0.60', ({ pem, name }) => [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      path.join(import.meta.dirname, 'tailnet-node.ts'),
      JSON.stringify({
        dir: path.join(lab.dir, 'ours'),
        hostname: 'ours',
        controlURL: lab.ready.controlURL,
        extraCAFile: lab.ready.authority,
        authKey: lab.ready.authKey,
        origin,
        pem,
        name,
      }),
    ])
    const go = await serve('go', '10.77.0.61', ({ chain, key }) => [
      lab.bin,
      'proxy-node',
      '--dir',
      path.join(lab.dir, 'go'),
      '--control',
      lab.ready.controlURL,
      '--authkey-file',
      keyFile,
      '--hostname',
      'go',
      '--origin',
      origin,
      '--chain',
      chain,
      '--key',
      key,
    ])
    const load = (socket: string): Load =>
      h2load('http://localhost/uncached.json', 64, requests, [`--base-uri=unix:${socket}`])
    const result: TailnetResult = { ratio: Number.NaN, rounds: [] }
    for (let i = 0; i < rounds; i++) {
      const round = { ours: load(ours), go: load(go) }
      result.rounds.push(round)
      say(
        `tailnet    round ${i + 1}          ours ${round.ours.rps.toFixed(0)} req/s, p99 ` +
          `${round.ours.p99.toFixed(1)} ` +
          `ms${round.ours.failed > 0 ? ` (${round.ours.failed} FAILED)` : ''}; Go, native ` +
          `${round.go.rps.toFixed(0)} req/s, p99 ${round.go.p99.toFixed(1)} ms`,
      )
    }
    result.ratio = result.rounds
      .map((round) => round.ours.rps / round.go.rps)
      .toSorted((a, b) => a - b)[rounds >> 1]!
    return result
  } finally {
    for (const child of children) if (child.exitCode === null) child.kill('SIGKILL')
    await lab.stop()
    authority.close()
  }
}
