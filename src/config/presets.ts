import { createRequire } from 'node:module'
import { join } from 'node:path'
import { familyOf } from './addresses.ts'
import { parseEgress, presets } from './egress.ts'
import type { Egress, Preset } from './egress.ts'

/** Where the image has npm, as part of Node-RED. */
const npmDirectory = '/usr/lib/node-red/node_modules/npm'

/** What the program needs to know to find a preset's targets. */
export interface PresetOptions {
  /**
   * The registry that nodes are installed from. Default: the one npm comes with, asked of npm
   * itself.
   */
  registry?: string | undefined
  /** npm's own directory. Default: the image's. */
  npm?: string
}

/**
 * The targets a preset stands for: those of its table, or for `palette` the registry. Throws when
 * npm is not there to be asked.
 */
export function expandPreset(preset: Preset, options: PresetOptions = {}): Egress[] {
  if (preset !== 'palette')
    return presets[preset].targets.map((target) => {
      const entry = parseEgress(target)
      if (!('egress' in entry)) throw new Error(`preset ${preset}: ${target} is not a target`)
      return { ...entry.egress, text: `${preset}: ${target}` }
    })
  const url = new URL(options.registry ?? defaultRegistry(options.npm ?? npmDirectory))
  const port = Number(url.port || (url.protocol === 'https:' ? 443 : 80))
  const name = url.hostname.replace(/^\[|\]$/g, '')
  const family = familyOf(name)
  return [
    {
      text: preset,
      host: family === undefined ? { name } : { address: name, family },
      ports: [port, port],
      protocol: 'tcp',
    },
  ]
}

function defaultRegistry(npm: string): string {
  const { definitions } = createRequire(join(npm, 'package.json'))(
    '@npmcli/config/lib/definitions',
  ) as { definitions: { registry: { default: string } } }
  return definitions.registry.default
}
