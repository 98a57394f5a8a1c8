// What an attacker who runs code as a service's user tries. Runs in the booted appliance, by its
// own Node.js, inside that service's sandbox: node - ARGUMENT... <break-in.js. Prints a line of
// JSON an attempt: { attempt, got, held }. node:ffi is the attacker's tool as well: any system
// call, without a compiler on the machine.
'use strict'
const { spawn, execFile, execFileSync } = require('node:child_process')
const dgram = require('node:dgram')
const dns = require('node:dns').promises
const ffi = require('node:ffi')
const fs = require('node:fs')
const net = require('node:net')

const { what, options } = JSON.parse(process.argv[2])
const note = (attempt, got, held) =>
  console.log(JSON.stringify({ attempt, got: String(got), held }))
/** An attempt that throws got nothing; one that returns text got that. */
function attempt(name, f) {
  try {
    note(name, f(), false)
  } catch (error) {
    note(name, (error.stderr && reason(String(error.stderr))) || error.code || error.message, true)
  }
}

/** The line of a program's complaint that says why. */
function reason(text) {
  const lines = text.trim().split('\n')
  return lines.find((line) => /denied|not permitted|FATAL/.test(line)) ?? lines.at(-1)
}

const libc = ffi.dlopen('libc.so.6', {
  syscall: { arguments: Array(7).fill('i64'), return: 'i64' },
  __errno_location: { arguments: [], return: 'pointer' },
}).functions
const errors = {
  1: 'EPERM',
  2: 'ENOENT',
  3: 'ESRCH',
  9: 'EBADF',
  11: 'EAGAIN',
  13: 'EACCES',
  14: 'EFAULT',
  22: 'EINVAL',
  38: 'ENOSYS',
  91: 'EPROTOTYPE',
  93: 'EPROTONOSUPPORT',
  97: 'EAFNOSUPPORT',
  111: 'ECONNREFUSED',
}
/**
 * Refused as such: an EFAULT or EINVAL would mean that the call was let in and only the arguments
 * were bad.
 */
const refusals = ['EPERM', 'EACCES', 'ENOSYS', 'EAFNOSUPPORT']
function call(name, number, ...args) {
  const { result, error } = raw(number, ...args)
  note(name, error ?? `done (${result})`, refusals.includes(error))
}

/** A system call by number: what it returned, and by name why it did not do what it was to do. */
function raw(number, ...args) {
  const result = libc.syscall(
    BigInt(number),
    ...[...args, 0, 0, 0, 0, 0, 0].slice(0, 6).map(BigInt),
  )
  if (result >= 0n) return { result: Number(result) }
  const errno = ffi.getInt32(libc.__errno_location(), 0)
  return { result: -1, error: errors[errno] ?? `errno ${errno}` }
}

/**
 * Connects to a unix socket as stream, datagram and seqpacket (unix(7); x86-64's numbers). What it
 * came to: `CONNECTED (stream)`, or the error that says most.
 *
 * @param {string} name a path, or `@…` for an abstract name
 */
function connectUnix(name) {
  const address = Buffer.alloc(110)
  address.writeUInt16LE(1)
  const length = address.write(name, 2) + 2
  if (name.startsWith('@')) address[2] = 0
  const got = []
  for (const [kind, type] of [
    ['stream', 1],
    ['dgram', 2],
    ['seqpacket', 5],
  ]) {
    const { result: socket, error: none } = raw(41, 1, type | 0x800, 0)
    if (socket < 0) return none
    // A path's length counts its end.
    const { error } = raw(
      42,
      socket,
      ffi.getRawPointer(address),
      name.startsWith('@') ? length : length + 1,
    )
    raw(3, socket)
    // Somebody listens there, and is busy.
    if (error === undefined || error === 'EAGAIN') return `CONNECTED (${kind})`
    got.push(error)
  }
  return got.find((error) => error !== 'EPROTOTYPE') ?? got[0]
}

/**
 * A program of its own: in every directory that takes a file, and what it may be there. It runs in
 * `options.home` alone, without more rights than JavaScript has.
 */
