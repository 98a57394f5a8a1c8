/**
 * Cures that several errors have. Nobody has a shell on the device, unless `[console] login` is
 * set: what a person can use is the web console at port 10000 of its name, gatehouse.toml on the
 * card, the tailnet's admin console, and the switch.
 */

/** What a part says is read in the web console. @param unit as the page Logs calls it */
export const seeLogs = (unit: string): string =>
  `Look at ${unit} on the page Logs of the web console (port 10000)`

/** What Node-RED says, likewise. */
export const seeNodeRedLog =
  'Look at its log on the page Node-RED of the web console (port 10000), which can restart it too'

/** Everything starts anew, and what is made at boot is made again. */
export const restartDevice =
  'Restart the device (page Device of the web console at port 10000, or switch it off and on)'

/** A clock that is wrong. */
export const checkClock =
  'Check that the network lets NTP (UDP port 123) out: the clock is set from it'

/** What cannot be written. */
export const makeSpace =
  'Make room: remove what flows have written. If there is room, restart the device'

/** A command that needs more than its user may. */
export const asRoot = 'Run it as root'
