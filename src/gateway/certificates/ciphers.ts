import { readFileSync } from 'node:fs'
import { DEFAULT_CIPHERS } from 'node:tls'
import type { SecureContextOptions } from 'node:tls'

const chacha = [
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-RSA-CHACHA20-POLY1305',
]

/** proc_cpuinfo(5): `flags` on x86, `Features` on Arm. */
const withAES = /^(?:flags|Features)\s*:.*\baes\b/m

let cpu: string | undefined

/**
 * Which ciphers TLS is to prefer. A processor with instructions for AES leaves it to the peer,
 * which knows its own. One without, as in the Pi 3, 4 and Zero 2 W, takes ChaCha20-Poly1305 where
 * the peer has it (all browsers do): in software AES-GCM is several times slower, and the peer has
 * the faster processor.
 *
 * @param cpuinfo default: this machine's
 */
export function ciphers(
  cpuinfo: string = (cpu ??= read()),
): Pick<SecureContextOptions, 'ciphers' | 'honorCipherOrder'> {
  if (cpuinfo === '' || withAES.test(cpuinfo)) return {}
  return {
    ciphers: [
      ...chacha,
      ...DEFAULT_CIPHERS.split(':').filter((name) => !chacha.includes(name)),
    ].join(':'),
    honorCipherOrder: true,
  }
}

function read(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'utf8')
  } catch {
    return ''
  }
}
