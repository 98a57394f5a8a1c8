/**
 * What is in an image, as SPDX 2.3 (ISO/IEC 5962): Debian's packages from mkosi's manifest, npm's
 * from the lock files, Go's from the module itself, each with its licence as far as it is said. Everything comes from what the build has left,
 * nothing is looked up: two builds of one commit give the same bytes.
 */
import { createHash } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'

/** One thing in the image. */
export interface Part {
  name: string
  version: string
  /** Package URL (ECMA-427): how scanners for advisories find it. */
  purl: string
  /** Algorithm and digest in hexadecimal, where the source names one. */
  checksum?: { algorithm: 'SHA256' | 'SHA512'; value: string }
  /** SPDX expression, where its maker declares one or its text is a known one. */
  licence?: string
  /** What is known of its licences otherwise, in words. */
  licenceNote?: string
}

interface Manifest {
  packages: Array<{ type: string; name: string; version: string; architecture: string }>
}
interface Lock {
  packages: Record<
    string,
    {
      version?: string
      dev?: boolean
      optional?: boolean
      link?: boolean
      integrity?: string
      license?: string
    }
  >
}

/**
 * Everything in the image for `arch`, sorted by package URL.
 *
 * @param root the checkout, after a build
 * @param profile the image's (image/mkosi.profiles), or ''
 */
export async function parts(root: string, arch: 'amd64' | 'arm64', profile = ''): Promise<Part[]> {
  const json = async <T>(path: string): Promise<T> =>
    JSON.parse(await readFile(join(root, path), 'utf8')) as T
  const manifest = await json<Manifest>(
    `out/mkosi/gatehouse-${profile === '' ? '' : `${profile}-`}${arch}.manifest`,
  )
  // The tree that the image is made from, as apt left it: mkosi keeps it from build to build.
  const kept = `out/cache/mkosi-cache${profile === '' ? '' : `-${profile}`}`
  const tree = `${kept}/debian~trixie~${arch === 'amd64' ? 'x86-64' : arch}.cache`
  const lists = `${kept}/debian~trixie~${arch === 'amd64' ? 'x86-64' : arch}.metadata.cache/lib/apt/lists`
  const foreign = profile === '' ? new Set<string>() : await raspberryPis(join(root, lists))
  const debian = await Promise.all(
    manifest.packages.map(async ({ name, version, architecture }): Promise<Part> => ({
      name,
      version,
      purl: `pkg:deb/${foreign.has(`${name} ${version}`) ? 'raspberrypi' : 'debian'}/${name}@${encodeURIComponent(version)}?arch=${architecture}&distro=trixie`,
      ...debianLicences(
        await readFile(join(root, tree, 'usr/share/doc', name, 'copyright'), 'utf8').catch(
          () => '',
        ),
      ),
    })),
  )
  const program = npm(
    await json<Lock>('package-lock.json'),
    (path, entry) =>
      path === `node_modules/node-linux-${arch === 'amd64' ? 'x64' : 'arm64'}` ||
      (entry.dev !== true && entry.optional !== true),
  )
  const nodeRed = npm(
    await json<Lock>('image/node-red/package-lock.json'),
    (_, entry) => entry.dev !== true && entry.optional !== true,
  )
  const all = [
    ...debian,
    ...program,
    ...nodeRed,
    ...goModules(
      await readFile(join(root, 'out/app/tsnet.wasm')),
      await readFile(join(root, 'out/app/THIRD_PARTY.txt'), 'utf8'),
    ),
  ]
  return [...new Map(all.map((part) => [part.purl, part])).values()].toSorted((a, b) =>
    a.purl < b.purl ? -1 : 1,
  )
}

/**
 * Packages of Raspberry Pi's archive, each as its name, a space and its version, from what apt keeps
 * of archives. Not to be looked up in Debian's advisories: their versions bear an epoch, by which
 * they would be newer than whatever mends anything.
 */
