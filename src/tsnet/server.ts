import { EventEmitter } from 'node:events';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { rootCertificates } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Conn, Listener } from './conn.ts';
import { TsnetError, type TsnetErrorCode } from './errors.ts';
import type { StartParams, StreamMessage, StreamMeta, ToUser, ToWorker, WorkerData } from './protocol.ts';
import type { ServerOptions, Stats, Status, WhoIs } from './types.ts';

// From source: the worker is TypeScript and the module lies where build.sh puts it. Bundled: both lie beside the bundle.
const fromSource = import.meta.url.endsWith('.ts');
const workerURL = new URL(fromSource ? './worker.ts' : './tsnet-worker.js', import.meta.url);
const wasmPath = fileURLToPath(new URL(fromSource ? './build/tsnet.wasm' : './tsnet.wasm', import.meta.url));

interface Events {
  /** The backend's state (ipn.State): NoState, NeedsLogin, NeedsMachineAuth, Stopped, Starting, Running. */
  state: [string];
  /** A person must open this URL to log the node in. */
  loginURL: [string];
  /** What the control server says against this node. */
  message: [string];
  /** Tailscale's log, a line at a time. */
  log: [string];
  /** The module died; the server is of no further use. */
  error: [TsnetError];
  close: [];
}

interface Waiting {
  resolve: (value: unknown) => void;
  reject: (err: TsnetError) => void;
}

/** How long Tailscale may take to leave the network before its thread is ended, in ms. */
const CLOSE_MS = 5000;

function checkPort(port: number): void {
  if (!Number.isInteger(port) || port < 1 || port > 65535) throw new TsnetError('TSNET_OPTIONS', `port ${port}: use 1 to 65535`);
}

const closedError = (): TsnetError => new TsnetError('TSNET_CLOSED', 'the server is closed');

/** Callers that wait for something may give it up. */
export interface WaitOptions {
  signal?: AbortSignal;
}

/**
 * A node of a tailnet inside this process: tsnet.Server (tailscale.com/tsnet).
 *
 * ```ts
 * const server = new Server({ dir: '/var/lib/hello', hostname: 'hello', authKey: process.env.TS_AUTHKEY });
 * await server.up();
 * const listener = await server.listen(80);
 * listener.on('connection', (conn) => conn.end(`hello ${conn.remoteAddress}\n`));
 * ```
 */
export class Server extends EventEmitter<Events> {
  private readonly options: ServerOptions;
  private worker: Worker | undefined;
  private starting: Promise<void> | undefined;
  private closing: Promise<void> | undefined;
  private closeAsked = false;
  private ended: TsnetError | undefined;
  private nextId = 1;
  private readonly waiting = new Map<number, Waiting>();
  private readonly open = new Map<number, Listener>();
  private readonly conns = new Map<number, Conn>();
  private readonly dialled = new Map<number, Conn>();
  private outbox: ToWorker[] = [];
  private transfers: ArrayBuffer[] = [];
  private exited: (() => void) | undefined;

  /** Nothing happens before {@link start}. */
  constructor(options: ServerOptions) {
    super();
    if (!options.dir) throw new TsnetError('TSNET_OPTIONS', 'dir is required: the directory that keeps the identity of the node');
    this.options = options;
  }

  /** Loads the module and starts the backend: it connects by itself from here on. Calling it again gives the first call's result. */
  start(): Promise<void> {
    this.starting ??= this.doStart();
    return this.starting;
  }

  private async doStart(): Promise<void> {
    if (!('Suspending' in WebAssembly)) {
      throw new TsnetError('TSNET_NODE_VERSION', `Node.js ${process.version} has no WebAssembly JSPI: use Node.js 26 or later`);
    }
    const { options } = this;
    let rootsPEM = rootCertificates.join('\n');
    if (options.caFile) {
      try {
        rootsPEM = await readFile(options.caFile, 'utf8');
      } catch (err) {
        throw new TsnetError('TSNET_ROOTS', `caFile cannot be read: ${(err as Error).message}`, { cause: err });
      }
    }
    if (this.closeAsked) throw closedError();
    const workerData: WorkerData = {
      wasm: wasmPath,
      dir: options.dir,
      // Tailscale's logs stay here: an appliance uploads nothing unless its owner says so.
      env: { TS_NO_LOGS_NO_SUPPORT: 'true', ...options.env },
    };
    const worker = new Worker(workerURL, { workerData, name: 'tsnet', env: {}, execArgv: ['--disable-warning=ExperimentalWarning'] });
    this.worker = worker;
    worker.on('message', (messages: ToUser[]) => {
      for (const m of messages) this.receive(m);
    });
    worker.on('error', (err) => this.end(71, String((err as Error).stack ?? err)));
    worker.on('exit', (code) => this.end(code, 'the worker thread ended'));
    const params: StartParams = {
      hostname: options.hostname ?? 'tsnet',
      authKey: options.authKey ?? process.env.TS_AUTHKEY ?? process.env.TS_AUTH_KEY ?? '',
      controlURL: options.controlURL ?? process.env.TS_CONTROL_URL ?? '',
      ephemeral: options.ephemeral ?? false,
      port: options.port ?? 0,
      rootsPEM,
      stateFile: path.join(options.dir, 'tailscaled.state'),
      verbose: options.verbose ?? false,
    };
    try {
      await this.request('start', params);
    } catch (err) {
      // Nothing of it stays: a worker that could not start would keep the process alive.
      this.end(0, '', err as TsnetError);
      throw err;
    }
  }

