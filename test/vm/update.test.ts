/**
 * Updates on the booted image: what is refused and changes nothing; a version that does not serve is given up by itself; one that does
 * stays. The update is a real one (make update-amd64), from a plain web server in the lab, and from a folder.
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { spawn, type ChildProcess } from 'node:child_process';
import { after, before, test } from 'node:test';
import { Lab, type LabClient } from '../lab/lab.ts';
import { bootAppliance, editor, eventually, joined, settings, statusOf } from './appliance.ts';
import type { Machine } from './machine.ts';

const next = path.resolve(import.meta.dirname, '../../out/next-amd64');
let lab: Lab;
let client: LabClient;
let machine: Machine;
let name: string;
let folder: string;
let web: ChildProcess;

/** A version that never serves, where /var/lib/gatehouse-config/break exists: the fault is the hypervisor's, the image is as built. */
const fault = '[Service]\nExecStartPre=/bin/bash -c "! { [ -e /var/lib/gatehouse-config/break ] && grep -q ^IMAGE_VERSION=9.1 /usr/lib/os-release; }"\n';

before(async () => {
  assert.ok(existsSync(path.join(next, 'SHA256SUMS')), `${next} is missing: make update-amd64`);
  lab = await Lab.start({ name: 'upd' });
  client = await lab.client('laptop');
  folder = await mkdtemp(path.join(tmpdir(), 'gh-web-'));
  for (const file of await readdir(next)) await symlink(path.join(next, file), path.join(folder, file));
  const server = await lab.host('web', '10.77.0.70');
  // The smallest static web server there is: it knows no ranges.
  web = spawn('ip', ['netns', 'exec', server, 'python3', '-m', 'http.server', '--bind', '10.77.0.70', '--directory', folder, '80'], { stdio: 'ignore' });
  machine = await bootAppliance(lab, 'amd64', {
    toml: `${settings(lab)}[updates]\nurl = "http://10.77.0.70/"\n`,
    credentials: {
      'systemd.unit-dropin.gatehouse.service': fault,
      'systemd.unit-dropin.gatehouse-trial.service': '[Service]\nEnvironment=GATEHOUSE_TRIAL_SECONDS=150\n',
    },
  });
  name = (await joined(lab)).name;
  await editor(client, name);
});

after(async () => {
  await machine?.destroy();
  web?.kill();
  await lab?.stop();
  if (folder) await rm(folder, { recursive: true, force: true });
});

/** Replaces a file of the update on the web server, for as long as `work` takes. */
async function altered(file: string, content: Buffer, work: () => Promise<void>): Promise<void> {
  await rm(path.join(folder, file));
  await writeFile(path.join(folder, file), content);
  try {
    await work();
  } finally {
    await rm(path.join(folder, file));
    await symlink(path.join(next, file), path.join(folder, file));
  }
}

const update = (...args: string[]) => machine.run(`gatehouse update ${args.join(' ')} 2>&1`, { timeout: 400 });
const state = async (): Promise<string> =>
  (await machine.run('lsblk -nro PARTLABEL,PARTUUID /dev/vda; ls /efi/EFI/Linux; grep ^IMAGE_VERSION /usr/lib/os-release; cat /proc/cmdline', { timeout: 120 })).stdout;
const runningVersion = async (): Promise<string> => /IMAGE_VERSION=(\S+)/.exec((await machine.run('cat /usr/lib/os-release')).stdout)![1]!;

test('an update signed with another key, or cut short, is refused, and nothing is changed', async () => {
  const was = await state();
  assert.match(was, /^_empty /m);
  const sums = await readFile(path.join(next, 'SHA256SUMS'));
  await altered('SHA256SUMS.sig', sign(null, sums, generateKeyPairSync('ed25519').privateKey), async () => {
    const { code, stdout } = await update();
    assert.equal(code, 1, stdout);
    assert.match(stdout, /GH_UPDATE_SIGNATURE/);
  });
  const tree = (await readdir(next)).find((f) => f.endsWith('.verity'))!;
  await altered(tree, (await readFile(path.join(next, tree))).subarray(0, 1 << 20), async () => {
    const { code, stdout } = await update();
    assert.equal(code, 1, stdout);
    assert.match(stdout, /GH_UPDATE_DAMAGED/);
  });
  assert.equal(await state(), was);
  assert.equal((await client.fetch(`https://${name}/`)).status, 200);
});

test('a version that does not serve is given up by itself: the one before is back, serves, and says why', async (t) => {
  const old = await runningVersion();
  await machine.run('touch /var/lib/gatehouse-config/break');
  const begun = performance.now();
  const { code, stdout } = await update().catch(() => ({ code: 0, stdout: 'rebooted before it could answer' }));
  assert.equal(code, 0, stdout);
  await eventually('the new version runs', 400, async () => ((await runningVersion()) === '9.1' ? true : undefined));
  await eventually('the old one is back', 500, async () => ((await runningVersion()) === old ? true : undefined));
  await editor(client, name);
  t.diagnostic(`back and serving ${((performance.now() - begun) / 1000).toFixed(0)} s after the update began`);
  const { update: told } = await statusOf(machine);
  assert.equal(told.failed, true);
  assert.match(told.text, new RegExp(`^9\\.1 of .* was given up, and ${old.replaceAll('.', '\\.')} is back: it did not serve in time: .`));
  await eventually('the card says so too', 60, async () => (await machine.run('cat /efi/gatehouse-status.txt')).stdout.includes('was given up') || undefined);
  const { stdout: again } = await update();
  assert.match(again, /nothing newer is offered/, 'what was given up is not tried again');
});

test('a version that serves stays, also over a power cut, with the same name; the one before is still there', async (t) => {
  await machine.run('rm /var/lib/gatehouse-config/break; mkdir -p /var/stick');
  const old = await runningVersion();
  const begun = performance.now();
  await update('--force').catch(() => {});
  await eventually('the new version runs', 400, async () => ((await runningVersion()) === '9.1' ? true : undefined));
  await eventually('it is taken for good', 400, async () => (await statusOf(machine))['update']?.text.startsWith('9.1, since') || undefined);
  t.diagnostic(`updated and serving ${((performance.now() - begun) / 1000).toFixed(0)} s after the update began`);
  const after = await state();
  assert.match(after, /^gatehouse_9\.1\.efi$/m, 'no more tries are counted');
  assert.match(after, new RegExp(`^gatehouse_${old.replaceAll('.', '\\.')}\\.efi$`, 'm'));
  await machine.kill();
  await machine.start();
  await machine.ready();
  assert.equal(await runningVersion(), '9.1');
  await editor(client, name);
  assert.deepEqual((await lab.nodes()).filter((n) => n.hostname === 'gatehouse').map((n) => n.name), [name]);
});

test('a folder without an update says what belongs there', async () => {
  const { stdout } = await machine.run('gatehouse update /var/stick 2>&1', { timeout: 120 });
  assert.match(stdout, /GH_UPDATE_FORMAT/);
});

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0);
});
