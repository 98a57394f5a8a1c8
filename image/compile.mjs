// Compiled code for the image, in V8's own form (Node.js: module.enableCompileCache), so that no boot
// compiles what never changes, and nothing that runs has to be written where a break-in could leave
// code of its own. Two steps, for Node-RED loads what it loads by its settings:
//
//   node image/compile.mjs list NODE_RED        by this machine's Node.js: starts the Node-RED in the
//                                               folder NODE_RED (a node_modules), ends it when its flows have started, and
//                                               prints the files that it has loaded, a line each
//   node image/compile.mjs compile DIRECTORY    in the image, by its own Node.js (emulated, where it is for
//                                               another processor): loads the program and what DIRECTORY/files lists, and leaves
//                                               what came of it in DIRECTORY, for every user that runs Node.js
//
// Files are loaded one after another and nothing is started: with V8's random numbers and its
// garbage collection told to be the same each time, two builds give the same bytes.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { createRequire, registerHooks } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const program = '/usr/lib/gatehouse'
const nodeRed = '/usr/lib/node-red/node_modules'

/** Of whoever starts Node.js: its cache is in a folder with the user's number in its name. */
const users = /^(?:root|node-red|gatehouse(?:-\w+)?)$/

/** Prints what Node-RED loads when it starts without flows. */
async function list(modules) {
  const userDir = fs.mkdtempSync(path.join(os.tmpdir(), 'gatehouse-compile-'))
  process.on('exit', () => fs.rmSync(userDir, { recursive: true, force: true }))
  const settings = path.join(userDir, 'settings.js')
  fs.writeFileSync(
    settings,
    `module.exports = ${JSON.stringify({
      uiPort: path.join(userDir, 'http.sock'),
      credentialSecret: 'none',
      telemetry: { enabled: false, updateNotification: false },
      editorTheme: { projects: { enabled: false }, tours: false },
      contextStorage: { default: { module: 'localfilesystem' }, memory: { module: 'memory' } },
    })}`,
  )
  const imported = new Set()
  registerHooks({
    load(url, context, next) {
      const result = next(url, context)
      if (url.startsWith('file:') && result.format === 'module') imported.add(fileURLToPath(url))
      return result
    },
  })
  // What Node-RED prints is not the list.
  const print = process.stdout.write.bind(process.stdout)
  process.stdout.write = (text) => {
    if (/Started flows/.test(String(text)))
      setImmediate(() => {
        const required = Object.keys(createRequire(import.meta.url).cache)
        const files = [...required, ...imported]
          .filter((file) => file.startsWith(`${modules}/`) && /\.[cm]?js$/.test(file))
          .map((file) => path.relative(modules, file))
          .toSorted()
        print(`${files.join('\n')}\n`, () => process.exit(0))
      })
    return true
  }
  setTimeout(() => {
    console.error('compile: Node-RED has not started within two minutes')
    process.exit(1)
  }, 120_000)
  const main = path.join(modules, 'node-red/red.js')
  process.argv = [process.execPath, main, '-s', settings, '-u', userDir]
  await import(pathToFileURL(main).href)
}

/** Loads what is listed and the program. In a process of its own, with the cache switched on. */
function load(directory) {
  const files = [
    ...fs
      .readdirSync(program)
      .filter((file) => /\.js$/.test(file))
      .toSorted()
      // The one runs a command, the other is a thread's.
      .filter((file) => !/^(?:gatehouse|tsnet-worker|node-red-settings)\.js$/.test(file))
      .map((file) => path.join(program, file)),
    ...fs
      .readFileSync(path.join(directory, 'files'), 'utf8')
      .trim()
      .split('\n')
      // It starts Node-RED.
      .filter((file) => file !== 'node-red/red.js')
      .map((file) => path.join(nodeRed, file)),
  ]
  const failed = []
  // Not by import(): what comes in between is not the same each time, and is seen in the bytes.
  const require = createRequire(import.meta.url)
  for (const file of files) {
    try {
      require(file)
    } catch (error) {
      failed.push(`${file}: ${String(error).split('\n')[0]}`)
    }
  }
  console.log(`compile: ${files.length} files loaded, ${failed.length} of them not to their end`)
  for (const line of failed) console.log(`  ${line}`)
  // It would be noticed by nobody else: the appliance starts without it too.
  if (failed.length > files.length / 20) process.exit(1)
  process.exit(0)
}

/** Everything in the image's own folder, as the appliance's users will look for it. */
function compile(directory) {
  const run = (...args) => {
    const { status, error } = spawnSync(
      process.execPath,
      // None of them changes what V8 takes as its own (v8.cachedDataVersionTag()). With so much room
      // nothing is collected while files are loaded: that comes by time, and is seen in the bytes.
      [
        '--random-seed=1',
        '--single-threaded-gc',
        '--min-semi-space-size=512',
        '--max-semi-space-size=512',
        '--no-memory-reducer',
        '--disable-warning=ExperimentalWarning',
        ...args,
      ],
      {
        env: { NODE_COMPILE_CACHE: directory, NODE_ENV: 'production', HOME: '/tmp' },
        stdio: 'inherit',
      },
    )
    if (status !== 0) {
      console.error(`compile: ${args.join(' ')} ended with ${status ?? error?.message}`)
      process.exit(1)
    }
  }
  run(path.join(program, 'gatehouse.js'), 'version')
  run(import.meta.filename, 'load', directory)
  fs.rmSync(path.join(directory, 'files'))
  const [made, ...more] = fs.readdirSync(directory)
  const name = /^(v.*)-0$/.exec(made ?? '')?.[1]
  if (name === undefined || more.length > 0)
    throw new Error(`compile: ${directory} holds ${made} and ${more.length} more, not root's alone`)
  for (const file of fs.readdirSync(path.join(directory, made)))
    fs.chmodSync(path.join(directory, made, file), 0o644)
  fs.chmodSync(path.join(directory, made), 0o755)
  for (const line of fs.readFileSync('/etc/passwd', 'utf8').trim().split('\n')) {
    const [user, , number] = line.split(':')
    if (users.test(user) && number !== '0')
      fs.symlinkSync(made, path.join(directory, `${name}-${number}`))
  }
}

const [what, where] = process.argv.slice(2)
if (where === undefined) throw new Error('usage: compile.mjs list NODE_MODULES | compile DIRECTORY')
if (what === 'list') await list(path.resolve(where))
else if (what === 'load') load(where)
else compile(where)
