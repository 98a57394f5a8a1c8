/**
 * JSON schemas of the API's answers and bodies (JSON Schema draft 7, as Fastify reads it). Fastify
 * judges what comes in by them and writes answers by them, so that nothing leaves the device that is
 * not described; `/api/v1/openapi.json` is made of them (@fastify/swagger).
 */

/** A JSON schema. */
export type Schema = Readonly<Record<string, unknown>>

/** Text; `description` for the document. */
export const text = (description?: string): Schema => ({
  type: 'string',
  ...(description === undefined ? {} : { description }),
})

const yesNo: Schema = { type: 'boolean' }
const number: Schema = { type: 'number' }
const texts: Schema = { type: 'array', items: { type: 'string' } }
/** RFC 3339; no `format`, since what an older device wrote down is shown as it is. */
const time = text('RFC 3339')
/** Any JSON value. */
const any: Schema = {}

/** Text of a form: as much as a settings file may have. */
export const long: Schema = { type: 'string', maxLength: 1 << 20 }

/** A body of nothing. */
export const empty = { type: 'object', additionalProperties: false } as const

/** A list of these. */
export const list = (items: Schema): Schema => ({ type: 'array', items })

/** An object with these keys and no more; those of `optional` may be absent. */
export function object(
  required: Readonly<Record<string, Schema>>,
  optional: Readonly<Record<string, Schema>> = {},
): Schema {
  return {
    type: 'object',
    additionalProperties: false,
    required: Object.keys(required),
    properties: { ...required, ...optional },
  }
}

const severity: Schema = { type: 'string', enum: ['info', 'warning', 'error'] }

const problem = { code: text('GH_…'), message: text(), cure: text('What to do about it') }

/** What stands in each answer that is not of a status below 400. */
export const failure = object({
  error: object(problem, { lines: text('Lines for the policy that would allow it') }),
})

/** That something was done, or is under way. */
export const done = object({ done: yesNo })

const difference = object(
  { key: text('As in the file; a list of tables counts as one key') },
  { before: any, after: any },
)

const trial = object({
  id: text(),
  by: text('Who made the change, and alone may confirm it'),
  until: time,
  changes: list(difference),
})

const check = object(
  { name: text(), result: { type: 'string', enum: ['ok', 'warn', 'fail', 'skip'] }, found: text() },
  { cure: text() },
)

const outcome = object({ source: text(), text: text(), failed: yesNo })

const offered = object({ version: text(), changes: texts })

const sample = {
  memory: { type: 'number', nullable: true, description: 'Part of it that is used, 0 to 1' },
  disk: { type: 'number', nullable: true },
  files: { type: 'number', nullable: true },
  temperature: { type: 'number', nullable: true, description: '°C, of the processor' },
  written: { type: 'number', nullable: true, description: 'Bytes since it was switched on' },
}

/** Answers by call; `GET /status` and so on. */
export const answers = {
  status: object(
    {
      version: text(),
      ok: yesNo,
      startedAt: time,
      tailnet: object(
        {
          state: text('Running, NeedsLogin and the like'),
          addresses: texts,
          dataPath: { type: 'string', enum: ['userspace', 'kernel'] },
          tags: texts,
          health: texts,
          peers: list(
            object(
              {
                name: text(),
                online: yesNo,
                path: { type: 'string', enum: ['direct', 'relay', 'idle'] },
              },
              { via: text() },
            ),
          ),
        },
        { name: text(), loginURL: text(), keyExpiry: time },
      ),
      certificate: object(
        {
          mode: text(),
          records: list(object({ name: text(), type: text(), value: text(), there: yesNo })),
          names: list(
            object(
              { name: text() },
              { notAfter: time, issuer: text(), renewAt: time, problem: text() },
            ),
          ),
          notes: list(object({ at: time, code: text(), message: text() })),
        },
        {
          authority: object({ fingerprint: text(), notAfter: time, names: texts }),
          lastRun: object(
            { checkedAt: time, result: text() },
            { problem: text(), code: text(), severity, daysLeft: number, next: time },
          ),
        },
      ),
      upstream: object({
        socket: text(),
        state: { type: 'string', enum: ['unknown', 'up', 'down'] },
        since: time,
      }),
      access: object(
        {
          settings: object({ view: texts, edit: texts, use: texts }, { manage: texts }),
          capability: text(),
        },
        { owner: text(), localNetwork: texts },
      ),
      services: list(
        object({ service: text(), addresses: texts }, { name: text(), problem: object(problem) }),
      ),
      configuration: object({}, { problem: text(), notes: texts }),
      problems: list(object({ ...problem, since: time, severity, part: text() })),
    },
    {
      url: text(),
      urls: object({ editor: text(), flows: text(), gateway: text() }),
    },
  ),
  figures: object({
    now: object(
      {},
      {
        ...sample,
        ...{ memoryTotal: number, diskTotal: number, filesTotal: number, writtenADay: number },
        ...{ underVoltage: yesNo, wear: number },
      },
    ),
    history: list(object({ at: time, ...sample })),
  }),
  me: object({ who: text(), rights: texts }, { fresh: yesNo }),
  healthz: object({ ok: yesNo }),
  readyz: object({ ok: yesNo }, { problem: object(problem) }),
  schema: object({
    tables: list(
      object({
        table: text(),
        list: yesNo,
        keys: list(
          object(
            { name: text(), example: text('As TOML writes it'), secret: yesNo },
            { default: any },
          ),
        ),
      }),
    ),
  }),
  doctor: object({ checks: list(check) }),
  audit: object({
    entries: list(object({ at: time, who: text(), what: text() }, { detail: any })),
  }),
  access: object({ who: text(), rights: texts, from: text(), why: text() }, { policy: text() }),
  settings: object(
    { text: text('`(kept)` in the place of each secret'), digest: text() },
    { trial },
  ),
  check: object({
    changes: list(difference),
    issues: list(object({ line: number, ...problem })),
    guarded: { ...texts, description: 'Keys whose change needs the code from the screen' },
  }),
  trial,
  update: object(
    {},
    {
      last: { ...object({ text: text(), failed: yesNo }), nullable: true },
      attempt: { ...outcome, nullable: true },
      changes: { ...texts, description: 'What the version that runs has changed' },
      before: text('The version that could be gone back to'),
      offered,
    },
  ),
  looked: object({}, { offered, attempt: { ...outcome, nullable: true } }),
  back: object({ version: text('That the device starts now') }),
  changed: object({}, { attempt: { ...outcome, nullable: true } }),
  backup: object(
    { nightly: yesNo, busy: yesNo },
    {
      to: text(),
      last: object({ at: time, name: text(), size: number, entries: number }),
      failure: object({ at: time, message: text() }),
    },
  ),
  renewed: object({ renewed: yesNo }, { loginURL: text('To be opened by the owner') }),
  tested: object({
    at: time,
    results: list(object({ channel: text(), ok: yesNo, said: text() })),
  }),
  devices: object({ devices: list(object({ kind: text(), path: text(), label: text() })) }),
  refused: object(
    {
      refused: list(
        object(
          {
            ...{
              host: text(),
              address: text(),
              protocol: { type: 'string', enum: ['tcp', 'udp', 'icmp'] },
            },
            ...{ times: number, last: time },
          },
          { port: number, entry: text('What would allow it, in [node_red] allow') },
        ),
      ),
    },
    { learning: text('Until when the device learns, RFC 3339') },
  ),
}
