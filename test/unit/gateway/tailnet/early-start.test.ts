/** The tailnet server that is started before the gateway is loaded (src/gateway/tailnet/early-start.ts). */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { type TestContext, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { defaults, parseConfig, serialize } from '../../../../src/config/config.ts'
import { type Paths, paths as systemPaths } from '../../../../src/base/paths.ts'
import { beginTailnet, tailnetOptions } from '../../../../src/gateway/tailnet/early-start.ts'
import type { Tailnet } from '../../../../src/gateway/tailnet/tailnet.ts'

/** A device with this configuration, and what is done with the servers that are made there. */
async function device(
  t: TestContext,
  toml: string,
): Promise<{ where: Paths; done: string[]; create: (options: { hostname?: string }) => Tailnet }> {
  const root = await mkdtemp(path.join(os.tmpdir(), 'begin-'))
  t.after(() => rm(root, { recursive: true, force: true }))
  await mkdir(path.join(root, 'config'))
  await writeFile(path.join(root, 'config/gatehouse.toml'), toml)
  const done: string[] = []
  const create = ({ hostname }: { hostname?: string }): Tailnet => {
    done.push(`made ${hostname}`)
    return {
      start: async () => {
        done.push(`started ${hostname}`)
        throw new Error('no space left on device')
      },
      close: async () => {
        await setImmediate()
        done.push(`closed ${hostname}`)
      },
    } as unknown as Tailnet
  }
  return {
    where: {
      ...systemPaths(),
      config: path.join(root, 'config'),
      credentials: undefined,
      state: () => path.join(root, 'state'),
    },
    done,
    create,
  }
}

test('what was begun is started at once and taken once; where it fails to start, that is left to its taker', async (t) => {
  const { where, done, create } = await device(t, serialize(defaults()))
  const begun = await beginTailnet(where, create)
  assert.deepEqual(done, ['made gatehouse', 'started gatehouse'])
  const server = await begun.take(tailnetOptions(where, defaults(), undefined))
  await assert.rejects(server.start(), /no space left/)
  assert.notEqual(await begun.take(tailnetOptions(where, defaults(), undefined)), server)
  assert.deepEqual(done.slice(2), ['started gatehouse', 'made gatehouse'])
})

test('a configuration that has changed since, or a key: what was begun is closed, and only then another is made', async (t) => {
  const { where, done, create } = await device(t, serialize(defaults()))
  const changed = defaults()
  changed.tailnet.hostname = 'renamed'
  await (await beginTailnet(where, create)).take(tailnetOptions(where, changed, undefined))
  assert.deepEqual(done.slice(2), ['closed gatehouse', 'made renamed'])
  done.length = 0
  await (await beginTailnet(where, create)).take(tailnetOptions(where, defaults(), 'tskey-auth-x'))
  assert.deepEqual(done.slice(2), ['closed gatehouse', 'made gatehouse'])
})

test('with a configuration that is wrong nothing is begun', async (t) => {
  const { where, done, create } = await device(t, '[tailnet]\nhost = 1\n')
  const begun = await beginTailnet(where, create)
  assert.deepEqual(done, [])
  await begun.take(tailnetOptions(where, defaults(), undefined))
  assert.deepEqual(done, ['made gatehouse'])
})

test('a proxy of gatehouse.toml is the way to control server and relays', () => {
  const where = systemPaths({})
  const { env } = tailnetOptions(
    where,
    parseConfig('[network]\nproxy = "http://10.0.0.1:3128"\n', 'gatehouse.toml'),
    undefined,
  )
  assert.equal(env?.HTTPS_PROXY, 'http://10.0.0.1:3128')
  assert.equal(env?.HTTP_PROXY, 'http://10.0.0.1:3128')
  assert.ok(!('HTTPS_PROXY' in (tailnetOptions(where, defaults(), undefined).env ?? {})))
})

test('where the kernel is to have the packets, its interface is waited for, and asked for once', async (t) => {
  const { where, done, create } = await device(t, '[tailnet]\ndata_path = "kernel"\n')
  const begun = await beginTailnet(where, create, 150)
  assert.deepEqual(done, [], 'no interface yet')
  await assert.rejects(begun.take(tailnetOptions(where, defaults(), undefined, true)), {
    code: 'TSNET_TUN',
    message: 'there is no interface gatehouse0',
  })
  assert.deepEqual(done, [])
  assert.equal(tailnetOptions(where, defaults(), undefined, true).tun, 'gatehouse0')
  await begun.take(tailnetOptions(where, defaults(), undefined))
  assert.deepEqual(done, ['made gatehouse'])
})
