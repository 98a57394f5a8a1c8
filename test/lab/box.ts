/**
 * An appliance's certificate agent in the lab: its directories, runs of it against the lab's
 * authority, and what the gateway then says.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { mkdir, mkdtemp, readFile } from 'node:fs/promises'
import path from 'node:path'
import { call } from '../../src/base/control-client.ts'
import { table } from '../../src/gateway/operate/status-text.ts'
import { parseCertificate } from '../../src/certs/pem.ts'
import type { CertsRecord } from '../../src/certs/record.ts'
import { Bench } from '../unit/support/bench.ts'
import { LoopbackTailnet } from '../unit/support/tailnet.ts'
import type { RunOptions } from './issue.ts'
import type { Lab, LabClient } from './lab.ts'

/** The directories of one appliance, whose node is a native client. */
export class Box {
  readonly lab: Lab
  readonly node: LabClient
  readonly name: string
  readonly tls: string
  readonly state: string
  readonly log: string

  private constructor(lab: Lab, node: LabClient, name: string, dir: string) {
    this.lab = lab
    this.node = node
    this.name = name
    this.tls = path.join(dir, 'tls')
    this.state = path.join(dir, 'state')
    this.log = path.join(dir, 'challenges')
  }

  static async make(lab: Lab, node: LabClient, name: string): Promise<Box> {
    const box = new Box(lab, node, name, await mkdtemp(path.join(lab.dir, 'box-')))
    await mkdir(box.tls)
    await mkdir(box.state)
    return box
  }

  get file(): string {
    return path.join(this.tls, `${this.name}.pem`)
  }

  argv(options: Partial<RunOptions>): string[] {
    const { acmeDirectory, authority } = this.lab.ready
    return [
      process.execPath,
      path.join(import.meta.dirname, 'issue.ts'),
      acmeDirectory,
      authority,
      this.name,
      path.join(this.node.dir, 'client.sock'),
      this.state,
      JSON.stringify({ tls: this.tls, log: this.log, ...options } satisfies RunOptions),
    ]
  }

  async run(options: Partial<RunOptions> = {}): Promise<{ record: CertsRecord; said: string }> {
    const { code, stdout, stderr } = await this.lab.run(this.node.ns, this.argv(options))
    assert.equal(code, 0, stderr)
    return { record: JSON.parse(stdout) as CertsRecord, said: stderr }
  }

  /** What is in place, proven. */
  async certificate(): Promise<X509Certificate> {
    return new X509Certificate(parseCertificate(await readFile(this.file, 'utf8'), this.name).chain)
  }

  /** Challenges published so far: each is an order that got as far as validation. */
  async challenges(): Promise<number> {
    return (await readFile(this.log, 'utf8').catch(() => '')).split('\n').length - 1
  }

  /**
   * What a gateway with these certificates says: `gatehouse status`, and
   * `gatehouse_certificate_failures_total` by code.
   */
  async gateway(): Promise<{ status: string; failures: Record<string, number> }> {
    await using bench = await Bench.start({
      certificate: false,
      options: { tls: this.tls },
      before: (made) => {
        made.tailnet.current = LoopbackTailnet.running(this.name)
      },
    })
    await bench.until(
      () => bench.gateway.problems.get('tailnet') === undefined && bench.log('joined').length > 0,
    )
    const status = table(await bench.gateway.status())
    const { body } = (await call(bench.admin, 'GET', '/metrics')) as { body: string }
    const counted = [
      ...body.matchAll(/^gatehouse_certificate_failures_total\{code="(\w+)"\} (\d+)$/gm),
    ].map(([, code, times]): [string, number] => [code!, Number(times)])
    assert.ok(counted.length > 0, body)
    return { status, failures: Object.fromEntries(counted.filter(([, times]) => times > 0)) }
  }
}

/** How often the authority noted something: its own count, not ours. */
export async function noted(lab: Lab, what: RegExp): Promise<number> {
  return (await readFile(path.join(lab.dir, 'acme.log'), 'utf8'))
    .split('\n')
    .filter((line) => what.test(line)).length
}
