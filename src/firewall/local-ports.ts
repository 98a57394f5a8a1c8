/**
 * Where the gateway listens for the local network: no port below 1024, for which it has no power,
 * and none that others use. The firewall redirects 80, 443 and 8443 to them and drops what is sent
 * to them directly (overlays/etc/nftables.conf); the unit allows these alone
 * (src/provision/gatehouse-unit.ts).
 */
export const localPorts = { http: 41_080, https: 41_443, flows: 48_443 } as const
