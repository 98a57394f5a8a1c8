import { BlockList, isIP } from 'node:net'
import { parseEgress } from './egress.ts'
import { extensionName, extensionUsers } from './extensions.ts'
import { parseIngress } from './ingress.ts'
import { checkHeader } from './header-rules.ts'
import type { Direction } from './header-rules.ts'
import {
  duration,
  flag,
  integer,
  listOf,
  oneOf,
  oneOrMore,
  quote,
  tableOfText,
  text,
} from './kinds.ts'
import { ports } from './ports.ts'
import type { Kind, Wrong } from './kinds.ts'

/** Let's Encrypt's production directory (https://letsencrypt.org/docs/acme-protocol-updates/). */
export const letsEncrypt = 'https://acme-v02.api.letsencrypt.org/directory'

/** One key of gatehouse.toml. */
export interface Key<T, D extends T | undefined = T | undefined> {
  kind: Kind<T>
  /** What holds when the key is left out. */
  default: D
  /** Its value in messages, as TOML: `"gatehouse"`. */
  example: string
  /**
   * Never in the provisioned copy of the configuration, which every user of the machine may read.
   */
  secret: boolean
}

/**
 * Keys of one table by their name in TypeScript; in the file a name is written in snake case
 * ({@link tomlName}).
 */
// oxlint-disable-next-line typescript/no-explicit-any -- a key of any type is one
export type Keys = Record<string, Key<any, any>>

function key<T>(kind: Kind<T>, options: { default: NoInfer<T>; example: string }): Key<T, T>
function key<T>(kind: Kind<T>, options: { example: string; secret?: boolean }): Key<T, undefined>
function key<T>(
  kind: Kind<T>,
  options: { default?: T; example: string; secret?: boolean },
): Key<T, T | undefined> {
  return {
    kind,
    default: options.default,
    example: options.example,
    secret: options.secret ?? false,
  }
}

/**
 * All of gatehouse.toml: one entry a key, and nothing else to change when one is added but
 * overlays/usr/share/gatehouse/gatehouse.toml.example, which documents each for people.
 *
 * A table is `[name]`, given once. For a list of tables, `[[name]]`, write `[{ … }]`: the keys in
 * an array of one.
 */
