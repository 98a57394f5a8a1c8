/**
 * What a fault scenario has to work with: the lab, a client on the tailnet, and an appliance that
 * booted from the image. A scenario is a folder with a file scenario.ts; test/scenarios/faults.ts
 * runs them, those that can on one boot.
 */
import assert from 'node:assert/strict'
import type { FetchAnswer, Lab, LabClient, Result } from '../lab/lab.ts'
import { editor, eventually, joined, statusOf } from '../vm/appliance.ts'
import type { Machine } from '../vm/machine.ts'

export interface Scenario {
  /** What breaks. */
  fault: string
  /** What must hold then. */
  holds: string
  /**
   * The machine's configuration for it, shared by all on the same boot: drop-ins and the like, as
   * systemd credentials.
   */
  credentials?: Record<string, string>
  /**
   * Breaks it, and checks; leaves the appliance serving. Returns what was seen, for the run's
   * table.
   */
  run: (stage: Stage) => Promise<string>
}

/** Power cuts in each scenario that has them: GATEHOUSE_ROUNDS, default 1. */
export const rounds = Number(process.env['GATEHOUSE_ROUNDS'] ?? 1)

export class Stage {
  readonly lab: Lab
  readonly client: LabClient
  readonly machine: Machine
  /** The certificate before a scenario that restarts the machine, for the next one. */
  before: { certificate?: string } = {}
  #name: string | undefined

  constructor(lab: Lab, client: LabClient, machine: Machine) {
    this.lab = lab
    this.client = client
    this.machine = machine
  }

  /** The appliance's full name, once it has joined. */
  async name(): Promise<string> {
    return (this.#name ??= (await joined(this.lab, 'gatehouse', 400)).name)
  }

  /** Waits for Node-RED's editor through the tailnet. Returns the seconds it took. */
  async served(seconds = 300): Promise<number> {
    const begun = performance.now()
    await editor(this.client, await this.name(), seconds)
    return (performance.now() - begun) / 1000
  }

  async fetch(path: string, options: Parameters<LabClient['fetch']>[1] = {}): Promise<FetchAnswer> {
    return await this.client.fetch(`https://${await this.name()}${path}`, options)
  }

  /** A command in the machine that must do. Returns its standard output. */
  async run(command: string, timeout = 120): Promise<string> {
    const { code, stdout, stderr } = await this.machine.run(command, { timeout })
    assert.equal(code, 0, `${command}: ${stderr}${stdout}`)
    return stdout.trim()
  }

  /** The appliance as the control server knows it. */
  async node(): Promise<{ id: number; name: string; addresses: string[] }> {
    const name = await this.name()
    const { id, addresses } = (await this.lab.nodes()).find((node) => node.name === name)!
    return { id, name, addresses }
  }

  /** Waits until it has joined as another node than `id`, which from then on is the appliance. */
  async joinedAnew(id: number, seconds = 400): Promise<void> {
    this.#name = (
      await eventually('it joins as a new node', seconds, async () =>
        (await this.lab.nodes()).find((node) => node.hostname === 'gatehouse' && node.id > id),
      )
    ).name
  }

  /** The bridge's port that the machine is on. */
  async port(): Promise<string> {
    const tap = /\b(ghvm[0-9a-f]+)\b/.exec(
      (await this.onBridge('ip', '-o', 'link', 'show', 'type', 'tun')).stdout,
    )?.[1]
    assert.ok(tap, "the machine's port of the bridge")
    return tap
  }

  /** `ip` in the lab's own namespace. */
  async bridge(...args: string[]): Promise<void> {
    const { code, stderr } = await this.onBridge('ip', ...args)
    assert.equal(code, 0, stderr)
  }

  /**
   * Does something while the network has these nftables rules, in the lab's own namespace; their
   * tables are removed whatever comes of it.
   */
  async underRules<T>(ruleset: string, work: () => Promise<T>): Promise<T> {
    const loaded = await this.lab.run(this.lab.ns, ['nft', '-f', '-'], ruleset)
    assert.equal(loaded.code, 0, loaded.stderr)
    try {
      return await work()
    } finally {
      for (const [, family, name] of ruleset.matchAll(/^table (\S+) (\S+)/gm))
        await this.onBridge('nft', 'delete', 'table', family!, name!)
    }
  }

