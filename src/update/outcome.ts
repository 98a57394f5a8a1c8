import { oneLine, printable, reason } from '../base/errors.ts'
import { readForeign, writeFileAtomic } from '../base/files.ts'
import type { UpdatePaths } from './record.ts'

/**
 * What the last attempt to update came to, since the device was started: what became of the version
 * afterwards is in {@link UpdateRecord}.
 */
export interface Outcome {
  /** Where the update was to come from, for a person: `USB stick`, `updates.url`. */
  source: string
  text: string
  /** Whether somebody should look at it. */
  failed: boolean
}

/**
 * The source of an {@link Outcome} that somebody carries to the device, and who is to hear what
 * became of it in any case.
 */
export const stickName = 'USB stick'

/** Keeps it for `gatehouse status`, console and card. No reason for an update to fail. */
export async function writeOutcome({ outcome }: UpdatePaths, what: Outcome): Promise<void> {
  await writeFileAtomic(
    outcome,
    `${JSON.stringify({ ...what, text: oneLine(what.text) })}\n`,
    0o644,
  ).catch((err: unknown) => {
    process.stderr.write(`gatehouse update: ${outcome} cannot be written: ${reason(err)}\n`)
  })
}

/**
 * The last attempt; undefined when there was none since the device was started. The updater's user
 * writes it, root reads it, and it is shown on consoles: a line of text, whatever it is.
 */
export async function readOutcome({ outcome }: UpdatePaths): Promise<Outcome | undefined> {
  try {
    const content = await readForeign(outcome, 65_536)
    const { source, text, failed } = JSON.parse(content.toString('utf8')) as Outcome
    return typeof source === 'string' && typeof text === 'string'
      ? { source: line(source, 64), text: line(text, 2000), failed: failed === true }
      : undefined
  } catch {
    return undefined
  }
}

function line(text: string, longest: number): string {
  return printable(oneLine(text)).slice(0, longest)
}

/**
 * The last attempt, if there is something to tell: it failed, or somebody plugged a stick in and
 * waits.
 */
export async function attemptLine(paths: UpdatePaths): Promise<Outcome | undefined> {
  const outcome = await readOutcome(paths)
  return outcome !== undefined && (outcome.failed || outcome.source === stickName)
    ? outcome
    : undefined
}
