import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { oneLine, reason } from '../../base/errors.ts'
import type { Logger } from '../shared/log.ts'

const run = promisify(execFile)

/**
 * Tells systemd how the service is (sd_notify(3)): readiness, a line of status, reloading,
 * stopping, the watchdog. It goes through the program systemd-notify, as Node has no datagram
 * sockets of the unix kind: the unit needs `NotifyAccess=all`. Does nothing outside systemd.
 * Messages go out one after another, only the newest status of those that wait is sent, and a
 * failure is logged once and never matters otherwise.
 */
export class Notifier {
  #log: Logger
  #enabled: boolean
  #socket: string | undefined
  #queue: string[][] = []
  #status: string | undefined
  #sent: string | undefined
  #busy: Promise<void> | undefined
  #watchdog: NodeJS.Timeout | undefined
  /** How often systemd wants a sign of life, in milliseconds; undefined when it does not. */
  readonly watchdogInterval: number | undefined

  constructor(log: Logger, env: NodeJS.ProcessEnv = process.env, pid: number = process.pid) {
    this.#log = log
    this.#socket = env.NOTIFY_SOCKET
    this.#enabled = env.NOTIFY_SOCKET !== undefined && env.NOTIFY_SOCKET !== ''
    const usec = Number(env.WATCHDOG_USEC)
    this.watchdogInterval =
      usec > 0 && (env.WATCHDOG_PID === undefined || Number(env.WATCHDOG_PID) === pid)
        ? usec / 1000
        : undefined
  }

  /** READY=1: started, or reloaded. */
  ready(): void {
    this.#push(['READY=1'])
  }

  /**
   * RELOADING=1, with the time as Type=notify-reload wants it: systemd tells a reload it asked for
   * from one before by it.
   */
  reloading(): void {
    this.#push(['RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`])
  }

  /** STOPPING=1. Resolves when systemd has it, or cannot be told. */
  async stopping(): Promise<void> {
    clearInterval(this.#watchdog)
    this.#push(['STOPPING=1'])
    await this.#busy
  }

  /** STATUS=, one line for `systemctl status`. */
  status(text: string): void {
    this.#status = oneLine(text)
    this.#flush()
  }

  /**
   * WATCHDOG=1 twice within each interval systemd set, as long as `alive` says so in time. A timer
   * alone would only show that the event loop turns.
   */
  watch(alive: () => Promise<boolean>): void {
    if (this.watchdogInterval === undefined || !this.#enabled) return
    const interval = this.watchdogInterval
    const look = async (): Promise<void> => {
      const late = Promise.withResolvers<boolean>()
      const timer = setTimeout(() => late.resolve(false), interval / 2)
      const well = await Promise.race([alive().catch(() => false), late.promise])
      clearTimeout(timer)
      if (well) this.#push(['WATCHDOG=1'])
      else
        this.#log.error(
          { code: 'GH_WATCHDOG' },
          'the tailnet node does not answer. Unless it does soon, systemd starts the gateway anew',
        )
    }
    this.#watchdog = setInterval(() => {
      void look()
    }, interval / 2)
    this.#watchdog.unref()
    void look()
  }

  #push(message: string[]): void {
    if (!this.#enabled) return
    this.#queue.push(message)
    this.#flush()
  }

  #flush(): void {
    if (!this.#enabled || this.#busy !== undefined) return
    this.#busy = this.#send().finally(() => {
      this.#busy = undefined
    })
  }

  async #send(): Promise<void> {
    for (;;) {
      const message = this.#queue.shift() ?? []
      if (this.#status !== this.#sent) {
        this.#sent = this.#status
        message.push(`STATUS=${this.#status}`)
      }
      if (message.length === 0) return
      try {
        await run('systemd-notify', message, {
          timeout: 30_000,
          env: { PATH: process.env.PATH, NOTIFY_SOCKET: this.#socket },
        })
      } catch (err) {
        this.#enabled = false
        this.#log.warn(
          { code: 'GH_NOTIFY' },
          `systemd cannot be told the state: ${reason(err)}. Check that systemd-notify is installed and the unit says NotifyAccess=all`,
        )
        return
      }
    }
  }
}
