/**
 * The licences of all that is linked into tsnet.wasm, in one text, as they ask for where it is
 * passed on: Go's own, and those of every module whose packages the compiler takes. For the changed
 * ones (build.sh) it names the files that are changed, as section 4(b) of the Apache License 2.0
 * wants.
 *
 * Usage: node src/tsnet/third-party.ts FILE   (after build.sh)
 */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'

const here = import.meta.dirname

/** Names that licences and notices have. */
const LICENCE = /^(licen[cs]e|copying|notice|patents)([.-].*)?$/i

/** Where the patches to a module are. */
const series: Record<string, string> = {
  'tailscale.com': 'patches',
  'github.com/tailscale/wireguard-go': 'patches-wireguard',
  'gvisor.dev/gvisor': 'patches-gvisor',
}

/** A module that is linked. */
export interface Module {
  path: string
  version: string
  dir: string
}

/** Those whose packages are in the module. Runs Go. */
export function linkedModules(): Module[] {
  const tags = execFileSync(path.join(here, 'build.sh'), ['--tags'], { encoding: 'utf8' }).trim()
  const go = readFileSync(path.join(here, 'go/go.mod'), 'utf8')
  const format = '{{with .Module}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}'
  const list = execFileSync('go', ['list', '-deps', '-tags', tags, '-f', format, '.'], {
    cwd: path.join(here, 'go'),
    encoding: 'utf8',
    env: {
      ...process.env,
      GOOS: 'wasip1',
      GOARCH: 'wasm',
      GOTOOLCHAIN: /^toolchain (.*)$/m.exec(go)![1],
      GOFLAGS: '',
      GOWORK: 'off',
      CGO_ENABLED: '0',
    },
  })
  return [...new Set(list.split('\n').filter(Boolean))]
    .map((line) => line.split('\t') as [string, string, string])
    .filter(([name]) => name !== 'gatehouse/tsnet')
    .map(([name, version, dir]) => ({ path: name, version, dir }))
    .toSorted((a, b) => (a.path < b.path ? -1 : 1))
}

/** The files that a series of patches changes. */
export function changedFiles(folder: string): string[] {
  const files = readdirSync(folder)
    .filter((name) => name.endsWith('.patch'))
    .flatMap((name) =>
      [...readFileSync(path.join(folder, name), 'utf8').matchAll(/^\+\+\+ b\/(\S+)/gm)].map(
        (m) => m[1]!,
      ),
    )
  return [...new Set(files)].toSorted()
}

/** Licences and notices in the root of a module. Throws where there are none. */
function texts(module: string, dir: string): string[] {
  const names = readdirSync(dir)
    .filter((name) => LICENCE.test(name))
    .toSorted()
  if (!names.some((name) => !/^(notice|patents)/i.test(name)))
    throw new Error(`third-party: ${module} has no licence in ${dir}`)
  return names.map((name) => readFileSync(path.join(dir, name), 'utf8').trim())
}

/** The whole text. */
export function thirdParty(modules: Module[], goroot: string, goVersion: string): string {
  // One text for all modules that share it.
  const shared = new Map<string, string[]>()
  const add = (who: string, dir: string): void => {
    const text = texts(who, dir).join('\n\n')
    shared.set(text, [...(shared.get(text) ?? []), who])
  }
  add(`Go ${goVersion} (standard library and runtime)`, goroot)
  for (const module of modules) add(`${module.path} ${module.version}`, module.dir)
  const rule = '='.repeat(80)
  const changes = modules.flatMap(({ path: name }) => {
    const folder = series[name]
    if (!folder) return []
    const files = changedFiles(path.join(here, folder)).map((file) => `  ${file}`)
    return [`${name} is changed in these files (src/tsnet/${folder} has the changes):`, ...files]
  })
  return [
    'tsnet.wasm is made of the following, each under its own licence.',
    '',
    ...changes,
    ...[...shared].flatMap(([text, who]) => ['', rule, ...who, rule, '', text]),
    '',
  ].join('\n')
}

if (import.meta.main) {
  const [file] = process.argv.slice(2)
  if (!file) {
    console.error('usage: node src/tsnet/third-party.ts FILE')
    process.exit(2)
  }
  const go = (what: string): string =>
    execFileSync('go', ['env', what], {
      cwd: path.join(here, 'go'),
      encoding: 'utf8',
      env: { ...process.env, GOWORK: 'off', GOFLAGS: '' },
    }).trim()
  const text = thirdParty(linkedModules(), go('GOROOT'), go('GOVERSION').replace(/^go/, ''))
  writeFileSync(file, text)
}
