import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { seeLogs } from '../../base/cures.ts'
import { GatehouseError, reason } from '../../base/errors.ts'
import type { Reloaded } from './reload.ts'
import type { Registry } from 'prom-client'
import type { Check } from './doctor.ts'
import type { Logger } from '../shared/log.ts'
import type { Problem } from '../shared/problems.ts'
import type { GatewayStatus } from './status.ts'

/** Largest body taken on a control socket. Bytes; a challenge is some 350 at most. */
const maxBody = 1024

/** An answer: `body` goes out as JSON, `text` as it is. */
interface Answer {
  status: number
  body?: unknown
  text?: string
  type?: string
}

type Handler = (request: IncomingMessage, body: string) => Promise<Answer>

/** What the admin socket needs of the gateway. */
export interface AdminTarget {
  status: () => Promise<GatewayStatus>
  /** Why requests cannot be served now; undefined when they can. */
  notReady: () => Pick<Problem, 'code' | 'message' | 'cure'> | undefined
  registry: Registry
  /** Empties the cache of answers. */
  purge: () => { entries: number; bytes: number }
  doctor: () => Promise<Check[]>
  /** Takes the provisioned configuration over. Rejects with GatehouseError when it is wrong. */
  reload: () => Promise<Reloaded>
}

/**
 * The admin socket: `GET /v1/status`; `GET /v1/doctor`; `POST /v1/cache/purge`; `POST /v1/reload`,
 * 422 for a configuration that is wrong; `/metrics` in Prometheus's text format; `/healthz`, 200 as
 * long as the process answers at all; `/readyz`, 200 when a peer's request would reach Node-RED,
 * else 503 with the reason. Who may connect is decided by the socket's owner and mode.
 */
export function createAdminServer(
  { status, notReady, registry, purge, doctor, reload }: AdminTarget,
  log: Logger,
): Server {
  return serve(log, {
    '/v1/status': { GET: async () => ({ status: 200, body: await status() }) },
    '/v1/cache/purge': { POST: async () => ({ status: 200, body: purge() }) },
    '/v1/doctor': { GET: async () => ({ status: 200, body: await doctor() }) },
    '/v1/reload': {
      POST: async () => {
        try {
          return { status: 200, body: await reload() }
        } catch (err) {
          if (err instanceof GatehouseError) throw new HTTPError(422, err)
          throw err
        }
      },
    },
    '/metrics': {
      GET: async () => ({
        status: 200,
        text: await registry.metrics(),
        type: registry.contentType,
      }),
    },
    '/healthz': { GET: async () => ({ status: 200, text: 'ok\n' }) },
    '/readyz': {
      GET: async () => {
        const problem = notReady()
        return problem === undefined
          ? { status: 200, text: 'ok\n' }
          : {
              status: 503,
              body: { error: { code: problem.code, message: problem.message, cure: problem.cure } },
            }
      },
    },
  })
}

/** What the certs socket needs of the gateway. */
export interface ChallengeTarget {
  /** Names the node may have certificates for; empty until it has joined. */
  names: () => string[]
  /** Why there are no names. */
  problem: () => Pick<Problem, 'code' | 'message' | 'cure'> | undefined
  setDNS: (name: string, value: string) => Promise<void>
}

/**
 * The certs socket: `GET /v1/names`, and `PUT /v1/challenge`, which publishes a TXT record
 * `_acme-challenge.<own name>` with the digest of a dns-01 challenge (RFC 8555 §8.4) and can
 * publish nothing else.
 */
export function createCertsServer(target: ChallengeTarget, log: Logger): Server {
  return serve(log, {
    '/v1/names': {
      GET: async () => {
        const names = target.names()
        const problem = names.length === 0 ? target.problem() : undefined
        return {
          status: 200,
          body: {
            names,
            ...(problem === undefined
              ? {}
              : { problem: `${problem.message}. ${problem.cure}`, code: problem.code }),
          },
        }
      },
    },
    '/v1/challenge': {
      PUT: async (_request, body) => {
        const { name, value } = challenge(body)
        if (!target.names().some((own) => name === `_acme-challenge.${own}`)) {
          throw new HTTPError(
            403,
            new GatehouseError(
              'GH_CHALLENGE_NAME',
              `${JSON.stringify(name)} is not the challenge name of one of this node's names`,
              'Ask GET /v1/names for them',
            ),
          )
        }
        try {
          await target.setDNS(name, value)
        } catch (err) {
          throw new HTTPError(
            502,
            new GatehouseError(
              'GH_CHALLENGE_PUBLISH',
              `the control server did not publish ${name}: ${reason(err)}`,
              'Try again later; check that HTTPS is enabled for the tailnet',
              { cause: err },
            ),
          )
        }
        return { status: 204 }
      },
    },
  })
}

