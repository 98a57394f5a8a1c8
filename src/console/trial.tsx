import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { deviceNow, get, post } from './api.ts'
import type { ApiError, ShownSettings, Trial as OnTrial } from './api.ts'
import { Differences } from './differences.tsx'
import { Failure, errorOf } from './parts.tsx'

/** Tells {@link Trial}, wherever it is, that a change is on trial now. */
export function announce(trial: OnTrial): void {
  dispatchEvent(new CustomEvent('gatehouse-trial', { detail: trial }))
}

/** Said on the page when a trial has ended: what is in force must be loaded again. */
export const ended = 'gatehouse-trial-ended'

/**
 * The change on trial, on top of every page: how long it has, whether the device can be reached
 * with it, and the two buttons. That the page still reaches the device is what the trial is for.
 */
export function Trial({ first }: { first: OnTrial | undefined }): JSX.Element {
  const [trial, setTrial] = useState<OnTrial>()
  const [left, setLeft] = useState(0)
  const [reached, setReached] = useState<boolean>()
  const [busy, setBusy] = useState(false)
  const [said, setSaid] = useState('')
  const [error, setError] = useState<ApiError>()
  // Once somebody has decided here, that the trial is over is no news.
  const decided = useRef(false)

  useEffect(() => {
    if (first !== undefined) setTrial(first)
  }, [first])
  useEffect(() => {
    const begin = (event: Event): void => {
      setTrial((event as CustomEvent<OnTrial>).detail)
      setSaid('')
      setError(undefined)
      setReached(undefined)
    }
    // How one ended is no news on the next page.
    const forget = (): void => {
      setSaid('')
    }
    addEventListener('gatehouse-trial', begin)
    addEventListener('hashchange', forget)
    return () => {
      removeEventListener('gatehouse-trial', begin)
      removeEventListener('hashchange', forget)
    }
  }, [])

  const end = (how: string): void => {
    setTrial(undefined)
    setSaid(how)
    dispatchEvent(new Event(ended))
  }
  const id = trial?.id
  useEffect(() => {
    if (trial === undefined) return undefined
    decided.current = false
    const count = (): void => {
      setLeft(Math.max(0, Math.ceil((Date.parse(trial.until) - deviceNow()) / 1000)))
    }
    count()
    const ticking = setInterval(count, 500)
    const looking = setInterval(() => {
      get<ShownSettings>('settings', 3_000).then(
        (settings) => {
          setReached(true)
          if (settings.trial?.id !== trial.id && !decided.current)
            end('The change is over: the settings are loaded again.')
        },
        (err: unknown) => {
          // An answer, whatever it says, is one.
          setReached(errorOf(err).status !== 0)
        },
      )
    }, 2_000)
    return () => {
      clearInterval(ticking)
      clearInterval(looking)
    }
  }, [id])

  const decide = (verb: 'confirm' | 'revert'): void => {
    decided.current = true
    setBusy(true)
    setError(undefined)
    post(`settings/${verb}`, { id })
      .then(
        () => {
          end(
            verb === 'confirm'
              ? 'The change is kept.'
              : 'The change is taken back: the settings before are in force.',
          )
        },
        (err: unknown) => {
          decided.current = false
          setError(errorOf(err))
        },
      )
      .finally(() => {
        setBusy(false)
      })
  }
  return (
    <div class="trial">
      <p role="status" class="outcome">
        {said}
      </p>
      {trial !== undefined && (
        <section class="box warn" aria-label="A change on trial">
          <h2>A change is on trial</h2>
          <p>
            It is taken back in <strong>{left} s</strong> unless {trial.by} confirms it.{' '}
            <span role="status">{answering(reached)}</span>
          </p>
          <progress max={60} value={left} aria-label="Time that is left" />
          <Differences changes={trial.changes} />
          <div class="row">
            <button
              type="button"
              class="main"
              disabled={busy}
              onClick={() => {
                decide('confirm')
              }}
            >
              Confirm
            </button>
            <button
              type="button"
              disabled={busy}
              onClick={() => {
                decide('revert')
              }}
            >
              Take back
            </button>
          </div>
          <Failure error={error} />
        </section>
      )}
    </div>
  )
}

function answering(reached: boolean | undefined): string {
  if (reached === undefined) return ''
  return reached
    ? 'The device answers with it.'
    : 'The device does not answer now. If it stays so, the change is taken back by itself.'
}
