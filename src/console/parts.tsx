import type { ComponentChildren, JSX } from 'preact'
import { useCallback, useEffect, useRef, useState } from 'preact/hooks'
import { ApiError, get } from './api.ts'

/** Any failure as one that can be shown. */
export function errorOf(err: unknown): ApiError {
  if (err instanceof ApiError) return err
  const { code, cure } = err as { code?: string; cure?: string }
  return new ApiError(
    0,
    code ?? 'GH_CONSOLE',
    err instanceof Error ? err.message : String(err),
    cure ?? 'Load the page again',
  )
}

/** Pages by the words that cures name them with. */
const places: Record<string, string> = {
  'gatehouse.toml': 'settings',
  'page Overview': '',
  'page Device': 'device',
  'page Backup': 'backup',
  'page Logs': 'logs',
  'page Settings': 'settings',
  'page Updates': 'updates',
  'page Node-RED': 'node-red',
}

/** What to do about something, with links to where it is done. */
export function Cure({ text }: { text: string }): JSX.Element {
  const parts = text.split(/(gatehouse\.toml|page [A-Z][\w-]+|https:\/\/[^\s),]+[^\s),.])/)
  return (
    <span class="cure">
      {parts.map((part) => {
        const place = places[part]
        if (place !== undefined) return <a href={`#/${place}`}>{part}</a>
        if (!part.startsWith('https://')) return part
        return (
          <a href={part} rel="noreferrer" target="_blank">
            {part}
          </a>
        )
      })}
    </span>
  )
}

/** An error with its cure; read out when it appears. */
export function Failure({ error }: { error: ApiError | undefined }): JSX.Element {
  return (
    <div role="alert">
      {error !== undefined && (
        <div class="box bad">
          <p>
            <strong>{sentence(error.message)}</strong>
          </p>
          <p>
            <Cure text={sentence(error.cure)} /> <small>{error.code}</small>
          </p>
          {error.lines !== undefined && (
            <pre tabIndex={0} role="region" aria-label="Lines to copy">
              {error.lines}
            </pre>
          )}
        </div>
      )}
    </div>
  )
}

/** With a capital at its beginning and a full stop at its end. */
export function sentence(text: string): string {
  const whole = /[.!?]$/.test(text) ? text : `${text}.`
  // Names of keys and files stay as they are written.
  return /^[a-z]+[\s,]/.test(whole) ? whole[0]!.toUpperCase() + whole.slice(1) : whole
}

/** A part of a page with a heading. */
export function Card({
  title,
  kind = '',
  children,
}: {
  title: string
  kind?: string
  children: ComponentChildren
}): JSX.Element {
  return (
    <section class={`card ${kind}`}>
      <h2>{title}</h2>
      {children}
    </section>
  )
}

/** What was loaded, what went wrong, and how to load it again. */
export interface Loaded<T> {
  value: T | undefined
  error: ApiError | undefined
  again: () => Promise<void>
}

/** Loads from the API when the page opens, and every so many milliseconds. */
export function useLoaded<T>(path: string, every = 0): Loaded<T> {
  const [value, setValue] = useState<T>()
  const [error, setError] = useState<ApiError>()
  const again = useCallback(async (): Promise<void> => {
    try {
      setValue(await get<T>(path))
      setError(undefined)
    } catch (err) {
      setError(errorOf(err))
    }
  }, [path])
  useEffect(() => {
    void again()
    if (every === 0) return undefined
    const timer = setInterval(() => {
      if (!document.hidden) void again()
    }, every)
    return () => {
      clearInterval(timer)
    }
  }, [again, every])
  return { value, error, again }
}

/** Work that a button starts: whether it goes on, and how it ended. */
export interface Work {
  busy: boolean
  error: ApiError | undefined
  /** Said when it has ended well. */
  done: string
  run: (work: () => Promise<string | undefined>) => void
}

/** One piece of work at a time. */
export function useWork(): Work {
  const [state, setState] = useState<Omit<Work, 'run'>>({ busy: false, error: undefined, done: '' })
  const run = (work: () => Promise<string | undefined>): void => {
    setState({ busy: true, error: undefined, done: '' })
    work().then(
      (done) => {
        setState({ busy: false, error: undefined, done: done ?? '' })
      },
      (err: unknown) => {
        setState({ busy: false, error: errorOf(err), done: '' })
      },
    )
  }
  return { ...state, run }
}

/** How work goes: read out, and shown. */
export function Outcome({ work, busy }: { work: Work; busy: string }): JSX.Element {
  return (
    <>
      <p role="status" class="outcome">
        {work.busy ? busy : work.done}
      </p>
      <Failure error={work.error} />
    </>
  )
}

/** A button that asks once more before it does what is not undone. */
export function Twice({
  label,
  question,
  disabled = false,
  onSure,
}: {
  label: string
  question: string
  disabled?: boolean
  onSure: () => void
}): JSX.Element {
  const [asked, setAsked] = useState(false)
  const sure = useRef<HTMLButtonElement>(null)
  useEffect(() => {
    if (asked) sure.current?.focus()
  }, [asked])
  if (!asked)
    return (
      <button
        type="button"
        disabled={disabled}
        onClick={() => {
          setAsked(true)
        }}
      >
        {label}
      </button>
    )
  return (
    <span class="row" role="group" aria-label={question}>
      <span>{question}</span>
      <button
        type="button"
        class="danger"
        ref={sure}
        onClick={() => {
          setAsked(false)
          onSure()
        }}
      >
        Yes, {label.toLowerCase()}
      </button>
      <button
        type="button"
        onClick={() => {
          setAsked(false)
        }}
      >
        No
      </button>
    </span>
  )
}

/** Gives the browser a file to keep. */
export function download(name: string, content: Blob): void {
  const url = URL.createObjectURL(content)
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  setTimeout(() => {
    URL.revokeObjectURL(url)
  }, 60_000)
}

/** `2026-11-26-1640`, for names of files. */
export function stamp(): string {
  return new Date().toISOString().slice(0, 16).replace('T', '-').replace(':', '')
}
