/**
 * poll_oneoff for the host's descriptors: Go's scheduler sleeps here, on Node's event loop.
 *
 * Layouts: WASI preview 1, `subscription` (48 bytes) and `event` (32 bytes).
 */
import type { HostFile } from './files.ts';
import { errno } from './errno.ts';
import type { Memory } from './memory.ts';

const CLOCK = 0;
const FD_READ = 1;
const FD_WRITE = 2;

interface Pending {
  inPtr: number;
  outPtr: number;
  subs: number;
  countPtr: number;
  resolve: (result: number) => void;
  timer: NodeJS.Timeout | undefined;
}

/** How long Go may keep asking without waiting before the event loop gets a turn all the same, in ms: packets wait there. */
const MAX_BUSY_MS = 2;

export class Poller {
  private pending: Pending | undefined;
  private scheduled = false;
  private lastTurn = 0;
  private readonly memory: Memory;
  private readonly files: Map<number, HostFile>;
  private readonly beforeSleep: () => void;

  constructor(memory: Memory, files: Map<number, HostFile>, beforeSleep: () => void) {
    this.memory = memory;
    this.files = files;
    this.beforeSleep = beforeSleep;
  }

  /** A descriptor may have become ready. All that happens in one turn of the event loop is told to Go at once. */
  wake = (): void => {
    if (!this.pending || this.scheduled) return;
    this.scheduled = true;
    setImmediate(() => {
      this.scheduled = false;
      this.finish(false);
    });
  };

  /** The import. Returns a number at once where something is ready or Go does not want to wait; otherwise a promise (JSPI). */
  oneoff = (inPtr: number, outPtr: number, subs: number, countPtr: number): number | Promise<number> => {
    this.beforeSleep();
    const delay = this.delay(inPtr, subs);
    const now = performance.now();
    const starved = now - this.lastTurn > MAX_BUSY_MS;
    if (!starved && (delay === 0 || this.anyReady(inPtr, subs))) {
      return this.report({ inPtr, outPtr, subs, countPtr }, delay === 0);
    }
    return new Promise<number>((resolve) => {
      this.pending = { inPtr, outPtr, subs, countPtr, resolve, timer: undefined };
      if (delay === 0 || this.anyReady(inPtr, subs)) {
        this.scheduled = true;
        setImmediate(() => {
          this.scheduled = false;
          this.finish(delay === 0);
        });
      } else if (delay !== undefined) {
        // Timers of Node fire up to 1 ms early; rounding up keeps Go from asking twice.
        this.pending.timer = setTimeout(() => this.finish(true), Math.min(Math.ceil(delay), 2 ** 31 - 1));
      }
    });
  };

  private finish(timedOut: boolean): void {
    const p = this.pending;
    if (!p || (!timedOut && !this.anyReady(p.inPtr, p.subs))) return;
    this.pending = undefined;
    clearTimeout(p.timer);
    this.lastTurn = performance.now();
    p.resolve(this.report(p, timedOut));
  }

  /** ms until the earliest clock subscription; undefined without one. Go only gives relative monotonic ones. */
  private delay(inPtr: number, subs: number): number | undefined {
    const view = this.memory.data;
    let delay: number | undefined;
    for (let i = 0, at = inPtr; i < subs; i++, at += 48) {
      if (view.getUint8(at + 8) !== CLOCK) continue;
      const ms = Number(view.getBigUint64(at + 24, true)) / 1e6;
      if (delay === undefined || ms < delay) delay = ms;
    }
    return delay;
  }

  private anyReady(inPtr: number, subs: number): boolean {
    const view = this.memory.data;
    for (let i = 0, at = inPtr; i < subs; i++, at += 48) {
      if (this.ready(view.getUint8(at + 8), view.getUint32(at + 16, true))) return true;
    }
    return false;
  }

  private ready(tag: number, fd: number): boolean {
    if (tag === CLOCK) return false;
    const file = this.files.get(fd);
    return !file || (tag === FD_READ ? file.readable : file.writable);
  }

  private report(p: Omit<Pending, 'resolve' | 'timer'>, timedOut: boolean): number {
    const view = this.memory.data;
    let events = 0;
    for (let i = 0, at = p.inPtr; i < p.subs; i++, at += 48) {
      const tag = view.getUint8(at + 8);
      const fd = view.getUint32(at + 16, true);
      if (tag === CLOCK ? !timedOut : !((tag === FD_READ || tag === FD_WRITE) && this.ready(tag, fd))) continue;
      const out = p.outPtr + 32 * events++;
      view.setBigUint64(out, view.getBigUint64(at, true), true);
      view.setUint16(out + 8, tag !== CLOCK && !this.files.has(fd) ? errno.EBADF : 0, true);
      view.setUint8(out + 10, tag);
      view.setBigUint64(out + 16, 0n, true);
      view.setUint16(out + 24, 0, true);
    }
    view.setUint32(p.countPtr, events, true);
    return 0;
  }
}
