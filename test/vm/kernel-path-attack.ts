/** What somebody tries who has broken into the gateway with the kernel's data path. */
import { kernelPath } from '../../src/config/data-path.ts'

/** The gateway's unit with that drop-in (src/provision/gatehouse-unit.ts), for inUnit(). */
export const attackSettings = {
  settings: [
    ...Object.values(kernelPath.ports).map((port) => `SocketBindAllow=tcp:${port}`),
    'PrivateDevices=no',
    'DevicePolicy=closed',
    'DeviceAllow=/dev/net/tun rw',
  ],
  without: ['PrivateDevices'],
}

/**
 * A script for bash: interfaces, devices, sockets, ports, packets. Prints a JSON line for each
 * attempt.
 *
 * @param serving whether the gateway has its ports
 */
export const attack = (
  serving: boolean,
): string => `node --disable-warning=ExperimentalWarning - <<'END'
    const fs = require('node:fs'), net = require('node:net'), ffi = require('node:ffi')
    const note = (attempt, got, held) => console.log(JSON.stringify({ attempt, got: String(got), held }))
    const { functions: c } = ffi.dlopen(null, {
      open: { return: 'int32', arguments: ['pointer', 'int32', 'int32'] },
      ioctl: { return: 'int32', arguments: ['int32', 'uint64', 'pointer'] },
      socket: { return: 'int32', arguments: ['int32', 'int32', 'int32'] },
    })
    const tun = (name) => {
      const path = new ArrayBuffer(16), request = new ArrayBuffer(40)
      Buffer.from(path).write('/dev/net/tun'); Buffer.from(request).write(name)
      new DataView(request).setUint16(16, 0x5001, true)
      const fd = c.open(ffi.getRawPointer(path), 2, 0)
      if (fd < 0) return 'not opened'
      return c.ioctl(fd, BigInt(0x400454ca), ffi.getRawPointer(request)) < 0 ? 'refused' : 'HAS IT'
    }
    for (const name of ['evil0', 'eth0', 'lo', '${kernelPath.interface}']) { const got = tun(name); note('tun interface ' + name, got, got === 'refused') }
    const usual = ['null', 'zero', 'full', 'random', 'urandom', 'tty', 'ptmx', 'net/tun']
    const walk = (dir) => fs.readdirSync(dir, { withFileTypes: true }).flatMap((one) => {
      const path = dir + '/' + one.name
      try { return one.isDirectory() ? walk(path) : one.isCharacterDevice() || one.isBlockDevice() ? [path] : [] } catch { return [] }
    })
    const opened = walk('/dev').filter((path) => { try { fs.closeSync(fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)); return !usual.includes(path.slice(5)) } catch { return false } })
    note('devices of /dev that open', opened.join(' ') || 'none but the usual', opened.length === 0)
    for (const [name, family, type] of [['AF_PACKET', 17, 3], ['raw IPv4', 2, 3], ['raw IPv6', 10, 3]]) {
      const got = c.socket(family, type, 6) < 0 ? 'refused' : 'OPEN'; note(name, got, got === 'refused')
    }
    const bind = (port, host) => new Promise((done) => { const s = net.createServer().on('error', (e) => done(e.code)).listen(port, host, () => s.close(() => done('LISTENS'))) })
    ;(async () => {
      for (const port of [80, 443, 8443, 22, 3000, 43442]) { const got = await bind(port, '::'); note('listen on TCP ' + port, got, got !== 'LISTENS') }
      const got = await bind(43443, '::'); note('(allowed) its own port', got, got === '${serving ? 'EADDRINUSE' : 'LISTENS'}')
      for (const from of ['192.0.2.77', 'fd67:6174:6568:6f75::1']) for (const to of from.includes(':') ? ['2001:db8:77::1', 'fd7a:115c:a1e0::9'] : ['10.77.0.1', '100.64.0.9', '127.0.0.53']) {
        const got = await new Promise((done) => net.connect({ host: to, port: 53, localAddress: from }).setTimeout(3000, () => done('silence')).on('error', (e) => done(e.code)).on('connect', () => done('CONNECTED')))
        note('from ' + from + ' to ' + to, got, got !== 'CONNECTED')
      }
    })()
END`
