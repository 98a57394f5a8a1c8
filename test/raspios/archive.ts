/**
 * A stand-in for Raspberry Pi's Debian archive, which PROFILE=raspios builds from: its suite, its
 * packages' names, the form of their versions, their scripts' doings and the places of their files
 * are Raspberry Pi's; what is in the files comes from Debian's packages. Signed with a key made for
 * it. What is built from it shows that the profile fits the archive, and is no image for a board.
 *
 * Where the facts come from: github.com/RPi-Distro: linux-packaging (debian/templates, debian/config),
 * firmware (debian/, the hooks), firmware-nonfree (debian/config/brcm80211 and its postinst), pi-gen
 * (stage0: suite, component, key file); github.com/raspberrypi/firmware (boot/: names of trees).
 *
 * Usage: node test/raspios/archive.ts DEBS FOLDER
 * DEBS has linux-image-<version>-arm64, raspi-firmware, firmware-brcm80211 and wireless-regdb of
 * Debian as .deb (test/raspios/fetch); FOLDER/debian becomes the archive, FOLDER/keyring.pgp its key.
 */
import { createHash } from 'node:crypto'
import {
  chmod,
  cp,
  mkdir,
  mkdtemp,
  readFile,
  readdir,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { gzipSync } from 'node:zlib'
import { tool } from '../vm/tools-tree.ts'

const suite = 'trixie'
/** As apt shows it: `apt-cache policy` on a Raspberry Pi OS. */
const origin = 'Raspberry Pi Foundation'

/** Kernels there are for 64 bits: of 4 KiB pages for all boards, of 16 KiB for the Pi 5. */
const flavours = ['v8', '2712'] as const

/** The kernel's trees, by the name in Raspberry Pi's kernel: which of Debian's has its content. */
const trees: Record<string, string> = {
  'bcm2710-rpi-2-b': 'bcm2837-rpi-3-b',
  'bcm2710-rpi-3-b': 'bcm2837-rpi-3-b',
  'bcm2710-rpi-3-b-plus': 'bcm2837-rpi-3-b-plus',
  'bcm2710-rpi-cm0': 'bcm2837-rpi-zero-2-w',
  'bcm2710-rpi-cm3': 'bcm2837-rpi-cm3-io3',
  'bcm2710-rpi-zero-2': 'bcm2837-rpi-zero-2-w',
  'bcm2710-rpi-zero-2-w': 'bcm2837-rpi-zero-2-w',
  'bcm2711-rpi-4-b': 'bcm2711-rpi-4-b',
  'bcm2711-rpi-400': 'bcm2711-rpi-400',
  'bcm2711-rpi-cm4': 'bcm2711-rpi-cm4-io',
  'bcm2711-rpi-cm4-io': 'bcm2711-rpi-cm4-io',
  'bcm2711-rpi-cm4s': 'bcm2711-rpi-cm4-io',
  'bcm2712-d-rpi-5-b': 'bcm2712-rpi-5-b',
  'bcm2712-rpi-5-b': 'bcm2712-rpi-5-b',
  'bcm2712-rpi-500': 'bcm2712-rpi-5-b',
  'bcm2712-rpi-cm5-cm4io': 'bcm2712-rpi-5-b',
  'bcm2712-rpi-cm5-cm5io': 'bcm2712-rpi-5-b',
  'bcm2712-rpi-cm5l-cm4io': 'bcm2712-rpi-5-b',
  'bcm2712-rpi-cm5l-cm5io': 'bcm2712-rpi-5-b',
  'bcm2712d0-rpi-5-b': 'bcm2712-rpi-5-b',
  'bcm2837-rpi-3-a-plus': 'bcm2837-rpi-3-a-plus',
  'bcm2837-rpi-3-b': 'bcm2837-rpi-3-b',
  'bcm2837-rpi-3-b-plus': 'bcm2837-rpi-3-b-plus',
  'bcm2837-rpi-cm3-io3': 'bcm2837-rpi-cm3-io3',
}
/** Of some 300 overlays those that the firmware applies by itself, and two that people name. */
const overlays = [
  ...['overlay_map.dtb', 'README', 'bcm2712d0.dtbo', 'upstream.dtbo', 'upstream-pi4.dtbo'],
  ...['disable-bt.dtbo', 'i2c-rtc.dtbo'],
]

/** WiFi chips' files below /usr/lib/firmware: of links where they lead, of files ''. */
export const wifi: Readonly<Record<string, string>> = wifiFiles()
function wifiFiles(): Record<string, string> {
  const found: Record<string, string> = {}
  const board = (chip: string, name: string, to: string, endings = ['bin', 'clm_blob', 'txt']) => {
    for (const ending of endings)
      found[`brcm/brcmfmac${chip}-sdio.raspberrypi,${name}.${ending}`] =
        (ending === 'txt' ? to.replace('../cypress/cyfmac', 'brcmfmac') : to) + `-sdio.${ending}`
  }
  for (const chip of ['43430', '43455']) {
    for (const ending of ['bin', 'clm_blob'])
      found[`brcm/brcmfmac${chip}-sdio.${ending}`] = `../cypress/cyfmac${chip}-sdio.${ending}`
    found[`brcm/brcmfmac${chip}-sdio.txt`] = ''
  }
  for (const name of ['3-model-b', 'model-zero-w']) board('43430', name, '../cypress/cyfmac43430')
  for (const name of ['3-model-a-plus', '3-model-b-plus', '4-compute-module', '4-model-b'])
    board('43455', name, '../cypress/cyfmac43455')
  board('43455', '5-model-b', '../cypress/cyfmac43455')
  // The Zero 2 W has one of three, which call themselves by other chips' names.
  board('43430', 'model-zero-2-w', 'brcmfmac43436s', ['bin', 'txt'])
  board('43430b0', 'model-zero-2-w', 'brcmfmac43436')
  board('43436', 'model-zero-2-w', 'brcmfmac43436')
  board('43436s', 'model-zero-2-w', 'brcmfmac43436s', ['bin', 'txt'])
  board('43456', '4-compute-module', 'brcmfmac43456')
  board('43456', '400', 'brcmfmac43456')
  for (const chip of ['43436', '43436s', '43456'])
    for (const ending of ['bin', 'clm_blob', 'txt'])
      if (chip !== '43436s' || ending !== 'clm_blob')
        found[`brcm/brcmfmac${chip}-sdio.${ending}`] = ''
  for (const name of ['43430-sdio.bin', '43430-sdio.clm_blob', '43455-sdio.clm_blob'])
    found[`cypress/cyfmac${name}`] = ''
  // cyfmac43455-sdio.bin itself is made by update-alternatives when the package is configured.
  for (const kind of ['standard', 'minimal']) found[`cypress/cyfmac43455-sdio-${kind}.bin`] = ''
  return found
}

/** What the archive was made of, by package. */
export interface Made {
  /** The archive's folder, for `file:` or a web server. */
  archive: string
  /** The file with its key. */
  keyring: string
  packages: { name: string; version: string; file: string }[]
}

/**
 * Makes the archive in `into` (made anew) of Debian's packages in `debs`.
 *
 * @throws Error naming the package that `debs` lacks, or the program that failed
 */
export async function makeArchive(debs: string, into: string): Promise<Made> {
  const work = await mkdtemp(join(tmpdir(), 'raspios-archive-'))
  try {
    const archive = join(into, 'debian')
    await rm(archive, { recursive: true, force: true })
    await mkdir(archive, { recursive: true })
    const from = await unpacked(debs, work)
    const key = await signingKey(join(work, 'gnupg'))
    const keyring = join(into, 'keyring.pgp')
    await writeFile(keyring, key)

    const built = [
      ...(await kernels(from, work)),
      await firmware(from, work),
      await wifiFirmware(from, work),
      await keyringPackage(key, work),
      await another(from, work),
    ]
    const packages: Made['packages'] = []
    const stanzas: string[] = []
    for (const { deb, source } of built) {
      const control = await tool('dpkg-deb', ['-f', deb])
      const field = (name: string): string =>
        new RegExp(`^${name}: (.*)$`, 'm').exec(control)?.[1] ?? ''
      // Without the epoch, as in every pool.
      const version = field('Version').replace(/^\d+:/, '')
      const file = `pool/main/${source[0]}/${source}/${field('Package')}_${version}_${field('Architecture')}.deb`
      await mkdir(dirname(join(archive, file)), { recursive: true })
      await rename(deb, join(archive, file)).catch(() => cp(deb, join(archive, file)))
      const bytes = await readFile(join(archive, file))
      stanzas.push(
        `${control.trimEnd()}\nFilename: ${file}\nSize: ${bytes.length}\n` +
          `SHA256: ${createHash('sha256').update(bytes).digest('hex')}\n`,
      )
      packages.push({ name: field('Package'), version: field('Version'), file })
    }
    await publish(archive, stanzas.join('\n'), join(work, 'gnupg'))
    return { archive, keyring, packages }
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Debian's packages, unpacked, with their scripts in DEBIAN. */
interface Unpacked {
  kernel: string
  /** Of the kernel, as uname -r says it, and the version it is of. */
  release: string
  upstream: string
  firmware: string
  wifi: string
  regdb: string
}

async function unpacked(debs: string, work: string): Promise<Unpacked> {
  const names = (await readdir(debs)).toSorted()
  const one = async (pattern: RegExp, what: string): Promise<string> => {
    const name = names.findLast((each) => pattern.test(each))
    if (name === undefined)
      throw new Error(`raspios-archive: ${debs} has no ${what}: test/raspios/fetch gets it`)
    const folder = join(work, what)
    await tool('dpkg-deb', ['-R', join(debs, name), folder])
    return folder
  }
  const kernel = await one(/^linux-image-\d.*-arm64_.*\.deb$/, 'linux-image')
  const boot = await readdir(join(kernel, 'boot'))
  const release = boot.find((name) => name.startsWith('vmlinuz-'))?.slice('vmlinuz-'.length)
  const upstream = /^(\d+\.\d+\.\d+)/.exec(release ?? '')?.[1]
  if (release === undefined || upstream === undefined)
    throw new Error(`raspios-archive: ${kernel} has no kernel in /boot`)
  return {
    kernel,
    release,
    upstream,
    firmware: await one(/^raspi-firmware_.*\.deb$/, 'raspi-firmware'),
    wifi: await one(/^firmware-brcm80211_.*\.deb$/, 'firmware-brcm80211'),
    regdb: await one(/^wireless-regdb_.*\.deb$/, 'wireless-regdb'),
  }
}

/** A built package and the source package whose folder of the pool it lies in. */
interface Built {
  deb: string
  source: string
}

async function build(
  tree: string,
  source: string,
  control: Record<string, string>,
  scripts: Record<string, string> = {},
): Promise<Built> {
  const at = join(tree, 'DEBIAN')
  await rm(at, { recursive: true, force: true })
  await mkdir(at, { recursive: true })
  const fields = {
    Maintainer: 'Gatehouse <tests@gatehouse.invalid>',
    Priority: 'optional',
    ...control,
    Description: `stand-in for Raspberry Pi's package of this name\n Made of Debian's files, for tests of an image's build.`,
  }
  await writeFile(
    join(at, 'control'),
    Object.entries(fields)
      .map(([name, value]) => `${name}: ${value}\n`)
      .join(''),
  )
  for (const [name, text] of Object.entries(scripts)) {
    await writeFile(join(at, name), `#!/bin/sh\nset -e\n${text}`)
    await chmod(join(at, name), 0o755)
  }
  const doc = join(tree, 'usr/share/doc', control['Package']!)
  await mkdir(doc, { recursive: true })
  await writeFile(
    join(doc, 'copyright'),
    "Repacked from Debian's packages for a test: their copyright files hold for the content.\n",
  )
  const deb = `${tree}.deb`
  // Uncompressed: what is in it is compressed already, and it is read once.
  await tool('dpkg-deb', ['--root-owner-group', '-Znone', '-b', tree, deb])
  await rm(tree, { recursive: true })
  return { deb, source }
}

/** linux-image-<version>+rpt-rpi-<flavour>, and the packages without a version that ask for them. */
async function kernels(from: Unpacked, work: string): Promise<Built[]> {
  const version = `1:${from.upstream}-1+rpt1`
  const built: Built[] = []
  for (const flavour of flavours) {
    const release = `${from.upstream}+rpt-rpi-${flavour}`
    const name = `linux-image-${release}`
    const tree = join(work, name)
    await mkdir(join(tree, 'boot'), { recursive: true })
    const image = await readFile(join(from.kernel, `boot/vmlinuz-${from.release}`))
    // arm64's is packed with gzip (kernel_file is Image.gz); Debian's is the program itself.
    await writeFile(
      join(tree, `boot/vmlinuz-${release}`),
      gzipSync(renamed(image, from.release, release), { level: 1 }),
    )
    for (const file of ['System.map', 'config'])
      await cp(
        join(from.kernel, `boot/${file}-${from.release}`),
        join(tree, `boot/${file}-${release}`),
      )
    await tool('cp', [
      '-al',
      join(from.kernel, 'usr/lib/modules', from.release),
      await folder(join(tree, 'usr/lib/modules', release)),
    ])
    const lib = join(tree, 'usr/lib', name)
    await mkdir(join(lib, 'broadcom'), { recursive: true })
    await mkdir(join(lib, 'overlays'))
    const debian = join(from.kernel, 'usr/lib', `linux-image-${from.release}`, 'broadcom')
    for (const [own, other] of Object.entries(trees))
      await cp(join(debian, `${other}.dtb`), join(lib, 'broadcom', `${own}.dtb`))
    const overlay = join(from.firmware, 'usr/lib/raspi-firmware/overlays/hifiberry-dac.dtbo')
    for (const file of overlays)
      if (file === 'README') await writeFile(join(lib, 'overlays', file), 'A stand-in.\n')
      else await cp(overlay, join(lib, 'overlays', file))
    built.push(
      await build(
        tree,
        'linux',
        {
          Package: name,
          Source: 'linux',
          Version: version,
          Architecture: 'arm64',
          Depends:
            'kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool',
          Section: 'kernel',
        },
        { postinst: kernelPostinst(release) },
      ),
      await build(await folder(join(work, `linux-image-rpi-${flavour}`), true), 'linux', {
        Package: `linux-image-rpi-${flavour}`,
        Source: 'linux',
        Version: version,
        Architecture: 'arm64',
        Depends: `${name} (= ${version})`,
        Section: 'kernel',
      }),
    )
  }
  return built
}

/** The folder that `path` is in, made; or `path` itself. */
async function folder(path: string, itself = false): Promise<string> {
  await mkdir(itself ? path : dirname(path), { recursive: true })
  return path
}

/**
 * A kernel image that says of itself that it is `to`, so that it finds its modules: written over in
 * the field that uname(2) reads, which has room for 64 characters, and in texts if it is no longer.
 */
export function renamed(image: Buffer, from: string, to: string): Buffer {
  const changed = Buffer.from(image)
  const length = Math.max(from.length, to.length)
  for (let at = changed.indexOf(from); at >= 0; at = changed.indexOf(from, at + 1)) {
    const rest = changed.subarray(at + from.length, at + length + 1)
    if (rest.length > 0 && rest.every((byte) => byte === 0))
      changed.write(to.padEnd(length, '\0'), at, 'latin1')
    else if (to.length <= from.length) changed.write(to.padEnd(from.length), at, 'latin1')
  }
  return changed
}

/** As the kernel's packages have it since Raspberry Pi OS 12: modules listed, then the hooks. */
function kernelPostinst(release: string): string {
  return `[ "$1" = configure ] || exit 0
depmod ${release}
linux-update-symlinks install ${release} /boot/vmlinuz-${release}
DEB_MAINT_PARAMS="$*" run-parts --report --exit-on-error --arg=${release} --arg=/boot/vmlinuz-${release} /etc/kernel/postinst.d
`
}

/** raspi-firmware: GPU firmware, and the hooks that copy kernel, trees and overlays beside it. */
async function firmware(from: Unpacked, work: string): Promise<Built> {
  const date = /^Version: 1\.(\d{8})/m.exec(
    await readFile(join(from.firmware, 'DEBIAN/control'), 'utf8'),
  )?.[1]
  const tree = join(work, 'raspi-firmware-own')
  const lib = await folder(join(tree, 'usr/lib/raspi-firmware'), true)
  const source = join(from.firmware, 'usr/lib/raspi-firmware')
  for (const entry of await readdir(source, { withFileTypes: true }))
    if (entry.isFile()) await cp(join(source, entry.name), join(lib, entry.name))
  await writeFile(join(lib, 'LICENCE.broadcom'), 'A stand-in.\n')
  const hook = async (path: string, text: string): Promise<void> => {
    const file = await folder(join(tree, path))
    await writeFile(file, `#!/bin/sh\nset -e\n${text}`)
    await chmod(file, 0o755)
  }
  await folder(join(tree, 'etc/default'), true)
  await writeFile(join(tree, 'etc/default/raspi-firmware'), '#KERNEL=auto\n#INITRAMFS=auto\n')
  await hook('etc/kernel/postinst.d/z50-raspi-firmware', kernelHook)
  await hook('etc/kernel/postrm.d/z50-raspi-firmware', 'exit 0\n')
  await hook('etc/initramfs/post-update.d/z50-raspi-firmware', mounted)
  return await build(
    tree,
    'raspi-firmware',
    {
      Package: 'raspi-firmware',
      Version: `1:1.${date}-1`,
      Architecture: 'all',
      'Pre-Depends': 'dpkg (>= 1.17.14)',
      Depends: 'dosfstools, rsync',
      Section: 'non-free-firmware/misc',
    },
    {
      postinst: `[ "$1" = configure ] || exit 0
${mounted}mkdir -p /boot/firmware
for file in /usr/lib/raspi-firmware/*; do
  cp "$file" "/boot/firmware/\${file##*/}"
done
for kernel in /boot/vmlinuz-*-rpi-*; do
  [ -e "$kernel" ] || continue
  DEB_MAINT_PARAMS=configure /etc/kernel/postinst.d/z50-raspi-firmware "\${kernel#/boot/vmlinuz-}" "$kernel"
done
`,
    },
  )
}

/** A board without its FAT partition mounted is an error, a tree that is being made is none. */
const mounted = `if ! ischroot && ! systemd-detect-virt -q && ! mountpoint -q /boot/firmware; then
  echo "raspi-firmware: missing /boot/firmware, did you forget to mount it?" >&2
  exit 1
fi
`

const kernelHook = `exec </dev/null >&2
version=$1 image=$2
case $DEB_MAINT_PARAMS in configure*) ;; *) exit 0 ;; esac
${mounted}mkdir -p /boot/firmware/overlays
flavour=\${version#*-rpi-}
case $flavour in
  v8) name=kernel8.img ;;
  2712) name=kernel_2712.img ;;
  *) echo "unsupported kernel version ($version)"; exit 0 ;;
esac
lib=/usr/lib/linux-image-$version
rsync -crt "$lib"/broadcom/bcm27*.dtb /boot/firmware/
rsync -crt "$lib"/overlays/*.dtb* "$lib"/overlays/README /boot/firmware/overlays
cp -v "$image" "/boot/firmware/$name"
sync -f /boot/firmware
`

/** firmware-brcm80211: of the chip most boards have there are two, and a link to one of them. */
async function wifiFirmware(from: Unpacked, work: string): Promise<Built> {
  const tree = join(work, 'firmware-brcm80211-own')
  const lib = join(tree, 'usr/lib/firmware')
  const source = join(from.wifi, 'usr/lib/firmware')
  for (const name of ['brcm', 'cypress'])
    await cp(join(source, name), await folder(join(lib, name)), {
      recursive: true,
      verbatimSymlinks: true,
    })
  // Debian's for the same boards, and what update-alternatives puts there.
  for (const name of await readdir(join(lib, 'brcm')))
    if (/raspberrypi|Raspberry Pi/.test(name)) await rm(join(lib, 'brcm', name))
  const contents = new Map<string, Buffer>()
  for (const ending of ['bin', 'clm_blob'])
    contents.set(ending, await readFile(join(source, `cypress/cyfmac43455-sdio.${ending}`)))
  contents.set(
    'txt',
    await readFile(join(source, 'brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt')),
  )
  await rm(join(lib, 'cypress/cyfmac43455-sdio.bin'))
  for (const [name, to] of Object.entries(wifi)) {
    const file = join(lib, name)
    await rm(file, { force: true })
    if (to !== '') await symlink(to, file)
    else await writeFile(file, contents.get(name.slice(name.lastIndexOf('.') + 1))!)
  }
  const date = /^Version: (\d{8})-(\S+)$/m.exec(
    await readFile(join(from.wifi, 'DEBIAN/control'), 'utf8'),
  )!
  const link = '/lib/firmware/cypress/cyfmac43455-sdio'
  const alternative = (kind: string, priority: number): string =>
    `update-alternatives --quiet --install ${link}.bin cyfmac43455-sdio.bin ${link}-${kind}.bin ${priority}\n`
  return await build(
    tree,
    'firmware-nonfree',
    {
      Package: 'firmware-brcm80211',
      Source: 'firmware-nonfree',
      Version: `1:${date[1]}-${date[2]}+rpt1`,
      Architecture: 'all',
      Section: 'non-free-firmware/kernel',
    },
    {
      postinst: `[ "$1" = configure ] || exit 0\n${alternative('standard', 50)}${alternative('minimal', 10)}`,
    },
  )
}

/** raspberrypi-archive-keyring, with this archive's key: the file that raspi.sources names. */
async function keyringPackage(key: Buffer, work: string): Promise<Built> {
  const tree = join(work, 'raspberrypi-archive-keyring')
  const file = await folder(join(tree, 'usr/share/keyrings/raspberrypi-archive-keyring.pgp'))
  await writeFile(file, key)
  await symlink('raspberrypi-archive-keyring.pgp', file.replace(/pgp$/, 'gpg'))
  return await build(tree, 'raspberrypi-archive-keyring', {
    Package: 'raspberrypi-archive-keyring',
    Version: '2025.1+rpt1',
    Architecture: 'all',
    Section: 'misc',
  })
}

/**
 * A package that Debian has as well, as Raspberry Pi's archive has several, in a version that apt
 * takes for the newer one. The image wants Debian's.
 */
async function another(from: Unpacked, work: string): Promise<Built> {
  const tree = join(work, 'wireless-regdb-own')
  await cp(from.regdb, tree, { recursive: true, verbatimSymlinks: true })
  const version = /^Version: (\S+)$/m.exec(
    await readFile(join(from.regdb, 'DEBIAN/control'), 'utf8'),
  )![1]
  return await build(tree, 'wireless-regdb', {
    Package: 'wireless-regdb',
    Version: `${version}+rpt1`,
    Architecture: 'all',
    Section: 'net',
  })
}

/** Makes a key pair in a GnuPG folder. @returns the public key, as apt's Signed-By takes it */
async function signingKey(home: string): Promise<Buffer> {
  await mkdir(home, { mode: 0o700 })
  const gpg = ['--homedir', home, '--batch', '--quiet']
  await tool('gpg', [
    ...gpg,
    ...['--pinentry-mode', 'loopback', '--passphrase', ''],
    ...['--quick-generate-key', "Stand-in for Raspberry Pi's archive", 'rsa3072', 'sign', 'never'],
  ])
  const file = join(home, 'public')
  await tool('gpg', [...gpg, '--output', file, '--export'])
  return await readFile(file)
}

/** dists/<suite>: Packages, their sums, and the signature of those. */
async function publish(archive: string, index: string, home: string): Promise<void> {
  const dist = join(archive, 'dists', suite)
  const binary = await folder(join(dist, 'main/binary-arm64'), true)
  await writeFile(join(binary, 'Packages'), index)
  await writeFile(join(binary, 'Packages.gz'), gzipSync(index))
  const sums: string[] = []
  for (const name of ['Packages', 'Packages.gz']) {
    const bytes = await readFile(join(binary, name))
    sums.push(
      ` ${createHash('sha256').update(bytes).digest('hex')} ${bytes.length} ${relative(dist, join(binary, name))}\n`,
    )
  }
  const release = join(dist, 'Release')
  await writeFile(
    release,
    `Origin: ${origin}\nLabel: ${origin}\nSuite: stable\nCodename: ${suite}\n` +
      `Date: ${new Date().toUTCString()}\nArchitectures: amd64 arm64 armhf\nComponents: main\n` +
      `Description: a stand-in for ${origin}'s archive\nSHA256:\n${sums.join('')}`,
  )
  const gpg = ['--homedir', home, '--batch', '--quiet', '--digest-algo', 'SHA512', '--output']
  await tool('gpg', [...gpg, join(dist, 'InRelease'), '--clearsign', release])
  await tool('gpg', [...gpg, join(dist, 'Release.gpg'), '--armor', '--detach-sign', release])
  // Its agent ends with its folder.
  await tool('gpgconf', ['--homedir', home, '--kill', 'all']).catch(() => '')
}

if (import.meta.main) {
  const [debs, into] = process.argv.slice(2)
  if (debs === undefined || into === undefined) {
    console.error('usage: node test/raspios/archive.ts DEBS FOLDER')
    process.exit(2)
  }
  const made = await makeArchive(resolve(debs), resolve(into))
  for (const { name, version, file } of made.packages)
    console.log(
      `${name}\t${version}\t${((await stat(join(made.archive, file))).size / 1e6).toFixed(1)} MB`,
    )
}
