/** Settings as a person is changing them, while they are not tried yet. */
export interface Draft {
  text: string
  /** Of the text that it was made from. */
  digest: string
}

let kept: Draft | undefined

/** Keeps a draft while another page is open, or for the page Settings to begin with. */
export function keepDraft(draft: Draft | undefined): void {
  kept = draft
}

/** The draft that was kept, if any. */
export function keptDraft(): Draft | undefined {
  return kept
}
