/** UDP through the gateway, with the real bindings: from a native peer to a server on the segment. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Appliance } from './appliance.ts'
import { Lab } from './lab.ts'
import type { LabClient } from './lab.ts'

let lab: Lab
let box: Appliance
let laptop: LabClient

before(async () => {
  lab = await Lab.start({ name: 'udp' })
  const ns = await lab.host('plc', '10.77.0.70')
  // A Modbus device of sorts: it says who asks, and what.
  const server = lab.exec(ns, [
    process.execPath,
    '-e',
    "const s = require('node:dgram').createSocket('udp4'); s.on('message', (m, r) => " +
      "s.send(r.address + ' ' + m, r.port, r.address)).bind(502)",
  ])
  server.stdout?.resume()
  box = await Appliance.start(lab, {
    settings: '[[forward]]\nprotocol = "udp"\nport = 502\ntarget = "10.77.0.70:502"\n',
  })
  laptop = await lab.client('laptop')
})
after(async () => {
  await box?.stop()
  await lab?.stop()
})

test('a datagram of a peer gets to the target, and the answer back, large and small', async () => {
  const [address] = (await box.status()).tailnet.addresses
  for (const size of [1, 512, 1_200]) {
    const answer = await laptop.askPacket(`${address}:502`, Buffer.alloc(size, 'x'))
    assert.equal(answer.toString(), `10.77.0.60 ${'x'.repeat(size)}`)
  }
})

test('who has lost the right gets no answer any more', async () => {
  await lab.setOwner('laptop', { user: 'mallory@example.com' })
  const [address] = (await box.status()).tailnet.addresses
  await new Promise((resolve) => setTimeout(resolve, 12_000))
  await assert.rejects(
    Promise.race([
      laptop.askPacket(`${address}:502`, Buffer.from('still here')),
      new Promise((_resolve, reject) =>
        setTimeout(() => {
          reject(new Error('no answer'))
        }, 8_000),
      ),
    ]),
    /no answer|timeout|deadline/i,
  )
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
