/** One certificate by src/certs/acme.ts, the challenge published by a native client: node issue.ts DIRECTORY CA-FILE NAME CLIENT-SOCKET STATE-DIR */
import { readFile } from 'node:fs/promises'
import http from 'node:http'
import { createIssuer, IssueError } from '../../src/certs/acme.ts'

const [directory, caFile, name, socketPath, state] = process.argv.slice(2) as [string, string, string, string, string]

const publish = async (record: string, value: string): Promise<void> => await new Promise((resolve, reject) => {
  const request = http.request({ socketPath, path: '/setdns', method: 'POST' }, (response) => {
    response.resume()
    if (response.statusCode! < 300) resolve()
    else reject(new IssueError('refused', `${record} was not published: ${response.statusCode}`, 'Ask for a name of this node'))
  })
  request.on('error', reject)
  request.end(JSON.stringify({ name: record, value }))
})

try {
  const issuer = await createIssuer({ directory, authorities: await readFile(caFile, 'utf8'), email: undefined, state, publish })
  process.stdout.write(await issuer.issue(name))
} catch (err) {
  process.stderr.write(err instanceof IssueError ? `${err.kind}: ${err.message}\n` : `${String((err as Error).stack)}\n`)
  process.exit(1)
}
