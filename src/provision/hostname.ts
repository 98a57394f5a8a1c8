/**
 * A DNS label (RFC 1123 §2.1) of a name that a person or Raspberry Pi Imager wrote: lower case, the
 * first label of several, accents gone, hyphens for all else; undefined when nothing is left.
 */
export function hostnameFrom(name: string): string | undefined {
  const [first = ''] = name.trim().replace(/^\.+/, '').split('.')
  const label = first
    .toLowerCase()
    .replaceAll('ß', 'ss')
    .normalize('NFKD')
    .replaceAll(/\p{M}/gu, '')
    .replaceAll(/[^a-z0-9-]+/g, '-')
    .replace(/^-+/, '')
    .slice(0, 63)
    .replace(/-+$/, '')
  return label === '' ? undefined : label
}