export const schema = {
  tailnet: {
    /**
     * Name asked of the tailnet: a DNS label, 1–63 of a-z, 0-9 and inner hyphens. Default:
     * `gatehouse`.
     */
    hostname: key(text(checkHostname), { default: 'gatehouse', example: '"gatehouse"' }),
    /** Tailscale auth key. Default: none, a login URL is shown. */
    authKey: key(text(checkAuthKey), { example: '"tskey-auth-…"', secret: true }),
    /**
     * OAuth client secret to make an auth key with (tskey-client-…), instead of one. Needs {@link
     * tags}. Parameters behind a `?` as Tailscale has them (ephemeral, preauthorized, baseURL).
     * Default: none.
     */
    clientSecret: key(text(checkClientSecret), { example: '"tskey-client-…"', secret: true }),
    /** Tags the node asks for. Default: none but those of the auth key. */
    tags: key(
      listOf(
        text((value) =>
          /^tag:[a-zA-Z][a-zA-Z0-9-]*$/.test(value)
            ? undefined
            : {
                message: `tags, ${quote(value)}, is not a tag`,
                cure: 'Write tags = ["tag:gatehouse"]',
              },
        ),
      ),
      { default: [], example: '["tag:gatehouse"]' },
    ),
    /** Control server, http or https. Default: Tailscale's own. */
    controlURL: key(text(url('https:', 'http:'), { own: true }), {
      example: '"https://headscale.example.org"',
    }),
    /**
     * PEM file with authorities trusted for the control server and its relays beside the public
     * ones, a plain name beside gatehouse.toml. Default: the public ones alone.
     */
    caFile: key(text(checkAuthorityFile), { example: '"authority.pem"' }),
    /**
     * Whether Tailscale's relays, at addresses compiled in, may be asked for the address of
     * Tailscale's control server when the network's DNS has failed. Never asked for another one.
     */
    bootstrapDNS: key(flag(), { default: true, example: 'false' }),
    /**
     * Whose TCP serves ports 443, 8443 and 10000 of the node: the gateway's own (`userspace`), or
     * the kernel's, by a tun interface ({@link file://./data-path.ts}). Default: userspace.
     */
    dataPath: key(oneOf('userspace', 'kernel'), { default: 'userspace', example: '"kernel"' }),
  },
  certificates: {
    /**
     * Where certificates come from: `tailscale`, an ACME authority for the names the tailnet gives;
     * `acme`, one for names of one's own; `files`, a certificate from the card; `self`, an
     * authority made on this device. Default: tailscale.
     */
    mode: key(oneOf('tailscale', 'acme', 'files', 'self'), {
      default: 'tailscale',
      example: '"acme"',
    }),
    /**
     * Names of one's own, the one to be shown first; `*.` in front of a wildcard. Needed with
     * `acme`. Default: with `files` those of the certificate, with `self` the tailnet's.
     */
    name: key(oneOrMore(text(checkName)), {
      default: [],
      example: '"gatehouse.example.org"',
    }),
    /**
     * With `acme`, how it is proven that the names are one's own: `rfc2136`, DNS updates to a name
     * server (TSIG); `acme-dns`, through such a server; `dns-persist`, a record that is set once by
     * hand. Default: none, needed there.
     */
    proof: key(oneOf('rfc2136', 'acme-dns', 'dns-persist'), { example: '"rfc2136"' }),
    /** With `rfc2136`: the name server that takes updates, `host` or `host:port` (TCP). */
    dnsServer: key(text(checkServer), { example: '"ns1.example.org"' }),
    /** With `rfc2136`: the zone that is updated. Default: as the name server says. */
    dnsZone: key(text(checkName), { example: '"example.org"' }),
    /**
     * With `rfc2136` and `acme-dns`: how long the authority is made to wait after an update, until
     * all name servers of the zone have it. Default: 10 s.
     */
    dnsWait: key(duration(0, 600_000), { default: 10_000, example: '"10 s"' }),
    /** With `rfc2136`: name of the key that updates are signed with (RFC 8945). */
    tsigName: key(
      text((value) =>
        /^(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?$/.test(value) && value.length <= 253
          ? undefined
          : {
              message: `tsig_name ${quote(value)} is not the name of a key`,
              cure: 'Write it as the name server has it: tsig_name = "gatehouse"',
            },
      ),
      { example: '"gatehouse"' },
    ),
    /** Its algorithm. Default: hmac-sha256. */
    tsigAlgorithm: key(
      oneOf('hmac-sha256', 'hmac-sha384', 'hmac-sha512', 'hmac-sha224', 'hmac-sha1'),
      { default: 'hmac-sha256', example: '"hmac-sha256"' },
    ),
    /** Its secret, base64. Taken off the card once it has been used. */
    tsigKey: key(
      text((value) =>
        /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(value) &&
        value.length >= 16
          ? undefined
          : {
              message: 'tsig_key is not a key in base64',
              cure: 'Write the secret whole, as the name server has it: tsig_key = "…"',
            },
      ),
      { example: '"pOqMp5HHIq1I5xM8fDqPx8hDfFxBW6KK3oIgpAJ5zZs="', secret: true },
    ),
    /** With `acme-dns`: the server, https or http. */
    acmeDns: key(text(url('https:', 'http:'), { own: true }), {
      example: '"https://auth.example.org"',
    }),
    /**
     * With `acme-dns`: an account there, all three of it. Default: the device makes one, and says
     * which record to set.
     */
    acmeDnsUser: key(text(checkToken), { example: '"eabcdb41-d89f-4580-826f-3e62e9755ef2"' }),
    /** Its subdomain. */
    acmeDnsSubdomain: key(text(checkToken), { example: '"d420c923-bbd7-4056-ab64-c3ca54c9b3cf"' }),
    /** Its password. Taken off the card once it has been used. */
    acmeDnsPassword: key(text(checkToken), {
      example: '"pbAXVjlIOE01xbut7YnAbkhMQIkcwoHO0ek2j4Q0"',
      secret: true,
    }),
    /** With `files`: PEM file with the certificate and its chain, beside gatehouse.toml. */
    certFile: key(text(checkFile('pem', 'crt', 'cer')), { example: '"gatehouse.crt"' }),
    /**
     * With `files`: PEM file with its private key, beside gatehouse.toml. Taken off the card once
     * the device has it. Default: the key the device has.
     */
    keyFile: key(text(checkFile('key', 'pem')), { example: '"gatehouse.key"' }),
    /** ACME directory, https. Default: Let's Encrypt. */
    directory: key(text(url('https:'), { own: true }), {
      default: letsEncrypt,
      example: `"${letsEncrypt}"`,
    }),
    /**
     * PEM file with the authorities trusted for the directory, a plain name beside gatehouse.toml.
     * Default: the system's.
     */
    caFile: key(text(checkAuthorityFile), { example: '"authority.pem"' }),
    /** Contact given to the authority. Default: none. */
    email: key(
      text((value) =>
        /^[^\s@,;<>]+@[^\s@,;<>]+$/.test(value)
          ? undefined
          : {
              message: `email ${quote(value)} is not an e-mail address`,
              cure: 'Write email = "you@example.org", or leave it out',
            },
      ),
      { example: '"you@example.org"' },
    ),
    /**
     * Profile of certificate asked of the authority, such as Let's Encrypt's `shortlived`. Default:
     * the authority's own choice.
     */
    profile: key(
      text((value) =>
        /^[A-Za-z0-9_.-]{1,64}$/.test(value)
          ? undefined
          : {
              message: `profile ${quote(value)} is not the name of a profile`,
              cure: 'Write one the authority offers, such as profile = "shortlived", or leave it out',
            },
      ),
      { example: '"shortlived"' },
    ),
    /**
     * Key identifier of an external account binding (RFC 8555 §7.3.4), as the authority gave it.
     * Default: none.
     */
    eabKeyId: key(
      text((value) =>
        /^[\x21-\x7e]{1,512}$/.test(value)
          ? undefined
          : {
              message:
                'eab_key_id is empty, or holds spaces or characters that a key identifier cannot have',
              cure: 'Write it as the authority gave it: eab_key_id = "…"',
            },
      ),
      { example: '"kid-1"' },
    ),
    /** Its key, base64url. Default: none. Given together with the identifier. */
    eabHmacKey: key(
      text((value) =>
        /^[A-Za-z0-9_+/-]{16,1024}={0,2}$/.test(value)
          ? undefined
          : {
              message: 'eab_hmac_key is not a key in base64url',
              cure: 'Write it whole, as the authority gave it: eab_hmac_key = "…"',
            },
      ),
      {
        example: '"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"',
        secret: true,
      },
    ),
  },
  access: {
    /**
     * Who may open the editor without changing anything, beside those the tailnet's policy grants
     * it. Default: nobody.
     */
    view: key(listOf(text(checkWho)), { default: [], example: '["alice@example.com"]' }),
    /** Who may change flows. Default: nobody beside the policy's and the owner. */
    edit: key(listOf(text(checkWho)), { default: [], example: '["alice@example.com"]' }),
    /** Who may use what flows serve. Default: nobody beside the policy's and the owner. */
    use: key(listOf(text(checkWho)), { default: [], example: '["tag:sensor"]' }),
    /**
     * Who may manage the device from its console: settings, restart, update, backup. Default:
     * nobody beside the policy's and the owner.
     */
    manage: key(listOf(text(checkWho)), { default: [], example: '["alice@example.com"]' }),
  },
  /**
   * A listener on the local network, beside the tailnet. Off by default: nobody there can be told
   * apart.
   */
  local_network: {
    /** Whether the node's ports 80 and 443 answer on the local network too. Default: no. */
    listen: key(flag(), { default: false, example: 'true' }),
    /**
     * What everybody on the local network may do. There is no default that serves anything. `edit`
     * is not to be had: it is running programs.
     */
    rights: key(listOf(oneOf('view', 'use')), { default: [], example: '["use"]' }),
  },
  node_red: {
    /**
     * Whom Node-RED may call: `host:port[/udp]`, `host:ping`, or a preset ({@link
     * file://./egress.ts}). Default: nobody.
     */
    allow: key(listOf(text(checkAllow)), {
      default: [],
      example: '["192.168.1.10:1883", "broker.example.org:8883", "lan:ping"]',
    }),
    /**
     * Ports of flows that the local network may reach: `port/tcp from network`, or `from lan` ({@link
     * file://./ingress.ts}). Default: none.
     */
    listen: key(listOf(text(checkListen)), {
      default: [],
      example: '["1883/tcp from 192.168.1.0/24", "5683/udp from lan"]',
    }),
    /** Hardware Node-RED may use, each given by itself. Default: none. */
    devices: key(listOf(oneOf('serial', 'gpio', 'i2c', 'spi', '1-wire', 'camera', 'bluetooth')), {
      default: [],
      example: '["serial"]',
    }),
    /**
     * Foreign origins whose pages may call what flows serve. Default: none, only the device's own
     * pages.
     */
    allowOrigins: key(listOf(text(checkOrigin)), {
      default: [],
      example: '["https://panel.example"]',
    }),
    /**
     * Another name of the editor and of what flows serve: a Tailscale Service that this device hosts,
     * alone or with others. Default: none, the device's name.
     */
    service: key(text(checkService), { example: '"svc:node-red"' }),
    /**
     * The registry that the preset `palette` stands for and nodes are installed from. Default:
     * npm's own.
     */
    registry: key(text(url('https:', 'http:'), { own: true }), {
      example: '"https://npm.example.org"',
    }),
    /**
     * Function nodes may name modules of their own on the Setup tab, which are then installed
     * (Node-RED's functionExternalModules). Default: no.
     */
    functionModules: key(flag(), { default: false, example: 'true' }),
    /** Flows under version control in Node-RED itself (its projects, by git). Default: no. */
    projects: key(flag(), { default: false, example: 'true' }),
    /**
     * Time zone of flows, of Node-RED's log and of [updates] window, by its name in the tz
     * database. Default: UTC.
     */
    timezone: key(text(checkTimezone), { example: '"Europe/Berlin"' }),
    /**
     * Environment variables of flows, `[node_red.env]`: names and text. All of them count as
     * secrets. Default: none.
     */
    env: key(tableOfText(checkVariable), { example: '{ INFLUX_TOKEN = "…" }', secret: true }),
    /**
     * How long flows may take from the end of a request to the headers of their answer. What changes
     * something in the editor (installing nodes, deploying) takes as long as it takes. Default: 120
     * s.
     */
    responseTimeout: key(duration(100, 86_400_000), { default: 120_000, example: '"10 min"' }),
    /** JavaScript file beside gatehouse.toml with more of Node-RED's settings. Default: none. */
    settingsFile: key(
      text((value) =>
        /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.js$/.test(value)
          ? undefined
          : {
              message: `settings_file ${quote(value)} is not a plain file name ending in .js`,
              cure: 'Put the file beside gatehouse.toml and write its name alone: settings_file = "node-red.js"',
            },
      ),
      { example: '"node-red.js"' },
    ),
  },
  app: [
    {
      /**
       * A name of the app's own in the tailnet: a Tailscale Service, `svc:` and a DNS label, that
       * this device hosts. Default: none, the device's name.
       */
      service: key(text(checkService), { example: '"svc:grafana"' }),
      /**
       * A port of the device's name that is the app's alone, and so an origin of its own. Default:
       * none, it is below {@link path} at 443.
       */
      port: key(integer(1, 65_535), { example: '8444' }),
      /**
       * Paths that go to the app: begins and ends with a slash. Needed, except with a name or port
       * of its own: then `/`.
       */
      path: key(
        text((value) =>
          /^\/(?:[A-Za-z0-9_~.-]+\/)*$/.test(value) && !/\/\.\.?\//.test(value)
            ? undefined
            : notPath(value),
        ),
        { default: '', example: '"/grafana/"' },
      ),
      /**
       * Where it is: `http://host:port`, `https://host:port` or `unix:/path`; the first that is up
       * is asked. Needed.
       */
      upstreams: key(listOf(text(checkUpstream, { own: true })), {
        default: [],
        example: '["http://192.168.1.20:3000"]',
      }),
      /**
       * Which of several upstreams that are up is asked: the `first`; each in turn, `round_robin`;
       * or the one with the fewest requests and WebSockets open, `least_connections`. Default:
       * first.
       */
      balance: key(oneOf('first', 'round_robin', 'least_connections'), {
        default: 'first',
        example: '"round_robin"',
      }),
      /**
       * Whether the app sees its paths without `path`, which it then gets as X-Forwarded-Prefix.
       * Default: false.
       */
      strip: key(flag(), { default: false, example: 'true' }),
      /** The right a peer needs. Default: use. */
      right: key(oneOf('view', 'edit', 'use'), { default: 'use', example: '"use"' }),
      /**
       * Foreign origins whose pages may call the app. Default: none, only pages of the app's own
       * origin.
       */
      allowOrigins: key(listOf(text(checkOrigin)), {
        default: [],
        example: '["https://panel.example"]',
      }),
      /**
       * Name that an https upstream's certificate must have (and that is asked for, SNI). Default:
       * the host.
       */
      serverName: key(
        text((value) =>
          /^[A-Za-z0-9.-]+$/.test(value)
            ? undefined
            : {
                message: `server_name ${quote(value)} is not a name`,
                cure: 'Write server_name = "grafana.example.org"',
              },
        ),
        { example: '"grafana.example.org"' },
      ),
      /**
       * PEM file with the authorities an https upstream is verified by, beside gatehouse.toml.
       * Default: the system's.
       */
      caFile: key(text(checkAuthorityFile), { example: '"authority.pem"' }),
      /**
       * Path, as the app sees it, that each upstream is asked for every 10 s (every 2 s while it is
       * down): up is what answers 200 to 399. Default: up is what takes a connection.
       */
      healthPath: key(
        text((value) =>
          /^\/[\x21-\x7e]*$/.test(value)
            ? undefined
            : {
                message: `health_path ${quote(value)} is not a path`,
                cure: 'Write health_path = "/healthz"',
              },
        ),
        { example: '"/healthz"' },
      ),
      /** How long connecting may take. Default: 5 s. */
      connectTimeout: key(duration(100, 600_000), { default: 5_000, example: '"5 s"' }),
      /**
       * How long the app may take from the end of a request to the headers of its answer. Default:
       * 120 s.
       */
      responseTimeout: key(duration(100, 86_400_000), { default: 120_000, example: '"120 s"' }),
      /**
       * How long the app may send nothing of an answer that has begun; the answer is then broken
       * off. 0 is no limit: the pauses of an event stream have none. Default: 0 s.
       */
      idleTimeout: key(duration(0, 86_400_000), { default: 0, example: '"60 s"' }),
      /**
       * How long a request may take from its headers to the end of its answer; 0 is no limit: an
       * upload takes as long as it takes. Default: 0 s.
       */
      totalTimeout: key(duration(0, 86_400_000), { default: 0, example: '"10 min"' }),
      /**
       * Headers not passed on to the app. Default: none but those of the connection and copies of
       * the gateway's own.
       */
      requestRemove: key(listOf(text(header('request', true), { own: true })), {
        default: [],
        example: '["X-Example"]',
      }),
      /**
       * Headers a request goes to the app with, `Name: value`, whatever the peer sent of them.
       * Default: none.
       */
      requestSet: key(listOf(text(header('request'), { own: true })), {
        default: [],
        example: '["X-Example: value"]',
      }),
      /** The same, joined to what the peer sent. Default: none. */
      requestAdd: key(listOf(text(header('request'), { own: true })), {
        default: [],
        example: '["X-Example: value"]',
      }),
      /**
       * Headers of the app's answers that peers do not get. Default: none but those of the
       * connection and of software versions.
       */
      responseRemove: key(listOf(text(header('answer', true), { own: true })), {
        default: [],
        example: '["X-Example"]',
      }),
      /** Headers the app's answers go to peers with, whatever the app says. Default: none. */
      responseSet: key(listOf(text(header('answer'), { own: true })), {
        default: [],
        example: '["Cache-Control: no-store"]',
      }),
      /** The same, joined to what the app says. Default: none. */
      responseAdd: key(listOf(text(header('answer'), { own: true })), {
        default: [],
        example: '["Vary: Cookie"]',
      }),
    },
  ],
  forward: [
    {
      /** What is passed on: TCP, or UDP, each port of a peer as a flow of its own. Default: tcp. */
      protocol: key(oneOf('tcp', 'udp'), { default: 'tcp', example: '"udp"' }),
      /** Port of the node on the tailnet. Default: 443, which is for forwards by name alone. */
      port: key(integer(1, 65_535), { default: 443, example: '22' }),
      /**
       * Names that are passed through on port 443, by what TLS clients ask for (SNI), without being
       * decrypted. Default: none.
       */
      sni: key(
        listOf(
          text((value) =>
            /^[a-z0-9-]+(?:\.[a-z0-9-]+)+$/.test(value)
              ? undefined
              : {
                  message: `sni, ${quote(value)}, is not a full name in lower case`,
                  cure: 'Write sni = ["git.example.org"]',
                },
          ),
        ),
        { default: [], example: '["git.example.org"]' },
      ),
      /** Where to: `host:port`, `[address]:port` or `unix:/path`. Needed. */
      target: key(
        text((value) =>
          /^unix:\/[^\0]{1,106}$/.test(value) ||
          (/^(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):\d{1,5}$/.test(value) &&
            Number(/\d+$/.exec(value)![0]) <= 65_535)
            ? undefined
            : {
                message: `target ${quote(value)} is neither host:port nor unix:/path`,
                cure: 'Write target = "192.168.1.20:22"',
              },
        ),
        { default: '', example: '"192.168.1.20:22"' },
      ),
      /**
       * Whether TLS ends at the gateway, with its certificate, and the target is spoken to plainly.
       * Default: false, bytes are passed on as they are.
       */
      terminateTLS: key(flag(), { default: false, example: 'true' }),
      /**
       * PROXY protocol to the target, so that it learns who is behind a connection. Default: off.
       */
      proxyProtocol: key(oneOf('off', 'v1', 'v2'), { default: 'off', example: '"v2"' }),
      /** The right a peer needs. Default: edit. */
      right: key(oneOf('view', 'edit', 'use'), { default: 'edit', example: '"edit"' }),
    },
  ],
  /** Programs beside Node-RED, each from a signed file of its own (docs/extensions.md). */
  extension: [
    {
      /** Which one: `mosquitto` is the file mosquitto-arm64.extension (amd64 likewise). Needed. */
      name: key(
        text((value) =>
          extensionName.test(value)
            ? undefined
            : {
                message: `name ${quote(value)} is not the name of an extension: 1 to 31 of a-z, 0-9 and hyphens`,
                cure: 'Write name = "mosquitto" for the file mosquitto-arm64.extension',
              },
        ),
        { default: '', example: '"mosquitto"' },
      ),
      /**
       * Ports of it that the local network may reach, as {@link node_red.listen}. Node-RED reaches
       * it with `allow = ["extension:NAME"]`, the tailnet by [[forward]] or [[app]]. Default: none.
       */
      listen: key(listOf(text(checkListen)), {
        default: [],
        example: '["1883/tcp from 192.168.1.0/24"]',
      }),
      /**
       * Files beside gatehouse.toml that it gets to read, in its directory /config. Default: none,
       * its own settings hold.
       */
      files: key(
        listOf(
          text((value) =>
            /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/.test(value) && !value.endsWith('.toml')
              ? undefined
              : {
                  message: `files, ${quote(value)}, is not a plain file name`,
                  cure: 'Put the file beside gatehouse.toml and write its name alone: files = ["mosquitto.conf"]',
                },
          ),
          8,
        ),
        { default: [], example: '["mosquitto.conf", "passwords"]' },
      ),
      /** Memory it may have, in MiB; what needs more is ended and started anew. Default: 64. */
      memoryMib: key(integer(8, 100_000), { default: 64, example: '64' }),
    },
  ],
  cache: {
    /** Memory for answers that may be used again (RFC 9111), in MiB; 0 keeps none. Default: 32. */
    memoryMib: key(integer(0, 100_000), { default: 32, example: '32' }),
    /** Whether answers are compressed for peers that take it. Default: true. */
    compress: key(flag(), { default: true, example: 'true' }),
  },
  /**
   * What peers may take of the gateway; 0 is no limit, except where it says otherwise. Five times a
   * rate may come at once.
   */
  limits: {
    /** Open connections, of all peers. Default: 1000. */
    connections: key(integer(0, 100_000), { default: 1_000, example: '1000' }),
    /** Open connections of one peer. Default: 250. */
    connectionsPerPeer: key(integer(0, 100_000), { default: 250, example: '250' }),
    /** New connections a second, of all peers. Default: 100. */
    newConnections: key(integer(0, 100_000), { default: 100, example: '100' }),
    /** New connections a second of one peer. Default: 25. */
    newConnectionsPerPeer: key(integer(0, 100_000), { default: 25, example: '25' }),
    /** Requests a second, of all peers. Default: 2000. */
    requests: key(integer(0, 1_000_000), { default: 2_000, example: '2000' }),
    /** Requests a second of one peer. Default: 500. */
    requestsPerPeer: key(integer(0, 1_000_000), { default: 500, example: '500' }),
    /**
     * Requests of one peer that are under way; WebSockets are connections and count as such.
     * Default: 250.
     */
    openRequestsPerPeer: key(integer(0, 100_000), { default: 250, example: '250' }),
    /**
     * Requests under way on one HTTP/2 connection; 0 speaks HTTP/1.1 only. Default: 100, which is
     * the least RFC 9113 recommends.
     */
    streamsPerConnection: key(integer(0, 10_000), { default: 100, example: '100' }),
    /** Size of a request's headers, in KiB. Default: 32. */
    headerKib: key(integer(4, 1_024), { default: 32, example: '32' }),
    /** Size of a request's body, in MiB; bodies are never held in memory. Default: 10240. */
    bodyMib: key(integer(0, 10_000_000), { default: 10_240, example: '10240' }),
    /**
     * How long a peer may take for a request's headers, from the start of the connection or of the
     * request. Default: 15 s.
     */
    headerTimeout: key(duration(1_000, 3_600_000), { default: 15_000, example: '"15 s"' }),
    /**
     * How long a peer may neither take what is sent to it nor go on with a body (less than 1 KiB
     * counts as nothing). Default: 60 s.
     */
    stallTimeout: key(duration(1_000, 3_600_000), { default: 60_000, example: '"60 s"' }),
    /**
     * Memory of the process above which new connections and requests are refused, in MiB; 0 is
     * three quarters of what the machine has. Default: 0.
     */
    memoryMib: key(integer(0, 1_000_000), { default: 0, example: '600' }),
  },
  alerts: {
    /**
     * Where problems that last are told, by POST with JSON (src/alerts/send.ts). Its path may be a
     * password. Default: nowhere.
     */
    webhook: key(text(url('https:', 'http:'), { own: true }), {
      example: '"https://hooks.example.org/gatehouse"',
      secret: true,
    }),
    /** Sent to it as `Authorization: Bearer …`. Default: nothing is. */
    webhookToken: key(text(checkToken), { example: '"…"', secret: true }),
    /** A topic of ntfy's (https://ntfy.sh): server and topic. Default: none. */
    ntfy: key(text(checkTopic, { own: true }), {
      example: '"https://ntfy.sh/a-name-nobody-guesses"',
      secret: true,
    }),
    /** An access token of ntfy's, where the topic is not everybody's. Default: none. */
    ntfyToken: key(text(checkToken), { example: '"tk_…"', secret: true }),
    /** How long a problem must last before it is told. Default: 5 min. */
    after: key(duration(0, 86_400_000), { default: 300_000, example: '"5 min"' }),
  },
  backup: {
    /**
     * Whom nightly backups are encrypted for: an age recipient (`age-keygen`,
     * https://age-encryption.org/v1). Whoever has its secret key reads them all. Default: there are
     * none.
     */
    recipient: key(text(checkRecipient), {
      example: '"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"',
    }),
    /** A folder of a tailnet peer that takes PUT and gives GET, where they are kept. */
    to: key(text(url('https:', 'http:'), { own: true }), {
      example: '"http://nas.tail1234.ts.net:8080/gatehouse/"',
    }),
  },
  console: {
    /**
     * A root shell on the console, for whoever has the card in hand and a keyboard at the device.
     * Default: no.
     */
    login: key(flag(), { default: false, example: 'true' }),
  },
  wifi: [
    {
      /** Name of the network. Needed, unless there is {@link ssidHex}. */
      ssid: key(
        text((value) => checkSsid(Buffer.byteLength(value))),
        { example: '"my network"' },
      ),
      /** The name as hexadecimal digits, for one that is not text. Default: none. */
      ssidHex: key(
        text((value) =>
          /^(?:[0-9A-Fa-f]{2})*$/.test(value)
            ? checkSsid(value.length / 2)
            : {
                message: 'ssid_hex is not the bytes of a name, two hexadecimal digits each',
                cure: 'Write ssid = "…", the name of the network as your phone shows it',
              },
        ),
        { example: '"636166e9"' },
      ),
      /**
       * Its passphrase, 8 to 63 bytes, or key, 64 hexadecimal digits (IEEE 802.11, annex M.4).
       * Default: none, an open network.
       */
      password: key(
        text((value) =>
          /^[0-9A-Fa-f]{64}$/.test(value) ||
          (Buffer.byteLength(value) >= 8 && Buffer.byteLength(value) <= 63)
            ? undefined
            : {
                message: `password is neither 8 to 63 characters nor 64 hexadecimal digits`,
                cure: "Write the network's password as it is; leave the line out for an open network",
              },
        ),
        { example: '"…"', secret: true },
      ),
      /**
       * Where the device is, in two letters (ISO 3166): channels and power follow from it. Needed
       * with ssid, once.
       */
      country: key(
        text((value) =>
          /^[A-Z]{2}$/.test(value)
            ? undefined
            : {
                message: `country ${quote(value)} is not a country's two capital letters`,
                cure: 'Write country = "DE", with your country\'s letters',
              },
        ),
        { example: '"DE"' },
      ),
      /** Whether the network does not tell its name. Default: false. */
      hidden: key(flag(), { default: false, example: 'true' }),
    },
  ],
  /** How the device has its address, where the network does not give it one (DHCP). */
  network: [
    {
      /** Which card is meant. Default: Ethernet. */
      interface: key(oneOf('ethernet', 'wifi'), { default: 'ethernet', example: '"ethernet"' }),
      /** The device's own addresses, each with the length of its network's prefix. Default: DHCP. */
      addresses: key(oneOrMore(text(checkAddress)), {
        default: [],
        example: '["192.168.1.50/24"]',
      }),
      /** The router, one for IPv4 and one for IPv6 at the most. Default: none. */
      gateway: key(oneOrMore(text(checkPlainAddress('gateway', '"192.168.1.1"')), 2), {
        default: [],
        example: '"192.168.1.1"',
      }),
      /** Name servers. Default: those the network names. */
      dns: key(oneOrMore(text(checkPlainAddress('dns', '["192.168.1.1"]')), 8), {
        default: [],
        example: '["192.168.1.1"]',
      }),
      /** Domains in which names without a dot are looked up. Default: none. */
      search: key(
        oneOrMore(
          text((value) =>
            value.length <= 253 &&
            /^(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?$/.test(value) &&
            !/^-|-$|\.-|-\./.test(value)
              ? undefined
              : {
                  message: `search, ${quote(value)}, is not a domain`,
                  cure: 'Write search = ["example.org"]',
                },
          ),
          8,
        ),
        { default: [], example: '["example.org"]' },
      ),
      /**
       * Whether an IPv4 address is asked of the network as well. Default: where none is written
       * here.
       */
      dhcp: key(flag(), { example: 'true' }),
      /**
       * An HTTP proxy (RFC 9110 §9.3.6, CONNECT) by which the gateway reaches its control server
       * and relays, whatever card it is written for. Default: none.
       */
      proxy: key(text(checkProxy, { own: true }), { example: '"http://proxy.example.org:3128"' }),
    },
  ],
  updates: {
    /**
     * Folder on a web server with SHA256SUMS, SHA256SUMS.sig and the files of an update; https or
     * http, the signature is what counts. Default: none, no updates.
     */
    url: key(text(url('https:', 'http:'), { own: true }), {
      example: '"https://updates.example.org/gatehouse"',
    }),
    /** Stay on this version. Default: false. */
    hold: key(flag(), { default: false, example: 'true' }),
    /**
     * Whether new versions are installed by themselves; else by `gatehouse update` alone. Default:
     * true.
     */
    automatic: key(flag(), { default: true, example: 'false' }),
    /** Whether a USB stick that is plugged in is looked at for an update. Default: true. */
    usb: key(flag(), { default: true, example: 'false' }),
    /**
     * When that begins, in [node_red] timezone or UTC: `02:00-05:00`, with days in front if need
     * be: `Sat,Sun 02:00-05:00`. 15 minutes at least. Default: 02:00-05:00.
     */
    window: key(text(checkWindow), { default: '02:00-05:00', example: '"02:00-05:00"' }),
    /**
     * This device's place in a fleet: a version offered to N % goes to places below N. 0: among the
     * first; 99: the last. Default: by version and hardware address.
     */
    place: key(integer(0, 99), { example: '0' }),
  },
} satisfies Record<string, Keys | [Keys]>

/**
 * What must hold among the keys of one table; for a list of tables, of each entry and among the
 * entries.
 */
export const entryChecks: {
  // oxlint-disable-next-line typescript/no-explicit-any -- each takes an entry of its own table
  [T in keyof Config]?: (entry: any, others: any[]) => Wrong | undefined
} = {
  tailnet: ({ authKey, clientSecret, tags }: Config['tailnet']) => {
    if (clientSecret === undefined) return undefined
    if (authKey !== undefined)
      return {
        message: '[tailnet] has both auth_key and client_secret',
        cure: 'Remove one: either adds the device to the tailnet',
      }
    return tags.length > 0
      ? undefined
      : {
          message: 'client_secret is set without the tags that the device is to have',
          cure: 'Write tags = ["tag:gatehouse"], with a tag that the OAuth client was made for',
        }
  },
  certificates: checkCertificates,
  local_network: ({ listen, rights }: Config['local_network']) =>
    listen && rights.length === 0
      ? {
          message:
            '[local_network] listen = true does not say what everybody on the local network may do',
          cure:
            'Write rights = ["use"] for what flows serve, or ["view", "use"] to show the flows ' +
            'too; or remove listen',
        }
      : undefined,
  app: (entry: Config['app'][number], others: Config['app']) => {
    const { service, port } = entry
    if (service !== undefined && port !== undefined)
      return {
        message: `an [[app]] has the name ${quote(service)} and the port ${port}`,
        cure: 'Remove port: with a name of its own the app is at 443 there',
      }
    if (port !== undefined && [80, ...Object.values(ports)].includes(port))
      return {
        message: `port ${port} of an [[app]] is one of the gateway's own`,
        cure: 'Write port = 8444, or another that is not 80, 443, 8443 or 10000',
      }
    const own = service !== undefined || port !== undefined
    if (!own && entry.path === '')
      return {
        message: 'an [[app]] has no path',
        cure: 'Write path = "/grafana/"; or port = 8444 or service = "svc:grafana", for an origin of its own',
      }
    if (!own && ['/app/', '/.gatehouse/'].some((taken) => entry.path.startsWith(taken)))
      return notPath(entry.path)
    if (!own && entry.path === '/') return notPath(entry.path)
    if (entry.upstreams.length === 0)
      return {
        message: 'an [[app]] has no upstreams',
        cure: 'Write upstreams = ["http://192.168.1.20:3000"]',
      }
    const { name, label } = appIdentity(entry)
    if (['node-red', 'gatehouse'].includes(name))
      return {
        message: `path ${quote(entry.path)} has the name of a part of the gateway`,
        cure: 'Write another path',
      }
    if (others.some((other) => appIdentity(other).name === name))
      return {
        message: `two [[app]] are at ${quote(label)}, or at paths that cannot be told apart`,
        cure: 'Write another path, or remove one',
      }
    return undefined
  },
  extension: ({ name }: Config['extension'][number], others: Config['extension']) => {
    if (name === '')
      return { message: 'an [[extension]] has no name', cure: 'Write name = "mosquitto"' }
    if (others.some((other) => other.name === name))
      return { message: `two [[extension]] have the name ${quote(name)}`, cure: 'Remove one' }
    return others.length < extensionUsers.length
      ? undefined
      : {
          message: `there are more than ${extensionUsers.length} [[extension]]`,
          cure: 'Remove one: a device has users for so many',
        }
  },
  wifi: ({ ssid, ssidHex }: Config['wifi'][number], others: Config['wifi']) => {
    if (ssid !== undefined && ssidHex !== undefined)
      return { message: '[wifi] has both ssid and ssid_hex', cure: 'Remove ssid_hex' }
    return ssid !== undefined && others.some((other) => other.ssid === ssid)
      ? { message: `two [[wifi]] have the ssid ${quote(ssid)}`, cure: 'Remove one' }
      : undefined
  },
  network: (entry: Config['network'][number], others: Config['network']) => {
    if (others.some((other) => other.interface === entry.interface))
      return {
        message: `two [[network]] are for ${entry.interface}`,
        cure: 'Write all in one; or interface = "wifi" in the other',
      }
    return checkNetwork(entry)
  },
  forward: (entry: Config['forward'][number], others: Config['forward']) => {
    if (entry.target === '')
      return { message: 'a [[forward]] has no target', cure: 'Write target = "192.168.1.20:22"' }
    if (
      entry.protocol === 'udp' &&
      (entry.sni.length > 0 || entry.terminateTLS || entry.proxyProtocol !== 'off')
    )
      return {
        message:
          'a [[forward]] of UDP has sni, terminate_tls or proxy_protocol, which are for TCP alone',
        cure: 'Remove them',
      }
    if (entry.protocol === 'udp' && entry.target.startsWith('unix:'))
      return {
        message: 'a [[forward]] of UDP has a socket as target',
        cure: 'Write target = "192.168.1.20:514"',
      }
    if (entry.sni.length > 0 && entry.port !== 443)
      return {
        message: `a [[forward]] by name is on port ${entry.port}`,
        cure: 'Leave port out: names are told apart on 443 alone',
      }
    if (entry.sni.length === 0 && (entry.port === 443 || entry.port === 80))
      return {
        message: 'a [[forward]] has neither a port of its own nor names',
        cure: 'Write port = 22, or another that is not 80 or 443; or sni = ["git.example.org"]',
      }
    if (
      entry.sni.length === 0 &&
      others.some(
        (other) =>
          other.sni.length === 0 && other.port === entry.port && other.protocol === entry.protocol,
      )
    )
      return { message: `two [[forward]] have port ${entry.port}`, cure: 'Remove one' }
    return undefined
  },
}

/**
 * Lists of tables that may also be given as one table, `[wifi]` for `[[wifi]]`: most people have
 * one.
 */
export const singles: ReadonlySet<string> = new Set(['wifi', 'network'] satisfies Array<
  keyof Config
>)

/** The values of a table's keys: a key without a default may be undefined. */
export type Values<K> = { [N in keyof K]: K[N] extends Key<infer T, infer D> ? T | D : never }

/** What gatehouse.toml says, with defaults filled in. */
export type Config = {
  [T in keyof typeof schema]: (typeof schema)[T] extends [infer K]
    ? Array<Values<K>>
    : Values<(typeof schema)[T]>
}

/** A key's name in the file: authKey is auth_key, controlURL is control_url. */
export function tomlName(name: string): string {
  return name.replace(/([a-z0-9])([A-Z])/g, '$1_$2').toLowerCase()
}

/**
 * Only .pem: the name is used in a directory that also holds gatehouse.toml and authkey.
 */
function checkAuthorityFile(value: string): Wrong | undefined {
  return /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.pem$/.test(value)
    ? undefined
    : {
        message: `ca_file ${quote(value)} is not a plain file name ending in .pem`,
        cure: 'Put the file beside gatehouse.toml and write its name alone: ca_file = "authority.pem"',
      }
}

function checkHostname(value: string): Wrong | undefined {
  // RFC 1123 §2.1, lower case since the control server would fold it anyway and the URL shown must
  // be the one served.
  if (/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(value)) return undefined
  const better = value
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+/, '')
    .slice(0, 63)
    .replace(/-+$/, '')
  return {
    message: `hostname ${quote(value)} is not a DNS label (1 to 63 of a-z, 0-9 and inner hyphens)`,
    cure: `Write hostname = "${better === '' ? 'gatehouse' : better}"`,
  }
}

/** What must hold among the keys of [certificates]. Secrets may be gone: they are taken off. */
function checkCertificates(certificates: Config['certificates']): Wrong | undefined {
  const { mode, proof } = certificates
  // Where each key belongs: said, rather than having no effect.
  const home: Partial<Record<keyof Config['certificates'], boolean>> = {
    name: mode !== 'tailscale',
    proof: mode === 'acme',
    dnsServer: proof === 'rfc2136',
    dnsZone: proof === 'rfc2136',
    tsigName: proof === 'rfc2136',
    tsigKey: proof === 'rfc2136',
    acmeDns: proof === 'acme-dns',
    acmeDnsUser: proof === 'acme-dns',
    acmeDnsSubdomain: proof === 'acme-dns',
    acmeDnsPassword: proof === 'acme-dns',
    certFile: mode === 'files',
    keyFile: mode === 'files',
  }
  const given = (key: keyof Config['certificates']): boolean => {
    const value = certificates[key]
    return value !== undefined && !(Array.isArray(value) && value.length === 0)
  }
  for (const [property, fits] of Object.entries(home)) {
    const key = property as keyof Config['certificates']
    if (fits || !given(key)) continue
    const proofs: Partial<Record<keyof Config['certificates'], string>> = {
      acmeDns: 'acme-dns',
      acmeDnsUser: 'acme-dns',
      acmeDnsSubdomain: 'acme-dns',
      acmeDnsPassword: 'acme-dns',
    }
    let cure = `Write mode = "acme" and proof = "${proofs[key] ?? 'rfc2136'}", or remove ${tomlName(key)}`
    if (key === 'name')
      cure = 'Write mode = "acme", "files" or "self" (docs/certificates.md), or remove name'
    else if (key === 'proof') cure = 'Write mode = "acme", or remove proof'
    else if (key === 'certFile' || key === 'keyFile')
      cure = `Write mode = "files", or remove ${tomlName(key)}`
    return { message: `${tomlName(key)} has no meaning with mode = "${mode}"`, cure }
  }
  const missing = (key: keyof Config['certificates'], example: string): Wrong | undefined =>
    given(key)
      ? undefined
      : {
          message:
            '[certificates] mode = ' +
            `"${mode}"${proof === undefined ? '' : ` with proof = "${proof}"`} needs ` +
            `${tomlName(key)}`,
          cure: `Write ${tomlName(key)} = ${example}`,
        }
  if (mode === 'files')
    return (
      missing('certFile', '"gatehouse.crt", the name of a file beside gatehouse.toml') ??
      (certificates.certFile === certificates.keyFile
        ? {
            message: 'cert_file and key_file are one file',
            cure: 'Put the key into a file of its own: it is taken off the card, and the certificate stays',
          }
        : undefined)
    )
  const exact = certificates.name.filter((name) => !name.startsWith('*.'))
  if (certificates.name.length > 0 && exact.length === 0)
    return {
      message: 'name has only wildcards, so there is no name to open in a browser',
      cure: `Write name = ["gatehouse.${certificates.name[0]!.slice(2)}", "${certificates.name[0]}"]`,
    }
  if (mode !== 'acme') return undefined
  const wrong =
    missing('name', '"gatehouse.example.org"') ??
    missing('proof', '"rfc2136", "acme-dns" or "dns-persist" (docs/certificates.md)')
  if (wrong !== undefined) return wrong
  const tailnets = certificates.name.find((name) => name.endsWith('.ts.net'))
  if (tailnets !== undefined)
    return {
      message: `name ${quote(tailnets)} is the tailnet's, and nobody but it can prove that`,
      cure: 'Remove mode and name: certificates for it come by themselves; or write a name of your own domain',
    }
  if (proof === 'rfc2136')
    return missing('dnsServer', '"ns1.example.org"') ?? missing('tsigName', '"gatehouse"')
  if (proof !== 'acme-dns') return undefined
  const { acmeDnsUser, acmeDnsSubdomain } = certificates
  return (
    missing('acmeDns', '"https://auth.example.org"') ??
    ((acmeDnsUser === undefined) === (acmeDnsSubdomain === undefined)
      ? undefined
      : {
          message: `acme_dns_${acmeDnsUser === undefined ? 'subdomain' : 'user'} is set without the others`,
          cure:
            'Write acme_dns_user, acme_dns_password and acme_dns_subdomain; or none of them, ' +
            'and the device makes an account',
        })
  )
}

/**
 * What metrics call an [[app]] (`/team/grafana/` is team-grafana, `svc:grafana` is svc-grafana,
 * port 8444 is port-8444), what people call it, and its path.
 */
export function appIdentity({
  service,
  port,
  path,
}: {
  service: string | undefined
  port?: number | undefined
  path: string
}): {
  name: string
  label: string
  path: string
} {
  const own = service ?? (port === undefined ? '' : `port ${port}`)
  const label = `${own}${own !== '' && path === '/' ? '' : path}`
  return {
    name: label
      .replace(/^\/|\/$/g, '')
      .replace(/[^A-Za-z0-9]+/g, '-')
      .toLowerCase(),
    label,
    path: path === '' ? '/' : path,
  }
}

function notPath(path: string): Wrong {
  return {
    message:
      `path ${quote(path)} is not a path of an app: it begins and ends with a slash, and at ` +
      `the device's name is not below /app/ (an old address of what flows serve) or ` +
      '/.gatehouse/',
    cure: 'Write path = "/grafana/"',
  }
}

function header(direction: Direction, removes = false) {
  return (value: string, key: { name: string }): Wrong | undefined => {
    const wrong = checkHeader(value, direction, removes)
    return wrong && { ...wrong, message: `${key.name}: ${wrong.message}` }
  }
}

function checkUpstream(value: string): Wrong | undefined {
  // A path may have spaces.
  const seen = value.startsWith('unix:') ? value.replaceAll(' ', '') : value
  const unseen = checkUnseen(seen, 'an upstream', 'upstreams = ["http://192.168.1.20:3000"]')
  if (unseen !== undefined) return unseen
  const parsed = URL.parse(value)
  if (
    /^unix:\/.{1,106}$/.test(value) ||
    (parsed !== null &&
      /^https?:$/.test(parsed.protocol) &&
      parsed.pathname === '/' &&
      parsed.search + parsed.hash + parsed.username + parsed.password === '')
  )
    return undefined
  return {
    message: `upstream ${quote(value)} is neither http://host:port, https://host:port nor unix:/path`,
    cure: 'Write upstreams = ["http://192.168.1.20:3000"]',
  }
}

function checkService(value: string): Wrong | undefined {
  return /^svc:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(value)
    ? undefined
    : {
        message:
          `service ${quote(value)} is not the name of a Tailscale Service: svc: and 1 to 63 of ` +
          'a-z, 0-9 and inner hyphens',
        cure: 'Write service = "svc:grafana"',
      }
}

function checkOrigin(value: string, key: { name: string }): Wrong | undefined {
  const parsed = URL.parse(value)
  const origin =
    parsed !== null && /^https?:$/.test(parsed.protocol) && !parsed.hostname.includes('*')
      ? parsed.origin
      : undefined
  if (origin === value) return undefined
  return {
    message:
      `${key.name}, ${quote(value)}, is not an origin: https:// or http://, a host in lower ` +
      'case, a port unless it is the usual one, and nothing after it',
    cure: `Write allow_origins = [${JSON.stringify(origin ?? 'https://panel.example')}]`,
  }
}

function checkWho(value: string, key: { name: string }): Wrong | undefined {
  // A name without a domain is one of a control server of one's own, where policies write `alice@`.
  if (/^[^\s@:]+(?:@[^\s@]*)?$/.test(value) || /^tag:[a-zA-Z][a-zA-Z0-9-]*$/.test(value))
    return undefined
  return {
    message: `${key.name}, ${quote(value)}, is neither a login name nor a tag`,
    cure:
      'Write the name as the control server shows it, such as "alice@example.com" or ' +
      '"alice@github" (with Headscale also "alice"), or a tag such as "tag:sensor"',
  }
}

function checkSsid(bytes: number): Wrong | undefined {
  return bytes >= 1 && bytes <= 32
    ? undefined
    : {
        message: `ssid is ${bytes} bytes long; 1 to 32 are possible`,
        cure: 'Write the name of the network as your phone shows it',
      }
}

/** The tz database's names of zones in its regions. */
const zoneRegion =
  /^(?:Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Brazil|Canada|Chile|Etc|Europe|Indian|Mexico|Pacific|US)(?:\/[A-Z][A-Za-z0-9_+-]*)+$/

/** Its names without a region; most are of before there were regions. */
const zoneNames: ReadonlySet<string> = new Set(
  (
    'CET CST6CDT Cuba EET EST EST5EDT Egypt Eire GB GB-Eire GMT GMT+0 GMT-0 GMT0 Greenwich HST ' +
    'Hongkong Iceland Iran Israel Jamaica Japan Kwajalein Libya MET MST MST7MDT NZ NZ-CHAT Navajo ' +
    'PRC PST8PDT Poland Portugal ROC ROK Singapore Turkey UCT UTC Universal W-SU WET Zulu'
  ).split(' '),
)

function checkTimezone(value: string): Wrong | undefined {
  const wrong: Wrong = {
    message: `timezone ${quote(value)} is not a name of the tz database`,
    cure: 'Write timezone = "Europe/Berlin", with your continent and city',
  }
  // Not an offset, which knows no summer time; nor PST and the like, which ICU knows and the tz
  // database does not.
  if (!(zoneRegion.test(value) || zoneNames.has(value))) return wrong
  try {
    void new Intl.DateTimeFormat('en', { timeZone: value })
    return undefined
  } catch {
    return wrong
  }
}

function checkAddress(value: string): Wrong | undefined {
  const { address, prefix } = /^(?<address>[^/]+)\/(?<prefix>\d{1,3})$/.exec(value)?.groups ?? {}
  const family = isIP(address ?? '')
  const cure = 'Write addresses = ["192.168.1.50/24"]'
  if (family === 0 && isIP(value) !== 0)
    return {
      message: `addresses, ${quote(value)}, does not say how large its network is`,
      cure: `Write ${quote(`${value}/${isIP(value) === 4 ? 24 : 64}`)}, if that is your network's`,
    }
  if (family === 0 || Number(prefix) > (family === 4 ? 32 : 128) || Number(prefix) === 0)
    return { message: `addresses, ${quote(value)}, is not an address with a prefix length`, cure }
  return unusable(address!)
    ? { message: `addresses, ${quote(value)}, is not one that a device may have`, cure }
    : undefined
}

function checkPlainAddress(name: string, example: string) {
  return (value: string): Wrong | undefined =>
    isIP(value) === 0 || value.includes('%') || (name === 'gateway' && unusable(value))
      ? {
          message: `${name} ${quote(value)} is not the address of a machine`,
          cure: `Write ${name} = ${example}`,
        }
      : undefined
}

/** Loopback, multicast, reserved, or none at all. */
function unusable(address: string): boolean {
  return isIP(address) === 4
    ? /^(?:0|127|22[4-9]|23\d|24\d|25[0-5])\./.test(address)
    : /^(?:::1?|ff.*)$/i.test(address)
}

function checkProxy(value: string, key: { name: string; example: string }): Wrong | undefined {
  const wrong = url('http:')(value, key)
  if (wrong !== undefined)
    return wrong.message.includes('password')
      ? {
          message: 'proxy holds a user name or password, which others on the device could read',
          cure: 'Have the proxy let the device in by its address',
        }
      : { message: `proxy ${quote(value)} is not an http URL`, cure: `Write ${key.example}` }
  const { pathname, search, hash } = new URL(value)
  return pathname + search + hash === '/'
    ? undefined
    : { message: `proxy ${quote(value)} has a path`, cure: `Write ${key.example}` }
}

/** What must hold among the keys of one [network]. */
function checkNetwork({ addresses, gateway }: Config['network'][number]): Wrong | undefined {
  if (gateway.length > 0 && addresses.length === 0)
    return {
      message: '[network] has a gateway without addresses',
      cure: 'Write addresses = ["192.168.1.50/24"], the device\'s own; or remove gateway, which DHCP tells',
    }
  const families = gateway.map((router) => isIP(router))
  if (new Set(families).size < families.length)
    return { message: '[network] has two gateways of one kind', cure: 'Remove one' }
  const far = gateway.find((router) => !addresses.some((own) => sameNetwork(own, router)))
  return far === undefined
    ? undefined
    : {
        message: `gateway ${quote(far)} is not in the network of any of addresses, and cannot be reached`,
        cure:
          "Write the router's address as another device of your network shows it, and the " +
          'prefix length that goes with it (24 for most)',
      }
}

function sameNetwork(own: string, address: string): boolean {
  const [network, prefix] = own.split('/') as [string, string]
  const family = isIP(network) === 4 ? 'ipv4' : 'ipv6'
  // A router's link-local address is on every link.
  if (/^fe[89ab]/i.test(address)) return family === 'ipv6'
  const list = new BlockList()
  list.addSubnet(network, Number(prefix), family)
  return isIP(address) === isIP(network) && list.check(address, family)
}

/** A full name in lower case, perhaps with a wildcard in front (RFC 1123 §2.1, RFC 9525 §6.3). */
function checkName(value: string, key: { name: string; example: string }): Wrong | undefined {
  const labels = value.replace(/^\*\./, '').split('.')
  if (
    value.length <= 253 &&
    labels.length >= 2 &&
    labels.every((label) => /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(label)) &&
    !/^\d+$/.test(labels.at(-1)!)
  )
    return undefined
  return {
    message: `${key.name} ${quote(value)} is not a full name in lower case`,
    cure: `Write ${key.example}`,
  }
}

function checkServer(value: string, key: { name: string; example: string }): Wrong | undefined {
  const parts = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::(\d{1,5}))?$/.exec(value)
  const port = Number(parts?.[3] ?? 53)
  return parts !== null && port >= 1 && port <= 65_535
    ? undefined
    : {
        message: `${key.name} ${quote(value)} is neither a name nor an address, with or without :port`,
        cure: `Write ${key.example}, or dns_server = "[2001:db8::53]:53"`,
      }
}

