import fastify from 'fastify'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { request as httpRequest } from 'node:http'
import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { GatehouseError, oneLine, reason } from '../../base/errors.ts'
import { call } from '../../base/control-client.ts'
import type { Check } from '../../broker/checks.ts'
import type { Checked } from '../../broker/settings.ts'
import { describe } from '../../config/describe.ts'
import type { WhoIs } from '@gatehouse/tsnet'
import { apiPrefix, decide, policyFor } from '../access/access.ts'
import type { Access, AccessSettings } from '../access/access.ts'
import type { Logger } from '../shared/log.ts'
import type { Problem } from '../shared/problems.ts'
import type { Shown } from '../operate/figures.ts'
import type { GatewayStatus } from '../operate/status.ts'
import type { Audit } from './audit.ts'
import { supportBundle } from './support.ts'

/** Who asks, as the gateway knows it. */
export interface Asker {
  whoIs: WhoIs | undefined
  access: Access
}

/** Options of {@link createApi}. */
export interface ApiOptions {
  log: Logger
  /** The broker's socket. */
  broker: string
  audit: Audit
  status: () => Promise<GatewayStatus>
  /** Why requests cannot be served now; undefined when they can. */
  notReady: () => Pick<Problem, 'code' | 'message' | 'cure'> | undefined
  /** What the gateway counts, in Prometheus's text format. */
  metrics: () => Promise<{ type: string; text: string }>
  /** Memory, disk, temperature and the like, now and of the last day. */
  figures: () => Shown
  /** What the gateway can check (operate/doctor.ts). */
  doctor: () => Promise<Check[]>
  /** Settings of [access], and who the node itself is. */
  access: () => AccessSettings
  self: () => Promise<WhoIs | undefined>
  /** Who asks on a request: set before it is handed over. */
  asker: (request: IncomingMessage) => Asker
}

/**
 * The device's API, version 1, at {@link apiPrefix} of the gateway's own port: what the web console
 * and `gatehouse --host` use. Who may ask has been decided (authorize.ts); from which page a
 * browser asks, too (request-origin.ts). What needs root is asked of the broker (broker/server.ts),
 * with the name of whoever asks; every change is in the audit log.
 */
