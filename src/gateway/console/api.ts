import swagger from '@fastify/swagger'
import fastify from 'fastify'
import type { FastifyInstance, FastifyReply, FastifyRequest, FastifySchema } from 'fastify'
import { request as httpRequest } from 'node:http'
import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { GatehouseError, oneLine, reason } from '../../base/errors.ts'
import { call } from '../../base/control-client.ts'
import type { Check } from '../../broker/checks.ts'
import type { Checked } from '../../broker/settings.ts'
import { describe } from '../../config/describe.ts'
import type { WhoIs } from '@gatehouse/tsnet'
import { apiPrefix, decide, ownRight, owns, policyFor } from '../access/access.ts'
import type { Access, AccessSettings } from '../access/access.ts'
import type { Logger } from '../shared/log.ts'
import type { Problem } from '../shared/problems.ts'
import type { Backups } from '../operate/backups.ts'
import type { Shown } from '../operate/figures.ts'
import type { GatewayStatus } from '../operate/status.ts'
import type { Audit } from './audit.ts'
import { answers, done, empty, failure, long, object, text } from './schemas.ts'
import type { Schema } from './schemas.ts'
import { supportBundle } from './support.ts'
import type { Welcome } from './welcome.ts'
import { version } from '../../base/version.ts'

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
  /** Asks for a new node key: where to log in, or undefined when it is renewed already. */
  renewKey: () => Promise<string | undefined>
  backups: Pick<Backups, 'show' | 'run'>
  welcome: Welcome
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
  const api = fastify({
    ...{ logger: false, bodyLimit: 2 << 20, exposeHeadRoutes: true },
    // What is not described is refused, not dropped or made to fit.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false } },
  })
  await api.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Gatehouse',
        version,
        description:
          'The device over its tailnet. Who asks is known by the tailnet: there is no ' +
          'password. What each call needs is x-gatehouse-right; what is refused says so with ' +
          'code, message and cure.',
      },
    },
  })
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
    // Starting Node-RED anew, and provisioning, take a board a while. What is only read does not: a
    // broker that is slower has ended, and systemd goes on taking connections for it.
    const wait = method === 'GET' ? reading : 300_000
    const answer = await call(broker, method, path, body, wait).catch(unreachable)
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
      v1.addHook('onRoute', (route) => {
        const method = [route.method].flat()[0]!
        const right = ownRight(method, route.url)
        route.schema = { ...route.schema, 'x-gatehouse-right': right } as FastifySchema
      })
      readRoutes(v1, options, who)
      v1.get(
        '/doctor',
        tells('Every link of the chain, from the clock to Node-RED', answers.doctor),
        async () => ({ checks: await examine() }),
      )
      v1.get(
        '/support',
        tells('How the device is and was, without secrets, for somebody who helps', {
          type: 'object',
          additionalProperties: true,
        }),
        async (request, reply) => {
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
        },
      )
      v1.get('/audit', tells('Who changed what, the latest first', answers.audit), async () => ({
        entries: await audit.entries(),
      }))
      settingsRoutes(v1, ask, who, audit)
      deviceRoutes(v1, ask, who, options)
      v1.get<{ Querystring: Record<string, string> }>(
        '/journal',
        {
          schema: {
            ...tells(
              'Lines of the log, oldest first',
              text('One JSON object a line: at, unit, priority, text'),
              'application/x-ndjson',
            ).schema,
            querystring: object(
              {},
              {
                unit: text('One part: gatehouse, node-red and the like'),
                priority: text(
                  'This severity and worse, as syslog counts: 3 errors, 6 all but debug',
                ),
                lines: text('How many of the newest, 1 to 5000'),
                follow: text('true: go on with what comes'),
              },
            ),
          },
        },
        async ({ query }, reply) => {
          await pass(reply, broker, { path: `/v1/journal?${new URLSearchParams(query)}` })
        },
      )
      backupRoutes(v1, options, who)
    },
    { prefix: apiPrefix.slice(0, -1) },
  )
  await api.ready()
  return api
}

/** What a call answers, for Fastify and the document. */
const tells = (
  summary: string,
  answer: Schema,
  type = 'application/json',
): { schema: { summary: string; response: Record<string, unknown> } } => ({
  schema: {
    summary,
    response: {
      200: type === 'application/json' ? answer : { content: { [type]: { schema: answer } } },
      '4xx': failure,
      '5xx': failure,
    },
  },
})