/** An identifier or password another program made: no spaces, no quotes. */
function checkToken(value: string, key: { name: string }): Wrong | undefined {
  return /^[A-Za-z0-9._~+/=-]{1,256}$/.test(value)
    ? undefined
    : {
        message: `${key.name} is empty, or holds characters that acme-dns does not use`,
        cure: `Write it whole, as acme-dns gave it: ${key.name} = "…"`,
      }
}

function checkFile(...endings: string[]) {
  return (value: string, key: { name: string; example: string }): Wrong | undefined =>
    new RegExp(`^[A-Za-z0-9_][A-Za-z0-9_.-]*\\.(?:${endings.join('|')})$`).test(value)
      ? undefined
      : {
          message:
            `${key.name} ${quote(value)} is not a plain file name ending in ` +
            `${endings.map((ending) => `.${ending}`).join(' or ')}`,
          cure: `Put the file beside gatehouse.toml and write its name alone: ${key.example}`,
        }
}

function checkAuthKey(value: string): Wrong | undefined {
  const make =
    'Make an auth key in the admin console (Settings, Keys), with Headscale by `headscale ' +
    'preauthkeys create`, and write it whole: auth_key = "tskey-auth-…"'
  if (value === '')
    return {
      message: 'auth_key is empty',
      cure: `${make}; or remove the line to log in with a URL`,
    }
  if (value.includes('…') || value.endsWith('...'))
    return { message: 'auth_key is the example, not a key', cure: make }
  if (!/^[\x21-\x7e]+$/.test(value))
    return { message: 'auth_key holds spaces or characters that a key cannot have', cure: make }
  if (value.startsWith('tskey-api-'))
    return { message: 'auth_key is an API access token, which cannot add a machine', cure: make }
  return undefined
}

