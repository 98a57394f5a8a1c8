import type { KeyObject, X509Certificate } from 'node:crypto'
import { join } from 'node:path'
import type { Config } from '../config/config.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { builtAt } from '../base/version.ts'
import { namesOf, readChain, readKey } from '../certs/chain.ts'

/** The certificate of mode = "files", as it was found on the card. */
export interface CardCertificate {
  /** PEM of the chain, leaf first; no key. */
  chain: string
  /** PEM of the key (PKCS #8), where the card still has it. */
  key: string | undefined
  /** Names it is served for. */
  names: string[]
}

/**
 * Reads cert_file and key_file and proves that they fit: the key to the certificate, the
 * certificates to a chain, the names of gatehouse.toml to those of the certificate. Undefined with
 * another mode.
 *
 * A key_file that is not there any more is no mistake: it is taken off the card once the device has
 * it.
 *
 * @param read reads a small file of the card
 * @throws GatehouseError GH_CONFIG_CERT_FILE, GH_CONFIG_KEY_FILE
 */
export async function readCertificate(
  boot: string,
  { mode, name, certFile = '', keyFile }: Config['certificates'],
  read: (path: string) => Promise<Buffer>,
): Promise<CardCertificate | undefined> {
  if (mode !== 'files') return undefined
  const text = async (file: string, key: string, code: string): Promise<string> =>
    await read(join(boot, file)).then(
      (data) => data.toString('latin1'),
      (err: unknown) => {
        if (err instanceof GatehouseError) throw err
        throw new GatehouseError(
          code,
          `${key} ${file} named in gatehouse.toml cannot be read: ${reason(err)}`,
          'Put the file beside gatehouse.toml',
          { cause: err },
        )
      },
    )
  let key: KeyObject | undefined
  if (keyFile !== undefined) {
    const content = await text(keyFile, 'key_file', 'GH_CONFIG_KEY_FILE')
    try {
      key = readKey(content)
    } catch (err) {
      throw new GatehouseError(
        'GH_CONFIG_KEY_FILE',
        `key_file ${keyFile}: ${reason(err)}`,
        'Write the private key of the certificate into it, in PEM form and without a ' +
          'passphrase (openssl pkey -in old.key -out gatehouse.key)',
        { cause: err },
      )
    }
  }
  const content = await text(certFile, 'cert_file', 'GH_CONFIG_CERT_FILE')
  let chain: X509Certificate[]
  try {
    chain = readChain(content, key)
  } catch (err) {
    throw wrong(certFile, reason(err), 'Export the certificate again with its chain, in PEM form')
  }
  const leaf = chain[0]!
  // The clock may not be right yet; that of the build was.
  if (leaf.validToDate < builtAt)
    throw wrong(
      certFile,
      `it expired on ${leaf.validToDate.toISOString().slice(0, 10)}`,
      'Put a new certificate and its key there',
    )
  const own = namesOf(leaf)
  const strange = name.find((one) => leaf.checkHost(one) === undefined)
  if (strange !== undefined)
    throw wrong(
      certFile,
      `it is not for ${strange}, but for ${own.join(', ') || 'no name at all'}`,
      'Write a name of the certificate as name, or put another certificate there',
    )
  const names = name.length > 0 ? name : own.toSorted((a, b) => rank(a) - rank(b))
  if (names.every((one) => one.startsWith('*.')))
    throw wrong(
      certFile,
      `it is for ${own.join(', ') || 'no name'} alone`,
      names.length === 0
        ? 'Use a certificate that has DNS names (subjectAltName)'
        : `Write name = "gatehouse.${own[0]!.slice(2)}", the name you will open`,
    )
  return {
    chain: chain.map((one) => one.toString()).join(''),
    key: key?.export({ type: 'pkcs8', format: 'pem' }).toString(),
    names,
  }
}

/** Names before wildcards. */
function rank(name: string): number {
  return name.startsWith('*.') ? 1 : 0
}

function wrong(file: string, message: string, cure: string): GatehouseError {
  return new GatehouseError('GH_CONFIG_CERT_FILE', `cert_file ${file}: ${message}`, cure)
}
