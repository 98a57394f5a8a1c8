declare const GATEHOUSE_VERSION: string | undefined
declare const GATEHOUSE_BUILT_AT: number | undefined

/** Version of the program; `development` when it runs unbundled. */
export const version: string =
  typeof GATEHOUSE_VERSION === 'string' ? GATEHOUSE_VERSION : 'development'

/**
 * When the program was bundled: a clock that says less is wrong. Unbundled, it is a date that is
 * past for sure.
 */
export const builtAt: Date = new Date(
  typeof GATEHOUSE_BUILT_AT === 'number' ? GATEHOUSE_BUILT_AT : Date.UTC(2026, 0, 1),
)
