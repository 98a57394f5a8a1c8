import { connect } from 'node:net'
import { EventEmitter } from 'node:events'
import { GatehouseError, reason } from '../config/errors.ts'

/**
 * Whether Node-RED accepts connections on its socket: looked at every 30 s while up and every 2 s while down, and told by
 * each request that fails. Emits `change`.
 */
export class Upstream extends EventEmitter {
  readonly socket: string
  #state: 'unknown' | 'up' | 'down' = 'unknown'
  #error: GatehouseError | undefined
  #since = new Date()
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor (socket: string) {
    super()
    this.socket = socket
  }

  get state (): 'unknown' | 'up' | 'down' { return this.#state }
  get since (): Date { return this.#since }
  /** Set while down. */
  get error (): GatehouseError | undefined { return this.#error }

  /** Starts looking. */
  start (): void {
    void this.check()
  }

  /** Looks now. */
  async check (): Promise<void> {
    clearTimeout(this.#timer)
    const err = await new Promise<Error | undefined>((resolve) => {
      const socket = connect(this.socket)
      const timer = setTimeout(() => socket.destroy(Object.assign(new Error('no answer within 5 s'), { code: 'ETIMEDOUT' })), 5_000)
      socket.once('connect', () => { resolve(undefined); socket.end() })
      socket.once('error', resolve)
      socket.once('close', () => { clearTimeout(timer) })
    })
    if (err === undefined) this.up()
    else this.down(err)
    if (this.#closed) return
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => { void this.check() }, this.#state === 'up' ? 30_000 : 2_000)
    this.#timer.unref()
  }

  /** An answer came from it. */
  up (): void {
    this.#become('up', undefined)
  }

  /** It could not be reached. */
  down (err: Error): void {
    this.#become('down', upstreamError(err))
  }

  close (): void {
    this.#closed = true
    clearTimeout(this.#timer)
  }

  #become (state: 'up' | 'down', error: GatehouseError | undefined): void {
    if (state === this.#state && error?.message === this.#error?.message) return
    if (state !== this.#state) this.#since = new Date()
    this.#state = state
    this.#error = error
    this.emit('change')
    // A request found it down: look again soon rather than at the end of the 30 s.
    if (state === 'down' && !this.#closed) {
      clearTimeout(this.#timer)
      this.#timer = setTimeout(() => { void this.check() }, 2_000)
      this.#timer.unref()
    }
  }
}

/** What a failed connection to Node-RED means. */
export function upstreamError (err: Error): GatehouseError {
  const code = (err as NodeJS.ErrnoException).code
  const logs = 'Look at `systemctl status node-red` and `journalctl -u node-red` on the device'
  if (code === 'ENOENT' || code === 'ECONNREFUSED') {
    return new GatehouseError('GH_UPSTREAM_DOWN', 'Node-RED is not running', `It is starting or has stopped: wait a minute, then ${logs.charAt(0).toLowerCase()}${logs.slice(1)}`, { cause: err })
  }
  if (code === 'EACCES') {
    return new GatehouseError('GH_UPSTREAM_DENIED', 'the gateway may not open Node-RED\'s socket', 'Put the user gatehouse into the group node-red and give /run/node-red mode 0750', { cause: err })
  }
  return new GatehouseError('GH_UPSTREAM_FAILED', `Node-RED broke off the connection (${code ?? reason(err)})`, logs, { cause: err })
}
