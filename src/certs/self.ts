import { X509Certificate, randomBytes, webcrypto } from 'node:crypto'
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import * as x509 from '@peculiar/x509'
import { AsnConvert } from '@peculiar/asn1-schema'
import { GeneralName, GeneralSubtree, GeneralSubtrees, NameConstraints } from '@peculiar/asn1-x509'
import { writeFileAtomic } from '../base/files.ts'
import { day, hour } from '../base/time.ts'
import type { Issuer } from './acme.ts'
import { certificateFile } from './pem.ts'
import { authorityFile } from './record.ts'
import type { Authority } from './record.ts'

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
/** What the agent keeps of it. */
interface Stored {
  /** PEM. */
  certificate: string
  /** PEM, PKCS #8. */
  key: string
  names: string[]
}

/** How long the root is valid: whoever trusts it is not to be asked again soon. */
const rootLife = 10 * 365 * day
/** How long before its end it is made anew. */
const rootMargin = 180 * day
/** How long a certificate of it is valid: nobody can take one back. */
const leafLife = 7 * day
/** Clocks differ. */
const backdate = hour

/** serverAuth (RFC 5280 §4.2.1.12). */
const serverAuth = '1.3.6.1.5.5.7.3.1'
/** nameConstraints (RFC 5280 §4.2.1.10). */
const nameConstraints = '2.5.29.30'

/**
 * What an authority of one device may vouch for: its names, with what is below them, and no address
 * at all.
 */
function constraints(names: readonly string[]): x509.Extension {
  const subtrees = (list: GeneralName[]): GeneralSubtrees =>
    new GeneralSubtrees(list.map((base) => new GeneralSubtree({ base })))
  const value = new NameConstraints({
    permittedSubtrees: subtrees(
      names.map((name) => new GeneralName({ dNSName: name.replace(/^\*\./, '') })),
    ),
    // All addresses there are, of either family.
    excludedSubtrees: subtrees(
      ['0.0.0.0/0', '::/0'].map((all) => new GeneralName({ iPAddress: all })),
    ),
  })
  return new x509.Extension(nameConstraints, true, AsnConvert.serialize(value))
}

/** A positive number of 127 random bits (RFC 5280 §4.1.2.2), hexadecimal. */
function serial(): string {
  const bytes = randomBytes(16)
  bytes[0] = (bytes[0]! & 0x7f) | 0x40
  return bytes.toString('hex')
}

async function pem(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key))
  return (
    `-----BEGIN PRIVATE KEY-----\n${der.toString('base64').replaceAll(/.{64}(?=.)/g, '$&\n')}\n` +
    '-----END PRIVATE KEY-----\n'
  )
}

async function makeRoot(names: string[], now: Date): Promise<Stored> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: serial(),
      name: [
        { O: ['Gatehouse'] },
        { CN: [`${names[0]!.slice(0, 40)}, made ${now.toISOString().slice(0, 10)}`] },
      ],
      notBefore: new Date(now.getTime() - backdate),
      notAfter: new Date(now.getTime() + rootLife),
      signingAlgorithm: algorithm,
      keys: keys as never,
      extensions: [
        // No authority below it.
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(
          x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign,
          true,
        ),
        new x509.ExtendedKeyUsageExtension([serverAuth]),
        constraints(names),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey as never),
      ],
    },
    webcrypto as never,
  )
  return { certificate: `${certificate.toString('pem')}\n`, key: await pem(keys.privateKey), names }
}

/** The one in place, unless it is damaged, about to end, or not for these names. */
async function readRoot(path: string, names: string[], now: Date): Promise<Stored | undefined> {
  try {
    const stored = JSON.parse(await readFile(path, 'utf8')) as Stored
    const root = new X509Certificate(stored.certificate)
    const fits = names.every((name) => stored.names.includes(name))
    return fits && root.validToDate.getTime() - now.getTime() > rootMargin ? stored : undefined
  } catch {
    return undefined
  }
}

/**
 * The authority of this device alone, made where there is none for its names, and an issuer of its
 * certificates. Its root is put beside the certificates for people to fetch; certificates of one
 * before are removed, since nobody is to trust that one any more.
 *
 * @param state the agent's state directory, where its key is
 * @param tls directory of the certificates
 */
export async function ownAuthority({
  names,
  state,
  tls,
  now = () => new Date(),
  say = () => {},
}: {
  names: string[]
  state: string
  tls: string
  now?: () => Date
  say?: (line: string) => void
}): Promise<{ authority: Authority; issuer: Issuer }> {
  const path = join(state, 'authority.json')
  let stored = await readRoot(path, names, now())
  if (stored === undefined) {
    stored = await makeRoot(names, now())
    await writeFileAtomic(path, `${JSON.stringify(stored)}\n`, 0o600)
    say(`an authority of this device was made, for ${names.join(', ')}`)
  }
  const root = new X509Certificate(stored.certificate)
  const published = join(tls, authorityFile)
  if ((await readFile(published, 'utf8').catch(() => '')) !== stored.certificate)
    await writeFileAtomic(published, stored.certificate, 0o640)
  for (const name of names) {
    const file = join(tls, certificateFile(name))
    const text = await readFile(file, 'utf8').catch(() => undefined)
    if (text !== undefined && !isOf(text, root)) await rm(file, { force: true })
  }
  const { certificate, key } = stored
  return {
    authority: {
      fingerprint: root.fingerprint256,
      notAfter: root.validToDate.toISOString(),
      names: stored.names,
    },
    issuer: {
      renewalInfo: async () => undefined,
      issue: async (name) => await issue(name, certificate, key, now()),
    },
  }
}

function isOf(text: string, root: X509Certificate): boolean {
  try {
    const leaf = new X509Certificate(text)
    return leaf.checkIssued(root) && leaf.verify(root.publicKey)
  } catch {
    return false
  }
}

/** PEM of a certificate for a name and its fresh key. */
async function issue(name: string, rootPem: string, rootKey: string, now: Date): Promise<string> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const der = Buffer.from(rootKey.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64')
  const signingKey = await webcrypto.subtle.importKey('pkcs8', der, algorithm, false, ['sign'])
  const root = new x509.X509Certificate(rootPem)
  const end = Math.min(now.getTime() + leafLife, root.notAfter.getTime())
  const certificate = await x509.X509CertificateGenerator.create(
    {
      serialNumber: serial(),
      // Clients go by the alternative name; a common name is 64 characters at most.
      subject: [{ CN: [name.slice(0, 64)] }],
      issuer: root.subject,
      notBefore: new Date(now.getTime() - backdate),
      notAfter: new Date(end),
      signingAlgorithm: algorithm,
      publicKey: keys.publicKey as never,
      signingKey: signingKey as never,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([serverAuth]),
        new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }]),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey as never),
        await x509.AuthorityKeyIdentifierExtension.create(root),
      ],
    },
    webcrypto as never,
  )
  return `${certificate.toString('pem')}\n${await pem(keys.privateKey)}`
}
