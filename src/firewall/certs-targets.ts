import type { Config } from '../config/config.ts'
import type { Egress } from '../config/egress.ts'
import { egressOf } from './gateway-targets.ts'

/** Port of TCP that the certificates' agent may use anywhere (overlays/etc/nftables.conf). */
const anywhere = [443]

/**
 * Where the certificates' agent has to connect to beside: the one name server that takes its
 * updates, an acme-dns server, an ACME directory on another port than 443.
 */
export function certsTargets({ certificates }: Pick<Config, 'certificates'>): Egress[] {
  const { mode, proof, directory, dnsServer, acmeDns } = certificates
  if (mode === 'files' || mode === 'self') return []
  const written = [directory]
  if (mode === 'acme' && proof === 'rfc2136' && dnsServer !== undefined)
    // A port of its own, or DNS's.
    written.push(/^(?:\[[^\]]+\]|[^:]+)$/.test(dnsServer) ? `${dnsServer}:53` : dnsServer)
  if (mode === 'acme' && proof === 'acme-dns' && acmeDns !== undefined) written.push(acmeDns)
  return written.flatMap((text) => egressOf(text, anywhere))
}