function checkWindow(value: string): Wrong | undefined {
  const time = '(?:[01]\\d|2[0-3]):[0-5]\\d'
  const day = '(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)'
  const match = new RegExp(`^(?:${day}(?:,${day})* )?(${time})-(${time})$`).exec(value)
  const cure = 'Write window = "02:00-05:00", or with days, window = "Sat,Sun 02:00-05:00"'
  if (match === null) return { message: `window ${quote(value)} is not a span of time`, cure }
  const [from, to] = match.slice(1).map((at) => Number(at.slice(0, 2)) * 60 + Number(at.slice(3)))
  return (to! - from! + 1440) % 1440 >= 15
    ? undefined
    : { message: `window ${quote(value)} is shorter than 15 minutes`, cure }
}

function checkClientSecret(value: string): Wrong | undefined {
  const make =
    'Make an OAuth client with the scope auth_keys in the admin console (Settings, OAuth ' +
    'clients) and write its secret whole: client_secret = "tskey-client-…"'
  if (value.includes('…') || value.endsWith('...'))
    return { message: 'client_secret is the example, not a secret', cure: make }
  return /^tskey-client-[\x21-\x7e]+$/.test(value)
    ? undefined
    : {
        message: 'client_secret is not an OAuth client secret: it begins with tskey-client-',
        cure: make,
      }
}

