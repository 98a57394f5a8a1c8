/** Codes of {@link TsnetError}. */
export type TsnetErrorCode =
  /**
   * The control server refused the node (auth key wrong, expired or used up), or made no key with
   * the OAuth secret; the message is its own words.
   */
  | 'TSNET_AUTH'
  /** The AbortSignal given was aborted. */
  | 'TSNET_ABORTED'
  /** The server is closed. */
  | 'TSNET_CLOSED'
  /** The module was called before it was started: not by way of a {@link Server}. */
  | 'TSNET_NOT_STARTED'
  /** The module was started twice: likewise. */
  | 'TSNET_STARTED'
  /** The module ended: a panic, out of memory. The Server is of no further use; make a new one. */
  | 'TSNET_DIED'
  /**
   * The state directory (or store) cannot be read or written, is damaged, or in use by another
   * Server.
   */
  | 'TSNET_STATE'
  /** No such peer in the tailnet. */
  | 'TSNET_NO_PEER'
  /** The peer is there, but no connection came about: refused, no answer, or no such name. */
  | 'TSNET_DIAL'
  /** The port is taken, or the tailnet allows no such listener; the message says which. */
  | 'TSNET_LISTEN'
  /** This node may not host the Tailscale Service. */
  | 'TSNET_SERVICE'
  /** The control server did not publish the record; the message is its own words. */
  | 'TSNET_SET_DNS'
  /** A file of authorities cannot be read, or has no certificate in it. */
  | 'TSNET_ROOTS'
  /** The tun device cannot be opened ({@link CommonOptions.tun}). */
  | 'TSNET_TUN'
  /** An option or argument is not valid; the message says what would be. */
  | 'TSNET_OPTIONS'
  /** This Node.js has no WebAssembly JSPI. */
  | 'TSNET_NODE_VERSION'
  /** Anything else that Tailscale's backend reports. */
  | 'TSNET_BACKEND'

/** Every error of the bindings. `code` is for programs, `message` for people. */
export class TsnetError extends Error {
  /** What went wrong, for programs: it stays the same from release to release. */
  readonly code: TsnetErrorCode
  constructor(code: TsnetErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'TsnetError'
    this.code = code
  }
}
