import type { JSX } from 'preact'
import type { Checked } from './api.ts'

const show = (value: unknown): string => {
  return typeof value === 'string' ? value : JSON.stringify(value)
}

/** What a change changes: key, before, after. */
export function Differences({ changes }: { changes: Checked['changes'] }): JSX.Element {
  if (changes.length === 0) return <p>Only comments or the layout change.</p>
  return (
    <div class="wide" tabIndex={0} role="region" aria-label="Differences">
      <table>
        <thead>
          <tr>
            <th scope="col">Key</th>
            <th scope="col">Before</th>
            <th scope="col">After</th>
          </tr>
        </thead>
        <tbody>
          {changes.map(({ key, before, after }) => (
            <tr>
              <th scope="row">
                <code>{key}</code>
              </th>
              <td>{before === undefined ? 'not set' : <del>{show(before)}</del>}</td>
              <td>{after === undefined ? 'not set' : <ins>{show(after)}</ins>}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}
