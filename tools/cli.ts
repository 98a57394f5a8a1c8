/**
 * Makes the npm package of the laptop's command line, gatehouse-cli.tgz: one file of JavaScript that
 * needs Node.js 20 or newer and nothing else. Each device offers the one of its own version at
 * /console/gatehouse-cli.tgz.
 *
 * Usage: node tools/cli.ts [OUT]; default out.
 */
import { build } from 'esbuild'
import { execFileSync } from 'node:child_process'
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..')

/** Name of the tarball, here and at the device. */
export const cliPackage = 'gatehouse-cli.tgz'

const readme = `# gatehouse

Runs a Gatehouse from a computer on its tailnet: settings, logs, updates, backups.

    gatehouse --host gatehouse.tail1234.ts.net status
    gatehouse --host NAME help
`

/**
 * Puts {@link cliPackage} into a folder. The same sources give the same bytes.
 *
 * @param builtAt milliseconds: the date of the files in it
 */
export async function packCli(out: string, builtAt: number): Promise<void> {
  const { version, license } = JSON.parse(
    await readFile(join(root, 'package.json'), 'utf8'),
  ) as Record<'version' | 'license', string>
  const directory = await mkdtemp(join(tmpdir(), 'gatehouse-cli-'))
  const inside = join(directory, 'package')
  try {
    await mkdir(inside)
    await build({
      entryPoints: [join(root, 'src/cli/remote/bin.ts')],
      outfile: join(inside, 'gatehouse.js'),
      ...{ bundle: true, format: 'esm', platform: 'node', target: 'node20' },
      ...{ legalComments: 'none', logLevel: 'warning' },
      define: { GATEHOUSE_VERSION: JSON.stringify(version), GATEHOUSE_BUILT_AT: String(builtAt) },
    })
    const manifest = {
      ...{ name: '@gatehouse/cli', version, license, type: 'module' },
      description: 'Runs a Gatehouse from a computer on its tailnet',
      bin: { gatehouse: 'gatehouse.js' },
      engines: { node: '>=20.11' },
    }
    await writeFile(join(inside, 'package.json'), `${JSON.stringify(manifest, undefined, 2)}\n`)
    await writeFile(join(inside, 'README.md'), readme)
    await copyFile(join(root, 'LICENSE'), join(inside, 'LICENSE'))
    await mkdir(out, { recursive: true })
    execFileSync('tar', [
      ...['--create', '--sort=name', '--format=ustar', '--owner=0', '--group=0', '--numeric-owner'],
      ...[`--mtime=@${Math.floor(builtAt / 1000)}`, '--mode=u=rwX,go=rX', '--use-compress-program'],
      ...['gzip -9n', '--file', join(out, cliPackage), '--directory', directory, 'package'],
    ])
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) {
  const out = process.argv[2] ?? join(root, 'out')
  const epoch = process.env.SOURCE_DATE_EPOCH
  await packCli(out, epoch === undefined ? Date.now() : Number(epoch) * 1000)
  console.log(`npm package: ${join(out, cliPackage)}`)
}
