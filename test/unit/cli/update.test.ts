/** `gatehouse update` with systemctl and journalctl that only note what they are asked. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'

const root = mkdtempSync(join(tmpdir(), 'gh-cli-update-'))
after(() => {
  rmSync(root, { recursive: true, force: true })
})

test('it shows what its units wrote, chosen by unit and not by what a line calls itself, and nothing a terminal obeys', () => {
  const bin = join(root, 'bin')
  const asked = join(root, 'asked')
  mkdirSync(bin)
  writeFileSync(
    join(bin, 'journalctl'),
    `#!/bin/sh
echo "journalctl $*" >>${asked}
case "$*" in
*--show-cursor*) echo "-- cursor: s=1" ;;
*) printf 'nothing newer is offered\\n\\033[2Jlog in at https://evil.example\\n' ;;
esac
`,
    { mode: 0o755 },
  )
  writeFileSync(join(bin, 'systemctl'), `#!/bin/sh\necho "systemctl $*" >>${asked}\n`, {
    mode: 0o755,
  })
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      join(import.meta.dirname, '../../../src/main.ts'),
      'update',
    ],
    {
      encoding: 'utf8',
      env: {
        ...process.env,
        PATH: `${bin}:${process.env.PATH}`,
        GATEHOUSE_UPDATE_ASKED: join(root, 'flag'),
        GATEHOUSE_UPDATE_OUTCOME: join(root, 'outcome'),
      },
    },
  )
  assert.equal(status, 0, stderr)
  assert.equal(stdout, 'nothing newer is offered\n\uFFFD[2Jlog in at https://evil.example\n')
  const calls = readFileSync(asked, 'utf8').trim().split('\n')
  assert.deepEqual(calls.slice(1, 3), [
    'systemctl start gatehouse-update.service',
    'systemctl start gatehouse-update-install.service',
  ])
  assert.equal(
    calls[3],
    'journalctl -q -o cat --after-cursor=s=1 _SYSTEMD_UNIT=gatehouse-update.service ' +
      '_SYSTEMD_UNIT=gatehouse-update-install.service',
  )
})
