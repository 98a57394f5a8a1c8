import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Scenario } from '../stage.ts';

export const scenario: Scenario = {
  fault: 'the network is away for half a minute',
  holds: 'it serves again by itself, over a direct path, and nothing was started anew',
  async run(stage) {
    const before = await stage.unit('gatehouse');
    const tap = /\b(ghvm[0-9a-f]+)\b/.exec((await stage.onBridge('ip', '-o', 'link', 'show', 'master', 'br0')).stdout)?.[1];
    assert.ok(tap, 'the machine\'s port of the bridge');
    assert.equal((await stage.onBridge('ip', 'link', 'set', tap, 'nomaster')).code, 0);
    await assert.rejects(stage.fetch('/', { timeout: 10_000 }));
    await sleep(20_000);
    assert.equal((await stage.onBridge('ip', 'link', 'set', tap, 'master', 'br0')).code, 0);
    const seconds = await stage.served();
    const address = (await stage.lab.nodes()).find((node) => node.hostname === 'gatehouse')!.addresses[0]!;
    assert.equal((await stage.client.pingDirect(address, 120_000)).direct, true);
    assert.deepEqual(await stage.unit('gatehouse'), before);
    return `serves ${seconds.toFixed(0)} s after it is back`;
  },
};
