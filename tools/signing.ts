/**
 * The key that signs images and updates: Ed25519, because openssl(1), Node.js and every other tool
 * of the kind know it, so that a download is checked anywhere and the device needs no GnuPG:
 *
 *     openssl pkeyutl -verify -pubin -inkey keys/update.pub -rawin -in SHA256SUMS -sigfile
 *     SHA256SUMS.sig
 *
 * It lies in keys/ (or GATEHOUSE_KEYS), outside out/, because devices that carry its public half
 * take updates from nobody else.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, sign } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * The key pair's files; made if there are none. `made` says so. @throws Error when one of the two
 * is missing or they do not belong together
 */
export function signingKey(directory: string): {
  privateKey: string
  publicKey: string
  made: boolean
} {
  const privateKey = join(directory, 'update.key')
  const publicKey = join(directory, 'update.pub')
  const made = !existsSync(privateKey) && !existsSync(publicKey)
  if (made) {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    const pair = generateKeyPairSync('ed25519')
    writeFileSync(privateKey, pair.privateKey.export({ type: 'pkcs8', format: 'pem' }), {
      mode: 0o600,
      flag: 'wx',
    })
    writeFileSync(publicKey, pair.publicKey.export({ type: 'spki', format: 'pem' }), {
      mode: 0o644,
    })
  }
  const derived = createPublicKey(readFileSync(privateKey)).export({ type: 'spki', format: 'pem' })
  if (derived !== readFileSync(publicKey, 'utf8'))
    throw new Error(
      `${publicKey} is not the public half of ${privateKey}: restore both, or delete both to ` +
        'start with a new key (devices in the field accept the old one alone)',
    )
  return { privateKey, publicKey, made }
}

/** The raw 64-byte signature of a file's content (RFC 8032). */
export function signature(privateKey: string, content: Uint8Array): Buffer {
  return sign(null, content, createPrivateKey(readFileSync(privateKey)))
}
