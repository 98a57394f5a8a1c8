import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { probeControl } from '../../../../src/gateway/tailnet/probe.ts'

async function probe(
  answer: RequestListener,
): Promise<{ code: string; message: string; cure: string }> {
  const server = createServer(answer).listen(0, '127.0.0.1')
  await once(server, 'listening')
  try {
    return await probeControl(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  } finally {
    server.close()
  }
}

test('a control server that answers with its keys, as JSON or in the old way, is there', async () => {
  for (const body of [
    '{"legacyPublicKey":"mkey:00","publicKey":"mkey:01"}',
    'ab'.repeat(32),
    `mkey:${'0'.repeat(64)}\n`,
  ]) {
    assert.equal(
      (
        await probe((_request, response) => {
          response.end(body)
        })
      ).code,
      'GH_TAILNET_SLOW',
      body,
    )
  }
})

test('a login page in its place, redirect or not, is said to be one, with what to do', async () => {
  const pages: RequestListener[] = [
    (_request, response) => {
      response.writeHead(302, { location: 'http://portal.example/' }).end()
    },
    (_request, response) => {
      response.end('<!DOCTYPE html><h1>Welcome, please log in</h1>')
    },
    (_request, response) => {
      response.writeHead(204).end()
    },
  ]
  for (const [index, page] of pages.entries()) {
    const { code, message, cure } = await probe(page)
    assert.equal(code, 'GH_CONTROL_UNREACHABLE')
    assert.match(
      message,
      new RegExp(`something else answers in its place \\(${[302, 200, 204][index]}\\)`),
    )
    assert.match(cure, /log in on a page of its own/)
  }
})

test('a server with trouble, and an answer without end', async () => {
  assert.match(
    (
      await probe((_request, response) => {
        response.writeHead(503).end()
      })
    ).message,
    /it answers 503/,
  )
  assert.match(
    (
      await probe((_request, response) => {
        const more = (): void => {
          while (response.write('x'.repeat(65_536)));
        }
        response.on('drain', more)
        more()
      })
    ).message,
    /far too long/,
  )
})
