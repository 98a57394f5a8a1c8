/**
 * A plot of ratios: for each measure a line from minimum to maximum and a mark at the median, on a
 * logarithmic scale.
 */

export interface Row {
  label: string
  /** Under the label, smaller. */
  note: string
  min: number
  median: number
  max: number
  /** Where the goal lies, and on which side of it is good. */
  goal?: number
  goodIs: 'more' | 'less'
}

const escape = (s: string): string => s.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)

/** The plot as SVG. `axis`: the ratios marked on the scale, smallest first. */
export function ratioPlot(title: string, subtitle: string, rows: Row[], axis: number[]): string {
  const [left, right, top, step] = [230, 150, 92, 50]
  const width = 860
  const height = top + rows.length * step + 40
  const [from, to] = [Math.log(axis[0]!), Math.log(axis.at(-1)!)]
  const x = (v: number): number =>
    left +
    ((Math.min(Math.max(Math.log(v), from), to) - from) / (to - from)) * (width - left - right)
  const text = (at: number, y: number, s: string, more = ''): string =>
    `<text x="${at.toFixed(1)}" y="${y}" ${more}>${escape(s)}</text>`
  const out = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" ` +
      `width="${width}" height="${height}" font-family="sans-serif" font-size="14" fill="#222">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    text(20, 30, title, 'font-size="18" font-weight="bold"'),
    text(20, 52, subtitle, 'font-size="12" fill="#555"'),
  ]
  for (const v of axis) {
    out.push(
      `<line x1="${x(v).toFixed(1)}" x2="${x(v).toFixed(1)}" y1="${top - 8}" ` +
        `y2="${height - 36}" stroke="${v === 1 ? '#888' : '#e2e2e2'}"/>`,
      text(x(v), height - 18, `${v}×`, 'text-anchor="middle" font-size="12" fill="#555"'),
    )
  }
  rows.forEach((r, i) => {
    const y = top + i * step + 16
    const good =
      r.goal === undefined || (r.goodIs === 'more' ? r.median >= r.goal : r.median <= r.goal)
    const colour = good ? '#1a7f4b' : '#b3541e'
    out.push(
      text(20, y, r.label, 'font-weight="bold"'),
      text(20, y + 17, r.note, 'font-size="11" fill="#555"'),
      `<line x1="${x(r.min).toFixed(1)}" x2="${x(r.max).toFixed(1)}" y1="${y - 4}" ` +
        `y2="${y - 4}" stroke="${colour}" stroke-width="4" stroke-linecap="round" ` +
        'opacity="0.45"/>',
      `<circle cx="${x(r.median).toFixed(1)}" cy="${y - 4}" r="6" fill="${colour}"/>`,
      text(width - right + 16, y, `${r.median.toFixed(2)}×`, `font-weight="bold" fill="${colour}"`),
      text(
        width - right + 16,
        y + 17,
        `${r.min.toFixed(2)} – ${r.max.toFixed(2)}`,
        'font-size="11" fill="#555"',
      ),
    )
    if (r.goal !== undefined) {
      out.push(
        `<path d="M${x(r.goal).toFixed(1)} ${y - 16}v24" stroke="#36c" stroke-width="2" stroke-dasharray="3 2"/>`,
      )
    }
  })
  return `${[...out, '</svg>'].join('\n')}\n`
}
