/**
 * A captive portal: whatever is asked, by http or https, is answered by its own login page. Usage:
 * portal.ts ADDRESS HTTP-PORT HTTPS-PORT
 */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer as createHTTP } from 'node:http'
import { createServer as createHTTPS } from 'node:https'
import { tmpdir } from 'node:os'
import path from 'node:path'

const [address = '', ...ports] = process.argv.slice(2)
const [http, https] = ports.map(Number)
const page = '<!DOCTYPE html><h1>Welcome, please log in</h1>'
const directory = mkdtempSync(path.join(tmpdir(), 'portal-'))
const file = (name: string): string => path.join(directory, name)
execFileSync(
  'openssl',
  [
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-days',
    '30',
    '-subj',
    `/CN=${address}`,
    '-keyout',
    file('key.pem'),
    '-out',
    file('cert.pem'),
  ],
  { stdio: 'ignore' },
)
const own = { key: readFileSync(file('key.pem')), cert: readFileSync(file('cert.pem')) }
rmSync(directory, { recursive: true })
const servers = [
  createHTTP((request, response) => {
    if (request.url === '/login') response.end(page)
    else response.writeHead(302, { location: `http://${address}/login` }).end()
  }).listen(http),
  createHTTPS(own, (_, response) => {
    response.end(page)
  }).listen(https),
]
await Promise.all(servers.map(async (server) => await once(server, 'listening')))
console.log('ready')
