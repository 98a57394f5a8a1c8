import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { ask, post } from '../api.ts'
import type { BackupState } from '../api.ts'
import { Card, Failure, Outcome, download, sentence, stamp, useLoaded, useWork } from '../parts.tsx'
import { ago } from '../time.ts'

/** Bytes as base64: a header holds ASCII alone. */
const base64 = (text: string): string =>
  btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(''))

/** One encrypted file out, and in again; and by itself each night. */
export function BackupPage(): JSX.Element {
  return (
    <>
      <Card title="Download a backup">
        <Save />
      </Card>
      <Card title="Every night">
        <Nightly />
      </Card>
      <Card title="Restore from a backup">
        <Restore />
      </Card>
    </>
  )
}

/** The code that the device shows once it has been asked for what would hand it over. */
function Code({ value, set }: { value: string; set: (code: string) => void }): JSX.Element {
  return (
    <label>
      Code from its screen
      <input
        inputMode="numeric"
        autocomplete="one-time-code"
        pattern="[0-9]{6}"
        value={value}
        onInput={(event) => {
          set(event.currentTarget.value)
        }}
      />
    </label>
  )
}

function Save(): JSX.Element {
  const [passphrase, setPassphrase] = useState('')
  const [again, setAgain] = useState('')
  const [code, setCode] = useState('')
  const work = useWork()
  const same = passphrase === again
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault()
        if (!same) return
        work.run(async () => {
          const answer = await ask(
            'backup',
            {
              method: 'POST',
              headers: { 'content-type': 'application/json' },
              body: JSON.stringify({ passphrase, ...(code === '' ? {} : { code }) }),
            },
            0,
          )
          const file = await answer.blob()
          download(`gatehouse-backup-${stamp()}.age`, file)
          setPassphrase('')
          setAgain('')
          return `The backup is downloaded: ${Math.ceil(file.size / 1024)} KiB.`
        })
      }}
    >
      <p>
        The file holds flows, credentials, certificates and the device's identity, encrypted with a
        passphrase of yours (age). Without the passphrase nobody can read it, you neither. The first
        try has the device show a code on its screen or serial line: type it in, and try again.
      </p>
      <div class="row fields">
        <label>
          Passphrase
          <input
            type="password"
            required
            autocomplete="new-password"
            value={passphrase}
            onInput={(event) => {
              setPassphrase(event.currentTarget.value)
            }}
          />
        </label>
        <label>
          Once more
          <input
            type="password"
            required
            autocomplete="new-password"
            value={again}
            aria-invalid={again !== '' && !same}
            aria-describedby="backup-same"
            onInput={(event) => {
              setAgain(event.currentTarget.value)
            }}
          />
        </label>
        <Code value={code} set={setCode} />
        <button class="main" disabled={work.busy || !same}>
          Download
        </button>
      </div>
      <p id="backup-same" class="error" role="status">
        {again !== '' && !same ? 'The two are not the same yet.' : ''}
      </p>
      <Outcome work={work} busy="The backup is made and downloaded…" />
    </form>
  )
}

/** The backups that a peer of the tailnet keeps, and one more of them at once. */
function Nightly(): JSX.Element {
  const { value: state, error, again } = useLoaded<BackupState>('backup', 10_000)
  const work = useWork()
  if (state === undefined) return <Failure error={error} />
  if (!state.nightly)
    return (
      <p>
        The device can have a backup kept by another device of the tailnet each night, which nobody
        but you can read. Make a key with <code>age-keygen</code>, keep it elsewhere, and set{' '}
        <code>recipient</code> (its public key) and <code>to</code> in <code>[backup]</code>, on the
        page <a href="#/settings">Settings</a>.
      </p>
    )
  const { last, failure, to } = state
  return (
    <>
      <dl>
        <dt>Kept at</dt>
        <dd>{to}</dd>
        <dt>Last one</dt>
        <dd>
          {last === undefined
            ? 'none yet'
            : `${last.name}, ${ago(last.at)}: ${Math.ceil(last.size / 1024)} KiB, read back ` +
              `and decrypted to its end, ${last.entries} files and folders`}
        </dd>
      </dl>
      {failure !== undefined && (
        <p class="box warn">
          {sentence(failure.message)} <small>{ago(failure.at)}</small>
        </p>
      )}
      <button
        type="button"
        disabled={work.busy || state.busy}
        onClick={() => {
          work.run(async () => {
            try {
              await post('backup/now', {}, 0)
              return 'It is kept, and can be read.'
            } finally {
              await again()
            }
          })
        }}
      >
        Make one now
      </button>
      <Outcome work={work} busy="One is made, kept and read back…" />
    </>
  )
}

function Restore(): JSX.Element {
  const [file, setFile] = useState<File>()
  const [passphrase, setPassphrase] = useState('')
  const [code, setCode] = useState('')
  const work = useWork()
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault()
        if (file === undefined) return
        work.run(async () => {
          await ask(
            'restore',
            {
              method: 'POST',
              headers: {
                'content-type': 'application/octet-stream',
                'x-gatehouse-passphrase': base64(passphrase),
                ...(code === '' ? {} : { 'x-gatehouse-code': code }),
              },
              body: file,
            },
            0,
          )
          return 'The backup is whole, and is put in place now. The device restarts, which takes about a minute.'
        })
      }}
    >
      <p>
        What the device holds now is replaced by what is in the file, and the device restarts. A
        file that cannot be read changes nothing. For one of the nightly backups its passphrase is
        the secret key (<code>AGE-SECRET-KEY-…</code>). It needs a code from the device's screen,
        too.
      </p>
      <div class="row fields">
        <label>
          File
          <input
            type="file"
            required
            accept=".age"
            onChange={(event) => {
              setFile(event.currentTarget.files?.[0])
            }}
          />
        </label>
        <label>
          Its passphrase
          <input
            type="password"
            required
            autocomplete="off"
            value={passphrase}
            onInput={(event) => {
              setPassphrase(event.currentTarget.value)
            }}
          />
        </label>
        <Code value={code} set={setCode} />
        <button class="danger" disabled={work.busy}>
          Replace and restart
        </button>
      </div>
      <Outcome work={work} busy="The file is uploaded and put in place…" />
    </form>
  )
}
