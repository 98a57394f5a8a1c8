import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isLater, parseConfig } from './config.ts'
import type { Config } from './config.ts'
import { restartDevice } from '../base/cures.ts'
import { GatehouseError, reason } from '../base/errors.ts'

/**
 * Reads the provisioned configuration: as far as it is understood, where a later version wrote it
 * before this one came back.
 *
 * @param note told what was left out
 * @throws GatehouseError when it is missing or wrong: provisioning writes none such, so someone
 *   else did
 */
export async function loadConfig(
  directory: string,
  note?: (text: string) => void,
): Promise<Config> {
  const path = join(directory, 'gatehouse.toml')
  let data: Buffer
  try {
    data = await readFile(path)
  } catch (err) {
    throw new GatehouseError(
      'GH_CONFIG_READ',
      `${path} cannot be read: ${reason(err)}`,
      'Start the device again: the settings on the card are then read again',
      { cause: err },
    )
  }
  return parseConfig(data, path, {
    lenient: isLater(data.toString('utf8')),
    ...(note === undefined ? {} : { note }),
  })
}

/**
 * The auth key systemd handed over as the credential `authkey`; undefined when there is none or it
 * is empty.
 */
export async function readAuthKey(credentials: string | undefined): Promise<string | undefined> {
  return await readCredential(credentials, 'authkey', 'gatehouse.service', 'GH_AUTH_KEY_READ')
}

/**
 * The key to bind an ACME account with, handed over as the credential `eab-hmac-key`; undefined
 * when there is none or it is empty.
 */
export async function readBindingKey(credentials: string | undefined): Promise<string | undefined> {
  return await readCredential(
    credentials,
    'eab-hmac-key',
    'gatehouse-certs.service',
    'GH_CERTS_ACCOUNT',
  )
}

/**
 * A secret of [certificates] as systemd handed it over to the agent; undefined when the card holds
 * none.
 *
 * @param name of the credential
 */
export async function readCertificateSecret(
  credentials: string | undefined,
  name: string,
): Promise<string | undefined> {
  return await readCredential(credentials, name, 'gatehouse-certs.service', 'GH_CERTS_SECRET')
}

async function readCredential(
  credentials: string | undefined,
  name: string,
  unit: string,
  code: string,
): Promise<string | undefined> {
  if (credentials === undefined) return undefined
  const key = await readFile(join(credentials, name), 'utf8').catch(
    (err: NodeJS.ErrnoException) => {
      if (err.code === 'ENOENT') return ''
      throw new GatehouseError(
        code,
        `the credential ${name} cannot be read: ${reason(err)}`,
        `Start the device again: gatehouse-provision hands it to ${unit} at each boot`,
        { cause: err },
      )
    },
  )
  return key.trim() === '' ? undefined : key.trim()
}

/**
 * The key shared with Node-RED, which systemd handed over as the credential `channel`.
 *
 * @throws GatehouseError when there is none: without it Node-RED lets nobody in
 */
export async function readChannelKey(credentials: string | undefined): Promise<Buffer> {
  try {
    return await readFile(join(credentials ?? '/nonexistent', 'channel'))
  } catch (err) {
    throw new GatehouseError(
      'GH_CHANNEL_KEY',
      `the key shared with Node-RED cannot be read, so its editor lets nobody in: ${reason(err)}`,
      `${restartDevice}: the key is made at boot`,
      { cause: err },
    )
  }
}
