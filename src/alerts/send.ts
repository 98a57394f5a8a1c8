import { reason } from '../base/errors.ts'

/** [alerts] of gatehouse.toml, as provisioning hands it over. */
export interface AlertSettings {
  webhook?: string
  webhookToken?: string
  ntfy?: string
  ntfyToken?: string
  /** How long a problem must last before it is told. Milliseconds. */
  after: number
}

/** One thing to tell. */
export interface Alert {
  /** `problem`: it has lasted; `over`: it is no more; `test`: the button was pressed. */
  event: 'problem' | 'over' | 'test'
  /** The device's name in the tailnet. */
  device: string
  part: string
  /** `GH_…` */
  code: string
  message: string
  cure: string
  /** Since when. RFC 3339. */
  since: string
  severity: string
}

/** Where alerts go. */
export type Channel = 'webhook' | 'ntfy'

/** Those that are set. */
export function channelsOf({ webhook, ntfy }: AlertSettings): Channel[] {
  return [
    ...(webhook === undefined ? [] : ['webhook' as const]),
    ...(ntfy === undefined ? [] : ['ntfy' as const]),
  ]
}

/** How long a server may take. Milliseconds. */
const patience = 20_000

/**
 * Sends an alert: to a webhook as it is, in JSON; to ntfy as its JSON wants it
 * (https://docs.ntfy.sh/publish/#publish-as-json). No redirect is followed: the firewall lets
 * nobody be reached but the server that is named.
 *
 * @throws Error with what the server said; never with its URL, whose path may be a password
 */
export async function send(settings: AlertSettings, channel: Channel, alert: Alert): Promise<void> {
  const url = new URL(settings[channel]!)
  const token = channel === 'ntfy' ? settings.ntfyToken : settings.webhookToken
  let body: object = alert
  if (channel === 'ntfy') {
    const [topic] = url.pathname.split('/').slice(-1)
    body = ntfyMessage(topic!, alert)
    url.pathname = url.pathname.slice(0, -topic!.length)
  }
  let status: number
  try {
    const answer = await fetch(url, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'user-agent': 'gatehouse',
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      },
      body: JSON.stringify(body),
      redirect: 'manual',
      signal: AbortSignal.timeout(patience),
    })
    ;({ status } = answer)
    await answer.body?.cancel()
  } catch (err) {
    throw new Error(`${url.host} cannot be reached: ${reason(err)}`, { cause: err })
  }
  if (status < 200 || status > 299) throw new Error(`${url.host} answers with status ${status}`)
}

function ntfyMessage(topic: string, alert: Alert): object {
  const { event, device, part, code, message, cure, severity } = alert
  const over = event === 'over'
  return {
    topic,
    title: `${device}: ${over ? `${part} is well again` : part}`,
    message: over ? `Over: ${message}` : `${message}.\nWhat to do: ${cure}. (${code})`,
    // 3 is ntfy's usual, 4 makes a phone vibrate longer.
    priority: event === 'problem' && severity === 'error' ? 4 : 3,
    tags: [event === 'problem' ? 'warning' : 'white_check_mark'],
  }
}
