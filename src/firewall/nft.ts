import { spawn } from 'node:child_process'
import { restartDevice } from '../base/cures.ts'
import { GatehouseError, oneLine } from '../base/errors.ts'

/**
 * Runs nft with a script on its standard input, as one transaction.
 *
 * @param argv beside `-f -`
 * @returns what nft wrote
 * @throws GatehouseError GH_FIREWALL_LOAD with what it said
 */
export async function nft(input: string, argv: readonly string[] = ['-f', '-']): Promise<string> {
  return await new Promise<string>((resolve, reject) => {
    const child = spawn('nft', argv, { stdio: ['pipe', 'pipe', 'pipe'] })
    let said = ''
    let wrote = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      wrote += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    child.on('error', reject)
    child.on('close', (code) => {
      if (code === 0) resolve(wrote)
      else
        reject(
          new GatehouseError(
            'GH_FIREWALL_LOAD',
            `nft refused the lists of gatehouse.toml, those before them stay in force: ${oneLine(said).slice(0, 400)}`,
            `${restartDevice}; if it stays so, take the entry that the message names out of gatehouse.toml`,
          ),
        )
    })
    child.stdin.on('error', () => {}) // nft ended early: its exit code says so
    child.stdin.end(input)
  })
}
