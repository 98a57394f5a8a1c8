import type { JSX } from 'preact'
import { useCallback, useEffect, useRef, useState } from 'preact/hooks'
import { get, post } from '../api.ts'
import type { ApiError, Checked, SchemaKey, SchemaTable, ShownSettings, Trial } from '../api.ts'
import { Differences } from '../differences.tsx'
import { keepDraft, keptDraft } from '../draft.ts'
import { fieldOf, keptSecret, setKey, shown, valuesOf, written } from '../form.ts'
import { Card, Cure, Failure, Outcome, errorOf, sentence, useLoaded, useWork } from '../parts.tsx'
import { announce, ended } from '../trial.tsx'

/** gatehouse.toml as a form and as text, which are one thing: what one changes the other shows. */
export function SettingsPage(): JSX.Element {
  const [now, setNow] = useState<ShownSettings>()
  const [text, setText] = useState('')
  const [error, setError] = useState<ApiError>()
  const [checked, setChecked] = useState<Checked>()
  const [code, setCode] = useState('')
  const [asksCode, setAsksCode] = useState(false)
  const area = useRef<HTMLTextAreaElement>(null)
  const work = useWork()

  const load = useCallback(async (): Promise<void> => {
    try {
      const settings = await get<ShownSettings>('settings')
      const draft = keptDraft()
      setNow(settings)
      // A draft of other settings than these would undo what was changed meanwhile.
      setText(draft?.digest === settings.digest ? draft.text : settings.text)
      setError(undefined)
    } catch (err) {
      setError(errorOf(err))
    }
  }, [])
  useEffect(() => {
    void load()
    const again = (): void => void load()
    addEventListener(ended, again)
    return () => {
      removeEventListener(ended, again)
    }
  }, [load])

  const changed = now !== undefined && text !== now.text
  useEffect(() => {
    setChecked(undefined)
    if (now === undefined) return undefined
    keepDraft(changed ? { text, digest: now.digest } : undefined)
    if (!changed) return undefined
    let over = false
    const timer = setTimeout(() => {
      post<Checked>('settings/check', { text }).then(
        (found) => {
          if (over) return
          setChecked(found)
          setError(undefined)
        },
        (err: unknown) => {
          if (!over) setError(errorOf(err))
        },
      )
    }, 400)
    return () => {
      over = true
      clearTimeout(timer)
    }
  }, [text, now, changed])

  const tryIt = (): void => {
    work.run(async () => {
      try {
        const trial = await post<Trial>('settings/try', {
          ...{ text, digest: now!.digest },
          ...(code === '' ? {} : { code }),
        })
        begun(trial)
      } catch (err) {
        const { status, code: why } = errorOf(err)
        if (why === 'GH_SETTINGS_CODE') setAsksCode(true)
        // The change may have taken the way of its own answer: the device is asked what is on
        // trial.
        const trial = status === 0 ? await onTrial() : undefined
        if (trial === undefined) throw err
        begun(trial)
      }
      return undefined
    })
  }
  const begun = (trial: Trial): void => {
    setCode('')
    setAsksCode(false)
    keepDraft(undefined)
    announce(trial)
    void load()
    scrollTo({ top: 0 })
  }

  const select = (line: number): void => {
    const before = text.split('\n').slice(0, line - 1)
    const start = before.reduce((sum, one) => sum + one.length + 1, 0)
    const end = text.indexOf('\n', start)
    area.current?.focus()
    area.current?.setSelectionRange(start, end === -1 ? text.length : end)
  }

  if (now === undefined) return <Failure error={error} />
  return (
    <>
      <p>
        These are the settings on the device's card. A change is tried for 60 seconds, and taken
        back by itself unless you confirm it. Secrets go in and never come out: each is shown as{' '}
        <code>{keptSecret}</code>.
      </p>
      <Failure error={error} />
      <div class="beside">
        <Card title="Form">
          <Form text={text} issues={checked?.issues ?? []} onText={setText} />
        </Card>
        <Card title="gatehouse.toml">
          <textarea
            class="toml"
            ref={area}
            aria-label="gatehouse.toml"
            aria-invalid={(checked?.issues.length ?? 0) > 0}
            spellcheck={false}
            autocapitalize="none"
            value={text}
            onInput={(event) => {
              setText(event.currentTarget.value)
            }}
          />
        </Card>
      </div>
      {changed && (
        <Card title="Your change" kind="change">
          <Found checked={checked} onLine={select} />
          {asksCode && (
            <label class="code">
              Code on the device's screen
              <input
                inputMode="numeric"
                pattern="[0-9]{6}"
                maxLength={6}
                autocomplete="one-time-code"
                value={code}
                onInput={(event) => {
                  setCode(event.currentTarget.value)
                }}
              />
            </label>
          )}
          <div class="row">
            <button
              type="button"
              class="main"
              disabled={
                work.busy ||
                checked === undefined ||
                checked.issues.length > 0 ||
                now.trial !== undefined ||
                (asksCode && !/^\d{6}$/.test(code))
              }
              onClick={tryIt}
            >
              Try for 60 s
            </button>
            <button
              type="button"
              disabled={work.busy}
              onClick={() => {
                setText(now.text)
                setAsksCode(false)
              }}
            >
              Discard
            </button>
          </div>
          <Outcome work={work} busy="The change is put in force…" />
        </Card>
      )}
    </>
  )
}

