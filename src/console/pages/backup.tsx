import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { ask } from '../api.ts'
import { Card, Outcome, download, stamp, useWork } from '../parts.tsx'

/** Bytes as base64: a header holds ASCII alone. */
const base64 = (text: string): string =>
  btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(''))

/** One encrypted file out, and in again. */
export function BackupPage(): JSX.Element {
  return (
    <>
      <Card title="Download a backup">
        <Save />
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
          return 'The backup is in place. The device restarts, which takes about a minute.'
        })
      }}
    >
      <p>
        What the device holds now is replaced by what is in the file, and the device restarts. A
        file that cannot be read changes nothing. It needs a code from the device's screen, too.
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
