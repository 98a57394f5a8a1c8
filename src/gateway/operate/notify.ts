import { oneLine, reason } from '../../base/errors.ts'
import type { Logger } from '../shared/log.ts'

/** libsystemd's own, so that the protocol (credentials, abstract addresses) is not ours to keep. */
const library = 'libsystemd.so.0'

/** Options of {@link Notifier}. */
export interface NotifierOptions {
  /** systemd's variables: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID. Default: the process's own. */
  env?: NodeJS.ProcessEnv
  /** Default: this process's ID. */
  pid?: number
  /** Default: libsystemd's. */
  library?: string
}

/**
 * Tells systemd how the service is (sd_notify(3)): readiness, a line of status, reloading,
 * stopping, the watchdog. libsystemd is called in this process by node:ffi, so that the unit can
 * say `NotifyAccess=main`: nothing else that runs as the gateway's user is listened to, and no
 * program is started for a sign of life. Does nothing outside systemd. A failure is logged once and
 * never matters otherwise.
 */
export class Notifier {
  #log: Logger
  #send: ((message: string) => void) | undefined
  #status: string | undefined
  #watchdog: NodeJS.Timeout | undefined
  /** How often systemd wants a sign of life, in milliseconds; undefined when it does not. */
  readonly watchdogInterval: number | undefined

  constructor(
    log: Logger,
    { env = process.env, pid = process.pid, library: name = library }: NotifierOptions = {},
  ) {
    this.#log = log
    if (env.NOTIFY_SOCKET !== undefined && env.NOTIFY_SOCKET !== '') this.#send = this.#open(name)
    const usec = Number(env.WATCHDOG_USEC)
    const ours = env.WATCHDOG_PID === undefined || Number(env.WATCHDOG_PID) === pid
    this.watchdogInterval = usec > 0 && ours ? usec / 1000 : undefined
  }

  /** READY=1: started, or reloaded. */
  ready(): void {
    this.#tell('READY=1')
  }

  /**
   * RELOADING=1, with the time as Type=notify-reload wants it: systemd tells a reload it asked for
   * from one before by it.
   */
  reloading(): void {
    this.#tell(`RELOADING=1\nMONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`)
  }

  /** STOPPING=1. systemd has it when this returns. */
  stopping(): void {
    clearInterval(this.#watchdog)
    this.#tell('STOPPING=1')
  }

  /** STATUS=, one line for `systemctl status`. */
  status(text: string): void {
    const line = oneLine(text)
    if (line === this.#status) return
    this.#status = line
    this.#tell(`STATUS=${line}`)
  }

  /**
   * WATCHDOG=1 twice within each interval systemd set, as long as `alive` says so in time. A timer
   * alone would only show that the event loop turns.
   */
  watch(alive: () => Promise<boolean>): void {
    if (this.watchdogInterval === undefined || this.#send === undefined) return
    const interval = this.watchdogInterval
    const look = async (): Promise<void> => {
      const late = Promise.withResolvers<boolean>()
      const timer = setTimeout(() => late.resolve(false), interval / 2)
      const well = await Promise.race([alive().catch(() => false), late.promise])
      clearTimeout(timer)
      if (well) this.#tell('WATCHDOG=1')
      else
        this.#log.error(
          { code: 'GH_WATCHDOG' },
          'the tailnet node does not answer. Unless it does soon, systemd restarts the gateway',
        )
    }
    this.#watchdog = setInterval(() => {
      void look()
    }, interval / 2)
    this.#watchdog.unref()
    void look()
  }

  #tell(message: string): void {
    try {
      this.#send?.(message)
    } catch (err) {
      this.#fail(err)
    }
  }

  /** sd_notify(3): above zero when the message has gone, a negated errno when it could not. */
  #open(name: string): ((message: string) => void) | undefined {
    try {
      const ffi = process.getBuiltinModule('node:ffi')
      const { functions } = ffi.dlopen(name, {
        sd_notify: { return: 'int32', arguments: ['int32', 'string'] },
      })
      return (message) => {
        const result = functions.sd_notify(0, message)
        if (result < 0) throw new Error(`sd_notify: error ${-result}`)
      }
    } catch (err) {
      this.#fail(err)
      return undefined
    }
  }

  #fail(err: unknown): void {
    this.#send = undefined
    this.#log.warn(
      { code: 'GH_NOTIFY' },
      `systemd cannot be told the state: ${reason(err)}. The image must have ${library}`,
    )
  }
}
