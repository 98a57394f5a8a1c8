/**
 * The types of the tsnet bindings: shaped as `tailscale.com/tsnet`, idiomatic in TypeScript.
 *
 * Addresses are strings as Go prints them: `100.64.0.1:443`, `[fd7a:115c:a1e0::1]:443`.
 */

/**
 * How packets leave the process: `ffi` by system calls (node:ffi; Linux on x86-64 and arm64),
 * several times as fast; `node` by node:dgram, everywhere; `auto` is `ffi` where there is that.
 */
export type Network = 'auto' | 'ffi' | 'node'

/**
 * Where the caller keeps the identity of the node instead of a directory: a database, a secret of
 * an orchestrator. The state is a few kilobytes of text, given whole each time. It holds the node's
 * private keys.
 */
export interface StateStore {
  /** What was last written; undefined or empty before the first time. */
  read(): string | undefined | Promise<string | undefined>
  /**
   * Resolves when the state would survive a power cut: until then the node waits. A rejection is
   * reported as TSNET_STATE, or by `message` later on.
   */
  write(state: string): void | Promise<void>
}

/**
 * The options of a Server that do not say where its identity is. Fields follow tsnet.Server
 * (tailscale.com/tsnet/tsnet.go); an empty string is as good as none.
 */
export interface CommonOptions {
  /**
   * Name asked of the control server. Default: `tsnet`. The assigned one is in {@link Status.self}.
   */
  hostname?: string
  /**
   * Auth key; not used once the state holds a node that is logged in (unless TSNET_FORCE_LOGIN=1 is
   * in the environment). An OAuth client secret (`tskey-client-…`) will do too. Default:
   * TS_AUTHKEY, then TS_AUTH_KEY, then {@link clientSecret}, then none: interactive login.
   */
  authKey?: string
  /**
   * OAuth client secret, `tskey-client-…`, to make an auth key with when the server starts; needs
   * {@link advertiseTags}. Attributes follow it as with Tailscale:
   * `?ephemeral=false&preauthorized=true&baseURL=…`; the node is ephemeral unless they say
   * otherwise. Default: TS_CLIENT_SECRET.
   */
  clientSecret?: string
  /**
   * Tags asked for, as `tag:name`. The control server decides whether the node gets them. Default:
   * none.
   */
  advertiseTags?: string[]
  /** What the program is called in the admin console. Default: nothing. */
  app?: string
  /** Control server. Default: TS_CONTROL_URL, then Tailscale's own. */
  controlURL?: string
  /** The node is removed from the tailnet soon after it goes offline. Default: false. */
  ephemeral?: boolean
  /** UDP port of WireGuard. Default 0: one chosen by the system. */
  port?: number
  /**
   * Extra environment for Tailscale's own knobs (`TS_DEBUG_…`). Nothing else of the process's
   * environment is passed on, but for TSNET_FORCE_LOGIN and TSNET_SIMD (`0`: packets are encrypted
   * by Go's code, not by the module with SIMD). TSNET_KEEPALIVE, a duration such as `30s`, is how
   * long a connection may be silent before its peer is asked whether it is there (default: `1m`);
   * one that does not answer for twice as long is reset.
   */
  env?: Record<string, string>
  /** Default: TSNET_NETWORK, then `auto`. */
  network?: Network
  /**
   * Linux, with {@link network} `ffi`: the name of a tun interface that the kernel has the
   * tailnet's packets by, such as `gatehouse0`, 1 to 15 characters. The kernel's TCP and UDP are
   * then what peers meet: what arrives and no `listen…` of this Server takes, comes by the
   * interface, after the tailnet's own filter; what is sent to it goes to the peer that has the
   * address. It is made when it does not exist, which needs CAP_NET_ADMIN, or made beforehand for
   * the process's user (`ip tuntap add dev gatehouse0 mode tun user USER`). Addresses, routes and
   * the MTU (1280) are whoever's who makes it: nothing of it is set here. TSNET_TUN: it cannot be
   * opened. Default: none, a TCP/IP stack of the node's own.
   */
  tun?: string
  /**
   * Tailscale's backend log as `log` events: true for all of it, or a level: 0 for what Tailscale
   * marks with none, 1 and 2 for what it marks as `[v1]` and `[v2]` too. Default: false.
   */
  verbose?: boolean | 0 | 1 | 2
  /**
   * Networks behind this machine that nodes of the tailnet may reach through this one, as
   * `192.168.1.0/24`; an admin (or the policy) must approve them. TCP alone is forwarded: each
   * connection is made anew from this process, by the machine's own network. Default: none.
   */
  advertiseRoutes?: string[]
  /** Whether networks behind other nodes can be dialled. Default: false, as with tsnet. */
  acceptRoutes?: boolean
  /**
   * Workload identity: client ID of a federated credential, for an auth key where none is given;
   * needs {@link idToken} or {@link audience}, and {@link advertiseTags}.
   * `?ephemeral=false&preauthorized=true` may follow it. Default: TS_CLIENT_ID.
   */
  clientID?: string
  /**
   * The token that the platform has signed for this workload, or what gives it (it is asked for
   * once a start). Default: TS_ID_TOKEN.
   */
  idToken?: string | (() => string | Promise<string>)
  /**
   * In place of {@link idToken}: the audience to ask the platform for a token for, on GitHub
   * Actions (with the permission `id-token: write`) and on Google Cloud. Default: TS_AUDIENCE.
   */
  audience?: string
  /**
   * The module, where it does not lie beside this package's code: a bundler has moved that. A
   * path, or a file URL. Default: `tsnet.wasm.zst` beside it.
   */
  wasm?: string | URL
  /** The worker thread's program, likewise. Default: `tsnet-worker.js` beside it. */
  worker?: string | URL
  /**
   * PEM file with the authorities trusted for control and DERP. Default: those that Node.js trusts,
   * NODE_EXTRA_CA_CERTS among them.
   */
  caFile?: string
  /**
   * PEM file with authorities trusted beside those: of a control server whose certificate no public
   * authority signed. Default: none.
   */
  extraCAFile?: string
  /**
   * Whether Tailscale's relays, at addresses that are compiled in, may be asked for the address of
   * the control server when the name servers have failed. They know Tailscale's own names alone.
   * Default: true where the control server is Tailscale's own, else false.
   */
  bootstrapDNS?: boolean
}

