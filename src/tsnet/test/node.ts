/**
 * A process that uses the bindings, to be run in a namespace of the lab: it takes functions as JSON
 * lines on stdin, runs them with a {@link Kit}, and answers with what they returned.
 * test/support.ts drives it.
 */
import assert from 'node:assert/strict'
import crypto from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import os from 'node:os'
import readline from 'node:readline'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { Conn, Listener, Server, TsnetError } from '../index.ts'

/** Bytes that repeat at no power of two, so that blocks lost or out of order show. */
export function pattern(bytes: number): Buffer {
  const b = Buffer.allocUnsafe(bytes)
  for (let i = 0; i < bytes; i++) b[i] = (i * 7 + (i >> 8) * 13 + (i >> 16)) & 0xff
  return b
}

/** What a function run here has to work with. */
const kit = {
  Server,
  TsnetError,
  Conn,
  Listener,
  assert,
  crypto,
  once,
  fs,
  http,
  https,
  net,
  os,
  Readable,
  buffer,
  pipeline,
  sleep,
  pattern,
  /** The server made by `start`. */
  server: undefined as unknown as Server,
  /** Kept from one call to the next. */
  kept: {} as Record<string, any>, // oxlint-disable-line no-explicit-any
  events: [] as [string, string][],
}
export type Kit = typeof kit

if (process.argv[2] === 'run') {
  const input = readline.createInterface({ input: process.stdin })
  input.on('line', async (line) => {
    const { id, source, args } = JSON.parse(line)
    let answer: object
    try {
      const f = (0, eval)(`(${source})`) as (kit: Kit, ...args: unknown[]) => unknown
      answer = { result: await f(kit, ...args) }
    } catch (err) {
      const e = err as Error & { code?: string }
      answer = { error: { name: e.name, message: e.message, code: e.code, stack: e.stack } }
    }
    process.stdout.write(`${JSON.stringify({ id, ...answer })}\n`)
  })
}
