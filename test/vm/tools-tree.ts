/** Programs of this machine, and of the tools tree that image/build leaves in out/mkosi/tools. */
import { execFile } from 'node:child_process'
import { join, resolve } from 'node:path'

/** The tools tree: QEMU, its firmware, mtools. */
export const toolsTree = resolve(import.meta.dirname, '../../out/mkosi/tools')

/**
 * Runs a program on this machine to its end and returns its output; an Error with what it said on
 * stderr if it fails.
 */
export function tool(
  file: string,
  args: string[],
  input?: string | Buffer,
  env?: Record<string, string>,
): Promise<string> {
  return new Promise((done, fail) => {
    const child = execFile(
      file,
      args,
      { maxBuffer: 1 << 24, env: { ...process.env, ...env } },
      (error, stdout, stderr) => {
        if (error)
          fail(new Error(`machine: ${file} ${args.join(' ')}: ${stderr.trim() || error.message}`))
        else done(stdout)
      },
    )
    child.stdin?.end(input)
  })
}

/**
 * A program of the tools tree, as the arguments that run it with that tree's loader and libraries.
 */
export function fromTree(program: string): string[] {
  const triplet = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu'
  const loader = process.arch === 'arm64' ? 'ld-linux-aarch64.so.1' : 'ld-linux-x86-64.so.2'
  return [
    join(toolsTree, 'usr/lib', triplet, loader),
    '--library-path',
    join(toolsTree, 'usr/lib', triplet),
    join(toolsTree, 'usr/bin', program),
  ]
}

/** What programs of the tools tree need beside it. */
export const treeEnvironment = {
  GCONV_PATH: join(
    toolsTree,
    'usr/lib',
    process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu',
    'gconv',
  ),
  QEMU_MODULE_DIR: '/nonexistent', // the host's modules, of another version, are not for this QEMU
}
