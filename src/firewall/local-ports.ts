/**
 * Where the gateway listens for the local network: no port below 1024, for which it has no power,
 * and none that others use. The firewall redirects 80 and 443 to them and drops what is sent to
 * them directly (overlays/etc/nftables.conf); the unit allows the two alone
 * (src/provision/gatehouse-unit.ts).
 */
export const localPorts = { http: 41_080, https: 41_443 } as const
