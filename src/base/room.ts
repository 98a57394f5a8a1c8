/**
 * What of the data partition Node-RED cannot take, so that the others can write whatever flows do:
 * beside the bytes that ext4 reserves itself (mkfs.ext4 -m 5; var.mount), files (inodes), of which
 * it reserves none, and some bytes more. Of these Node-RED is given a little when its editor has no
 * room to save (src/provision/room.ts).
 */

/**
 * Files that Node-RED cannot make, of a file system with room for `files`: a twentieth, as of its
 * bytes, and 1000 where that is less; half of a file system that is smaller still.
 */
export function reservedFiles(files: number): number {
  return Math.min(Math.max(Math.ceil(files / 20), 1000), Math.floor(files / 2))
}

/** Bytes that Node-RED cannot write, beside those that are reserved by the file system. */
export const reservedBytes = 8 * 2 ** 20
