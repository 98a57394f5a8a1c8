/**
 * The types of the tsnet bindings: shaped as `tailscale.com/tsnet`, idiomatic in TypeScript.
 *
 * Addresses are strings as Go prints them: `100.64.0.1:443`, `[fd7a:115c:a1e0::1]:443`.
 */

/** Options of {@link Server}. Fields follow tsnet.Server (tailscale.com/tsnet/tsnet.go). */
export interface ServerOptions {
  /** State directory, created with mode 0700 where it does not exist. Required: the node's identity lives there. */
  dir: string;
  /** Name asked of the control server. Default: `tsnet`. The assigned one is in {@link Status.self}. */
  hostname?: string;
  /** Auth key; ignored once the state directory holds a logged-in node. Default: TS_AUTHKEY, then TS_AUTH_KEY, then none (interactive login). */
  authKey?: string;
  /** Control server. Default: TS_CONTROL_URL, then Tailscale's own. */
  controlURL?: string;
  /** The node is removed from the tailnet soon after it goes offline. Default: false. */
  ephemeral?: boolean;
  /** UDP port of WireGuard. Default 0: one chosen by the system. */
  port?: number;
  /** Extra environment for Tailscale's own knobs (`TS_DEBUG_…`). Nothing else of the process's environment is passed on. */
  env?: Record<string, string>;
  /** Tailscale's backend log as `log` events. Default: false. */
  verbose?: boolean;
  /** PEM file with the authorities trusted for control and DERP. Default: those Node.js ships. */
  caFile?: string;
}

/** One node as status shows it. */
export interface NodeStatus {
  /** Stable node ID. */
  id: string;
  hostName: string;
  /** Fully qualified, without the trailing dot. */
  dnsName: string;
  tailscaleIPs: string[];
  online: boolean;
  /** `ip:port` of the direct path in use now; empty when relayed or idle. */
  curAddr: string;
  /** DERP region code used when there is no direct path. */
  relay: string;
  tags: string[];
  /** RFC 3339, or undefined when the key does not expire. */
  keyExpiry?: string;
}

/** State of the tailnet node (ipnstate.Status cut down to what callers use). */
export interface Status {
  /** ipn state: NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting, Running. */
  backendState: string;
  /** URL a person opens to log the node in; empty when none is needed. */
  authURL: string;
  tailscaleIPs: string[];
  self?: NodeStatus;
  peers: NodeStatus[];
  /** Health warnings as Tailscale words them. */
  health: string[];
  /** Names for which the control server would publish ACME challenges. Empty: HTTPS is not enabled on the tailnet. */
  certDomains: string[];
  magicDNSSuffix: string;
}

/** Who is behind a tailnet address (apitype.WhoIsResponse). */
export interface WhoIs {
  node: { id: string; name: string; hostName: string; addresses: string[]; tags: string[] };
  /** Absent for tagged nodes. */
  user?: { id: number; loginName: string; displayName: string; profilePicURL: string };
  /** Grants' app capabilities: name to list of values. */
  capMap: Record<string, unknown[]>;
}

/** What the module and its host hold at the moment. */
export interface Stats {
  /** Open connections of the tailnet. */
  streams: number;
  /** Sockets to the network outside: UDP, control, DERP, DNS. */
  sockets: number;
  /** Bytes of the module's memory. It grows and never shrinks. */
  memory: number;
}
