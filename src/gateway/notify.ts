import systemdNotify from 'systemd-notify'
import { oneLine, reason } from '../config/errors.ts'
import type { Logger } from './log.ts'

/**
 * Tells systemd about readiness and state (sd_notify(3)) through npm's systemd-notify, which runs the program of that name:
 * the unit needs `NotifyAccess=all`. Does nothing outside systemd. Messages go out one after another, only the newest
 * status of those that wait is sent, and a failure is logged once and never matters otherwise.
 */
export class Notifier {
  #log: Logger
  #enabled: boolean
  #ready = false
  #status: string | undefined
  #sent: string | undefined
  #busy: Promise<void> | undefined

  constructor (log: Logger, env: NodeJS.ProcessEnv = process.env) {
    this.#log = log
    this.#enabled = env.NOTIFY_SOCKET !== undefined && env.NOTIFY_SOCKET !== ''
  }

  /** READY=1, with the newest status. */
  ready (): void {
    this.#ready = true
    this.#flush()
  }

  /** STATUS=, one line for `systemctl status`. */
  status (text: string): void {
    this.#status = oneLine(text)
    this.#flush()
  }

  #flush (): void {
    if (!this.#enabled || this.#busy !== undefined) return
    this.#busy = this.#send().finally(() => { this.#busy = undefined })
  }

  async #send (): Promise<void> {
    while (this.#ready || (this.#status !== undefined && this.#status !== this.#sent)) {
      const ready = this.#ready
      const status = this.#status
      this.#ready = false
      this.#sent = status
      try {
        await systemdNotify({ ...(ready ? { ready } : {}), ...(status === undefined ? {} : { status }) })
      } catch (err) {
        this.#enabled = false
        this.#log.warn({ code: 'GH_NOTIFY' }, `systemd cannot be told the state: ${reason(err)}. Check that systemd-notify is installed and the unit says NotifyAccess=all`)
        return
      }
    }
  }
}
