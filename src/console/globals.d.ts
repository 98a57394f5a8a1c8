/**
 * The types of the gateway's answers are read from its own sources, which use the fetch of Node.js:
 * that one has an option more than a browser's.
 */
interface RequestInit {
  dispatcher?: unknown
}