function challenge(body: string): { name: string; value: string } {
  const wrong = (message: string): HTTPError =>
    new HTTPError(
      400,
      new GatehouseError(
        'GH_CHALLENGE',
        message,
        'Send {"name":"_acme-challenge.<name>","value":"<43 characters base64url>"}',
      ),
    )
  let parsed: unknown
  try {
    parsed = JSON.parse(body)
  } catch {
    throw wrong('the body is not JSON')
  }
  if (
    typeof parsed !== 'object' ||
    parsed === null ||
    Object.keys(parsed).toSorted().join() !== 'name,value'
  )
    throw wrong('the body is not an object with name and value alone')
  const { name, value } = parsed as Record<string, unknown>
  if (typeof name !== 'string') throw wrong('name is not a string')
  // The digest of SHA-256 in base64url without padding.
  if (typeof value !== 'string' || !/^[A-Za-z0-9_-]{43}$/.test(value))
    throw wrong('value is not 43 characters of base64url')
  return { name, value }
}

class HTTPError extends Error {
  readonly status: number
  readonly error: GatehouseError
  constructor(status: number, error: GatehouseError) {
    super(error.message)
    this.status = status
    this.error = error
  }
}

function serve(log: Logger, routes: Record<string, Record<string, Handler>>): Server {
  const answer = async (request: IncomingMessage): Promise<Answer> => {
    const methods = Object.hasOwn(routes, request.url ?? '') ? routes[request.url!] : undefined
    if (methods === undefined)
      throw new HTTPError(
        404,
        new GatehouseError(
          'GH_NOT_FOUND',
          'there is nothing here',
          `Paths are ${Object.keys(routes).join(', ')}`,
        ),
      )
    const handler = Object.hasOwn(methods, request.method!) ? methods[request.method!] : undefined
    if (handler === undefined)
      throw new HTTPError(
        405,
        new GatehouseError(
          'GH_METHOD',
          `${request.method} is not done here`,
          `Use ${Object.keys(methods).join(' or ')}`,
        ),
      )
    let body = ''
    for await (const piece of request.setEncoding('utf8')) {
      body += piece as string
      if (body.length > maxBody)
        throw new HTTPError(
          413,
          new GatehouseError(
            'GH_BODY_SIZE',
            `the body is longer than ${maxBody} bytes`,
            'Send less',
          ),
        )
    }
    return await handler(request, body)
  }
  const respond = (
    response: ServerResponse,
    {
      status,
      body,
      text,
      type = text === undefined ? 'application/json' : 'text/plain; charset=utf-8',
    }: Answer,
  ): void => {
    if (response.destroyed) return
    const out = text ?? (body === undefined ? undefined : `${JSON.stringify(body)}\n`)
    response.writeHead(status, {
      ...(out === undefined ? {} : { 'content-type': type }),
      connection: 'close',
    })
    response.end(out)
  }
  return createServer({ headersTimeout: 5_000, requestTimeout: 10_000 }, (request, response) => {
    answer(request).then(
      (done) => respond(response, done),
      (err: unknown) => {
        if (err instanceof HTTPError) {
          const { code, message, cure } = err.error
          respond(response, { status: err.status, body: { error: { code, message, cure } } })
          return
        }
        log.error({ code: 'GH_INTERNAL', err }, `control socket: ${reason(err)}`)
        respond(response, {
          status: 500,
          body: {
            error: {
              code: 'GH_INTERNAL',
              message: reason(err),
              cure: seeLogs('gatehouse'),
            },
          },
        })
      },
    )
  })
}