/** The change that is on trial, once the device answers; undefined: there is none. */
async function onTrial(): Promise<Trial | undefined> {
  for (const end = Date.now() + 50_000; Date.now() < end;) {
    try {
      return (await get<ShownSettings>('settings', 4_000)).trial
    } catch (err) {
      if (errorOf(err).status !== 0) throw err
      await new Promise((resolve) => setTimeout(resolve, 1_000))
    }
  }
  return undefined
}

/** What the check of a draft found. */
function Found({
  checked,
  onLine,
}: {
  checked: Checked | undefined
  onLine: (line: number) => void
}): JSX.Element {
  if (checked === undefined) return <p role="status">Checking…</p>
  return (
    <>
      <p role="status" class="outcome">
        {checked.issues.length > 0 ? 'The settings are not valid yet.' : ''}
      </p>
      {checked.issues.length > 0 ? (
        <ul class="plain">
          {checked.issues.map(({ line, code, message, cure }) => (
            <li class="box bad">
              <button
                type="button"
                onClick={() => {
                  onLine(line)
                }}
              >
                Line {line}
              </button>{' '}
              {sentence(message)} <Cure text={sentence(cure)} /> <small>{code}</small>
            </li>
          ))}
        </ul>
      ) : (
        <Differences changes={checked.changes} />
      )}
      {checked.guarded.length > 0 && (
        <p class="box warn">
          {checked.guarded.join(', ')} would hand over the device, so a code is asked for that the
          device shows on its screen and serial line.
        </p>
      )}
    </>
  )
}

interface FormProps {
  text: string
  issues: Checked['issues']
  onText: (text: string) => void
}

/** A field for each key that has one value or a list of words; the rest is changed as text. */
function Form({ text, issues, onText }: FormProps): JSX.Element {
  const { value: answer, error } = useLoaded<SchemaTable[] | { tables: SchemaTable[] }>('schema')
  const [wrong, setWrong] = useState<{ key: string; error: ApiError }>()
  const values = valuesOf(text)
  if (answer === undefined) return <Failure error={error} />
  const tables = Array.isArray(answer) ? answer : answer.tables
  return (
    <>
      {tables.map(({ table, list, keys }) => (
        <details open={[...values.keys()].some((key) => key.startsWith(`${table}.`)) && !list}>
          <summary>
            <code>{list ? `[[${table}]]` : `[${table}]`}</code>
          </summary>
          {list ? (
            <p>There may be several of these: they are changed as text.</p>
          ) : (
            keys.map((key) => {
              const name = `${table}.${key.name}`
              const value = values.get(name)
              const issue =
                value === undefined ? undefined : issues.find(({ line }) => line === value.line)
              const mine = wrong?.key === name ? wrong.error : undefined
              return (
                <FormField
                  key={name}
                  name={name}
                  of={key}
                  value={value?.written}
                  issue={issue ?? mine}
                  onValue={(next) => {
                    try {
                      onText(setKey(text, table, key.name, next))
                      setWrong(undefined)
                    } catch (err) {
                      setWrong({ key: name, error: errorOf(err) })
                    }
                  }}
                />
              )
            })
          )}
        </details>
      ))}
    </>
  )
}

