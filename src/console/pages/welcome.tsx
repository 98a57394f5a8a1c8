import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { get, post } from '../api.ts'
import type { GatewayStatus, ShownSettings } from '../api.ts'
import { keepDraft } from '../draft.ts'
import { setKey, withWord, written } from '../form.ts'
import { Card, Failure, Outcome, useLoaded, useWork } from '../parts.tsx'

const steps = ['Name and time', 'Nodes', 'Backups'] as const

/** Time zones that the browser knows; none where it is too old to say. */
const zones = (): string[] => ['UTC', ...(Intl.supportedValuesOf?.('timeZone') ?? [])]

const here = Intl.DateTimeFormat().resolvedOptions().timeZone

/**
 * What a new device needs to know, in three screens that may all be skipped. What is chosen becomes
 * one change of settings, shown and tried on the page Settings as any other.
 */
export function WelcomePage({ onDone }: { onDone: () => void }): JSX.Element {
  const [step, setStep] = useState(0)
  const [zone, setZone] = useState(here)
  const [palette, setPalette] = useState(true)
  const [prebuilt, setPrebuilt] = useState(false)
  const [recipient, setRecipient] = useState('')
  const [to, setTo] = useState('')
  /** Steps whose answers count. */
  const [taken, setTaken] = useState<ReadonlySet<number>>(new Set())
  const status = useLoaded<GatewayStatus>('status')
  const work = useWork()

  const finish = (answered: ReadonlySet<number>): void => {
    work.run(async () => {
      const { text: before, digest } = await get<ShownSettings>('settings')
      let text = before
      if (answered.has(0) && zone !== 'UTC')
        text = setKey(text, 'node_red', 'timezone', written(zone, 'text'))
      if (answered.has(1) && palette) text = withWord(text, 'node_red', 'allow', 'palette')
      if (answered.has(1) && palette && prebuilt)
        text = withWord(text, 'node_red', 'allow', 'prebuilt')
      if (answered.has(2) && recipient.trim() !== '' && to.trim() !== '') {
        text = setKey(text, 'backup', 'recipient', written(recipient.trim(), 'text'))
        text = setKey(text, 'backup', 'to', written(to.trim(), 'text'))
      }
      await post('welcome/done')
      if (text !== before) {
        keepDraft({ text, digest })
        location.hash = '#/settings'
      }
      onDone()
      return undefined
    })
  }
  const go = (takes: boolean): void => {
    const next = takes ? new Set([...taken, step]) : taken
    setTaken(next)
    if (step < steps.length - 1) setStep(step + 1)
    else finish(next)
  }
  const { name } = status.value?.tailnet ?? {}
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault()
        go(true)
      }}
    >
      <p>
        The device is yours. Three questions, all of which may be skipped; everything is on the page
        Settings later, too.
      </p>
      <Failure error={status.error} />
      <Card title={`${step + 1} of ${steps.length}: ${steps[step]}`}>
        {step === 0 && (
          <>
            <p>
              This is <strong>{name ?? '…'}</strong>. To give it another name, rename it in the
              tailnet's admin console (Machines, this device, Edit machine name); its certificate
              follows within minutes.
            </p>
            <label>
              Time zone of flows and of Node-RED's log
              <select
                value={zone}
                onChange={(event) => {
                  setZone(event.currentTarget.value)
                }}
              >
                {[...new Set([here, ...zones()])].map((one) => (
                  <option value={one}>{one}</option>
                ))}
              </select>
            </label>
          </>
        )}
        {step === 1 && (
          <>
            <label class="check">
              <input
                type="checkbox"
                checked={palette}
                onChange={(event) => {
                  setPalette(event.currentTarget.checked)
                }}
              />
              Nodes may be installed in the editor, from npm's registry
            </label>
            <label class="check">
              <input
                type="checkbox"
                checked={prebuilt}
                disabled={!palette}
                onChange={(event) => {
                  setPrebuilt(event.currentTarget.checked)
                }}
              />
              Also what their makers have compiled, from GitHub (serial port, SQLite)
            </label>
            <p>
              Flows reach nothing else until you allow it. What is allowed to one flow is allowed to
              all; a flow could send what it knows there.
            </p>
          </>
        )}
        {step === 2 && (
          <>
            <p>
              Each night, encrypted so that only you can read it, kept by another device of the
              tailnet. Make a key with <code>age-keygen</code>, and keep its secret part elsewhere.
              The device's screen shows a code for this change.
            </p>
            <label>
              Public key
              <input
                value={recipient}
                placeholder="age1…"
                autocomplete="off"
                onInput={(event) => {
                  setRecipient(event.currentTarget.value)
                }}
              />
            </label>
            <label>
              Folder that takes PUT
              <input
                value={to}
                placeholder="http://nas.tail1234.ts.net:8080/gatehouse/"
                autocomplete="off"
                onInput={(event) => {
                  setTo(event.currentTarget.value)
                }}
              />
            </label>
          </>
        )}
        <div class="row">
          <button class="main" disabled={work.busy}>
            {step < steps.length - 1 ? 'Next' : 'Show the change'}
          </button>
          <button
            type="button"
            disabled={work.busy}
            onClick={() => {
              go(false)
            }}
          >
            Skip
          </button>
          <button
            type="button"
            disabled={work.busy}
            onClick={() => {
              finish(new Set())
            }}
          >
            Skip all
          </button>
        </div>
        <Outcome work={work} busy="One moment…" />
      </Card>
    </form>
  )
}
