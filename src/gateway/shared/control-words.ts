/**
 * What a person is told to do at the control server. One's own (Headscale) has no admin console, no
 * Services and no HTTPS to switch on: there it is a command, or a line of its policy.
 */
export interface ControlWords {
  /** Makes a new auth key, as the start of a sentence. */
  newKey: string
  /** Approves a device that waits. */
  approve: string
  /** Where the policy is. */
  policy: string
  /** Keeps a node's key from expiring. */
  keepKey: string
  /** Makes a key with tags. */
  taggedKey: (tags: readonly string[]) => string
}

/** Tailscale's own control server (ipn.DefaultControlURL). */
export const defaultControlURL = 'https://controlplane.tailscale.com'

/** Whether a control_url names another control server than Tailscale's. */
export function isOwnControl(controlURL: string | undefined): boolean {
  return controlURL !== undefined && URL.parse(controlURL)?.host !== new URL(defaultControlURL).host
}

/** Cures for Tailscale's own control server, and for one's own at `controlURL`. */
export function controlWords(controlURL: string | undefined): ControlWords {
  if (!isOwnControl(controlURL))
    return {
      newKey: 'Make a new auth key in the admin console (Settings, Keys)',
      approve: 'Approve it in the admin console (Machines)',
      policy: 'admin console, Access controls',
      keepKey:
        'Disable key expiry for this machine in the admin console (Machines), or tag it: a ' +
        "tagged node's key does not expire",
      taggedKey: (tags) =>
        `Make a new auth key with ${tags.length === 0 ? 'its tags' : tags.join(', ')} in the ` +
        'admin console (Settings, Keys; Tags)',
    }
  return {
    newKey:
      'Make a new pre-auth key at your control server (Headscale: `headscale preauthkeys create`)',
    approve: 'Approve it at your control server (Headscale: `headscale nodes register`)',
    policy: "your control server's policy file",
    keepKey:
      'Give it a tag at your control server (Headscale: `headscale nodes tag`): a tagged ' +
      "node's key does not expire; or log it in again before",
    taggedKey: (tags) =>
      `Make a pre-auth key that has the tags at your control server (Headscale: \`headscale ` +
      `preauthkeys create --tags ${tags.length === 0 ? 'tag:gatehouse' : tags.join(',')}\`), ` +
      'and remove tags from gatehouse.toml',
  }
}
