import { X509Certificate, createPrivateKey } from 'node:crypto'
import type { KeyObject } from 'node:crypto'

/** The chain of mode = "files" beside the last good configuration. */
export const chainFile = 'certificate.crt'

const certificates = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g

/**
 * A certificate from a person's file: of it and of what stands beside it, the chain, leaf first,
 * whatever the order in the file. What does not belong to the chain is refused: it would be another
 * file, or half of one.
 *
 * @param text PEM; what is no certificate in it is left out
 * @param key its private key, where it is known: the leaf is the one it belongs to
 * @throws Error whose message says what is wrong with the file
 */
export function readChain(text: string, key?: KeyObject): X509Certificate[] {
  const blocks = text.match(certificates) ?? []
  if (blocks.length === 0)
    throw new Error('it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)')
  let rest: X509Certificate[]
  try {
    rest = blocks.map((block) => new X509Certificate(block))
  } catch (err) {
    throw new Error('it holds a damaged certificate', { cause: err })
  }
  const leaf = rest.find((one) => (key === undefined ? !one.ca : one.checkPrivateKey(key)))
  if (leaf === undefined)
    throw new Error(
      key === undefined
        ? 'it holds certificates of authorities alone'
        : 'the key does not belong to any certificate in it',
    )
  const chain = [leaf]
  rest = rest.filter((one) => one !== leaf)
  for (;;) {
    const last = chain.at(-1)!
    const issuer = rest.find((one) => last.checkIssued(one) && last.verify(one.publicKey))
    if (issuer === undefined) break
    chain.push(issuer)
    rest = rest.filter((one) => one !== issuer)
  }
  if (rest.length > 0)
    throw new Error(
      `${rest[0]!.subject.replaceAll('\n', ', ')} in it does not belong to the chain of ` +
        `${leaf.subject.replaceAll('\n', ', ')}`,
    )
  return chain
}

/** DNS names a certificate is for, as it has them; wildcards too. */
export function namesOf(leaf: X509Certificate): string[] {
  return [...(leaf.subjectAltName ?? '').matchAll(/(?:^|, )DNS:([^,"]+)/g)].map((match) =>
    match[1]!.toLowerCase(),
  )
}

/**
 * A private key from a person's file.
 *
 * @throws Error whose message says what is wrong with the file
 */
export function readKey(text: string): KeyObject {
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED/.test(text))
    throw new Error('it is protected by a passphrase, which nobody can type in here')
  const block =
    /-----BEGIN (?:EC |RSA )?PRIVATE KEY-----[^-]+-----END (?:EC |RSA )?PRIVATE KEY-----/.exec(text)
  if (block === null) throw new Error('it holds no private key in PEM form')
  try {
    return createPrivateKey(block[0])
  } catch (err) {
    throw new Error('it holds a damaged private key', { cause: err })
  }
}
