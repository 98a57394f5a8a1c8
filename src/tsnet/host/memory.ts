/**
 * Views of the module's memory. They are made anew when it has grown: growing detaches the old
 * buffer.
 */
export class Memory {
  private memory: WebAssembly.Memory | undefined
  private view = new DataView(new ArrayBuffer(0))
  private array = new Uint8Array(0)

  attach(memory: WebAssembly.Memory): void {
    this.memory = memory
  }

  get object(): WebAssembly.Memory {
    return this.memory!
  }

  get data(): DataView {
    const buffer = this.memory!.buffer
    if (this.view.buffer !== buffer) {
      this.view = new DataView(buffer)
      this.array = new Uint8Array(buffer)
    }
    return this.view
  }

  get bytes(): Uint8Array {
    return this.data && this.array
  }

  /** The buffers of an iovec array (WASI `iovec`: pointer and length, 32 bits each). */
  iovecs(ptr: number, count: number): Uint8Array[] {
    const view = this.data
    const out: Uint8Array[] = []
    for (let i = 0; i < count; i++) {
      const at = view.getUint32(ptr + 8 * i, true)
      out.push(this.array.subarray(at, at + view.getUint32(ptr + 8 * i + 4, true)))
    }
    return out
  }
}