function programOfItsOwn() {
  const folders = execFileSync('/bin/bash', [
    '-c',
    'find / -path /proc -prune -o -path /sys -prune -o -type d -writable -print 2>/dev/null; true',
  ])
    .toString()
    .split('\n')
    .filter(Boolean)
  const ran = []
  let tried = 0
  for (const folder of folders) {
    const file = `${folder}/gatehouse-mine`
    try {
      fs.copyFileSync('/usr/bin/true', file)
      fs.chmodSync(file, 0o755)
      tried++
      execFileSync(file, { stdio: 'ignore' })
      ran.push(folder)
    } catch {
      // No file there, or it does not run.
    }
    fs.rmSync(file, { force: true })
  }
  // /tmp and /dev/shm are memory of its own, and were never noexec.
  const own = (folder) =>
    folder === options.home ||
    folder.startsWith(`${options.home}/`) ||
    /^\/(?:tmp|var\/tmp|dev\/shm)(?:\/|$)/.test(folder)
  const others = ran.filter((folder) => !own(folder))
  note(
    `run a program of its own in each of the ${tried} directories that take one`,
    others.join(' ') || `in its own alone: ${ran.join(' ')}`,
    others.length === 0 && tried > ran.length,
  )
  note(
    '(allowed) run a program of its own in its directory',
    ran.length,
    ran.includes(options.home),
  )
  const file = `${options.home}/gatehouse-mine`
  fs.copyFileSync('/usr/bin/true', file)
  fs.chmodSync(file, 0o755)
  attempt('make it set-uid', () => {
    fs.chmodSync(file, 0o4755)
    return 'set-uid'
  })
  attempt('make it a device', () =>
    execFileSync('/usr/bin/mknod', [`${options.home}/device`, 'c', '1', '1'], { stdio: 'pipe' }),
  )
  fs.rmSync(file)
}

