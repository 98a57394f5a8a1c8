/**
 * Orders a certificate with dns-01, the challenge set by a native client. Runs in a namespace of
 * the lab, since the authority is there.
 *
 *     NODE_EXTRA_CA_CERTS=directory-ca.pem node acme-order.ts DIRECTORY NAME CLIENT_SOCKET OUT.pem
 *
 * OUT.pem is chain and key. With WRONG=1 in the environment another value than the challenge's is
 * set.
 */
import { writeFile } from 'node:fs/promises'
import http from 'node:http'
import acme from 'acme-client'

const [directoryUrl = '', name = '', socketPath = '', out = ''] = process.argv.slice(2)

const client = new acme.Client({
  directoryUrl,
  accountKey: await acme.crypto.createPrivateEcdsaKey(),
})
const [key, csr] = await acme.crypto.createCsr(
  { altNames: [name] },
  await acme.crypto.createPrivateEcdsaKey(),
)
const chain = await client.auto({
  csr,
  termsOfServiceAgreed: true,
  challengePriority: ['dns-01'],
  skipChallengeVerification: true, // the authority is to judge, not this program
  challengeCreateFn: async (authz, _challenge, value) => {
    await setDNS(
      `_acme-challenge.${authz.identifier.value}`,
      process.env['WRONG'] ? 'A'.repeat(43) : value,
    )
  },
  challengeRemoveFn: async () => {}, // the control server's API has no removal
})
await writeFile(out, chain + key.toString(), { mode: 0o600 })

async function setDNS(record: string, value: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const req = http.request({ socketPath, method: 'POST', path: '/setdns' }, (res) => {
      res
        .resume()
        .on('end', () =>
          res.statusCode === 204 ? resolve() : reject(new Error(`setdns: ${res.statusCode}`)),
        )
    })
    req.on('error', reject)
    req.end(JSON.stringify({ name: record, value }))
  })
}
