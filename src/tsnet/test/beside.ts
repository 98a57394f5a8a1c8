/** The bindings and natively compiled tsnet in the same place, and what came of it as a table. */
import type { TestContext } from 'node:test'
import type { Lab } from '../../../test/lab/lab.ts'
import {
  Program,
  type Kind as ProgramKind,
  type ProgramOptions,
} from '../../../test/lab/program.ts'

export type Kind = Exclude<ProgramKind, 'tun'>

export const kinds: readonly Kind[] = ['native', 'wasm']

/** Both, each in a place of its own that `place` makes; they join at the same time. */
export type Both = Record<Kind, Program>

let count = 0

/** Starts both. Rejects when either does not join: the error says which. */
export async function startBoth(
  lab: Lab,
  place: (kind: Kind) => Promise<string>,
  options: ProgramOptions | ((kind: Kind) => ProgramOptions) = {},
): Promise<Both> {
  const hostname = `b${++count}`
  const [native, wasm] = await Promise.all(
    kinds.map(async (kind) => {
      const of = typeof options === 'function' ? options(kind) : options
      return await Program.start(lab, await place(kind), kind, {
        hostname: `${hostname}-${kind}`,
        ...of,
      })
    }),
  )
  return { native: native!, wasm: wasm! }
}

/** Ends both. */
export async function endBoth(both: Both): Promise<void> {
  await Promise.all(kinds.map((kind) => both[kind].end()))
}

/** Time to join in ms, the module's loading left out. */
export const joinMs = (program: Program): number =>
  Math.max(0, Math.round(program.joinedMs - program.loadedMs))

/** Rows of text under one another, as diagnostics of a test. */
export function print(t: TestContext, rows: string[][]): void {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)))
  for (const row of rows) t.diagnostic(row.map((cell, i) => cell.padEnd(widths[i]!)).join('  '))
}
