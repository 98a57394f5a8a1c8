import { deviceNow } from './api.ts'

/** `3 min ago`. */
export function ago(time: string): string {
  const ms = deviceNow() - Date.parse(time)
  return ms < 2_000 ? 'just now' : `${span(ms)} ago`
}

/** `in 12 days`, or `3 h ago`. */
export function until(time: string): string {
  const ms = Date.parse(time) - deviceNow()
  return ms < 0 ? `${span(-ms)} ago` : `in ${span(ms)}`
}

/** A day and time as the person has them. */
export function local(time: string): string {
  return new Date(time).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' })
}

/** A length of time in its two-digit unit. */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 120) return `${seconds} s`
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.round(seconds / 3_600)} h`
  return `${Math.round(seconds / 86_400)} days`
}
