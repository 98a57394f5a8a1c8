declare module 'systemd-notify' {
  /** Runs systemd-notify(1); rejects when it fails or is not there. */
  export default function notify (options: { ready?: boolean, status?: string, pid?: number, booted?: boolean }): Promise<unknown>
}
