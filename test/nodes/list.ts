/**
 * The nodes that `make test-nodes` tries on the booted image: those that people name when they say
 * what they use, and then the most downloaded, as of November 2026; 40 in all.
 */

/** A package of the list, and what it needs before it can be used. */
export interface Candidate {
  name: string
  /** The version that is asked for. Default: the newest. */
  version?: string
  /** Settings in [node_red] that it needs, as a person would write them; the installed list apart. */
  settings?: string
  /**
   * What it needs beside the device, where that is not in the lab: a cloud, or hardware. It is then
   * only installed and loaded.
   */
  needs?: string
  /** Installed and loaded by `make test` too: one of each kind. */
  quick?: true
  /** What a flow does with it in the lab (test/lab/nodes.test.ts). */
  used?: string
}

/** In the order in which they are tried. */
export const candidates: readonly Candidate[] = [
  { name: 'node-red-node-random' },
  { name: 'node-red-node-serialport', settings: 'devices = ["serial"]', quick: true },
  {
    name: 'node-red-node-sqlite',
    needs: 'what its maker has compiled, from GitHub, which the lab does not have',
    settings: 'allow = ["prebuilt"]',
    quick: true,
  },
  { name: 'node-red-node-pi-gpio', settings: 'devices = ["gpio"]', quick: true },
  { name: 'node-red-node-ping', settings: 'allow = ["lan:ping"]' },
  { name: 'node-red-contrib-ds18b20-sensor', settings: 'devices = ["1-wire"]' },
  {
    name: 'node-red-node-email',
    needs: 'a mail server',
    settings: 'allow = ["mail.example.org:993"]',
  },
  { name: 'node-red-node-mysql', needs: 'a database', settings: 'allow = ["192.168.1.10:3306"]' },
  { name: 'node-red-node-feedparser', settings: 'allow = ["news.example.org:443"]' },
  {
    name: 'node-red-node-openweathermap',
    needs: 'a cloud',
    settings: 'allow = ["api.openweathermap.org:443"]',
  },
  {
    name: 'node-red-contrib-modbus',
    // Of the newer ones a part is at dl.cloudsmith.io and in no registry.
    version: '5.23.3',
    settings: 'allow = ["192.168.1.10:502"]',
    needs: 'from 5.45 on, `"dl.cloudsmith.io:443"` too',
    quick: true,
    used: 'reads the registers of a device',
  },
  { name: 'node-red-contrib-influxdb', settings: 'allow = ["192.168.1.10:8086"]' },
  {
    name: 'node-red-contrib-telegrambot',
    needs: 'a cloud',
    settings: 'allow = ["telegram"]',
    quick: true,
    used: 'a bot says and hears',
  },
  {
    name: 'node-red-contrib-home-assistant-websocket',
    settings: 'allow = ["home-assistant"]',
    quick: true,
    used: 'the state of an entity reaches a flow',
  },
  {
    name: 'node-red-contrib-aedes',
    settings: 'listen = ["1883/tcp from lan"]',
    quick: true,
    used: 'a device of the local network publishes, a flow hears it',
  },
  { name: 'node-red-contrib-cron-plus' },
  { name: 'node-red-contrib-zigbee2mqtt', settings: 'allow = ["192.168.1.10:1883"]' },
  { name: 'node-red-contrib-shelly', settings: 'allow = ["192.168.1.0/24:80"]' },
  { name: 'node-red-contrib-moment' },
  { name: 'node-red-contrib-ui-led' },
  { name: 'node-red-contrib-mongodb4', settings: 'allow = ["192.168.1.10:27017"]' },
  { name: 'node-red-dashboard' },
  { name: '@flowfuse/node-red-dashboard', quick: true, used: 'a page is served' },
  // By downloads; -homekit-bridged, -knx-ultimate, -sonos-plus, -tuya-smart-device, -postgresql and
  // -i2c, which people name too, are not in the registry.
  { name: 'node-red-node-tail' },
  { name: 'node-red-node-rbe' },
  { name: 'node-red-contrib-stackhero-mysql', settings: 'allow = ["192.168.1.10:3306"]' },
  { name: 'node-red-contrib-https', settings: 'allow = ["api.example.org:443"]' },
  { name: 'node-red-contrib-mysql-config', settings: 'allow = ["192.168.1.10:3306"]' },
  { name: 'node-red-node-ui-table' },
  { name: 'node-red-contrib-oauth2', settings: 'allow = ["login.example.org:443"]' },
  { name: 'node-red-contrib-string', settings: 'allow = ["prebuilt"]' },
  { name: 'node-red-contrib-credentials' },
  {
    name: 'node-red-contrib-dwd-local-weather',
    needs: 'a cloud',
    settings: 'allow = ["opendata.dwd.de:443"]',
  },
  { name: 'node-red-contrib-uuid' },
  { name: 'node-red-contrib-bigexec' },
  { name: 'node-red-node-smooth' },
  { name: 'node-red-contrib-web-worldmap' },
  { name: 'node-red-contrib-opcua', settings: 'allow = ["192.168.1.20:4840"]' },
  { name: 'node-red-contrib-device-stats' },
  { name: 'node-red-contrib-play-audio' },
]