export async function createApi(options: ApiOptions): Promise<FastifyInstance> {
  const { log, broker, audit } = options
  const api = fastify({ logger: false, bodyLimit: 2 << 20, exposeHeadRoutes: true })
  api.addContentTypeParser('application/octet-stream', (_request, payload, done) => {
    done(null, payload)
  })
  api.setErrorHandler(async (err: Error & { statusCode?: number }, _request, reply) => {
    const known = err instanceof GatehouseError ? err : undefined
    const status = known === undefined ? (err.statusCode ?? 500) : statusOf(known)
    if (status >= 500) log.error({ code: known?.code ?? 'GH_API' }, `API: ${reason(err)}`)
    const code = known?.code ?? (status >= 500 ? 'GH_API' : 'GH_API_REQUEST')
    const cure = known?.cure ?? 'Load the page again, and try once more'
    return await reply.code(status).send({ error: { code, message: oneLine(err.message), cure } })
  })
  api.setNotFoundHandler(async (_request, reply) => {
    const error = {
      ...{ code: 'GH_API_PATH', message: 'The API has no such call' },
      cure: 'See docs/using.md for what there is',
    }
    return await reply.code(404).send({ error })
  })
  const who = (request: FastifyRequest): string => nameOf(options.asker(request.raw).whoIs)
  const ask = async (method: string, path: string, body?: object): Promise<unknown> => {
    // Starting Node-RED anew, and provisioning, take a board a while.
    const answer = await call(broker, method, path, body, 300_000).catch((err: unknown) => {
      throw new GatehouseError(
        'GH_BROKER',
        `the broker cannot be reached: ${reason(err)}`,
        'Try again; if it stays so, switch the device off and on',
        { cause: err },
      )
    })
    if (answer.status < 400) return answer.body
    const { error } = answer.body as { error: { code: string; message: string; cure: string } }
    throw new GatehouseError(error.code, error.message, error.cure)
  }

  const examine = async (): Promise<Check[]> => {
    const own = await options.doctor()
    // The gateway's part says much by itself, also where the broker does not answer.
    const { checks } = (await ask('GET', '/v1/doctor').catch((err: GatehouseError) => ({
      checks: [{ name: 'system', result: 'skip', found: err.message, cure: err.cure }],
    }))) as { checks: Check[] }
    return [...checks, ...own]
  }

  api.addHook('onRequest', async (_request, reply) => {
    reply.header('cache-control', 'no-store').header('x-content-type-options', 'nosniff')
  })
  await api.register(
    async (v1) => {
      v1.get('/status', async () => await options.status())
      v1.get('/figures', async () => options.figures())
      v1.get('/me', async (request) => ({
        who: who(request),
        rights: [...options.asker(request.raw).access.rights],
      }))
      v1.get('/healthz', async () => ({ ok: true }))
      v1.get('/readyz', async (_request, reply) => {
        const problem = options.notReady()
        return await reply.code(problem === undefined ? 200 : 503).send({
          ok: problem === undefined,
          ...(problem === undefined ? {} : { problem }),
        })
      })
      v1.get('/metrics', async (_request, reply) => {
        const { type, text } = await options.metrics()
        return await reply.type(type).send(text)
      })
      v1.get('/schema', async () => ({ tables: describe() }))
      v1.get('/doctor', async () => ({ checks: await examine() }))
      v1.get('/support', async (request, reply) => {
        await audit.note(who(request), 'support')
        const name = `gatehouse-support-${new Date().toISOString().slice(0, 10)}.json`
        reply.header('content-disposition', `attachment; filename="${name}"`)
        return await supportBundle({
          status: options.status,
          figures: async () => await Promise.resolve(options.figures()),
          doctor: examine,
          settings: async () => await ask('GET', '/v1/settings'),
          update: async () => await ask('GET', '/v1/update'),
          devices: async () => await ask('GET', '/v1/devices'),
          refused: async () => await ask('GET', '/v1/refused'),
          audit: async () => await audit.entries(),
          journal: async () => {
            const lines = await ask('GET', '/v1/journal?lines=2000')
            return String(lines).trimEnd().split('\n')
          },
        })
      })
      v1.get('/audit', async () => ({ entries: await audit.entries() }))
      v1.get<{ Querystring: { who: string } }>(
        '/access',
        {
          schema: {
            querystring: {
              type: 'object',
              additionalProperties: false,
              required: ['who'],
              properties: { who: { type: 'string', minLength: 1, maxLength: 254 } },
            },
          },
        },
        async ({ query: { who: name } }) => await explain(name, options),
      )
      settingsRoutes(v1, ask, who, audit)
      deviceRoutes(v1, ask, who, options)
      v1.get<{ Querystring: Record<string, string> }>('/journal', async ({ query }, reply) => {
        await pass(reply, broker, { path: `/v1/journal?${new URLSearchParams(query)}` })
      })
      backupRoutes(v1, broker, who, audit)
    },
    { prefix: apiPrefix.slice(0, -1) },
  )
  await api.ready()
  return api
}

type Ask = (method: string, path: string, body?: object) => Promise<unknown>
type Who = (request: FastifyRequest) => string

/** A body that is an object with these keys, all of them text; more is refused. */
const texts = (required: string[], optional: string[] = []): { schema: { body: object } } => ({
  schema: {
    body: {
      type: 'object',
      additionalProperties: false,
      required,
      properties: Object.fromEntries(
        [...required, ...optional].map((name) => [name, { type: 'string', maxLength: 1 << 20 }]),
      ),
    },
  },
})

function settingsRoutes(v1: FastifyInstance, ask: Ask, who: Who, audit: Audit): void {
  v1.get('/settings', async () => await ask('GET', '/v1/settings'))
  v1.post<{ Body: { text: string } }>(
    '/settings/check',
    texts(['text']),
    async ({ body }) => await ask('POST', '/v1/settings/check', body),
  )
  v1.post<{ Body: { text: string; digest: string; code?: string } }>(
    '/settings/try',
    texts(['text', 'digest'], ['code']),
    async (request) => {
      const by = who(request)
      const { text } = request.body
      const { changes } = (await ask('POST', '/v1/settings/check', { text })) as Checked
      await audit.note(by, 'settings.try', changes)
      return await ask('POST', '/v1/settings/try', { ...request.body, by })
    },
  )
  for (const verb of ['confirm', 'revert'] as const)
    v1.post<{ Body: { id: string } }>(`/settings/${verb}`, texts(['id']), async (request) => {
      const by = who(request)
      await audit.note(by, `settings.${verb}`, { id: request.body.id })
      return await ask('POST', `/v1/settings/${verb}`, { id: request.body.id, by })
    })
}

