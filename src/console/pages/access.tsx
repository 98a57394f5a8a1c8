import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { get } from '../api.ts'
import type { AuditEntry, GatewayStatus, Judged } from '../api.ts'
import { Card, Failure, Outcome, sentence, useLoaded, useWork } from '../parts.tsx'
import { local } from '../time.ts'

/** What each right allows, in the words of docs/access.md. */
const rights: Array<[right: string, allows: string]> = [
  ['view', 'open the editor, changing nothing'],
  ['edit', 'change flows, which is running programs on the device'],
  ['use', 'use what flows serve'],
  ['status', 'see the page Overview'],
  ['manage', 'use all of this console: settings, updates, backups, restart'],
]

/** Who may do what, why, and what would change it. */
export function AccessPage(): JSX.Element {
  return (
    <>
      <Card title="Who may do what">
        <Rights />
      </Card>
      <Card title="What would somebody see?">
        <Ask />
      </Card>
      <Card title="Who changed what">
        <Audit />
      </Card>
    </>
  )
}

function Rights(): JSX.Element {
  const { value: status, error } = useLoaded<GatewayStatus>('status')
  if (status === undefined) return <Failure error={error} />
  return (
    <>
      <p>
        {status.access.owner === undefined
          ? 'The device is tagged, so it has no owner: what is not granted nobody may do.'
          : `${status.access.owner} owns the device and may do everything, unless a grant of the policy says less.`}
      </p>
      {status.access.localNetwork !== undefined && (
        <p class="box warn">
          Everybody on the local network may {status.access.localNetwork.join(' and ')}, without a
          login. That is <code>[local_network] listen</code> in{' '}
          <a href="#/settings">gatehouse.toml</a>.
        </p>
      )}
      <dl>
        {rights.map(([right, allows]) => {
          const named = (status.access.settings as Record<string, string[]>)[right] ?? []
          return (
            <>
              <dt>
                <code>{right}</code>
              </dt>
              <dd>
                {sentence(`May ${allows}`)}{' '}
                {named.length > 0 && `In gatehouse.toml: ${named.join(', ')}.`}
              </dd>
            </>
          )
        })}
      </dl>
      <p>
        The tailnet's policy grants rights by the capability <code>{status.access.capability}</code>
        ; the lines to paste are below.
      </p>
    </>
  )
}

function Ask(): JSX.Element {
  const [who, setWho] = useState('')
  const [judged, setJudged] = useState<Judged>()
  const work = useWork()
  return (
    <>
      <form
        class="row fields"
        onSubmit={(event) => {
          event.preventDefault()
          work.run(async () => {
            setJudged(undefined)
            setJudged(await get<Judged>(`access?who=${encodeURIComponent(who.trim())}`))
            return undefined
          })
        }}
      >
        <label>
          Login name or tag
          <input
            required
            value={who}
            autocomplete="off"
            autocapitalize="none"
            spellcheck={false}
            placeholder="alice@example.com"
            onInput={(event) => {
              setWho(event.currentTarget.value)
            }}
          />
        </label>
        <button disabled={work.busy}>Show</button>
      </form>
      <Outcome work={work} busy="…" />
      {judged !== undefined && (
        <div role="status">
          <p>
            <strong>
              {judged.who} may{' '}
              {judged.rights.length === 0 ? 'do nothing' : judged.rights.join(', ')}.
            </strong>{' '}
            {sentence(judged.why)}
          </p>
          {judged.policy !== undefined && judged.policy !== '' && (
            <>
              <p>
                To change that, paste this into the tailnet's policy (admin console, Access
                controls):
              </p>
              <pre tabIndex={0} role="region" aria-label="Policy lines">
                {judged.policy}
              </pre>
            </>
          )}
        </div>
      )}
    </>
  )
}

function Audit(): JSX.Element {
  const { value, error } = useLoaded<{ entries: AuditEntry[] }>('audit')
  return (
    <>
      <Failure error={error} />
      {value?.entries.length === 0 && <p>Nothing was changed from the tailnet yet.</p>}
      {value !== undefined && value.entries.length > 0 && (
        <div class="wide" tabIndex={0} role="region" aria-label="Changes">
          <table>
            <thead>
              <tr>
                <th scope="col">When</th>
                <th scope="col">Who</th>
                <th scope="col">What</th>
                <th scope="col">Detail</th>
              </tr>
            </thead>
            <tbody>
              {value.entries.map(({ at, who, what, detail }) => (
                <tr>
                  <td>{local(at)}</td>
                  <td>{who}</td>
                  <td>{what}</td>
                  <td>{detailOf(detail)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  )
}

function detailOf(detail: unknown): string {
  if (detail === undefined || detail === null) return ''
  return typeof detail === 'string' ? detail : JSON.stringify(detail)
}
