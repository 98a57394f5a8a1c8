/** A root shell in the machine, on a virtio serial port. */
import { type Socket, connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

/** What a command in the machine came to. */
export interface RunResult {
  /**
   * Exit status; 124 when `timeout` ended it (as timeout(1) has it), 128 + signal when a signal
   * did.
   */
  code: number
  stdout: string
  stderr: string
}

/** How to run a command in the machine. */
export interface RunOptions {
  /** Seconds until the command is ended. Default: 60. */
  timeout?: number
  /** The user to run it as, with that user's groups. Default: root. */
  user?: string
}

/**
 * The shell in the machine. One line in: id, user, seconds, command (base64). One line out: DONE,
 * id, status, stdout, stderr (base64).
 */
const agent = `
port=/dev/virtio-ports/gatehouse.test
until [ -e "$port" ]; do sleep 0.2; done
mkdir -p -m 0711 /run/gatehouse-test
cd /run/gatehouse-test
exec 3<>"$port"
echo "HELLO $(cat /proc/sys/kernel/random/boot_id)" >&3
while :; do
  while read -r id user limit command <&3; do
    (
      printf %s "$command" | base64 -d >"$id.sh"
      as=()
      [ "$user" = root ] || as=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups)
      timeout -k 5 "$limit" "\${as[@]}" /bin/bash "/run/gatehouse-test/$id.sh" >"$id.out" 2>"$id.err" </dev/null 3>&-
      code=$?
      out=$(base64 -w0 <"$id.out") err=$(base64 -w0 <"$id.err")
      rm -f "$id".*
      { flock 9; echo "DONE $id $code \${out:--} \${err:--}" >&3; } 9>lock
    ) &
  done
  sleep 0.2
done
`

/** The unit that runs it, for the hypervisor to hand over. */
export const agentUnit = `[Unit]
Description=Root shell for tests, handed in by the hypervisor
ConditionPathExists=!/etc/initrd-release
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
[Service]
ExecStart=/bin/bash -c 'eval "$$(echo ${Buffer.from(agent).toString('base64')} | base64 -d)"'
Environment=HOME=/root
`

/** This end of it; one for each machine, over all its boots. */
export class RootShell {
  /** Of the boot that has answered last since {@link connect}; undefined before. */
  bootId: string | undefined
  #socket: Socket | undefined
  #serial = 0
  #pending = new Map<number, { done: (result: RunResult) => void; fail: (error: Error) => void }>()
  readonly #onBoot: () => void

  /** @param onBoot is called when a boot's shell says hello */
  constructor(onBoot: () => void) {
    this.#onBoot = onBoot
  }

  /**
   * Connects to QEMU's end of the port. `running` tells whether QEMU still is; its last words are
   * in what it throws when not.
   */
  async connect(path: string, running: () => boolean, lastWords: () => string): Promise<void> {
    this.bootId = undefined
    for (let attempt = 0; ; attempt++) {
      if (!running()) throw new Error(`machine: QEMU did not start: ${lastWords()}`)
      try {
        this.#socket = await new Promise<Socket>((done, fail) => {
          const socket = connect(path, () => done(socket))
          socket.once('error', fail)
        })
        break
      } catch (error) {
        if (attempt > 200)
          throw new Error(`machine: QEMU does not open ${path}: ${String(error)} ${lastWords()}`)
        await sleep(50)
      }
    }
    this.#socket.on('error', () => {}) // QEMU's end is told by its exit
    let rest = ''
    this.#socket.setEncoding('latin1')
    this.#socket.on('data', (data) => {
      const lines = (rest + String(data)).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) this.#heard(line)
    })
  }

  #heard(line: string): void {
    const [word, ...rest] = line.split(' ')
    if (word === 'HELLO') {
      this.bootId = rest[0]
      // A new boot: nobody is left to answer the old one's questions.
      this.#failPending(new Error('machine: it has rebooted meanwhile'))
      this.#onBoot()
    } else if (word === 'DONE') {
      const [id, code, stdout, stderr] = rest
      const text = (data = '-'): string =>
        data === '-' ? '' : Buffer.from(data, 'base64').toString()
      const pending = this.#pending.get(Number(id))
      this.#pending.delete(Number(id))
      pending?.done({ code: Number(code), stdout: text(stdout), stderr: text(stderr) })
    }
  }

  #failPending(error: Error): void {
    for (const { fail } of this.#pending.values()) fail(error)
    this.#pending.clear()
  }

  /** Runs a command; see Machine.run(). */
  async run(command: string, { timeout = 60, user = 'root' }: RunOptions = {}): Promise<RunResult> {
    const id = ++this.#serial
    return await new Promise<RunResult>((done, fail) => {
      const timer = setTimeout(
        () => {
          this.#pending.delete(id)
          fail(new Error(`machine: no answer in ${timeout + 30} s to: ${command}`))
        },
        (timeout + 30) * 1000,
      )
      this.#pending.set(id, {
        done: (result) => (clearTimeout(timer), done(result)),
        fail: (error) => (clearTimeout(timer), fail(error)),
      })
      this.#socket?.write(`${id} ${user} ${timeout} ${Buffer.from(command).toString('base64')}\n`)
    })
  }

  /** QEMU has ended. */
  end(error: Error): void {
    this.#socket?.destroy()
    this.#failPending(error)
  }
}
