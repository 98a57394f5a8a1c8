/**
 * What the bindings use of WebAssembly, JSPI among it: TypeScript has these types in its DOM
 * library alone.
 */
declare namespace WebAssembly {
  type Imports = Record<string, Record<string, unknown>>
  class Module {
    constructor(bytes: Uint8Array)
  }
  class Instance {
    constructor(module: Module, imports: Imports)
    readonly exports: Record<string, unknown>
  }
  class Memory {
    private constructor()
    readonly buffer: ArrayBuffer
  }
  function compile(bytes: Uint8Array): Promise<Module>
  function instantiate(module: Module, imports: Imports): Promise<Instance>
  /** JSPI: an import that may return a promise; the module is suspended until it settles. */
  class Suspending {
    constructor(f: (...args: number[]) => number | Promise<number>)
  }
  /** JSPI: an export called as an async function. */
  function promising(f: () => void): () => Promise<void>
}
