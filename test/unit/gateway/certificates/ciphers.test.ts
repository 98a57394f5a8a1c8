import assert from 'node:assert/strict'
import { connect, createServer } from 'node:tls'
import { once } from 'node:events'
import { test } from 'node:test'
import { ciphers } from '../../../../src/gateway/certificates/ciphers.ts'
import { Authority } from '../../support/authority.ts'

const pi4 = 'processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n'
const pi5 = 'processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32\n'

test('a processor without AES takes ChaCha20 where the peer has it, another what the peer prefers', async () => {
  const authority = new Authority()
  const pem = authority.issue('gatehouse.tail.ts.net')
  authority.close()
  const asked = {
    'TLSv1.3': 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256',
    'TLSv1.2':
      'ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305',
  } as const
  const chosen = async (
    cpu: string,
    version: keyof typeof asked,
    offered: string,
  ): Promise<string> => {
    const server = createServer({ cert: pem, key: pem, honorCipherOrder: false, ...ciphers(cpu) })
    server.on('secureConnection', (socket) => {
      socket.end()
    })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    const { port } = server.address() as { port: number }
    const socket = connect({
      host: '127.0.0.1',
      port,
      servername: 'gatehouse.tail.ts.net',
      rejectUnauthorized: false,
      minVersion: version,
      maxVersion: version,
      ciphers: offered,
    })
    await once(socket, 'secureConnect')
    const { standardName } = socket.getCipher()
    socket.destroy()
    server.close()
    return standardName
  }
  for (const version of ['TLSv1.3', 'TLSv1.2'] as const) {
    assert.match(await chosen(pi4, version, asked[version]), /CHACHA20/, version)
    assert.match(await chosen(pi5, version, asked[version]), /AES_128_GCM/, version)
    assert.match(await chosen('', version, asked[version]), /AES_128_GCM/, version)
  }
  // A peer that has no ChaCha20 is served all the same.
  assert.match(await chosen(pi4, 'TLSv1.3', 'TLS_AES_256_GCM_SHA384'), /AES_256_GCM/)
})
