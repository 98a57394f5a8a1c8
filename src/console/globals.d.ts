/**
 * The types of the gateway's answers are read from its own sources, which use the fetch of Node.js:
 * that one has an option more than a browser's.
 */
interface RequestInit {
  dispatcher?: unknown
}

/** What gatehouse.toml.example says of each key, `table.name`; put in by tools/console.ts. */
declare const GATEHOUSE_EXPLANATIONS: Record<string, string>