/**
 * One of `dir`, `store` and `memory` is required; with `store` or `memory`, `dir` is for
 * Tailscale's odds and ends alone.
 */
export type ServerOptions = CommonOptions &
  (
    | {
        /**
         * State directory, created with mode 0700 where it does not exist: the node's identity
         * lives there. One Server at a time.
         */
        dir: string
        store?: StateStore
        memory?: boolean
      }
    | { store: StateStore; dir?: string; memory?: boolean }
    | {
        /**
         * The identity lives as long as the Server, and on no disk: each start is a new node.
         * {@link CommonOptions.ephemeral} is then true unless it is given.
         */
        memory: true
        dir?: string
        store?: StateStore
      }
  )

/** One node as status shows it. */
export interface NodeStatus {
  /** Stable node ID. */
  id: string
  hostName: string
  /** Fully qualified, without the trailing dot. */
  dnsName: string
  tailscaleIPs: string[]
  online: boolean
  /** `ip:port` of the direct path in use now; empty when relayed or idle. */
  curAddr: string
  /** DERP region code used when there is no direct path. */
  relay: string
  tags: string[]
  /** RFC 3339, or undefined when the key does not expire. */
  keyExpiry?: string
  /** True when the key has expired: the node must log in anew. */
  expired?: boolean
}

