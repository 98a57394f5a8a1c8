import type { JSX } from 'preact'
import { post } from '../api.ts'
import type { GatewayStatus, Update } from '../api.ts'
import { Card, Failure, Outcome, sentence, useLoaded, useWork } from '../parts.tsx'

/** What runs, what the last update came to, and a look for a new one. */
export function UpdatesPage(): JSX.Element {
  const status = useLoaded<GatewayStatus>('status')
  const { value, error, again } = useLoaded<Update>('update', 10_000)
  const work = useWork()
  const attempt = value?.attempt ?? undefined
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
        {attempt !== undefined && (
          <div class={`box ${attempt.failed ? 'bad' : ''}`}>
            <p>
              {attempt.source}: {sentence(attempt.text)}
            </p>
          </div>
        )}
        <button
          type="button"
          class="main"
          disabled={work.busy}
          onClick={() => {
            work.run(async () => {
              const { attempt: outcome } = await post<Update>('update/check', {}, 0)
              await again()
              return outcome === undefined || outcome === null
                ? 'The device has looked. What it found is installed now, and tried with a restart.'
                : undefined
            })
          }}
        >
          Look for an update and install it
        </button>
        <Outcome work={work} busy="Looking, and loading what is offered. This may take minutes…" />
        <p>
          An update goes beside the system that runs. It is tried with a restart, and the device
          goes back by itself to the version before when the new one does not serve.
        </p>
      </Card>
    </>
  )
}