const kinds = {
  /** Files nobody but their owner is to read, and what else is to be seen of others. */
  read() {
    for (const file of options.secrets)
      attempt(`read ${file}`, () => `${fs.readFileSync(file).length} bytes`)
    attempt(
      `read the memory of process ${options.victim}`,
      () => fs.readFileSync(`/proc/${options.victim}/environ`).length,
    )
    const others = fs
      .readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name) && fs.statSync(`/proc/${name}`).uid !== process.getuid())
    note(
      "see other users' processes",
      others.length === 0 ? 'none visible' : others.join(' '),
      others.length === 0,
    )
    for (const socket of options.sockets)
      attempt(`open ${socket}`, () => {
        fs.accessSync(socket, fs.constants.W_OK)
        return 'may write'
      })
    attempt('list the disks', () => fs.readFileSync('/dev/vda').length)
  },

  /**
   * Every socket of this machine (`options.paths`, `options.abstract`, as root sees them), and
   * every one that is to be found from within. A program behind one of them acts for whoever asks.
   */
  sockets() {
    const own = new RegExp(options.own)
    const found = execFileSync('/bin/bash', [
      '-c',
      'find / -path /proc -prune -o -type s -print 2>/dev/null; true',
    ])
      .toString()
      .split('\n')
      .filter(Boolean)
    const bound = fs
      .readFileSync('/proc/self/net/unix', 'utf8')
      .split('\n')
      .flatMap((line) => / ([@/].*)$/.exec(line)?.[1] ?? [])
    const names = new Set([...options.paths, ...options.abstract, ...found, ...bound])
    const reached = []
    const errors = new Map()
    for (const name of names) {
      const got = connectUnix(name)
      if (got.startsWith('CONNECTED')) {
        if (!own.test(name)) reached.push(`${name} ${got}`)
      } else errors.set(got, (errors.get(got) ?? 0) + 1)
    }
    for (const name of reached) note('connect to a socket of the system', name, false)
    note(
      `connect to every socket of the system (${names.size})`,
      reached.length > 0
        ? `${reached.length} answered`
        : [...errors].map(([error, count]) => `${count} ${error}`).join(', '),
      reached.length === 0,
    )
    const strange = found.filter((name) => !own.test(name))
    note('see a socket that is not its own', strange.join(' ') || 'none', strange.length === 0)
    const below = fs.readdirSync('/run').filter((name) => !options.below.includes(name))
    note('see what else is below /run', below.join(' ') || 'nothing', below.length === 0)
  },

  /** Questions to the resolver, by every way that there is to one. */
  async resolver() {
    const name = (way) => `${way}.${options.secret}`
    // systemd-resolved by varlink, its stub by hand, and D-Bus.
    for (const socket of [
      '/run/systemd/resolve/io.systemd.Resolve',
      '/run/dbus/system_bus_socket',
    ]) {
      const got = await new Promise((resolve) => {
        const client = net.connect(socket)
        const done = (text) => {
          client.destroy()
          resolve(text)
        }
        client
          .on('error', (error) => done(error.code))
          .on('data', (data) => done(`answered: ${String(data).slice(0, 60)}`))
          .setTimeout(options.patience, () => done('CONNECTED'))
        client.write(
          socket.includes('Resolve')
            ? `${JSON.stringify({ method: 'io.systemd.Resolve.ResolveHostname', parameters: { name: name('varlink') } })}\0`
            : '\0AUTH EXTERNAL\r\n',
        )
      })
      note(`ask ${socket}`, got, /^E[A-Z]+$/.test(got))
    }
    for (const [way, ask] of [
      ['getaddrinfo', (host) => dns.lookup(host)],
      ['the configured server', (host) => dns.resolve4(host)],
      [
        'the stub, 127.0.0.53',
        async (host) => {
          const own = new dns.Resolver({ timeout: options.patience, tries: 1 })
          own.setServers(['127.0.0.53'])
          return await own.resolve4(host)
        },
      ],
      [
        'the stub, 127.0.0.54',
        async (host) => {
          const own = new dns.Resolver({ timeout: options.patience, tries: 1 })
          own.setServers(['127.0.0.54'])
          return await own.resolve4(host)
        },
      ],
    ]) {
      const got = await ask(name(way.replaceAll(/\W+/g, '-'))).then(
        (answer) => `resolved: ${JSON.stringify(answer)}`,
        (error) => error.code,
      )
      note(`ask for a name by ${way}`, got, !/resolved|ENODATA/.test(got))
    }
    for (const [file, ...args] of [
      ['resolvectl', 'query', name('resolvectl')],
      ['getent', 'ahosts', name('getent')],
      [
        'busctl',
        'call',
        'org.freedesktop.resolve1',
        '/org/freedesktop/resolve1',
        'org.freedesktop.resolve1.Manager',
        'ResolveHostname',
        'isit',
        '0',
        name('busctl'),
        '0',
        '0',
      ],
    ])
      attempt(`${file} ${args[0]}`, () =>
        execFileSync(`/usr/bin/${file}`, args, {
          stdio: ['ignore', 'pipe', 'pipe'],
          timeout: 30_000,
        }),
      )
  },

  /** The lock of the certificates' agent: held, nothing is renewed. */
  lock() {
    const { dev, ino } = options.state
    // As an abstract socket, by the name that a version before gave it, and as what it is now.
    const address = Buffer.alloc(110)
    address.writeUInt16LE(1)
    const length = address.write(`\0gatehouse-certs-${dev}-${ino}`, 2) + 2
    const { result: socket } = raw(41, 1, 1, 0)
    const { error } = raw(49, socket, ffi.getRawPointer(address), length)
    if (error === undefined) raw(50, socket, 1)
    attempt('lock the state of the certificates', () => {
      execFileSync('/usr/bin/flock', ['--nonblock', options.state.path, 'true'], { stdio: 'pipe' })
      return 'LOCKED'
    })
    // Held while whoever started this looks whether certificates are still looked after.
    fs.writeSync(1, `bound ${error ?? 'yes'}\n`)
    return new Promise((done) => setTimeout(done, options.seconds * 1000))
  },

  /** Its own directory below /run: bytes and files until somebody says no. */
  runtime() {
    let files = 0
    let bytes = 0
    let refused = ''
    try {
      for (; files < 100_000; files++) fs.writeFileSync(`${options.directory}/fill.${files}`, '')
    } catch (error) {
      refused = error.code
    }
    for (const name of fs.readdirSync(options.directory))
      if (name.startsWith('fill.')) fs.rmSync(`${options.directory}/${name}`)
    try {
      const file = fs.openSync(`${options.directory}/fill`, 'w')
      for (; bytes < 1 << 28; bytes += 65536) fs.writeSync(file, Buffer.alloc(65536))
      fs.closeSync(file)
    } catch (error) {
      refused += ` ${error.code}`
    }
    fs.rmSync(`${options.directory}/fill`, { force: true })
    note(
      `fill ${options.directory}`,
      `${files} files, ${bytes >> 10} KiB, then ${refused}`,
      files < 1000 && bytes <= 1 << 20,
    )
    if (options.leave)
      try {
        for (let i = 0; ; i++) {
          fs.mkdirSync(`${options.directory}/left.${i}/x`, { recursive: true })
          fs.chmodSync(`${options.directory}/left.${i}`, 0)
        }
      } catch {}
  },

  /** System calls by number (x86-64). */
  syscalls() {
    const victim = options.victim
    call('raw socket, IPv4', 41, 2, 3, 255)
    call('raw socket, ICMPv6', 41, 10, 3, 58)
    call('packet socket', 41, 17, 3, 0x300)
    call(`ptrace process ${victim}`, 101, 16, victim)
    call('new user namespace', 272, 0x10000000)
    call('new network namespace', 272, 0x40000000)
    call('load a kernel module', 175, 0, 0, 0)
    call('load a kernel module from a file', 313, 0, 0, 0)
    call('mount', 165, 0, 0, 0, 0, 0)
    call('load a BPF program', 321, 5, 0, 0)
    call('io_uring', 425, 1, 0)
    call('new kernel (kexec)', 246, 0, 0, 0, 0)
    call('trace the kernel (perf)', 298, 0, 0, -1, -1, 0)
    call('become root (setuid)', 105, 0)
    call('change root', 161, 0)
    call('set the clock', 227, 0, 0)
    call('swap to a file', 167, 0, 0)
    attempt(`kill process ${victim}`, () => {
      process.kill(victim, 9)
      return 'killed'
    })
  },

  /** Programs that the image has. */
  programs() {
    const run =
      (file, ...args) =>
      () =>
        execFileSync(file, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 30_000 })
          .toString()
          .slice(0, 60) || 'done'
    attempt("show the firewall's rules", run('/usr/sbin/nft', 'list', 'ruleset'))
    attempt("flush the firewall's rules", run('/usr/sbin/nft', 'flush', 'ruleset'))
    attempt('own firewall rule', run('/usr/sbin/nft', 'add', 'table', 'inet', 'mine'))
    attempt(
      'systemctl stop nftables',
      run('/usr/bin/systemctl', '--no-ask-password', 'stop', 'nftables'),
    )
    attempt(
      'systemctl edit its own unit',
      run(
        '/usr/bin/systemctl',
        '--no-ask-password',
        'set-property',
        '--runtime',
        options.unit,
        'IPAddressDeny=',
      ),
    )
    attempt(
      'systemd-run a unit as root',
      run('/usr/bin/systemd-run', '--no-ask-password', '--wait', '/usr/bin/id'),
    )
    attempt('modprobe dccp', run('/usr/sbin/modprobe', 'dccp'))
    attempt('unshare --user', run('/usr/bin/unshare', '--user', '--map-root-user', 'id'))
    for (const missing of [
      'su',
      'sudo',
      'pkexec',
      'gcc',
      'cc',
      'python3',
      'perl',
      'apt-get',
      'dpkg',
      'ssh',
      'curl',
      'wget',
      'strace',
      'gdb',
    ]) {
      const there = ['/usr/bin', '/usr/sbin', '/usr/local/bin'].some((directory) =>
        fs.existsSync(`${directory}/${missing}`),
      )
      if (there) note(`${missing} is there`, 'a tool more', false)
    }
    const suid = execFileSync('/usr/bin/find', ['/usr', '-xdev', '-perm', '/6000', '-type', 'f'])
      .toString()
      .trim()
    note('set-uid programs', suid || 'none', suid === '')
  },

  /** Everywhere but in its own directories. */
  write() {
    const places = [
      '/',
      '/etc',
      '/usr/bin',
      '/usr/lib/systemd/system',
      '/etc/systemd/system',
      '/run',
      '/run/systemd/system',
      '/efi',
      '/boot',
      '/root',
      '/home',
      '/var',
      '/var/lib',
      '/var/log',
      '/dev',
      '/sys/kernel',
      '/proc/sys/kernel',
      ...options.places,
    ]
    for (const place of places)
      attempt(`write in ${place}`, () => {
        fs.writeFileSync(`${place}/gatehouse-break-in`, '')
        return 'written'
      })
    attempt('change a kernel setting', () => {
      fs.writeFileSync('/proc/sys/kernel/core_pattern', 'core')
      return 'written'
    })
    attempt('leave its control group', () => {
      fs.writeFileSync('/sys/fs/cgroup/cgroup.procs', String(process.pid))
      return 'left'
    })
    // Node-RED alone has a directory from which it may run programs.
    if (options.executes) programOfItsOwn()
    const limit = /Max core file size\s+(\d+)/.exec(
      fs.readFileSync('/proc/self/limits', 'utf8'),
    )?.[1]
    note('leave a core dump', `limit ${limit}`, limit === '0')
  },

  /**
   * Connections by TCP and UDP, pings, and names. What is in `allowed` must work, or silence would prove
   * nothing.
   */
  async network() {
    const tcp = (host, port) =>
      new Promise((resolve) => {
        const socket = net.connect({ host, port })
        const done = (got) => {
          clearTimeout(late)
          socket.destroy()
          resolve(got)
        }
        const late = setTimeout(done, options.patience, 'silence')
        socket.on('connect', () => done('CONNECTED')).on('error', (error) => done(error.code))
      })
    const udp = (host, port) =>
      new Promise((resolve) => {
        const socket = dgram.createSocket(net.isIPv6(host.replace(/%.*/, '')) ? 'udp6' : 'udp4')
        const done = (got) => {
          clearTimeout(late)
          socket.close()
          resolve(got)
        }
        const late = setTimeout(done, options.patience, 'silence')
        socket.on('message', () => done('ANSWERED')).on('error', (error) => done(error.code))
        // A DNS question (RFC 1035): the lab's server would answer.
        socket.send(
          Buffer.from('123401000001000000000000056578666c6c046c61623104746573740000010001', 'hex'),
          port,
          host,
          (error) => {
            if (error) done(error.code)
          },
        )
      })
    const tries = [
      ...options.tcp.map(async ([name, host, port]) => {
        const got = await tcp(host, port)
        note(`TCP ${name}`, got, got !== 'CONNECTED')
      }),
      ...options.udp.map(async ([name, host, port]) => {
        const got = await udp(host, port)
        note(`UDP ${name}`, got, got !== 'ANSWERED')
      }),
      ...options.allowed.map(async ([name, host, port]) => {
        const got = await tcp(host, port)
        note(`(allowed) TCP ${name}`, got, got === 'CONNECTED')
      }),
      ...options.pings.map(async ([name, host]) => {
        const got = await new Promise((resolve) => {
          execFile('/usr/bin/ping', ['-n', '-c', '1', '-w', '2', host], (error, said, wrong) => {
            if (error === null) resolve('ANSWERED')
            else resolve(/not permitted/.test(wrong) ? 'EPERM' : `exit code ${error.code}`)
          })
        })
        note(`ping ${name}`, got, got !== 'ANSWERED')
      }),
      ...options.names.map(async (name) => {
        const got = await dns.lookup(name).then(
          ({ address }) => `resolved to ${address}`,
          (error) => error.code,
        )
        note(`resolve ${name}`, got, !got.startsWith('resolved'))
        const asked = await dns.resolveTxt(name).then(
          () => 'answered',
          (error) => error.code,
        )
        note(`ask DNS for ${name}`, asked, asked !== 'answered')
      }),
    ]
    await Promise.all(tries)
    const open = []
    const ports = Array.from({ length: 65535 }, (_, i) => i + 1).filter(
      (port) => port <= 1100 || [1880, 3000, 5355, 8080, 8443, 9090, 9229, 41641].includes(port),
    )
    await Promise.all(
      ['127.0.0.1', '::1', '127.0.0.53'].flatMap((host) =>
        ports.map(async (port) => {
          if ((await tcp(host, port)) === 'CONNECTED') open.push(`${host}:${port}`)
        }),
      ),
    )
    note(
      'TCP 1-1100 and others of 127.0.0.1, ::1, 127.0.0.53',
      open.join(' ') || 'none open',
      open.length === 0,
    )
  },

  /**
   * Whatever is below /dev, to read from or write to. Terminals without a machine behind them
   * answer EIO.
   */
  devices() {
    const open = []
    let tried = 0
    for (const entry of fs.readdirSync('/dev', { recursive: true, withFileTypes: true })) {
      if (!entry.isCharacterDevice() && !entry.isBlockDevice()) continue
      const file = `${entry.parentPath}/${entry.name}`
      tried++
      for (const flags of [fs.constants.O_RDONLY, fs.constants.O_WRONLY]) {
        try {
          fs.closeSync(fs.openSync(file, flags | fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY))
          open.push(file)
          break
        } catch {}
      }
    }
    const pseudo = /^\/dev\/(null|zero|full|random|urandom|tty|ptmx|pts\/.*)$/
    const extra = open.filter((file) => !pseudo.test(file) && !new RegExp(options.given).test(file))
    note(
      `open devices (${tried}) that were not given to it`,
      extra.join(' ') || 'none',
      extra.length === 0,
    )
    for (const file of options.wanted)
      note(`(allowed) open ${file}`, open.includes(file) ? 'open' : 'refused', open.includes(file))
  },

  /** To be reached itself. */
  async listen() {
    const listening = await new Promise((resolve) => {
      const server = net
        .createServer()
        .on('error', (error) => resolve(error.code))
        .listen(9999, () => {
          server.close()
          resolve('LISTENING')
        })
    })
    note('listen on TCP 9999', listening, listening !== 'LISTENING')
    const bound = await new Promise((resolve) => {
      const socket = dgram
        .createSocket({ type: 'udp4', reuseAddr: true })
        .on('error', (error) => resolve(error.code))
      socket.bind(options.udp, () => {
        socket.close()
        resolve('BOUND')
      })
    })
    note(`take UDP port ${options.udp}`, bound, bound !== 'BOUND')
  },

  /** A fork bomb that ends by itself. */
  async fork() {
    let running = 0
    let refused = ''
    const children = Array.from({ length: 400 }, () => {
      try {
        const child = spawn('/usr/bin/sleep', ['15'], { stdio: 'ignore' })
        child
          .on('spawn', () => running++)
          .on('error', (error) => {
            refused = error.code
          })
        return child
      } catch (error) {
        refused = error.code
        return undefined
      }
    })
    await new Promise((done) => setTimeout(done, 8_000))
    for (const child of children) child?.kill('SIGKILL')
    note(
      'fork bomb (400)',
      `${running} processes, then ${refused}`,
      running < 200 && refused !== '',
    )
  },

  /** Memory until somebody says no. */
  async memory() {
    const held = []
    for (let i = 1; i <= 64; i++) {
      held.push(Buffer.alloc(32 << 20, i))
      fs.writeSync(1, `${i * 32} MB\n`)
      await new Promise((done) => setTimeout(done, 10))
    }
  },
}
void Promise.resolve(kinds[what]()).then(() => process.exit(0))
