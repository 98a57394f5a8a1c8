/**
 * Attacks on the booted image, and what they get: from the local network from power-on, as Node-RED
 * (an attacker who deploys a flow with an exec node has a shell in its sandbox), as the gateway's
 * user, and from the tailnet. Every attempt is a row of one table that the run prints. Node-RED has
 * a list of targets here, the weaker of its two states: without one it has no network at all.
 *
 * One machine for all, in this order: some tests change its settings for those that follow.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import * as gateway from './lockdown/gateway.ts'
import * as lan from './lockdown/local-network.ts'
import * as nodeRed from './lockdown/node-red.ts'
import * as network from './lockdown/node-red-network.ts'
import { boot, end, lab } from './lockdown/support.ts'
import * as system from './lockdown/system.ts'
import * as tailnet from './lockdown/tailnet.ts'

before(boot)
after(end)

test(
  'while it boots, and when it is up, nothing answers on the local network: TCP and UDP, IPv4 and IPv6, every port',
  lan.scans,
)
test('floods from the local network: it goes on serving, and counts what it drops', lan.floods)
test(
  "as Node-RED: other parts' secrets, processes and sockets; system calls; programs; writing elsewhere",
  nodeRed.secrets,
)
test(
  'as Node-RED: the network, but for what its list names; names, but for those on it',
  network.network,
)
test('hardware: the serial port that is given, and no other device', nodeRed.hardware)
test(
  'palette: npm installs a node from the registry that is named, in the sandbox, and a flow uses it',
  nodeRed.palette,
)
test(
  'projects: Node-RED keeps its flows in git, which is there for it and its own user',
  nodeRed.projects,
)
test(
  'the list changes while it is in use: names are looked up anew, never to this machine, and nothing is open in between',
  network.listChanges,
)
test(
  "as the gateway's user, in its sandbox: the account key, Node-RED's files, root, its own unit",
  gateway.asGateway,
)
test(
  'from the tailnet: nobody without a right, a viewer, a tagged machine; other ports',
  tailnet.rights,
)
test('from a web page in the browser of the owner, who may do everything', tailnet.webPage)
test("units: as strict as promised, by systemd's own count", system.exposure)
test(
  'secrets: the used auth key is nowhere any more, what stays is for root alone',
  system.storedSecrets,
)
test('as Node-RED: fork bomb, memory, processor, disk; the gateway goes on', nodeRed.starvation)
test(
  'a list that is taken away takes the network away, without a restart of the gateway',
  network.listTakenAway,
)
test('without devices in its settings it has none', nodeRed.noDevices)
test(
  "the gateway, with an [[app]] and a [[forward]]: through the tailnet they are reached, and nothing else is as the gateway's user",
  gateway.targets,
)
test(
  'the listener on the local network, switched on: what is configured and nothing else; its own ports stay shut',
  lan.listener,
)

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