function deviceRoutes(v1: FastifyInstance, ask: Ask, who: Who, options: ApiOptions): void {
  const verbs = {
    '/node-red/restart': 'node-red.restart',
    '/device/restart': 'device.restart',
    '/device/power-off': 'device.power-off',
    '/update/check': 'update.check',
    '/alerts/test': 'alerts.test',
    '/learn': 'learn',
  }
  for (const [path, what] of Object.entries(verbs))
    v1.post(path, texts([]), async (request) => {
      const by = who(request)
      await options.audit.note(by, what)
      return await ask('POST', `/v1${path}`, { by })
    })
  v1.post<{ Body: { name: string } }>('/device/reset', texts(['name']), async (request) => {
    const { tailnet } = await options.status()
    const short = tailnet.name?.split('.', 1)[0]
    if (short === undefined || request.body.name !== short)
      throw new GatehouseError(
        'GH_RESET_NAME',
        'the name is not that of this device',
        `Type ${short ?? 'its name'} to forget flows, identity, certificates and settings for good`,
      )
    const by = who(request)
    await options.audit.note(by, 'device.reset')
    return await ask('POST', '/v1/device/reset', { by })
  })
  v1.get('/update', async () => await ask('GET', '/v1/update'))
  v1.get('/devices', async () => await ask('GET', '/v1/devices'))
  v1.get('/refused', async () => await ask('GET', '/v1/refused'))
}

function backupRoutes(v1: FastifyInstance, broker: string, who: Who, audit: Audit): void {
  v1.post<{ Body: { passphrase: string; code?: string } }>(
    '/backup',
    texts(['passphrase'], ['code']),
    async (request, reply) => {
      const by = who(request)
      await audit.note(by, 'backup')
      const name = `gatehouse-${new Date().toISOString().slice(0, 10)}.age`
      reply.header('content-disposition', `attachment; filename="${name}"`)
      await pass(reply, broker, {
        ...{ method: 'POST', path: '/v1/backup' },
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ by, ...request.body }),
      })
    },
  )
  v1.post('/restore', { bodyLimit: Number.MAX_SAFE_INTEGER }, async (request, reply) => {
    const by = who(request)
    await audit.note(by, 'restore')
    const code = request.headers['x-gatehouse-code'] as string | undefined
    await pass(reply, broker, {
      ...{ method: 'POST', path: '/v1/restore' },
      headers: {
        'content-type': 'application/octet-stream',
        'x-gatehouse-by': by,
        'x-gatehouse-passphrase': String(request.headers['x-gatehouse-passphrase'] ?? ''),
        ...(code === undefined ? {} : { 'x-gatehouse-code': code }),
      },
      stream: request.body as Readable,
    })
  })
}

/** Passes a request on to the broker and its answer back, as it comes. */
async function pass(
  reply: FastifyReply,
  socketPath: string,
  {
    method = 'GET',
    path,
    headers = {},
    body,
    stream,
  }: {
    method?: string
    path: string
    headers?: Record<string, string>
    body?: string
    stream?: Readable
  },
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  const outgoing = httpRequest({ socketPath, method, path, headers: { host: 'b', ...headers } })
  outgoing.on('response', resolve).on('error', reject)
  if (stream === undefined) outgoing.end(body)
  else stream.on('error', (err) => outgoing.destroy(err)).pipe(outgoing)
  const response = await promise
  reply.raw.once('close', () => {
    response.destroy()
  })
  await reply
    .code(response.statusCode ?? 502)
    .type(response.headers['content-type'] ?? 'application/octet-stream')
    .send(response)
}

/** What a login name or tag could do here, and what the policy would have to say. */
async function explain(
  name: string,
  { access, self }: Pick<ApiOptions, 'access' | 'self'>,
): Promise<object> {
  const node = await self()
  const tagged = name.startsWith('tag:')
  const peer = {
    node: { name, tags: tagged ? [name] : [], addresses: [] },
    user: tagged
      ? undefined
      : {
          loginName: name,
          // Only the owner of the node has the owner's ID.
          id: name === node?.user?.loginName ? node.user.id : '',
        },
    capMap: {},
  } as unknown as WhoIs
  const { rights, from } = decide(peer, node, access())
  const why = {
    owner: 'The device belongs to this person, who may do everything unless a grant says less',
    settings: 'By [access] in gatehouse.toml',
    none: 'Nothing in gatehouse.toml names them; grants of the policy are seen when they come',
    grant: 'By a grant',
    'local network': 'By [local_network]',
  }[from]
  const all = ['view', 'edit', 'use', 'status', 'manage'] as const
  return { who: name, rights: [...rights], from, why, policy: policyFor(peer, node, all) }
}

function statusOf({ code }: GatehouseError): number {
  return code === 'GH_BROKER' ? 503 : 422
}

function nameOf(whoIs: WhoIs | undefined): string {
  if (whoIs === undefined) return 'unknown'
  const { name, tags } = whoIs.node
  return tags.length > 0 ? name : (whoIs.user?.loginName ?? name)
}
