/**
 * The compiled code in the image's root (image/compile.mjs): it is there for every user that runs
 * Node.js, and that user's Node.js takes it. No machine is booted: the root is mounted as it is.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, readdirSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'

const root = path.resolve(import.meta.dirname, '../..')
const own = process.arch === 'arm64' ? 'arm64' : 'amd64'
const compiled = 'usr/lib/gatehouse/compiled'
const skip =
  !readFileSync('/proc/filesystems', 'utf8').includes('erofs') &&
  'this machine’s kernel reads no erofs'

for (const arch of ['amd64', 'arm64'] as const)
  test(
    `${arch}: the root holds compiled code of program and Node-RED, for each of their users`,
    { skip },
    (t) => {
      const mount = mkdtempSync(path.join(tmpdir(), 'gh-compiled-'))
      const image = path.join(root, `out/mkosi/gatehouse-${arch}.root.raw`)
      execFileSync('mount', ['-t', 'erofs', '-o', 'ro,loop', image, mount])
      try {
        const names = readdirSync(path.join(mount, compiled))
        const made = names.find((name) => name.endsWith('-0'))!
        assert.match(made, arch === 'amd64' ? /-x64-/ : /-arm64-/)
        for (const user of [601, 602, 603, 604, 605, 606])
          assert.ok(names.includes(made.replace(/-0$/, `-${user}`)), `none for the user ${user}`)
        const files = readdirSync(path.join(mount, compiled, made)).length
        t.diagnostic(`${files} files`)
        assert.ok(files > 800)
        if (arch !== own) return
        const taken = (
          user: number,
          ...command: string[]
        ): { accepted: number; rejected: number } => {
          const { stderr, stdout, status } = spawnSync(
            'chroot',
            [`--userspec=${user}:${user}`, mount, ...command],
            {
              encoding: 'utf8',
              env: {
                PATH: '/usr/sbin:/usr/bin',
                NODE_COMPILE_CACHE: `/${compiled}`,
                NODE_DEBUG_NATIVE: 'COMPILE_CACHE',
              },
            },
          )
          assert.equal(status, 0, stdout.slice(-2000))
          const said = stdout + stderr
          return {
            accepted: said.split('was accepted').length - 1,
            rejected: said.split('was rejected').length - 1,
          }
        }
        const gateway = taken(601, '/usr/bin/gatehouse', 'version')
        assert.equal(gateway.rejected, 0)
        assert.ok(gateway.accepted >= 1)
        const nodeRed = taken(
          603,
          '/usr/bin/node',
          '-e',
          'require("/usr/lib/node-red/node_modules/node-red/lib/red.js")',
        )
        assert.equal(nodeRed.rejected, 0)
        assert.ok(nodeRed.accepted > 200, `${nodeRed.accepted} files`)
      } finally {
        execFileSync('umount', [mount])
        rmdirSync(mount)
      }
    },
  )