/** What is Node.js's, the loader's, systemd's or the appliance's own would break Node-RED's start. */
function checkVariable(name: string): Wrong | undefined {
  if (!/^[A-Za-z_][A-Za-z0-9_]{0,127}$/.test(name))
    return {
      message: `${quote(name)} in [node_red.env] is not a name of an environment variable`,
      cure: 'Write letters, digits and underscores, the first not a digit: INFLUX_TOKEN = "…"',
    }
  if (name === 'TZ')
    return {
      message: 'TZ in [node_red.env] is what timezone sets',
      cure: 'Write timezone = "Europe/Berlin" in [node_red]',
    }
  return /^(?:NODE_|LD_|GATEHOUSE_|LISTEN_|CREDENTIALS_DIRECTORY$|NOTIFY_SOCKET$|HOME$|PATH$|[A-Z]+_DIRECTORY$)/.test(
    name,
  )
    ? {
        message: `${name} in [node_red.env] is set by the appliance`,
        cure: 'Choose another name, in the flows and here',
      }
    : undefined
}

function checkListen(value: string): Wrong | undefined {
  const entry = parseIngress(value)
  return 'wrong' in entry ? entry.wrong : undefined
}

function checkAllow(value: string): Wrong | undefined {
  const entry = parseEgress(value)
  return 'wrong' in entry ? entry.wrong : undefined
}

