/** What a call works with, at an address that the caller gives: offsets in it. The Go side of it is ../go/aead/aead.go's aeadContext. */
export const KEY: usize = 0;
export const NONCE: usize = 32;
/** 16 bytes, written by a call. */
export const TAG: usize = 48;
/** 256 bytes of working space, with parts of the key stream in them afterwards. */
export const SCRATCH: usize = 64;