interface FieldProps {
  name: string
  of: SchemaKey
  /** As TOML writes it; undefined: it is not in the file. */
  value: string | undefined
  issue: { message: string; cure: string } | undefined
  onValue: (value: string | undefined) => void
}

function FormField({ name, of, value, issue, onValue }: FieldProps): JSX.Element {
  const field = fieldOf(of.example)
  const content = shown(value, field)
  const id = `key-${name}`
  const help = of.help ?? GATEHOUSE_EXPLANATIONS[name]
  const common = {
    id,
    'aria-describedby': `${id}-help`,
    'aria-invalid': issue !== undefined,
    disabled: content === undefined,
  }
  // What is typed is kept as it is while it is typed: a list's last, empty line would be lost.
  const [typed, setTyped] = useState<string>()
  const put = (entered: string): void => {
    setTyped(entered)
    onValue(written(entered, field))
  }
  const entered = typed !== undefined && written(typed, field) === value ? typed : (content ?? '')
  const input = (event: { currentTarget: { value: string } }): void => {
    put(event.currentTarget.value)
  }
  const plain = {
    ...common,
    autocomplete: 'off',
    autocapitalize: 'none',
    spellcheck: false,
    value: entered,
    placeholder: `default: ${defaultOf(of)}`,
    onInput: input,
  } as const
  const hidden = of.secret && entered !== keptSecret && entered !== ''
  return (
    <div class="field">
      <label for={id}>
        <code>{of.name}</code>
      </label>
      {field === 'flag' && (
        <select
          {...common}
          value={entered}
          onChange={(event) => {
            put(event.currentTarget.value)
          }}
        >
          <option value="">default ({defaultOf(of)})</option>
          <option value="true">yes</option>
          <option value="false">no</option>
        </select>
      )}
      {field === 'list' && (
        <textarea
          {...common}
          rows={Math.min(8, entered.split('\n').length + 1)}
          value={entered}
          spellcheck={false}
          onInput={input}
        />
      )}
      {field === 'number' && <input {...plain} type="text" inputMode="numeric" />}
      {field === 'text' &&
        (hidden ? <input {...plain} type="password" /> : <input {...plain} type="text" />)}
      <div id={`${id}-help`} class="help">
        {help !== undefined && `${sentence(help)} `}
        {field === 'list' && 'One a line. '}Example: <code>{of.example}</code>
        {content === undefined && ' It is written in a way that only the text can change.'}
        {issue !== undefined && (
          <p class="error">
            {sentence(issue.message)} {sentence(issue.cure)}
          </p>
        )}
      </div>
      {name === 'node_red.timezone' && <ZoneOfBrowser current={entered} onZone={put} />}
    </div>
  )
}

/** Proposes the time zone that this browser is in. */
function ZoneOfBrowser({
  current,
  onZone,
}: {
  current: string
  onZone: (zone: string) => void
}): JSX.Element | null {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
  if (zone === current || zone === undefined) return null
  return (
    <button
      type="button"
      onClick={() => {
        onZone(zone)
      }}
    >
      Use {zone}, as this browser has it
    </button>
  )
}

function defaultOf({ default: value }: SchemaKey): string {
  if (value === undefined || value === null || value === '') return 'none'
  if (Array.isArray(value)) return value.length === 0 ? 'none' : value.join(', ')
  if (typeof value === 'boolean') return value ? 'yes' : 'no'
  return typeof value === 'object' ? JSON.stringify(value) : String(value as string | number)
}
