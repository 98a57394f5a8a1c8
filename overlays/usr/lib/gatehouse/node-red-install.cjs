// How Node-RED runs npm on the appliance: within bounds, so that an install that is too large ends
// itself and not Node-RED; and with one sentence for whoever clicked Install when it fails. Node-RED
// itself says "Install failed" and leaves the reason in a log.
'use strict'

const path = require('node:path')

/** What npm runs where a package would be compiled. */
const noCompiler = path.join(__dirname, 'no-compiler.cjs')

/**
 * The first victim when Node-RED's share of memory is used up is npm, with all that it has started:
 * a process may always say so of itself (proc_pid_oom_score_adj(5)).
 */
const first = 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$0" "$@"'

/**
 * How npm is started: nothing of it may need much memory at once. Figures are in docs/decisions.md.
 *
 * @param {number} free bytes of Node-RED's share of memory that are not in use
 * @returns {{options: string[], env: Record<string, string>}}
 */
function frugal(free) {
  // Of what there is, half for what npm has compiled, read and unpacked, which no option bounds.
  const heap = Math.max(96, Math.min(512, Math.floor(free / 2 / 2 ** 20)))
  return {
    options: [`--max-old-space-size=${heap}`, '--max-semi-space-size=2'],
    env: {
      MALLOC_ARENA_MAX: '1',
      UV_THREADPOOL_SIZE: '2',
      npm_config_maxsockets: '4',
      // A host that may not be reached is said after seconds, not after two minutes.
      npm_config_fetch_retry_mintimeout: '2000',
      npm_config_fetch_retry_maxtimeout: '10000',
      npm_config_node_gyp: noCompiler,
      // Neither a browser nor a person is there to be asked.
      npm_config_yes: 'true',
    },
  }
}

/**
 * Why npm failed and what to do about it, in one sentence for the editor; undefined where Node-RED's
 * own word is as good (no such package).
 *
 * @param {{code: number | null, stderr: string}} result of npm; `code` null: a signal ended it
 * @param {{prebuilt: boolean, asked?: string}} options `prebuilt`: whether `allow` of gatehouse.toml
 *   has that; `asked`: the package that was asked for
 * @returns {string | undefined}
 */
function reason({ code, stderr }, { prebuilt, asked }) {
  const bake =
    'have it built into the image: make image NODES="…" on the computer that the image is built on'
  if (code === null || code >= 128 || /heap out of memory/.test(stderr))
    return `it needs more memory than there is beside Node-RED on this device. Stop flows that are large and try again, use a board with more memory, or ${bake}`
  if (/ENOSPC|EDQUOT|errno -122/.test(stderr))
    return 'there is no room for it on the disk. Remove nodes that are not used, or files that flows have written'
  if (/GH_NO_COMPILER|gyp ERR!|find Python/.test(stderr)) {
    const part = /npm (?:error|ERR!) path .*node_modules\/((?:@[^/\s]+\/)?[^/\s]+)\s*$/m.exec(
      stderr,
    )?.[1]
    return `${part ?? 'a part of it'} has to be compiled for this device, and there is no compiler here. ${
      prebuilt
        ? 'Its maker offers nothing compiled for this processor: use another node, or '
        : 'Add "prebuilt" to allow in [node_red] of gatehouse.toml, so that what its maker has compiled can be fetched, and try again; if there is no such thing, '
    }${bake}`
  }
  // Of what was asked for itself Node-RED says it; of what that needs it would say nothing.
  if (/E404|ETARGET/.test(stderr) && (asked === undefined || stderr.includes(`'${asked}@`)))
    return undefined
  if (/EBADENGINE/.test(stderr)) {
    const wants = /Required: (\{.*\})/.exec(stderr)?.[1]
    return `it does not work with this device's Node.js, which is ${process.version}${wants === undefined ? '' : `; it asks for ${wants}`}. Ask for another version of it`
  }
  const host =
    /(?:getaddrinfo \w+|connect \w+|request to https?:\/\/|ENOTFOUND|ETIMEDOUT) ?([0-9a-f.:]+:\d+|[a-z0-9-]+(?:\.[a-z0-9-]+)+)/i.exec(
      stderr,
    )?.[1]
  if (/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH/.test(stderr))
    return `${host ?? 'the registry'} cannot be reached. If it is meant to be, add it to allow in [node_red] of gatehouse.toml${host === undefined || /:\d+$/.test(host) ? '' : ` as "${host}:443"`}`
  const said = stderr
    .split('\n')
    .map((line) => line.replace(/^npm (?:error|ERR!) ?/, '').trim())
    .filter((line) => line !== '' && !/^(?:code|path|command|A complete log|npm warn)/.test(line))
  return said.length === 0 ? undefined : `npm says: ${said.slice(0, 3).join(' ').slice(0, 300)}`
}

/**
 * Puts bounds and reasons into Node-RED: all that runs npm there goes through its `exec.run`
 * (`@node-red/util`), which is replaced for npm alone.
 *
 * @param {{run: Function}} exec of `@node-red/util`
 * @param {{prebuilt: boolean, free?: () => number}} options see above; `free`: for tests
 */
function bound(exec, { prebuilt, free = freeMemory }) {
  const { run } = exec
  exec.run = async (command, args, options, emit) => {
    if (command !== process.execPath || path.basename(args?.[0] ?? '') !== 'npm-cli.js')
      return await run(command, args, options, emit)
    const { options: flags, env } = frugal(free())
    try {
      return await run(
        '/bin/sh',
        ['-c', first, command, ...flags, ...args],
        { ...options, env: { ...process.env, ...options?.env, ...env } },
        emit,
      )
    } catch (result) {
      const asked = args.at(-1).replace(/(?<=.)@[^@/]*$/, '')
      const stderr = String(result.stderr ?? '')
      const why = reason({ code: result.code, stderr }, { prebuilt, asked })
      if (why === undefined) throw result
      // All of it, for the log: Node-RED keeps only the sentence.
      console.error(String(result.stderr ?? '').slice(-8192))
      // To the editor Node-RED passes on what a hook says, and of npm nothing.
      throw Object.assign(new Error(why), {
        code: result.code,
        stderr: result.stderr,
        stdout: result.stdout,
        hook: 'preInstall',
        toString: () => why,
      })
    }
  }
}

/** Bytes of Node-RED's share (its control group's) that it does not use itself. */
function freeMemory() {
  return process.constrainedMemory() - process.memoryUsage.rss()
}

module.exports = { bound, frugal, reason }
