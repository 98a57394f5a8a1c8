import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import type { GatewayStatus, Me, Renewed, Shown } from '../api.ts'
import { deviceNow, post } from '../api.ts'
import { BoardFigures } from '../figures.tsx'
import { Card, Cure, Failure, Outcome, sentence, useLoaded, useWork } from '../parts.tsx'
import { ago, local, until } from '../time.ts'

const day = 86_400_000

/** How the device is: one sentence, what is wrong with its cure, and the parts. */
export function OverviewPage(): JSX.Element {
  const { value: status, error } = useLoaded<GatewayStatus>('status', 5_000)
  const { value: figures } = useLoaded<Shown>('figures', 60_000)
  return (
    <>
      <Failure error={error} />
      {status !== undefined && <Overview status={status} figures={figures} />}
    </>
  )
}

function Overview({
  status,
  figures,
}: {
  status: GatewayStatus
  figures: Shown | undefined
}): JSX.Element {
  const { tailnet, certificate, upstream, problems } = status
  return (
    <>
      <p class={`box ${status.ok ? 'good' : 'warn'} one`}>{summary(status)}</p>
      {problems.length > 0 && (
        <ul class="plain" aria-label="Problems">
          {problems.map(({ message, cure, code, since, severity }) => (
            <li class={`box ${severity === 'error' ? 'bad' : 'warn'}`}>
              <p>
                <strong>{sentence(message)}</strong>
              </p>
              <p>
                <Cure text={sentence(cure)} />{' '}
                <small>
                  {code}, {ago(since)}
                </small>
              </p>
            </li>
          ))}
        </ul>
      )}
      {tailnet.loginURL !== undefined && (
        <p class="box warn">
          The device waits for a login: <a href={tailnet.loginURL}>{tailnet.loginURL}</a>
        </p>
      )}
      <div class="cards">
        <Card title="Addresses">
          <dl>
            <dt>Editor</dt>
            <dd>
              <Address url={status.urls?.editor ?? status.url} />
            </dd>
            <dt>What flows serve</dt>
            <dd>
              <Address url={status.urls?.flows} />
            </dd>
            <dt>On the tailnet</dt>
            <dd>{tailnet.addresses.join(', ') || 'none yet'}</dd>
          </dl>
        </Card>
        <Card title="Tailnet">
          <dl>
            <dt>State</dt>
            <dd>{tailnet.state}</dd>
            <dt>Tags</dt>
            <dd>{tailnet.tags.join(', ') || 'none'}</dd>
            <dt>Key of the device</dt>
            <dd>
              <KeyExpiry at={tailnet.keyExpiry} owner={status.access.owner} />
            </dd>
          </dl>
          {tailnet.health.map((text) => (
            <p>{sentence(text)}</p>
          ))}
        </Card>
        <Card title="Certificates">
          {certificate.names.length === 0 && <p>There is no name yet.</p>}
          <dl>
            {certificate.names.map(({ name, notAfter, issuer, renewAt, problem }) => (
              <>
                <dt>{name}</dt>
                <dd>
                  {notAfter === undefined
                    ? 'none yet'
                    : `ends ${until(notAfter)}, by ${issuer ?? 'an unknown authority'}`}
                  {renewAt !== undefined && `; renewed ${until(renewAt)}`}
                  {problem !== undefined && <p>{sentence(problem)}</p>}
                </dd>
              </>
            ))}
          </dl>
        </Card>
        {figures !== undefined && (
          <Card title="Board">
            <BoardFigures figures={figures} />
          </Card>
        )}
        <Card title="Parts">
          <dl>
            <dt>Node-RED</dt>
            <dd>
              {upstream.state}, since {local(upstream.since)}
            </dd>
            <dt>Gateway</dt>
            <dd>
              {status.version}, since {local(status.startedAt)}
            </dd>
            {status.services.map(({ service, name, problem }) => (
              <>
                <dt>{service}</dt>
                <dd>{problem?.message ?? name ?? 'not advertised yet'}</dd>
              </>
            ))}
          </dl>
        </Card>
      </div>
      <Card title="Peers">
        <Peers peers={tailnet.peers} />
      </Card>
    </>
  )
}

function summary({ ok, problems, tailnet, urls, upstream }: GatewayStatus): string {
  if (!ok)
    return problems.length === 1
      ? 'One thing needs attention.'
      : `${problems.length} things need attention.`
  if (upstream.state !== 'up') return 'The gateway is well, and Node-RED is starting.'
  const relayed = tailnet.peers.filter(({ path }) => path === 'relay').length
  return `All is well: the editor is at ${urls?.editor ?? tailnet.name ?? 'no address yet'}${
    relayed === 0 ? '' : `; ${relayed} of its connections go through a relay`
  }.`
}

function Address({ url }: { url: string | undefined }): JSX.Element {
  return url === undefined ? <>none yet</> : <a href={url}>{url}</a>
}

/** When the device's key ends, and near its end what its owner does about it. */
function KeyExpiry({
  at,
  owner,
}: {
  at: string | undefined
  owner: string | undefined
}): JSX.Element {
  const me = useLoaded<Me>('me').value
  const [url, setUrl] = useState<{ url: string; of: string }>()
  const work = useWork()
  if (at === undefined) return <>does not end</>
  const near = Date.parse(at) - deviceNow() <= 30 * day
  return (
    <>
      {near ? <strong>ends {until(at)}</strong> : <>ends {until(at)}</>}
      {me !== undefined && me.who === owner && me.rights.includes('manage') && (
        <p>
          <button
            type="button"
            class={near ? 'main' : ''}
            disabled={work.busy}
            onClick={() => {
              work.run(async () => {
                const { loginURL } = await post<Renewed>('tailnet/renew')
                setUrl(loginURL === undefined ? undefined : { url: loginURL, of: at })
                return loginURL === undefined ? 'The key is renewed.' : undefined
              })
            }}
          >
            Renew now
          </button>
        </p>
      )}
      {url?.of === at && (
        <p class="box">
          <a href={url.url} rel="noreferrer" target="_blank">
            Log in to renew it
          </a>
          , as {owner}: whoever logs in there owns the device. It stays reachable meanwhile.
        </p>
      )}
      {url !== undefined && url.of !== at && <p role="status">The key is renewed.</p>}
      <Outcome work={work} busy="Asking the control server…" />
    </>
  )
}

const paths = {
  direct: 'direct',
  relay: 'through a relay, which is slower',
  idle: 'no connection now',
} as const

function Peers({ peers }: { peers: GatewayStatus['tailnet']['peers'] }): JSX.Element {
  if (peers.length === 0) return <p>No other device of the tailnet may reach this one.</p>
  return (
    <div class="wide" tabIndex={0} role="region" aria-label="Peers">
      <table>
        <thead>
          <tr>
            <th scope="col">Device</th>
            <th scope="col">State</th>
            <th scope="col">Path</th>
          </tr>
        </thead>
        <tbody>
          {peers.map(({ name, online, path, via }) => (
            <tr>
              <th scope="row">{name}</th>
              <td>{online ? 'online' : 'offline'}</td>
              <td>
                {paths[path]}
                {via !== undefined && ` (${via})`}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}
