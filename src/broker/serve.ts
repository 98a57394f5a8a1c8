import { writeToConsoles } from '../base/consoles.ts'
import type { Paths } from '../base/paths.ts'
import { reason } from '../base/errors.ts'
import { listenOn, systemdSockets } from '../base/sockets.ts'
import { finishRestore } from './archive.ts'
import { createBroker } from './server.ts'
import { Settings, recover } from './settings.ts'
import { system } from './system.ts'

/**
 * `gatehouse broker`: serves the socket that systemd made (gatehouse-broker.socket), as root, and
 * ends by itself when it is not needed. With `recover` as its argument: takes back a change that
 * was on trial when the power went, finishes a restore that was under way, and ends
 * (gatehouse-recover.service, before provisioning).
 *
 * @param idle it ends when nobody has asked for this long and nothing is on trial. Milliseconds.
 * @returns 0, or 1 when the card or the data cannot be written to
 */
export async function runBroker(
  paths: Paths,
  what?: string,
  { idle = 120_000 }: { idle?: number } = {},
): Promise<number> {
  const say = (line: string): void => {
    process.stdout.write(`${line}\n`)
  }
  if (what === 'recover') {
    const steps: Array<() => Promise<string | undefined>> = [
      async () => {
        const became = await recover(paths)
        return became && `settings: a change was on trial when the device stopped: ${became}`
      },
      async () =>
        (await finishRestore(paths.data))
          ? 'a backup was being put in place when the device stopped: that is finished now'
          : undefined,
    ]
    let code = 0
    // The one is of the card, the other of the data: that one fails is no reason against the other.
    for (const step of steps)
      try {
        const done = await step()
        if (done !== undefined) say(done)
      } catch (err) {
        process.stderr.write(`gatehouse broker: ${reason(err)}\n`)
        code = 1
      }
    return code
  }
  const { promise: ended, resolve: end } = Promise.withResolvers<number>()
  let trial = false
  let requests = 0
  let timer: NodeJS.Timeout | undefined
  const rest = (): void => {
    clearTimeout(timer)
    if (trial || requests > 0) return
    // A code on the screen counts as long as this process lives: somebody is on the way to read it.
    timer = setTimeout(() => end(0), Math.max(idle, settings.codeUntil - Date.now()))
  }
  // One that was left by a broker that was killed: this one knows nothing of it, so it is over.
  const became = await recover(paths)
  if (became !== undefined) {
    say(`settings: a change was on trial when the broker stopped: ${became}`)
    await system.systemctl('restart', 'gatehouse-provision.service')
  }
  if (await finishRestore(paths.data)) {
    say(
      'a backup was being put in place when the broker stopped: that is finished, and it restarts',
    )
    await system.systemctl('--no-block', 'reboot')
  }
  const settings = new Settings({
    paths,
    system,
    say,
    showCode: async (code) => {
      const took = await writeToConsoles(`gatehouse: the code for a change of settings is ${code}`)
      say(`settings: a code is on ${took.join(', ') || 'no console, since there is none'}`)
    },
    onTrial: (is) => {
      trial = is
      rest()
    },
  })
  const app = await createBroker({ paths, settings, system, say })
  app.addHook('onRequest', async (_request, reply) => {
    requests++
    clearTimeout(timer)
    // Once for each, whether it was answered or whoever asked has gone.
    reply.raw.once('close', () => {
      requests--
      rest()
    })
  })
  process.once('SIGTERM', () => {
    end(0)
  })
  await app.ready()
  const fd = systemdSockets().get('broker')
  await listenOn(app.server, fd === undefined ? { path: paths.broker } : { fd })
  rest()
  const code = await ended
  await settings.idle()
  await app.close()
  return code
}
