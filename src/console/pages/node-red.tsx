import type { JSX } from 'preact'
import { get, post } from '../api.ts'
import type { Device, GatewayStatus, ShownRefusal, ShownSettings } from '../api.ts'
import { keepDraft } from '../draft.ts'
import { withWord } from '../form.ts'
import { LogView } from '../log-view.tsx'
import { Card, Failure, Outcome, Twice, useLoaded, useWork } from '../parts.tsx'
import { local } from '../time.ts'

/** Words of [node_red] devices. */
const granted = new Set(['serial', 'gpio', 'i2c', 'spi', '1-wire', 'camera', 'bluetooth'])

/** Node-RED: its state, its log, and what is plugged in. */
export function NodeRedPage(): JSX.Element {
  const status = useLoaded<GatewayStatus>('status', 5_000)
  const work = useWork()
  const upstream = status.value?.upstream
  const editor = status.value?.urls?.editor
  return (
    <>
      <Failure error={status.error} />
      <Card title="State">
        <p>
          {upstream === undefined
            ? '…'
            : `Node-RED is ${upstream.state}, since ${local(upstream.since)}.`}{' '}
          {editor !== undefined && <a href={editor}>Open the editor</a>}
        </p>
        <Twice
          label="Restart Node-RED"
          question="Flows stop for some seconds."
          disabled={work.busy}
          onSure={() => {
            work.run(async () => {
              await post('node-red/restart')
              await status.again()
              return 'Node-RED was restarted.'
            })
          }}
        />
        <Outcome work={work} busy="Node-RED is restarting…" />
      </Card>
      <Card title="What is plugged in">
        <Devices />
      </Card>
      <Card title="What it was not allowed to reach">
        <Refusals />
      </Card>
      <Card title="Log">
        <LogView units={['node-red']} />
      </Card>
    </>
  )
}

function Devices(): JSX.Element {
  const { value, error, again } = useLoaded<{ devices: Device[] }>('devices')
  const work = useWork()
  return (
    <>
      <Failure error={error} />
      <p>
        Flows may use what <code>[node_red] devices</code> in gatehouse.toml names. <em>Allow</em>{' '}
        prepares that change; it is tried on the page Settings.
      </p>
      {value?.devices.length === 0 && <p>Nothing that flows could use is plugged in.</p>}
      {value !== undefined && value.devices.length > 0 && (
        <div class="wide" tabIndex={0} role="region" aria-label="Devices">
          <table>
            <thead>
              <tr>
                <th scope="col">Kind</th>
                <th scope="col">Path for flows</th>
                <th scope="col">What it is</th>
                <th scope="col">Allow</th>
              </tr>
            </thead>
            <tbody>
              {value.devices.map(({ kind, path, label }) => (
                <tr>
                  <td>{kind}</td>
                  <th scope="row">
                    <code>{path}</code>
                  </th>
                  <td>{label}</td>
                  <td>
                    {granted.has(kind) ? (
                      <Allow work={work} list="devices" word={kind} what={`${kind}, ${path}`} />
                    ) : (
                      'always'
                    )}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <button
        type="button"
        onClick={() => {
          void again()
        }}
      >
        Look again
      </button>
      <Failure error={work.error} />
    </>
  )
}

/** Puts a word into a list of [node_red] in the draft, and goes to where it is tried. */
function Allow({
  work,
  list,
  word,
  what,
}: {
  work: ReturnType<typeof useWork>
  list: 'devices' | 'allow'
  word: string
  what: string
}): JSX.Element {
  return (
    <button
      type="button"
      aria-label={`Allow ${what}`}
      disabled={work.busy}
      onClick={() => {
        work.run(async () => {
          const { text, digest } = await get<ShownSettings>('settings')
          keepDraft({ text: withWord(text, 'node_red', list, word), digest })
          location.hash = '#/settings'
          return undefined
        })
      }}
    >
      Allow
    </button>
  )
}

function Refusals(): JSX.Element {
  const { value, error, again } = useLoaded<{ refused: ShownRefusal[]; learning?: string }>(
    'refused',
    15_000,
  )
  const work = useWork()
  return (
    <>
      <Failure error={error} />
      <p>
        Flows may reach what <code>[node_red] allow</code> in gatehouse.toml names, and nothing
        else. <em>Allow</em> prepares that change; it is tried on the page Settings. <em>Learn</em>{' '}
        finds names with their ports, too, for ten minutes: nothing is let through meanwhile. Where
        the list is empty, Node-RED is restarted for it, and once more at the end: without a list it
        has no network, and nothing is refused.
      </p>
      {value?.refused.length === 0 && <p>Nothing since the device was started.</p>}
      {value !== undefined && value.refused.length > 0 && (
        <div class="wide" tabIndex={0} role="region" aria-label="Refused">
          <table>
            <thead>
              <tr>
                <th scope="col">Where to</th>
                <th scope="col">Last</th>
                <th scope="col">Noted</th>
                <th scope="col">Allow</th>
              </tr>
            </thead>
            <tbody>
              {value.refused.map(({ host, address, port, protocol, times, last, entry }) => (
                <tr>
                  <th scope="row">
                    <code>{entry ?? (port === undefined ? host : `${host} port ${port}`)}</code>
                    {host !== address && ` (${address})`}{' '}
                    {protocol === 'icmp' ? 'ping' : protocol.toUpperCase()}
                  </th>
                  <td>{local(last)}</td>
                  <td>{times === 1 ? 'once' : `${times} times`}</td>
                  <td>
                    {entry === undefined ? (
                      'never: it is this device, the tailnet or the link'
                    ) : (
                      <Allow work={work} list="allow" word={entry} what={entry} />
                    )}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <button
        type="button"
        onClick={() => {
          void again()
        }}
      >
        Look for refusals again
      </button>{' '}
      {value?.learning === undefined ? (
        <Twice
          label="Learn"
          question="For ten minutes what flows want is written down. Node-RED may be restarted."
          disabled={work.busy}
          onSure={() => {
            work.run(async () => {
              await post('learn')
              await again()
              return undefined
            })
          }}
        />
      ) : (
        <p role="status">Learning until {local(value.learning)}.</p>
      )}
      <Failure error={work.error} />
    </>
  )
}
