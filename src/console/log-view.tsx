import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { lines } from './api.ts'
import type { ApiError, JournalLine } from './api.ts'
import { Failure, download, errorOf, stamp } from './parts.tsx'

/** Lines that are kept; the oldest go first. */
const most = 2_000

/** Severities as syslog counts them (RFC 5424 §6.2.1), for people. */
const levels: Array<[priority: number, label: string]> = [
  [3, 'Errors'],
  [4, 'Warnings and errors'],
  [6, 'All'],
  [7, 'All, with debugging'],
]

const nameOf = (priority: number): string =>
  ['emergency', 'alert', 'critical', 'error', 'warning', 'notice', 'info', 'debug'][priority] ?? ''

const asText = ({ at, unit, priority, text }: JournalLine): string =>
  `${at} ${unit} ${nameOf(priority)}: ${text}`

/** The journal, live: of one unit or of those there are to choose from. */
export function LogView({ units }: { units: readonly string[] }): JSX.Element {
  const [unit, setUnit] = useState(units.length === 1 ? units[0]! : '')
  const [priority, setPriority] = useState(6)
  const [search, setSearch] = useState('')
  const [live, setLive] = useState(true)
  const [all, setAll] = useState<JournalLine[]>([])
  const [error, setError] = useState<ApiError>()
  const box = useRef<HTMLDivElement>(null)
  const atEnd = useRef(true)

  useEffect(() => {
    if (!live) return undefined
    const abort = new AbortController()
    // What comes in one turn is shown in one.
    let waiting: JournalLine[] = []
    const timer = setInterval(() => {
      if (waiting.length === 0) return
      const more = waiting
      waiting = []
      setAll((before) => [...before, ...more].slice(-most))
    }, 200)
    const read = async (): Promise<void> => {
      setAll([])
      const query = new URLSearchParams({
        ...(unit === '' ? {} : { unit }),
        ...{ priority: String(priority), lines: '500', follow: 'true' },
      })
      for await (const some of lines<JournalLine>(`journal?${query}`, abort.signal)) {
        setError(undefined)
        waiting.push(...some)
      }
    }
    // The device starts anew, or the browser was asleep: go on by itself.
    const go = async (): Promise<void> => {
      while (!abort.signal.aborted) {
        await read().catch((err: unknown) => {
          if (!abort.signal.aborted) setError(errorOf(err))
        })
        await new Promise((resolve) => setTimeout(resolve, 3_000))
      }
    }
    void go()
    return () => {
      abort.abort()
      clearInterval(timer)
    }
  }, [unit, priority, live])
  useEffect(() => {
    if (atEnd.current && box.current !== null) box.current.scrollTop = box.current.scrollHeight
  }, [all, search])

  const wanted = search.trim().toLowerCase()
  const found =
    wanted === '' ? all : all.filter((line) => asText(line).toLowerCase().includes(wanted))
  return (
    <>
      <div class="row fields">
        {units.length > 1 && (
          <label>
            Part
            <select
              value={unit}
              onChange={(event) => {
                setUnit(event.currentTarget.value)
              }}
            >
              <option value="">All</option>
              {units.map((name) => (
                <option value={name}>{name}</option>
              ))}
            </select>
          </label>
        )}
        <label>
          Level
          <select
            value={priority}
            onChange={(event) => {
              setPriority(Number(event.currentTarget.value))
            }}
          >
            {levels.map(([value, label]) => (
              <option value={value}>{label}</option>
            ))}
          </select>
        </label>
        <label>
          Search
          <input
            type="search"
            value={search}
            onInput={(event) => {
              setSearch(event.currentTarget.value)
            }}
          />
        </label>
        <button
          type="button"
          onClick={() => {
            setLive(!live)
          }}
        >
          {live ? 'Pause' : 'Go on'}
        </button>
        <button
          type="button"
          disabled={found.length === 0}
          onClick={() => {
            const text = `${found.map(asText).join('\n')}\n`
            download(
              `gatehouse-log-${stamp()}.txt`,
              new Blob([text], { type: 'text/plain;charset=utf-8' }),
            )
          }}
        >
          Download
        </button>
      </div>
      <Failure error={error} />
      <div
        class="log"
        ref={box}
        role="log"
        aria-live="off"
        aria-label="Log lines"
        tabIndex={0}
        onScroll={({ currentTarget: at }) => {
          atEnd.current = at.scrollHeight - at.scrollTop - at.clientHeight < 40
        }}
      >
        {found.map((line) => (
          <div class={`line p${line.priority}`}>
            <time dateTime={line.at}>{new Date(line.at).toLocaleTimeString()}</time>{' '}
            {units.length > 1 && <span class="unit">{line.unit} </span>}
            {line.priority <= 4 && <strong>{nameOf(line.priority)} </strong>}
            {line.text}
          </div>
        ))}
        {found.length === 0 && <p class="quiet">No lines.</p>}
      </div>
    </>
  )
}
