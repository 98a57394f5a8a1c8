import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { get, post } from '../api.ts'
import type { GatewayStatus, Tested } from '../api.ts'
import { Card, Failure, Outcome, Twice, useLoaded, useWork } from '../parts.tsx'
import { local } from '../time.ts'

/** The device as a whole: restart, power off, factory reset. */
export function DevicePage(): JSX.Element {
  const { value: status, error } = useLoaded<GatewayStatus>('status')
  const work = useWork()
  const name = (status?.tailnet.name ?? '').split('.', 1)[0]!
  return (
    <>
      <Failure error={error} />
      <Card title="Restart">
        <p>
          {status === undefined
            ? '…'
            : `${status.tailnet.name ?? 'The device'} serves since ${local(status.startedAt)}.`}{' '}
          A restart takes about a minute.
        </p>
        <div class="row">
          <Twice
            label="Restart"
            question="Flows stop, and everybody is disconnected."
            disabled={work.busy || status === undefined}
            onSure={() => {
              work.run(async () => {
                await post('device/restart')
                return await returned(status!.startedAt)
              })
            }}
          />
          <Twice
            label="Power off"
            question="It comes back only when its power is taken away and given again."
            disabled={work.busy}
            onSure={() => {
              work.run(async () => {
                await post('device/power-off')
                return 'The device is switched off. To start it, take its power away and give it again.'
              })
            }}
          />
        </div>
        <Outcome work={work} busy="Under way. This page tells when the device is back…" />
      </Card>
      <Card title="Alerts">
        <Alerts />
      </Card>
      <Card title="Support bundle">
        <p>
          How the device is and was, for somebody who helps: status, checks, settings, log. Secrets
          are not in it; names and addresses are.
        </p>
        <p>
          <a href="/api/v1/support" download>
            Download it
          </a>
        </p>
      </Card>
      <Card title="Factory reset">
        <Reset name={name} />
      </Card>
    </>
  )
}

function Alerts(): JSX.Element {
  const work = useWork()
  return (
    <>
      <p>
        A problem that lasts can be told to a webhook and to ntfy, with what to do about it, and
        once more when it is over: <code>[alerts]</code> on the page{' '}
        <a href="#/settings">Settings</a>.
      </p>
      <button
        type="button"
        disabled={work.busy}
        onClick={() => {
          work.run(async () => {
            const { results } = await post<Tested>('alerts/test')
            return results.map(({ channel, said }) => `By ${channel}: ${said}.`).join(' ')
          })
        }}
      >
        Send one to try
      </button>
      <Outcome work={work} busy="Sending…" />
    </>
  )
}

function Reset({ name }: { name: string }): JSX.Element {
  const [typed, setTyped] = useState('')
  const work = useWork()
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault()
        work.run(async () => {
          await post('device/reset', { name: typed })
          return (
            'The device forgets everything and starts as new. It joins the tailnet again with ' +
            'what is in gatehouse.toml, or with a login.'
          )
        })
      }}
    >
      <p>
        Flows, credentials, certificates and the device's identity are deleted for good.
        gatehouse.toml on the card stays. <a href="#/backup">Download a backup</a> first.
      </p>
      <div class="row fields">
        <label>
          Type the device's name{name === '' ? '' : `, ${name}`}
          <input
            required
            value={typed}
            autocomplete="off"
            autocapitalize="none"
            spellcheck={false}
            onInput={(event) => {
              setTyped(event.currentTarget.value)
            }}
          />
        </label>
        <button class="danger" disabled={work.busy || name === '' || typed !== name}>
          Delete everything
        </button>
      </div>
      <Outcome work={work} busy="…" />
    </form>
  )
}

/** Waits until the gateway that answers is another than before. */
async function returned(before: string): Promise<string> {
  for (const end = Date.now() + 5 * 60_000; Date.now() < end;) {
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    const status = await get<GatewayStatus>('status', 4_000).catch(() => undefined)
    if (status !== undefined && status.startedAt !== before) return 'The device is back.'
  }
  return 'The device has not answered for five minutes: look at its screen, or at gatehouse-status.txt on its card.'
}
