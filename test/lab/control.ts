/**
 * What a test may ask of the lab's servers and do to them: control server, DNS (`lab serve`,
 * through its admin socket).
 */
import path from 'node:path'
import { Segment } from './segment.ts'
import { request } from './socket.ts'

/** What `lab serve` writes to ready.json once every service answers. */
export interface Ready {
  controlURL: string
  /** PEM file: what the https of control server, relay and ACME directory is verified by. */
  authority: string
  acmeDirectory: string
  /** PEM file: the authorities that issued certificates verify against. */
  acmeRoots: string
  authKey: string
  /** Of the right shape, and refused. */
  wrongAuthKey: string
  /** Of an OAuth client that may make auth keys; its API is at controlURL. */
  clientSecret: string
  /** The tailnet's MagicDNS suffix. */
  suffix: string
  /** Address of the DNS server. */
  dns: string
  /** Address of the NTP server. */
  ntp: string
}

/** A node as the control server knows it. */
export interface LabNode {
  id: number
  /** Full name without the last dot. */
  name: string
  /** What the node asked to be called. */
  hostname: string
  addresses: string[]
  /** UDP addresses it said it can be reached at. */
  endpoints: string[]
  homeDERP: number
  os: string
  tags?: string[]
  expired: boolean
  /** What it says of the machine it runs on (tailcfg.Hostinfo): what the admin console shows. */
  hostinfo?: Record<string, unknown>
}

/** How the resolver of one network differs from a good one. */
export interface Manner {
  /** It never answers. */
  silent?: boolean
  /** Before each answer, in ms. */
  delayMs?: number
  /** So many of the first questions for each name and type get SERVFAIL. */
  servFail?: number
  /** Over UDP no answer fits: each is to be asked for by TCP. */
  truncate?: boolean
  /** So many aliases stand before the addresses of a name. */
  cname?: number
  /** Every host has this IPv6 address too, if it has none. */
  aaaa?: string
  /** Names get IPv6 addresses made of this prefix (96 bits) and their IPv4 (RFC 6147). */
  dns64?: string
}

/** The servers, and the segment they are on. */
export class Services extends Segment {
  /** Registered nodes. */
  async nodes(): Promise<LabNode[]> {
    return (await this.#admin('GET', '/nodes')) as LabNode[]
  }

  /** TXT records nodes have set, by name. */
  async txt(): Promise<Record<string, string[]>> {
    return (await this.#admin('GET', '/txt')) as Record<string, string[]>
  }

  /**
   * Every question the DNS server was asked: a name that nobody ought to want shows who would have
   * called home.
   */
  async queries(): Promise<{ name: string; type: string; rcode: string; times: number }[]> {
    return (await this.#admin('GET', '/queries')) as {
      name: string
      type: string
      rcode: string
      times: number
    }[]
  }

  /**
   * Replaces the addresses of a name in the lab's DNS, IPv4 and IPv6; with none the name is gone.
   */
  async setHost(name: string, ...addresses: string[]): Promise<void> {
    await this.#admin(
      'POST',
      `/host?${new URLSearchParams([['name', name], ...addresses.map((ip) => ['ip', ip])])}`,
    )
  }

  /** Has the name server at an address serve a domain; the lab's DNS asks it. */
  async setZone(name: string, server: string): Promise<void> {
    await this.#admin('POST', `/zone?${new URLSearchParams({ name, server })}`)
  }

  /**
   * With a control server as Headscale: how often its key was asked for by which capability
   * version, and that of the Tailscale which the lab is built with.
   */
  async keyVersions(): Promise<{ asked: Record<string, number>; current: number }> {
    return (await this.#admin('GET', '/key-versions')) as {
      asked: Record<string, number>
      current: number
    }
  }

  /** Login URLs nobody has visited yet. */
  async logins(): Promise<string[]> {
    return (await this.#admin('GET', '/logins')) as string[]
  }

  /** Does what a person does who opens the login URL and agrees. */
  async completeLogin(url: string): Promise<void> {
    await this.#admin('POST', `/login?url=${encodeURIComponent(url)}`)
  }

  /** Takes the control server off the network: its connections end, new ones are refused. */
  async stopControl(): Promise<void> {
    await this.#admin('POST', '/control/stop')
  }

  /** Puts the control server back, knowing what it knew. */
  async startControl(): Promise<void> {
    await this.#admin('POST', '/control/start')
  }

  /** Expires the key of a node, by its name; or, with `seconds`, lets it be good for so long. */
  async expire(node: string, seconds?: number): Promise<void> {
    await this.#admin(
      'POST',
      `/expire?node=${encodeURIComponent(node)}${seconds === undefined ? '' : `&seconds=${seconds}`}`,
    )
  }

  /** An auth key that works once, or has expired; nodes that join with it get its tags. */
  async key(kind: 'once' | 'expired', tags: string[] = []): Promise<string> {
    return (await this.#admin(
      'POST',
      `/keys?${new URLSearchParams([['kind', kind], ...tags.map((t) => ['tag', t])])}`,
    )) as string
  }

