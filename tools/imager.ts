/**
 * Raspberry Pi Imager's list of an image: what "Content repository" of its settings, or `rpi-imager
 * --repo ADDRESS`, reads. The form is Imager's doc/json-schema/os-list-schema.json (raspberrypi/
 * rpi-imager), tested in test/unit/tools/imager.test.ts.
 */

/** What the list says of one image. */
export interface ImagerEntry {
  name: string
  description: string
  /** Address of a picture of 40 by 40. */
  icon: string
  /** Of the packed image: .xz, .gz, .zip, and since Imager 1.7 .zst. */
  url: string
  /** Bytes, and SHA-256 in hexadecimal, of the unpacked image: Imager refuses any other. */
  extract_size: number
  extract_sha256: string
  image_download_size: number
  image_download_sha256: string
  /** YYYY-MM-DD. */
  release_date: string
  /** Imager then writes user-data and network-config to the FAT partition (src/provision). */
  init_format: 'cloudinit'
  /** Imager's words for boards: it lists the image for these alone. */
  devices: string[]
}

/**
 * The boards that the image is made for, as Imager calls them: Pi 3B, 3B+, Zero 2 W; Pi 4, 400, CM4;
 * with Raspberry Pi's own kernel the Pi 5. A list without boards would be shown for every one.
 */
export const devices = {
  arm64: ['pi4-64bit', 'pi3-64bit'],
  raspios: ['pi5-64bit', 'pi4-64bit', 'pi3-64bit'],
  amd64: [],
}

/** The list, as a file's text. */
export function imagerList(entries: readonly ImagerEntry[]): string {
  return `${JSON.stringify({ os_list: entries }, undefined, 2)}\n`
}
