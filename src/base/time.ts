import { setTimeout as after } from 'node:timers/promises'

/** Milliseconds. */
export const minute = 60_000
/** Milliseconds. */
export const hour = 60 * minute
/** Milliseconds. */
export const day = 24 * hour

/** Resolves after `ms` milliseconds, or as soon as the signal is aborted; never rejects. */
export async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  await after(ms, undefined, { signal }).catch(() => {})
}