/** The same for one with a body. */
const takes = (
  summary: string,
  body: Schema,
  answer: Schema,
  type?: string,
): { schema: { summary: string; body: Schema; response: Record<string, unknown> } } => ({
  schema: { ...tells(summary, answer, type).schema, body },
})

/** What the gateway itself knows. */
function readRoutes(v1: FastifyInstance, options: ApiOptions, who: Who): void {
  v1.get(
    '/openapi.json',
    tells('This document', { type: 'object', additionalProperties: true }),
    async () => v1.swagger(),
  )
  v1.get(
    '/status',
    tells('How things are, and what is wrong', answers.status),
    async () => await options.status(),
  )
  v1.get(
    '/figures',
    tells('Memory, disk, temperature and the like, now and of the last day', answers.figures),
    async () => options.figures(),
  )
  v1.get('/me', tells('Who asks, and what they may do', answers.me), async (request) => {
    const { rights } = options.asker(request.raw).access
    const fresh = rights.has('manage') && (await options.welcome.fresh())
    return { who: who(request), rights: [...rights], ...(fresh ? { fresh } : {}) }
  })
  v1.get('/healthz', tells('The gateway answers', answers.healthz), async () => ({ ok: true }))
  v1.get(
    '/readyz',
    {
      schema: {
        ...{ summary: 'A request would reach Node-RED; 503: not now, and why' },
        response: { 200: answers.readyz, 503: answers.readyz, '4xx': failure, '5xx': failure },
      },
    },
    async (_request, reply) => {
      const problem = options.notReady()
      return await reply.code(problem === undefined ? 200 : 503).send({
        ok: problem === undefined,
        ...(problem === undefined ? {} : { problem }),
      })
    },
  )
  v1.get(
    '/metrics',
    tells("What the gateway counts, in Prometheus's text format", text(), 'text/plain'),
    async (_request, reply) => {
      const { type, text: body } = await options.metrics()
      return await reply.type(type).send(body)
    },
  )
  v1.get('/schema', tells('Tables and keys of gatehouse.toml', answers.schema), async () => ({
    tables: describe(),
  }))
  v1.get<{ Querystring: { who: string } }>(
    '/access',
    {
      schema: {
        ...tells('What a login name or a tag could do here, and why', answers.access).schema,
        querystring: object({ who: { type: 'string', minLength: 1, maxLength: 254 } }),
      },
    },
    async ({ query: { who: name } }) => await explain(name, options),
  )
}

type Ask = (method: string, path: string, body?: object) => Promise<unknown>
type Who = (request: FastifyRequest) => string

function settingsRoutes(v1: FastifyInstance, ask: Ask, who: Who, audit: Audit): void {
  v1.get(
    '/settings',
    tells('gatehouse.toml without secrets, and the change on trial', answers.settings),
    async () => await ask('GET', '/v1/settings'),
  )
  v1.post<{ Body: { text: string } }>(
    '/settings/check',
    takes(
      'What a text would change, and what is wrong with it',
      object({ text: long }),
      answers.check,
    ),
    async ({ body }) => await ask('POST', '/v1/settings/check', body),
  )
  v1.post<{ Body: { text: string; digest: string; code?: string } }>(
    '/settings/try',
    takes(
      'Puts a text in force for a minute: it is taken back unless it is confirmed',
      object(
        { text: long, digest: text('Of the text that it was made from') },
        { code: text("Six digits from the device's screen, for what would hand over the device") },
      ),
      answers.trial,
    ),
    async (request) => {
      const by = who(request)
      const { changes } = (await ask('POST', '/v1/settings/check', {
        text: request.body.text,
      })) as Checked
      await audit.note(by, 'settings.try', changes)
      return await ask('POST', '/v1/settings/try', { ...request.body, by })
    },
  )
  for (const [verb, summary] of [
    ['confirm', 'Keeps the change on trial'],
    ['revert', 'Takes the change on trial back'],
  ] as const)
    v1.post<{ Body: { id: string } }>(
      `/settings/${verb}`,
      takes(summary, object({ id: text('Of the trial') }), answers.settings),
      async (request) => {
        const by = who(request)
        await audit.note(by, `settings.${verb}`, { id: request.body.id })
        return await ask('POST', `/v1/settings/${verb}`, { id: request.body.id, by })
      },
    )
}

