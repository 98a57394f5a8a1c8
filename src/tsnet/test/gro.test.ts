/** Joining TCP segments as bytes (patches/0007) against gVisor's own GRO, both compiled as the module is. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';

const tsnet = path.resolve(import.meta.dirname, '..');

/** Runs a program of wasip1, which is its first argument. */
const runner = `
import { readFileSync } from 'node:fs';
import { WASI } from 'node:wasi';
const wasi = new WASI({ version: 'preview1', args: ['test', '-test.v'], env: {}, returnOnExit: true });
const module = await WebAssembly.compile(readFileSync(process.argv[1]));
process.exitCode = wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject()));
`;

test('segments are joined as by gVisor: 1,000 vectors of up to 12 connections, IPv4 and IPv6', (t) => {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'gro-'));
  try {
    const program = path.join(dir, 'gro.test.wasm');
    const toolchain = /^toolchain (.*)$/m.exec(readFileSync(path.join(tsnet, 'go/go.mod'), 'utf8'))![1];
    const built = spawnSync('go', ['test', '-vet=off', '-c', '-o', program, 'tailscale.com/wgengine/netstack/gro'], {
      cwd: path.join(tsnet, 'go'),
      encoding: 'utf8',
      env: { ...process.env, GOOS: 'wasip1', GOARCH: 'wasm', GOTOOLCHAIN: toolchain, GOFLAGS: '', GOWORK: 'off', CGO_ENABLED: '0' },
    });
    assert.equal(built.status, 0, built.stderr);
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', runner, program], { encoding: 'utf8' });
    assert.equal(status, 0, `${stdout.slice(0, 4000)}${stderr}`);
    for (const name of ['TestAgainstGVisor', 'TestLimit', 'Test_RXChecksumOffload']) assert.match(stdout, new RegExp(`^--- PASS: ${name} `, 'm'));
    t.diagnostic(/[0-9]+ packets, [0-9]+ joined to others/.exec(stdout)![0]);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