export async function raspberryPis(lists: string): Promise<Set<string>> {
  const found = new Set<string>()
  for (const file of await readdir(lists).catch(() => [])) {
    if (!file.endsWith('_InRelease')) continue
    if (!/^Origin: Raspberry Pi/m.test(await readFile(join(lists, file), 'utf8'))) continue
    const index = file.replace(/_InRelease$/, '_main_binary-arm64_Packages')
    const text = await readFile(join(lists, index), 'utf8')
    for (const stanza of text.split('\n\n')) {
      const field = (name: string): string | undefined =>
        new RegExp(`^${name}: (.*)$`, 'm').exec(stanza)?.[1]
      found.add(`${field('Package')} ${field('Version')}`)
    }
  }
  return found
}

/**
 * What a Debian copyright file says (machine-readable format 1.0). Its short names are Debian's, not
 * SPDX's, and are said in words.
 */
export function debianLicences(copyright: string): Pick<Part, 'licenceNote'> {
  const names = new Set(
    [...copyright.matchAll(/^License:[ \t]*(\S.*)$/gm)].map(([, name]) => name!.trim()),
  )
  if (names.size > 0)
    return { licenceNote: `Debian's copyright file names: ${[...names].toSorted().join(', ')}` }
  return copyright === '' ? {} : { licenceNote: "in words, in Debian's copyright file" }
}

/** Licences by a phrase of their texts, spaces made plain. */
const phrases: [string, RegExp][] = [
  ['Apache-2.0', /Apache License,? Version 2\.0/],
  ['MPL-2.0', /Mozilla Public License Version 2\.0/i],
  [
    'BSD-3-Clause',
    /Redistribution and use in source and binary forms.*(?:[Nn]either the name|names of (?:its )?contributors may)/,
  ],
  ['ISC', /Permission to use, copy, modify, and\/?(?:or)? distribute this software/],
  ['MIT', /Permission is hereby granted, free of charge/],
]

/** The SPDX expression of a text with one licence or several; undefined where none is known here. */
export function licenceOf(text: string): string | undefined {
  const plain = text.replaceAll(/\s+/g, ' ')
  const found = phrases.filter(([, phrase]) => phrase.test(plain)).map(([name]) => name)
  if (found.length === 0 && /Redistribution and use in source and binary forms/.test(plain))
    return 'BSD-2-Clause'
  return found.length === 0 ? undefined : found.join(' AND ')
}

/** Licences by the names that THIRD_PARTY.txt (src/tsnet/third-party.ts) has above each text. */
export function namedLicences(thirdParty: string): Map<string, string> {
  const rule = '='.repeat(80)
  const found = new Map<string, string>()
  const [, ...pieces] = thirdParty.split(`${rule}\n`)
  for (let i = 0; i + 1 < pieces.length; i += 2) {
    const licence = licenceOf(pieces[i + 1]!)
    if (licence !== undefined)
      for (const who of pieces[i]!.trim().split('\n')) found.set(who, licence)
  }
  return found
}

function npm(
  lock: Lock,
  wanted: (path: string, entry: Lock['packages'][string]) => boolean,
): Part[] {
  return Object.entries(lock.packages).flatMap(([path, entry]) => {
    const at = path.lastIndexOf('node_modules/')
    if (at < 0 || entry.link === true || entry.version === undefined || !wanted(path, entry))
      return []
    const name = path.slice(at + 'node_modules/'.length)
    const sha512 = /^sha512-(\S+)/.exec(entry.integrity ?? '')?.[1]
    return [
      {
        name,
        version: entry.version,
        purl: `pkg:npm/${name.replace('@', '%40')}@${entry.version}`,
        ...npmLicence(entry.license),
        ...(sha512 === undefined
          ? {}
          : {
              checksum: {
                algorithm: 'SHA512',
                value: Buffer.from(sha512, 'base64').toString('hex'),
              },
            }),
      },
    ]
  })
}