function deviceRoutes(v1: FastifyInstance, ask: Ask, who: Who, options: ApiOptions): void {
  v1.post(
    '/welcome/done',
    takes('The first questions were answered or skipped: nobody is asked again', empty, done),
    async (request) => {
      await options.audit.note(who(request), 'welcome.done')
      await options.welcome.done()
      return { done: true }
    },
  )
  const verbs: Array<[path: string, what: string, summary: string, answer: Schema]> = [
    ['/node-red/restart', 'node-red.restart', 'Starts Node-RED anew', done],
    ['/device/restart', 'device.restart', 'Starts the device anew', done],
    ['/device/power-off', 'device.power-off', 'Switches the device off', done],
    ['/update/look', 'update.look', 'What is offered, without installing it', answers.looked],
    ['/update/back', 'update.back', 'Starts the version before', answers.back],
    ['/update/check', 'update.check', 'Installs what is offered', answers.changed],
    ['/alerts/test', 'alerts.test', 'Sends one alert to where [alerts] says', answers.tested],
    ['/learn', 'learn', 'For ten minutes, writes down by name what flows want', done],
  ]
  for (const [path, what, summary, answer] of verbs)
    v1.post(path, takes(summary, empty, answer), async (request) => {
      const by = who(request)
      await options.audit.note(by, what)
      return await ask('POST', `/v1${path}`, { by })
    })
  v1.post(
    '/tailnet/renew',
    takes(
      "Asks for a new node key while this one holds; for the device's owner alone",
      empty,
      answers.renewed,
    ),
    async (request) => {
      const { whoIs } = options.asker(request.raw)
      const self = await options.self()
      // Whoever logs in at the URL owns the device then.
      if (!owns(whoIs, self))
        throw new GatehouseError(
          'GH_KEY_OWNER',
          'only the person whom the device belongs to may renew its key',
          `Ask ${self?.user?.loginName ?? 'whoever manages the tailnet'}`,
        )
      await options.audit.note(who(request), 'tailnet.renew')
      const loginURL = await options.renewKey()
      return loginURL === undefined ? { renewed: true } : { renewed: false, loginURL }
    },
  )
  const reset = takes(
    'Forgets everything, as if new',
    object({ name: text("The device's short name, typed again") }),
    done,
  )
  v1.post<{ Body: { name: string } }>('/device/reset', reset, async (request) => {
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
  v1.get(
    '/update',
    tells('What the last update came to', answers.update),
    async () => await ask('GET', '/v1/update'),
  )
  v1.get(
    '/devices',
    tells('What is plugged in, that flows may be given', answers.devices),
    async () => await ask('GET', '/v1/devices'),
  )
  v1.get(
    '/refused',
    tells('What Node-RED tried to reach and was not allowed to', answers.refused),
    async () => await ask('GET', '/v1/refused'),
  )
}

function backupRoutes(
  v1: FastifyInstance,
  { broker, audit, backups }: Pick<ApiOptions, 'broker' | 'audit' | 'backups'>,
  who: Who,
): void {
  v1.get(
    '/backup',
    tells('How the nightly backups are: the last one, and what went wrong since', answers.backup),
    async () => backups.show(),
  )
  v1.post(
    '/backup/now',
    takes('Makes one of the nightly backups now, and reads it back', empty, answers.backup),
    async (request) => {
      await audit.note(who(request), 'backup.now')
      await backups.run()
      return backups.show()
    },
  )
  v1.post<{ Body: { passphrase: string; code?: string } }>(
    '/backup',
    takes(
      'One file of flows, identity, certificates and settings, encrypted by age',
      object({ passphrase: text() }, { code: text("Six digits from the device's screen") }),
      { type: 'string', format: 'binary' },
      'application/octet-stream',
    ),
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
  const restore = {
    bodyLimit: Number.MAX_SAFE_INTEGER,
    schema: {
      ...tells('Puts a backup in place; the device restarts. Body: the file', done).schema,
      consumes: ['application/octet-stream'],
      headers: {
        type: 'object',
        properties: {
          'x-gatehouse-passphrase': text('Base64 of its UTF-8'),
          'x-gatehouse-code': text("Six digits from the device's screen"),
        },
      },
    },
  }
  v1.post('/restore', restore, async (request, reply) => {
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

/** How long the broker may take where it has only to read. Milliseconds. */
const reading = 60_000

function unreachable(err: unknown): never {
  throw new GatehouseError(
    'GH_BROKER',
    `the broker cannot be reached: ${reason(err)}`,
    'Try again; if it stays so, switch the device off and on',
    { cause: err },
  )
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
  const response = await promise.catch(unreachable)
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
