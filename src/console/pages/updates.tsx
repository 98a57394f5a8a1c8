import type { JSX } from 'preact'
import { post } from '../api.ts'
import type { GatewayStatus, Update } from '../api.ts'
import { Card, Failure, Outcome, Twice, sentence, useLoaded, useWork } from '../parts.tsx'

/** What runs, what is offered with its changes, and the version before. */
export function UpdatesPage(): JSX.Element {
  const status = useLoaded<GatewayStatus>('status')
  const { value, error, again } = useLoaded<Update>('update', 10_000)
  const look = useWork()
  const install = useWork()
  const back = useWork()
  const attempt = value?.attempt ?? undefined
  const { offered, before } = value ?? {}
  const busy = look.busy || install.busy || back.busy
  return (
    <>
      <Failure error={error ?? status.error} />
      <Card title="Version">
        <dl>
          <dt>Running</dt>
          <dd>{status.value?.version ?? '…'}</dd>
          <dt>Last update</dt>
          <dd>{value?.last?.text ?? 'none yet'}</dd>
        </dl>
        <Changes of="the version that runs" lines={value?.changes ?? []} />
        {attempt !== undefined && (
          <div class={`box ${attempt.failed ? 'bad' : ''}`}>
            <p>
              {attempt.source}: {sentence(attempt.text)}
            </p>
          </div>
        )}
      </Card>
      <Card title="A newer version">
        <button
          type="button"
          class={offered === undefined ? 'main' : ''}
          disabled={busy}
          onClick={() => {
            look.run(async () => {
              const found = await post<Update>('update/look', {}, 0)
              await again()
              if (found.offered !== undefined || found.attempt?.failed === true) return undefined
              return 'The device has looked: nothing newer is offered.'
            })
          }}
        >
          Look for an update
        </button>
        <Outcome work={look} busy="Looking…" />
        {offered !== undefined && (
          <>
            <p>
              <strong>{offered.version}</strong> is offered.
            </p>
            <Changes of={offered.version} lines={offered.changes} open />
            <button
              type="button"
              class="main"
              disabled={busy}
              onClick={() => {
                install.run(async () => {
                  const { attempt: outcome } = await post<Update>('update/check', {}, 0)
                  await again()
                  return outcome === undefined || outcome === null
                    ? 'It is installed now, and tried with a restart.'
                    : undefined
                })
              }}
            >
              Install {offered.version}
            </button>
          </>
        )}
        <Outcome work={install} busy="Loading what is offered. This may take minutes…" />
        <p>
          An update goes beside the system that runs. It is tried with a restart, and the device
          goes back by itself to the version before when the new one does not serve.
        </p>
        <p>
          <a href="/console/third-party.txt">Licences of what this is made of</a>
        </p>
      </Card>
      {before !== undefined && (
        <Card title="The version before">
          <p>
            {before} is still on the card, for 30 days after an update. It may have holes that the
            newer version has closed. Flows and settings stay.
          </p>
          <Twice
            label={`Go back to ${before}`}
            question="The device restarts. Go back?"
            disabled={busy}
            onSure={() => {
              back.run(async () => {
                const { version } = await post<{ version: string }>('update/back')
                return `The device starts ${version}, which takes about a minute.`
              })
            }}
          />
          <Outcome work={back} busy="Going back…" />
        </Card>
      )}
    </>
  )
}

/** What a version changes, where it says so; advisories that it closes are among the lines. */
function Changes({
  of,
  lines,
  open = false,
}: {
  of: string
  lines: readonly string[]
  open?: boolean
}): JSX.Element | null {
  if (lines.length === 0) return null
  return (
    <details open={open}>
      <summary>What {of} changes</summary>
      <ul>
        {lines.map((line) => (
          <li>{line}</li>
        ))}
      </ul>
    </details>
  )
}
