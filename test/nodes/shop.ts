/** A registry in the lab, and nodes installed from it through the editor's API. */
import path from 'node:path'
import type { Lab, LabClient } from '../lab/lab.ts'

const port = 4873
const host = 'registry.lab.test'
const address = '10.77.0.61'

/**
 * Puts registry.ts on a host of the lab's. The packages must have been fetched (fetch.ts).
 *
 * @throws Error with what it said when it does not start
 */
export async function shop(lab: Lab): Promise<void> {
  const place = await lab.host('shop', address)
  await lab.setHost(host, address)
  const child = lab.exec(place, [
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    path.join(import.meta.dirname, 'registry.ts'),
    String(port),
  ])
  await new Promise<void>((up, fail) => {
    let said = ''
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (said += text))
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      if (/^up$/m.test(text)) up()
      // What is asked for and not there: a package that was not fetched.
      else process.stdout.write(`registry: ${text}`)
    })
    child.on('exit', () => fail(new Error(`the registry has ended: ${said}`)))
  })
}

/** Where it is. */
export const registry = `http://${host}:${port}`

/** [node_red] of gatehouse.toml for it. */
export function shopList({
  allow = [] as readonly string[],
  devices = [] as readonly string[],
} = {}): string {
  return (
    `[node_red]\nallow = ${JSON.stringify(['palette', ...allow])}\nregistry = "${registry}"\n` +
    `devices = ${JSON.stringify(devices)}\n`
  )
}

/** What came of an install. */
export interface Outcome {
  /** Seconds until the editor had its answer. */
  seconds: number
  version?: string
  /** Types of nodes that are there and can be used. */
  types: string[]
  /** What the editor shows where something failed: the install, or one of its sets of nodes. */
  said: string[]
}

/**
 * Installs a package as the editor's palette does.
 *
 * @throws Error when it is not Node-RED that answers
 */
export async function install(
  owner: LabClient,
  name: string,
  module: string,
  version?: string,
): Promise<Outcome> {
  const answer = await owner.fetch(`https://${name}/nodes`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ module, version }),
    timeout: 1_500_000,
  })
  const seconds = Math.round(answer.ms / 1000)
  const text = answer.body.toString()
  if (answer.status !== 200) {
    // The gateway's own pages are no answer of the editor's.
    const { message } = JSON.parse(text) as { message: string }
    return { seconds, types: [], said: [message] }
  }
  const { nodes, version: installed } = JSON.parse(text) as {
    version: string
    nodes: { types: string[]; enabled: boolean; err?: string | { message?: string } }[]
  }
  return {
    seconds,
    version: installed,
    types: nodes.flatMap(({ types, enabled, err }) => (enabled && err === undefined ? types : [])),
    said: nodes.flatMap(({ err }) =>
      err === undefined
        ? []
        : [typeof err === 'string' ? err : (err.message ?? JSON.stringify(err))],
    ),
  }
}
