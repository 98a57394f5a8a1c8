import type { JSX } from 'preact'
import type { Shown } from './api.ts'

type Key = 'memory' | 'disk' | 'files' | 'temperature' | 'written'

const percent = (part: number): string => `${Math.round(part * 100)} %`
const size = (bytes: number): string => {
  if (bytes >= 2 ** 30) return `${(bytes / 2 ** 30).toFixed(1)} GiB`
  return `${Math.round(bytes / 2 ** 20)} MiB`
}

/** How the board is now, each with a plot of the last day. */
export function BoardFigures({ figures }: { figures: Shown }): JSX.Element {
  const { now, history } = figures
  /** One of them: text, and its plot where there is more than one value. */
  const row = (title: string, key: Key | undefined, text: string): JSX.Element => (
    <>
      <dt>{title}</dt>
      <dd>
        {text}
        {key !== undefined && (
          <Plot title={title} values={seriesOf(history, key)} share={shares.has(key)} />
        )}
      </dd>
    </>
  )
  return (
    <dl>
      {now.memory !== undefined &&
        row('Memory', 'memory', `${percent(now.memory)} of ${size(now.memoryTotal!)} used`)}
      {now.disk !== undefined &&
        row('Disk', 'disk', `${percent(now.disk)} of ${size(now.diskTotal!)} used`)}
      {now.files !== undefined &&
        row('Files', 'files', `${percent(now.files)} of ${now.filesTotal!} used`)}
      {now.temperature !== undefined &&
        row('Temperature', 'temperature', `${Math.round(now.temperature)} °C`)}
      {now.underVoltage !== undefined &&
        row('Voltage', undefined, now.underVoltage ? 'too low' : 'well')}
      {now.writtenADay !== undefined &&
        row('Written to the card', 'written', `${size(now.writtenADay)} a day`)}
      {now.wear !== undefined && row('Wear of the card', undefined, `up to ${percent(now.wear)}`)}
    </dl>
  )
}

/** Those that are parts of a whole: their plot goes from nothing to all. */
const shares: ReadonlySet<Key> = new Set<Key>(['memory', 'disk', 'files'])

/** Values with how far through the day they are, 0 to 1; of what only grows, how much it grew. */
function seriesOf(history: Shown['history'], key: Key): Array<[x: number, y: number]> {
  const end = Date.parse(history.at(-1)?.at ?? '')
  const points = history.flatMap(({ at, [key]: value }): Array<[number, number]> => {
    if (value === null || value === undefined) return []
    return [[1 - (end - Date.parse(at)) / 86_400_000, value]]
  })
  if (key !== 'written') return points
  return points.slice(1).map(([x, value], index) => [x, Math.max(0, value - points[index]![1])])
}

/** A line of the last day. What it shows is said as text beside it, and its range in its name. */
function Plot({
  title,
  values,
  share,
}: {
  title: string
  values: Array<[x: number, y: number]>
  share: boolean
}): JSX.Element | null {
  if (values.length < 2) return null
  const all = values.map(([, y]) => y)
  const [least, most] = share ? [0, 1] : [Math.min(...all), Math.max(...all)]
  const range = most - least || 1
  const points = values
    .map(([x, y]) => `${(x * 240).toFixed(1)},${(38 - ((y - least) / range) * 36).toFixed(1)}`)
    .join(' ')
  return (
    <svg class="plot" viewBox="0 0 240 40" role="img" aria-label={`${title}, the last day`}>
      <polyline points={points} />
    </svg>
  )
}
