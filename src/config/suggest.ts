/**
 * The candidate nearest to a mistyped word, when it is near enough to be meant (Levenshtein
 * distance ≤ a third of its length, at least 2).
 */
export function suggest(word: string, candidates: readonly string[]): string | undefined {
  const fold = (text: string): string => text.toLowerCase().replaceAll('-', '_')
  let best: { candidate: string; distance: number } | undefined
  for (const candidate of candidates) {
    const d = distance(fold(word), fold(candidate))
    if (
      d <= Math.max(2, Math.floor(candidate.length / 3)) &&
      (best === undefined || d < best.distance)
    )
      best = { candidate, distance: d }
  }
  return best?.candidate
}

function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(
        row[j]! + 1,
        next[j - 1]! + 1,
        row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1),
      )
    }
    row = next
  }
  return row[b.length]!
}