  /** Waits until gatehouse-status.txt on the card says this. */
  async onCard(what: RegExp, seconds = 120): Promise<void> {
    await eventually(
      `the card says ${what}`,
      seconds,
      async () =>
        what.test((await this.machine.run('cat /efi/gatehouse-status.txt')).stdout) || undefined,
    )
  }

  /** A command in the lab's own namespace, where the bridge is. */
  async onBridge(...argv: string[]): Promise<Result> {
    return await this.lab.run(this.lab.ns, argv)
  }

  /** The main process of a unit, and how often systemd has started it anew. */
  async unit(name: string): Promise<{ pid: number; restarts: number }> {
    const shown = await this.run(`systemctl show -p MainPID,NRestarts ${name}`)
    const number = (key: string): number =>
      Number(new RegExp(`^${key}=(\\d+)$`, 'm').exec(shown)?.[1])
    return { pid: number('MainPID'), restarts: number('NRestarts') }
  }

  /** Replaces all flows, as the editor's Deploy button does. */
  async deploy(flows: object[]): Promise<FetchAnswer> {
    return await this.fetch('/flows', {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'node-red-deployment-type': 'full' },
      body: JSON.stringify([{ id: 'f6f2187d.f17ca8', type: 'tab', label: 'Flow 1' }, ...flows]),
      timeout: 60_000,
    })
  }

  /** A problem of this code in `gatehouse status`, with its cure. */
  async problem(code: RegExp, seconds = 120): Promise<{ message: string; cure: string }> {
    return await eventually(`a problem ${code}`, seconds, async () =>
      (await statusOf(this.machine))['problems'].find((problem: { code: string }) =>
        code.test(problem.code),
      ),
    )
  }

  /** The certificate that is served, by its serial number. */
  async certificate(): Promise<string> {
    return await this.run(`sha256sum /var/lib/gatehouse-tls/${await this.name()}.pem`)
  }
}

/** A flow that answers at /app/<path> with a text. */
export function answers(path: string, text: string): object[] {
  return [
    {
      id: `in-${path}`,
      type: 'http in',
      z: 'f6f2187d.f17ca8',
      url: `/${path}`,
      method: 'get',
      wires: [[`text-${path}`]],
    },
    {
      id: `text-${path}`,
      type: 'template',
      z: 'f6f2187d.f17ca8',
      template: text,
      wires: [[`out-${path}`]],
    },
    {
      id: `out-${path}`,
      type: 'http response',
      z: 'f6f2187d.f17ca8',
      statusCode: '',
      headers: {},
      wires: [],
    },
  ]
}

/**
 * A flow that runs a command in Node-RED's sandbox: at /app/<path>, or half a second after each
 * start where `path` is undefined.
 */
export function runs(command: string, path?: string): object[] {
  const trigger =
    path === undefined
      ? {
          id: 'once',
          type: 'inject',
          z: 'f6f2187d.f17ca8',
          once: true,
          onceDelay: 0.5,
          repeat: '',
          crontab: '',
          topic: '',
          props: [{ p: 'payload' }],
          payload: '',
          payloadType: 'date',
          wires: [['run']],
        }
      : {
          id: 'in-run',
          type: 'http in',
          z: 'f6f2187d.f17ca8',
          url: `/${path}`,
          method: 'get',
          wires: [['run']],
        }
  return [
    trigger,
    {
      id: 'run',
      type: 'exec',
      z: 'f6f2187d.f17ca8',
      command,
      addpay: '',
      append: '',
      useSpawn: 'false',
      timer: '',
      winHide: false,
      oldrc: false,
      wires: [path === undefined ? [] : ['out-run'], [], []],
    },
    ...(path === undefined
      ? []
      : [
          {
            id: 'out-run',
            type: 'http response',
            z: 'f6f2187d.f17ca8',
            statusCode: '',
            headers: {},
            wires: [],
          },
        ]),
  ]
}
