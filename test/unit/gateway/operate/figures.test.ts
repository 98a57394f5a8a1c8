import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { Figures, judgeKey } from '../../../../src/gateway/operate/figures.ts'
import { Problems } from '../../../../src/gateway/shared/problems.ts'
import { createLog } from '../../../../src/gateway/shared/log.ts'

const minute = 60_000
const day = 1440 * minute

/** A board's files below /proc and /sys, as a Raspberry Pi with a card has them. */
function board() {
  const root = mkdtempSync(join(tmpdir(), 'gh-board-'))
  const write = (path: string, text: string): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), `${text}\n`)
  }
  write('proc/meminfo', 'MemTotal:  1000000 kB\nMemFree: 1 kB\nMemAvailable:  250000 kB')
  write('sys/class/thermal/thermal_zone0/temp', '48312')
  write('sys/class/hwmon/hwmon0/name', 'cpu_thermal')
  write('sys/class/hwmon/hwmon1/name', 'rpi_volt')
  write('sys/class/hwmon/hwmon1/in0_lcrit_alarm', '0')
  write('sys/block/loop0/stat', '1 1 1 1 1 1 999999 1 1 1 1')
  write('sys/block/mmcblk0/stat', '  500 20 30000 90 100 10 2048 50 0 100 140')
  write('sys/block/mmcblk0/device/life_time', '0x02 0x03')
  return {
    ...{ root, write },
    [Symbol.dispose]: () => {
      rmSync(root, { recursive: true, force: true })
    },
  }
}

const problemsNow = (): Problems => new Problems(createLog({ GATEHOUSE_LOG_LEVEL: 'silent' }))

test('what a board says of itself, and the pace at which its card is written', async () => {
  using made = board()
  const figures = new Figures(made.root, made.root)
  const problems = problemsNow()
  const begun = Date.UTC(2026, 0, 1)
  await figures.look(problems, begun)
  const { now, history } = figures.show()
  assert.equal(now.memory, 0.75)
  assert.equal(now.memoryTotal, 1_024_000_000)
  assert.equal(now.temperature, 48.312)
  assert.equal(now.underVoltage, false)
  assert.equal(now.written, 2048 * 512)
  assert.equal(now.wear, 0.3)
  assert.ok(now.disk! > 0 && now.disk! < 1 && now.diskTotal! > 1e6)
  assert.equal(now.writtenADay, undefined)
  assert.equal(history.length, 1)
  assert.deepEqual(problems.list(), [])
  // 1 MiB in six hours is 4 a day.
  made.write('sys/block/mmcblk0/stat', '  500 20 30000 90 100 10 4096 50 0 100 140')
  await figures.look(problems, begun + 6 * 60 * minute)
  assert.equal(figures.show().now.writtenADay, 4 * 2 ** 20)
})

test('the last day is kept, a value every five minutes, and what is not known is null', async () => {
  using made = board()
  const figures = new Figures(undefined, made.root)
  const problems = problemsNow()
  for (let at = 0; at < 2 * day; at += 5 * minute) await figures.look(problems, at)
  const { history } = figures.show()
  assert.equal(history.length, 288)
  assert.equal(history[0]!.at, new Date(day).toISOString())
  assert.equal(history[0]!.disk, null)
  assert.equal(history.at(-1)!.temperature, 48.312)
  // Looked at each minute, it is kept as often.
  for (let at = 2 * day; at < 3 * day; at += minute) await figures.look(problems, at)
  assert.equal(figures.show().history[0]!.at, new Date(2 * day).toISOString())
})

test('too little voltage, and heat, are problems as long as they last', async () => {
  using made = board()
  const figures = new Figures(undefined, made.root)
  const problems = problemsNow()
  made.write('sys/class/hwmon/hwmon1/in0_lcrit_alarm', '1')
  await figures.look(problems)
  assert.equal(problems.get('power')?.code, 'GH_UNDER_VOLTAGE')
  made.write('sys/class/hwmon/hwmon1/in0_lcrit_alarm', '0')
  made.write('sys/class/thermal/thermal_zone0/temp', '82500')
  await figures.look(problems)
  assert.equal(problems.get('power')?.code, 'GH_TEMPERATURE')
  made.write('sys/class/thermal/thermal_zone0/temp', '60000')
  await figures.look(problems)
  assert.equal(problems.get('power'), undefined)
})

test('a machine that says nothing of itself has no figures and no problems', async () => {
  using made = board()
  const figures = new Figures(undefined, join(made.root, 'nothing'))
  const problems = problemsNow()
  await figures.look(problems)
  assert.deepEqual(figures.show().now, {})
  assert.deepEqual(problems.list(), [])
})

test('that the key ends is said 30, 14 and 3 days before', () => {
  const now = Date.UTC(2026, 0, 1)
  const severity = (days: number): string | undefined => {
    const problems = problemsNow()
    judgeKey(problems, new Date(now + days * day).toISOString(), 'Renew it', now)
    return problems.get('node key')?.severity
  }
  assert.deepEqual([31, 29, 13, 2, -1].map(severity), [
    undefined,
    'info',
    'warning',
    'error',
    undefined,
  ])
  const problems = problemsNow()
  judgeKey(problems, new Date(now + day).toISOString(), 'Renew it', now)
  assert.match(problems.get('node key')!.message, /ends on 2026-01-02/)
  judgeKey(problems, undefined, 'Renew it', now)
  assert.equal(problems.get('node key'), undefined)
})