/** What a package.json says: an SPDX expression, or words (`SEE LICENSE IN …`). */
function npmLicence(said: string | undefined): Pick<Part, 'licence' | 'licenceNote'> {
  if (said === undefined) return {}
  return /^\(?[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) \(?[A-Za-z0-9.+-]+\)?)*\)?$/.test(said)
    ? { licence: said }
    : { licenceNote: `its package.json says: ${said}` }
}

/**
 * The build information that Go's linker leaves in a binary (runtime/debug.BuildInfo); `go version
 * -m` does not read WebAssembly.
 */
function goModules(wasm: Buffer, thirdParty: string): Part[] {
  const licences = namedLicences(thirdParty)
  const licence = (who: string): Pick<Part, 'licence'> => {
    const known = licences.get(who)
    return known === undefined ? {} : { licence: known }
  }
  const text = wasm.toString('latin1')
  const found = [...text.matchAll(/(?:^|\n)dep\t([^\t\n]+)\t(v[^\t\n]+)/g)].map(
    ([, name, version]): Part => ({
      name: name!,
      version: version!,
      purl: `pkg:golang/${name}@${version}`,
      ...licence(`${name} ${version}`),
    }),
  )
  const go = /\bgo1\.\d+(?:\.\d+)?\b/.exec(text)?.[0]
  if (found.length === 0 || go === undefined)
    throw new Error(
      'sbom: tsnet.wasm carries no build information: build it with src/tsnet/build.sh',
    )
  return [
    ...found,
    {
      name: 'go',
      version: go.slice(2),
      purl: `pkg:golang/stdlib@${go.slice(2)}`,
      licence: 'BSD-3-Clause',
    },
  ]
}

/** The SPDX document as JSON text. @param created seconds since 1970, the document's date */
export function spdx(name: string, version: string, all: readonly Part[], created: number): string {
  const id = (part: Part): string =>
    `SPDXRef-${createHash('sha256').update(part.purl).digest('hex').slice(0, 16)}`
  const digest = createHash('sha256').update(JSON.stringify(all)).digest('hex').slice(0, 32)
  return `${JSON.stringify(
    {
      spdxVersion: 'SPDX-2.3',
      dataLicense: 'CC0-1.0',
      SPDXID: 'SPDXRef-DOCUMENT',
      name: `${name}-${version}`,
      documentNamespace: `urn:gatehouse:${name}:${version}:${digest}`,
      creationInfo: {
        created: new Date(created * 1000).toISOString().replace(/\.\d+Z$/, 'Z'),
        creators: ['Tool: gatehouse-image-build'],
      },
      packages: [
        {
          SPDXID: 'SPDXRef-image',
          name,
          versionInfo: version,
          downloadLocation: 'NOASSERTION',
          filesAnalyzed: false,
          primaryPackagePurpose: 'OPERATING-SYSTEM',
        },
        ...all.map((part) => ({
          SPDXID: id(part),
          name: part.name,
          versionInfo: part.version,
          downloadLocation: 'NOASSERTION',
          filesAnalyzed: false,
          licenseDeclared: part.licence ?? 'NOASSERTION',
          ...(part.licenceNote === undefined ? {} : { licenseComments: part.licenceNote }),
          ...(part.checksum === undefined
            ? {}
            : {
                checksums: [
                  { algorithm: part.checksum.algorithm, checksumValue: part.checksum.value },
                ],
              }),
          externalRefs: [
            {
              referenceCategory: 'PACKAGE-MANAGER',
              referenceType: 'purl',
              referenceLocator: part.purl,
            },
          ],
        })),
      ],
      relationships: [
        {
          spdxElementId: 'SPDXRef-DOCUMENT',
          relationshipType: 'DESCRIBES',
          relatedSpdxElement: 'SPDXRef-image',
        },
        ...all.map((part) => ({
          spdxElementId: 'SPDXRef-image',
          relationshipType: 'CONTAINS',
          relatedSpdxElement: id(part),
        })),
      ],
    },
    undefined,
    1,
  )}\n`
}
