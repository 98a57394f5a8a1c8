/** Tests in Go, compiled as the module is and run in this process. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { WASI } from 'node:wasi'
import { directJumps } from '../jumps.ts'

const go = path.resolve(import.meta.dirname, '../go')

/**
 * Runs the tests of a Go package that match `run` (a regular expression), and gives what they
 * print. Fails when one fails. `host`: what it may ask of the host; it is given the memory.
 */
export async function goTest(
  pkg: string,
  run: string,
  host?: (memory: () => WebAssembly.Memory) => Record<string, (...args: number[]) => number | void>,
): Promise<string> {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'gotest-'))
  try {
    const program = path.join(dir, 'test.wasm')
    const toolchain = /^toolchain (.*)$/m.exec(readFileSync(path.join(go, 'go.mod'), 'utf8'))![1]
    const built = spawnSync('go', ['test', '-vet=off', '-c', '-o', program, pkg], {
      cwd: go,
      encoding: 'utf8',
      env: {
        ...process.env,
        GOOS: 'wasip1',
        GOARCH: 'wasm',
        GOTOOLCHAIN: toolchain,
        GOFLAGS: '',
        GOWORK: 'off',
        CGO_ENABLED: '0',
      },
    })
    assert.equal(built.status, 0, built.stderr)
    const said = path.join(dir, 'said')
    const fd = openSync(said, 'w')
    let status: number
    try {
      const wasi = new WASI({
        version: 'preview1',
        args: ['test', '-test.v', `-test.run=${run}`],
        env: {},
        stdout: fd,
        stderr: fd,
        returnOnExit: true,
      })
      // oxlint-disable-next-line eslint/prefer-const -- what is given to it asks for it later
      let instance: WebAssembly.Instance | undefined
      const given = host?.(() => instance!.exports.memory as WebAssembly.Memory) ?? {}
      const unknown = new Proxy(given, {
        get: (known, name: string) =>
          known[name] ?? (() => assert.fail(`${name} of the host is asked for`)),
      })
      const imports = {
        ...(wasi.getImportObject() as WebAssembly.Imports),
        tsnet_host: unknown as Record<string, unknown>,
      }
      instance = await WebAssembly.instantiate(
        await WebAssembly.compile(directJumps(readFileSync(program)).module),
        imports,
      )
      status = wasi.start(instance) as unknown as number
    } finally {
      closeSync(fd)
    }
    const output = readFileSync(said, 'utf8')
    assert.equal(status, 0, output.slice(0, 4000))
    return output
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}