/** State of the tailnet node (ipnstate.Status cut down to what callers use). */
export interface Status {
  /** ipn state: NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting, Running. */
  backendState: string
  /** URL a person opens to log the node in; empty when none is needed. */
  authURL: string
  tailscaleIPs: string[]
  self?: NodeStatus
  peers: NodeStatus[]
  /** Health warnings as Tailscale words them. */
  health: string[]
  /**
   * Names for which the control server would publish ACME challenges. Empty: HTTPS is not enabled
   * on the tailnet.
   */
  certDomains: string[]
  magicDNSSuffix: string
  /**
   * Tailscale Services (`svc:name`) that the node is approved to host, with their addresses.
   * Whether it does is up to it.
   */
  services: Record<string, string[]>
}

/** Who is behind a tailnet address (apitype.WhoIsResponse). */
export interface WhoIs {
  node: { id: string; name: string; hostName: string; addresses: string[]; tags: string[] }
  /** Absent for tagged nodes. */
  user?: { id: number; loginName: string; displayName: string; profilePicURL: string }
  /** Grants' app capabilities: name to list of values. */
  capMap: Record<string, unknown[]>
}

/** When the node's key ends. */
export interface KeyExpiry {
  /** RFC 3339; absent: never. */
  at?: string
  expired: boolean
}

/** A complaint of Tailscale's health tracker. */
export interface HealthWarning {
  /** For programs, such as `not-in-map-poll`. */
  code: string
  severity: 'low' | 'medium' | 'high'
  title: string
  text: string
}

/** What the module and its host hold at the moment. */
export interface Stats {
  /** Open connections of the tailnet. */
  streams: number
  /** Sockets to the network outside: UDP, control, DERP, DNS. */
  sockets: number
  /** How packets leave the process: see {@link Network}. */
  network: 'ffi' | 'node'
  /**
   * How packets are encrypted: by the module with SIMD, or, on a processor that lacks it, by Go's
   * code.
   */
  cipher: 'simd' | 'go'
  /** Bytes of the module's memory. It grows and never shrinks. */
  memory: number
}

/**
 * A TCP connection of the tailnet as the module holds it now: to find out why one stands still.
 * Sequence numbers are as on the wire, sizes in bytes, times in ms. It may change with any release.
 */
export interface ConnectionDebug {
  local: string
  remote: string
  /** TCP's state, as gVisor names it: ESTABLISHED, FIN-WAIT1 … */
  state: string
  /** What holds its lock: a read or write, or a timer. What follows is not known then. */
  locked?: 'user' | 'stack'
  /** Segments have come that have not been looked at. */
  queued: boolean
  /** Absent before the connection is made, and while it is locked. */
  send?: {
    /** First byte that is not acknowledged, and first that has not been sent. */
    una: number
    nxt: number
    /** What the peer has advertised last, from `una` on, and its scale, a number of bits. */
    wnd: number
    scale: number
    /** Not acknowledged or not sent, of how much there is room for. */
    buffered: number
    buffer: number
    /** Segments that are under way, and how many may be. */
    outstanding: number
    cwnd: number
    congestion: string
    /** Time after which a segment is sent again. */
    rto: number
    /** How long ago anything was sent. */
    since: number
  }
  receive?: {
    /** First byte that has not been received. */
    nxt: number
    /** The window reaches `wnd` from `wup` on; what is advertised is cut off by the scale. */
    wup: number
    wnd: number
    scale: number
    /** The last ACK that was sent. */
    acked: number
    /** Not read, of how much there is room for. */
    buffered: number
    buffer: number
    /** Segments that wait for one before them. */
    outOfOrder: number
    /** How long ago anything was received. */
    since: number
  }
  /** How long until each expires; below zero: it ought to have. Absent: it does not run. */
  timers?: {
    resend?: number
    probe?: number
    delayedAck?: number
    /** `resend` is for a probe of the window, and so many have not been answered. */
    windowProbes?: number
  }
}