  private async request<T>(method: string, params: unknown = {}, { signal }: WaitOptions = {}, id = this.nextId++): Promise<T> {
    const begin = async (): Promise<unknown> => {
      if (method !== 'start' && method !== 'close') await this.start();
      if (this.ended) throw this.ended;
      if (signal?.aborted) throw aborted();
      return await new Promise<unknown>((resolve, reject) => {
        this.waiting.set(id, { resolve, reject });
        this.post(method === 'stats' ? { t: 'stats', id } : { t: 'rpc', body: JSON.stringify({ id, method, params }) });
      });
    };
    const aborted = (): TsnetError => new TsnetError('TSNET_ABORTED', `${method}: aborted`, { cause: signal?.reason });
    if (!signal) return (await begin()) as T;
    if (signal.aborted) throw aborted();
    // At once, whatever the module does: what it answers later is dropped, a connection it dials is closed.
    const { promise, reject } = Promise.withResolvers<never>();
    const cancel = (): void => {
      if (this.settle(id)) this.post({ t: 'rpc', body: JSON.stringify({ id, method: 'cancel' }) });
      reject(aborted());
    };
    signal.addEventListener('abort', cancel, { once: true });
    try {
      return (await Promise.race([begin(), promise])) as T;
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }

  /** The one who waits for this answer, who will wait no more. */
  private settle(id: number): Waiting | undefined {
    const w = this.waiting.get(id);
    this.waiting.delete(id);
    return w;
  }

  /** Messages of one turn of the event loop go over together: a wake-up of the other thread costs more than they do. */
  private post = (m: ToWorker): void => {
    if (this.ended) return;
    if (this.outbox.length === 0) queueMicrotask(this.flush);
    this.outbox.push(m);
    if (m.t === 'data') this.transfers.push(m.b.buffer);
  };

  private flush = (): void => {
    this.worker?.postMessage(this.outbox, this.transfers);
    this.outbox = [];
    this.transfers = [];
  };

  private receive(m: ToUser): void {
    if (m.t === 'emit') this.event(m.body);
    else if (m.t === 'open') this.accept(m.s, m.meta);
    else if (m.t === 'stats') this.settle(m.id)?.resolve(m.stats);
    else if (m.t === 'log') this.emit('log', m.line);
    else if (m.t === 'exit') this.end(m.code, m.reason, m.error && new TsnetError(m.error, m.reason));
    else this.conns.get(m.s)?.receive(m);
  }

  private event(body: string): void {
    const e = JSON.parse(body) as {
      id?: number;
      result?: unknown;
      error?: { code: TsnetErrorCode; message: string };
      event?: string;
      value?: string;
    };
    if (e.id !== undefined) {
      const w = this.settle(e.id);
      // What close() interrupts over there is closed, not aborted: abort signals are answered here.
      if (e.error) w?.reject(this.closeAsked && e.error.code === 'TSNET_ABORTED' ? closedError() : new TsnetError(e.error.code, e.error.message));
      else w?.resolve(e.result);
    } else if (e.event === 'state') this.emit('state', e.value!);
    else if (e.event === 'login') this.emit('loginURL', e.value!);
    else if (e.event === 'message') this.emit('message', e.value!);
  }

  private accept(s: number, meta: StreamMeta): void {
    const conn = new Conn(s, meta.local, meta.remote, (m: StreamMessage) => this.post(m), () => this.conns.delete(s));
    this.conns.set(s, conn);
    if (meta.dial !== undefined) {
      // Whoever dialled may have given up.
      if (this.waiting.has(meta.dial)) this.dialled.set(meta.dial, conn);
      else conn.destroy();
      return;
    }
    const give = (): boolean => {
      if (!this.open.get(meta.listener!)?.emit('connection', conn)) return false;
      conn.release();
      return true;
    };
    // It may come before the caller of listen() has had its turn to add the event listener.
    if (!give()) setImmediate(() => give() || conn.destroy());
  }

  /** The module has ended, as asked or not. */
  private end(code: number, reason: string, error?: TsnetError): void {
    if (this.ended) return;
    const asked = this.closeAsked;
    this.ended = asked
      ? closedError()
      : (error ?? new TsnetError('TSNET_DIED', `Tailscale's module ended by itself (code ${code})${reason ? `: ${reason}` : ''}; make a new Server`));
    const heard = this.waiting.size > 0;
    for (const w of this.waiting.values()) w.reject(this.ended);
    this.waiting.clear();
    for (const conn of this.conns.values()) conn.receive({ t: 'reset', s: 0 });
    for (const listener of this.open.values()) listener.emit('close');
    void this.worker?.terminate();
    this.worker = undefined;
    // Whoever waits has the error already; without anybody waiting an unheard 'error' would end the process. A failed start is
    // its caller's to know.
    if (!asked && !error && (this.listenerCount('error') > 0 || !heard)) this.emit('error', this.ended);
    this.emit('close');
    this.exited?.();
  }

  /**
   * Waits until the node is in the tailnet. Rejects with TSNET_AUTH when the control server refuses it; the backend goes
   * on trying, and `up` may be called again. Without an auth key, listen to `loginURL`.
   */
  async up(options: WaitOptions = {}): Promise<Status> {
    return await this.request('up', {}, options);
  }

  /** Listens on a TCP port (1–65535) of the node's tailnet addresses. May be called before the node is up. */
  async listen(port: number): Promise<Listener> {
    checkPort(port);
    const id = this.nextId++;
    const listener = new Listener(port, async () => {
      this.open.delete(id);
      if (!this.ended) await this.request('unlisten', { listener: id });
    });
    this.open.set(id, listener);
    try {
      await this.request('listen', { port }, {}, id);
    } catch (err) {
      this.open.delete(id);
      throw err;
    }
    return listener;
  }

  /**
   * Connects to a port of a tailnet node (or of what a subnet router in the tailnet leads to), by address or name. All else
   * is TSNET_NO_PEER, other than with tsnet, which would dial it over the machine's own network.
   */
  async dial(host: string, port: number, options: WaitOptions = {}): Promise<Conn> {
    checkPort(port);
    const id = this.nextId++;
    const addr = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
    try {
      await this.request('dial', { addr }, options, id);
      const conn = this.dialled.get(id)!;
      setImmediate(() => conn.release()); // when the caller has had its turn to add event listeners
      return conn;
    } catch (err) {
      this.dialled.get(id)?.destroy();
      throw err;
    } finally {
      this.dialled.delete(id);
    }
  }

  /** Who is behind `ip:port` (or `ip`) of a connection's remote end. Rejects with TSNET_NO_PEER for an address outside the tailnet. */
  async whoIs(addr: string, options: WaitOptions = {}): Promise<WhoIs> {
    return await this.request('whoIs', { addr }, options);
  }

  /** Names for which the control server publishes ACME challenges; empty when HTTPS is not enabled on the tailnet. */
  async certDomains(): Promise<string[]> {
    return (await this.status()).certDomains;
  }

  /** Publishes a TXT record by the control server, which takes only ACME challenges (`_acme-challenge.<own name>`). */
  async setDNS(name: string, value: string, options: WaitOptions = {}): Promise<void> {
    await this.request('setDNS', { name, value }, options);
  }

  async status(): Promise<Status> {
    return await this.request('status');
  }

  /** What the module and its host hold: for metrics, and for tests of growth. */
  async stats(): Promise<Stats> {
    return await this.request('stats');
  }

  /** Leaves the network and ends the worker thread; every connection is reset. Safe to call again. */
  close(): Promise<void> {
    this.closeAsked = true;
    this.closing ??= this.doClose();
    return this.closing;
  }

  private async doClose(): Promise<void> {
    const worker = this.worker;
    if (this.ended) return;
    if (!worker) return this.end(0, '');
    const gone = new Promise<void>((resolve) => (this.exited = resolve));
    const threadGone = new Promise((resolve) => worker.once('exit', resolve));
    // Tailscale takes up to 5 s for its farewells where the control server does not answer.
    const late = setTimeout(() => this.end(0, ''), CLOSE_MS);
    this.request('close').catch(() => {});
    await gone;
    clearTimeout(late);
    await threadGone;
  }
}