  /** Whether nodes that join from now on must be approved ({@link approve}). */
  async requireApproval(on: boolean): Promise<void> {
    await this.#admin('POST', `/approval?on=${on}`)
  }

  /** Approves a node, as an admin does. */
  async approve(node: string): Promise<void> {
    await this.#admin('POST', `/approve?node=${encodeURIComponent(node)}`)
  }

  /** Has these networks (CIDR), and no others, go by a node: as an admin approves its routes. */
  async approveRoutes(node: string, ...routes: string[]): Promise<void> {
    const query = new URLSearchParams([['node', node], ...routes.map((r) => ['route', r])])
    await this.#admin('POST', `/routes?${query}`)
  }

  /** Lets a node use Tailscale Funnel. */
  async allowFunnel(node: string): Promise<void> {
    await this.#admin('POST', `/funnel?node=${encodeURIComponent(node)}`)
  }

  /** Gives a Tailscale Service (`svc:name`) an address, and lets a node host it. */
  async hostService(node: string, name: string, ip: string): Promise<void> {
    await this.#admin('POST', `/service?${new URLSearchParams({ node, name, ip })}`)
  }

  /**
   * Replaces the grants of the tailnet's policy. `src` and `dst` are node names, tags, login names
   * or "*"; `app` is capabilities by name, each with its values; `ports` is for TCP: where no grant
   * has any, every node reaches every other. Nodes are told at once.
   */
  async setGrants(
    grants: ({ src: string[]; dst: string[] } & (
      { app: Record<string, unknown[]> } | { ports: number[] }
    ))[],
  ): Promise<void> {
    await this.#admin('PUT', '/grants', JSON.stringify(grants))
  }

  /**
   * Gives a node to a person, by login name, or to nobody, with tags. Before, all nodes are one
   * person's.
   */
  async setOwner(node: string, owner: { user: string } | { tags: string[] }): Promise<void> {
    const query = new URLSearchParams({ node })
    if ('user' in owner) query.set('user', owner.user)
    else for (const tag of owner.tags) query.append('tag', tag)
    await this.#admin('POST', `/owner?${query}`)
  }

  /** How many Noise connections have come to the control server, by port. */
  async noisePorts(): Promise<Record<string, number>> {
    return (await this.#admin('GET', '/noise')) as Record<string, number>
  }

  /** How DNS answers to one address from now on; null: well again. */
  async setManner(from: string, manner: Manner | null): Promise<void> {
    await this.#admin('PUT', `/dns/manner?from=${encodeURIComponent(from)}`, JSON.stringify(manner))
  }

  /** How often one with a {@link Manner} has asked, by `udp` and `tcp`, and got `SERVFAIL`. */
  async askedBy(from: string): Promise<Partial<Record<'udp' | 'tcp' | 'SERVFAIL', number>>> {
    return (await this.#admin('GET', `/dns/asked?from=${encodeURIComponent(from)}`)) as Record<
      string,
      number
    >
  }

  async #admin(method: string, url: string, content?: string): Promise<unknown> {
    const { status, body } = await request(
      path.join(this.dir, 'lab.sock'),
      method,
      url,
      content === undefined ? {} : { body: content },
    )
    if (status >= 400) throw new Error(body.toString().trim())
    return body.length ? JSON.parse(body.toString()) : undefined
  }
}
