import { EventEmitter } from 'node:events'
import type { GatehouseError } from '../../base/errors.ts'
import type { Severity } from '../../certs/record.ts'
import type { Logger } from './log.ts'

/** What is wrong now, for `gatehouse status`. */
export interface Problem {
  /** `GH_…` */
  code: string
  message: string
  cure: string
  /** RFC 3339. */
  since: string
  /**
   * `info`: it will most likely pass by itself; `warning`: see to it this week; `error`: see to it
   * now.
   */
  severity: Severity
}

/** The parts of the gateway, causes before what follows from them. */
const parts = [
  'storage',
  'memory',
  'power',
  'configuration',
  'tailnet',
  'node key',
  'https',
  'data path',
  'listener',
  'ports',
  'flows',
  'local network',
  'service',
  'certificate',
  'upstream',
  'backup',
] as const

/** The part of the gateway a problem belongs to; each has one at a time. */
export type Part = (typeof parts)[number]

/**
 * What is wrong with the gateway, part by part. A problem is logged when it begins or its cause
 * changes, not at every retry, and once more when it is over. Emits `change`.
 */
export class Problems extends EventEmitter {
  #log: Logger
  #current = new Map<Part, Problem>()

  constructor(log: Logger) {
    super()
    this.#log = log
  }

  /** The part has this problem now. */
  set(part: Part, error: GatehouseError, severity: Severity = 'warning'): void {
    const { code, message, cure } = error
    const before = this.#current.get(part)
    if (
      before !== undefined &&
      before.code === code &&
      before.message === message &&
      before.severity === severity
    )
      return
    // Worse, or with news of its cause, it is the same problem still.
    this.#current.set(part, {
      code,
      message,
      cure,
      since: before?.code === code ? before.since : new Date().toISOString(),
      severity,
    })
    this.#log[severity === 'warning' ? 'warn' : severity]({ code }, `${part}: ${error.line}`)
    this.emit('change')
  }

  /** The part is well. `message` goes to the log when it was not. */
  clear(part: Part, message: string): void {
    if (!this.#current.delete(part)) return
    this.#log.info(message)
    this.emit('change')
  }

  get(part: Part): Problem | undefined {
    return this.#current.get(part)
  }

  /** All of them, the likeliest cause of the others first. */
  list(): Array<Problem & { part: Part }> {
    return parts.flatMap((part) => {
      const problem = this.#current.get(part)
      return problem === undefined ? [] : [{ part, ...problem }]
    })
  }
}
