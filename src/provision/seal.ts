import { spawn } from 'node:child_process'
import { oneLine } from '../base/errors.ts'

/**
 * Encrypts a secret so that it may lie on the card; systemd decrypts it for the unit that names it
 * (LoadCredentialEncrypted=).
 */
export type Seal = (name: string, secret: string) => Promise<Uint8Array | string>

/**
 * Seals with this device's host key, which systemd makes on first use
 * (/var/lib/systemd/credential.secret, systemd-creds(1)): a Pi has no TPM. What is sealed under one
 * name does not open under another.
 *
 * The secret goes by standard input: a process list shows arguments.
 *
 * @throws Error with what systemd-creds said
 */
export async function sealWithHostKey(name: string, secret: string): Promise<Buffer> {
  return await new Promise((resolve, reject) => {
    const child = spawn('systemd-creds', [
      'encrypt',
      '--quiet',
      '--with-key=host',
      `--name=${name}`,
      '-',
      '-',
    ])
    const sealed: Buffer[] = []
    let said = ''
    child.stdout.on('data', (data: Buffer) => sealed.push(data))
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    child.on('error', reject)
    child.on('close', (code) => {
      if (code === 0) resolve(Buffer.concat(sealed))
      else reject(new Error(`systemd-creds cannot seal ${name}: ${oneLine(said).slice(0, 400)}`))
    })
    child.stdin.on('error', () => {}) // it ended early: its exit code says so
    child.stdin.end(secret)
  })
}

/**
 * Whether what was sealed under a name still opens. At another boot it does not: systemd makes a
 * new host key when the machine ID is another, and with a read-only /etc it is another at each
 * boot.
 */
export async function opensWithHostKey(name: string, path: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const child = spawn('systemd-creds', ['decrypt', '--quiet', `--name=${name}`, path, '-'], {
      stdio: 'ignore',
    })
    child.on('error', () => {
      resolve(false)
    })
    child.on('close', (code) => {
      resolve(code === 0)
    })
  })
}