/**
 * Refuses characters that nobody sees in a URL: URL.parse() passes over line breaks and tabs
 * (https://url.spec.whatwg.org/#concept-basic-url-parser), and what is parsed is not what is used:
 * a registry is written into a unit file, where a line break begins another setting.
 */
function checkUnseen(value: string, name: string, example: string): Wrong | undefined {
  return /[\p{Cc}\p{Cf}\p{Z}]/u.test(value)
    ? {
        message: `${name} holds a space, a line break or another character that is not shown`,
        cure: `Write ${example}`,
      }
    : undefined
}

/** An age recipient: the public half of an X25519 key. */
function checkRecipient(value: string, key: { example: string }): Wrong | undefined {
  // Bech32 (BIP 173) of 32 bytes. Who takes the secret key for it would hand it to the device.
  if (/^age1[02-9ac-hj-np-z]{58}$/.test(value)) return undefined
  const secret = /^AGE-SECRET-KEY-/i.test(value)
  return {
    message: secret
      ? 'recipient is the secret key, which is to stay with you'
      : 'recipient is not an age recipient (age1 and 58 characters)',
    cure: `Write the public key, as age-keygen shows it: ${key.example}`,
  }
}

/** A topic of ntfy's: a URL with one name behind the server's own path. */
function checkTopic(value: string, key: { name: string; example: string }): Wrong | undefined {
  const wrong = url('https:', 'http:')(value, key)
  if (wrong !== undefined) return wrong
  const { pathname, search } = new URL(value)
  return /^\/(?:[^/]+\/)*[-_A-Za-z0-9]{1,64}$/.test(pathname) && search === ''
    ? undefined
    : {
        message: 'ntfy is a server without a topic, or holds more than that',
        cure: `Write server and topic: ntfy = ${key.example}`,
      }
}

function url(...protocols: string[]) {
  return (value: string, key: { name: string; example: string }): Wrong | undefined => {
    const unseen = checkUnseen(value, key.name, key.example)
    if (unseen !== undefined) return unseen
    const parsed = URL.parse(value)
    const cure = `Write ${key.example}`
    if (parsed === null || !protocols.includes(parsed.protocol) || parsed.hostname === '') {
      return {
        message: `${key.name} is not ${protocols.length === 1 ? 'an https' : 'an https or http'} URL`,
        cure,
      }
    }
    if (parsed.username !== '' || parsed.password !== '')
      return { message: `${key.name} holds a user name or password`, cure }
    return undefined
  }
}
