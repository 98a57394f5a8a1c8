//go:build wasip1

// Package aead is ChaCha20-Poly1305 by the host's SIMD module.
package aead

import (
	"crypto/cipher"
	"crypto/subtle"
	_ "embed"
	"errors"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/crypto/chacha20poly1305"
)

// aeadModule is ../../assembly, compiled: ChaCha20-Poly1305 with SIMD, which Go's compiler does not have on wasm. It works on this module's memory.
//
//go:embed aead.wasm
var aeadModule []byte

// aeadContext is what a call of the SIMD module works with: ../../assembly/context.ts has the offsets.
type aeadContext struct {
	key     [chacha20poly1305.KeySize]byte
	nonce   [chacha20poly1305.NonceSize]byte
	_       [4]byte
	tag     [chacha20poly1305.Overhead]byte
	scratch [256]byte
}

// hostAEADLoad makes the host compile the SIMD module and give it this module's memory. ENOSYS where the processor lacks what it needs.
//
//go:wasmimport tsnet_host aead_load
func hostAEADLoad(module unsafe.Pointer, n int32) int32

// hostAEADSeal and hostAEADOpen are the module's seal and open. They keep none of the pointers.
//
//go:wasmimport tsnet_host aead_seal
//go:noescape
func hostAEADSeal(ctx, dst, src unsafe.Pointer, n int32, ad unsafe.Pointer, adN int32)

//go:wasmimport tsnet_host aead_open
//go:noescape
func hostAEADOpen(ctx, dst, src unsafe.Pointer, n int32, ad unsafe.Pointer, adN int32)

// hostCopySum is the module's copySum. It keeps none of the pointers.
//
//go:wasmimport tsnet_host copy_sum
//go:noescape
func hostCopySum(dst, src unsafe.Pointer, n int32) uint32

// CopySum copies src to dst, which has room for it, and returns the sum of its big-endian words in ones' complement
// (RFC 1071). They are the same place, or apart; src has 65,535 bytes at most.
func CopySum(dst, src []byte) uint16 {
	_ = dst[:len(src)]
	return bits.ReverseBytes16(uint16(hostCopySum(pointer(dst), pointer(src), int32(len(src)))))
}

// Load makes the host load the SIMD module; New and CopySum may be called then. False where it cannot.
func Load() bool {
	return hostAEADLoad(unsafe.Pointer(unsafe.SliceData(aeadModule)), int32(len(aeadModule))) == 0
}

// New is chacha20poly1305.New of golang.org/x/crypto.
func New(key []byte) (cipher.AEAD, error) {
	if len(key) != chacha20poly1305.KeySize {
		return nil, errors.New("aead: bad key length")
	}
	a := new(simdAEAD)
	copy(a.key[:], key)
	return a, nil
}

// simdAEAD is chacha20poly1305.New of golang.org/x/crypto, by the SIMD module. Source and destination are the same place, or apart.
type simdAEAD struct {
	key [chacha20poly1305.KeySize]byte
}

func (*simdAEAD) NonceSize() int { return chacha20poly1305.NonceSize }
func (*simdAEAD) Overhead() int  { return chacha20poly1305.Overhead }

func (a *simdAEAD) context(nonce []byte) (c aeadContext) {
	if len(nonce) != chacha20poly1305.NonceSize {
		panic("aead: bad nonce length")
	}
	c.key = a.key
	copy(c.nonce[:], nonce)
	return c
}

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func (a *simdAEAD) Seal(dst, nonce, plaintext, ad []byte) []byte {
	c := a.context(nonce)
	head, n := len(dst), len(plaintext)
	dst = slices.Grow(dst, n+len(c.tag))[:head+n+len(c.tag)]
	out := dst[head:]
	hostAEADSeal(unsafe.Pointer(&c), pointer(out), pointer(plaintext), int32(n), pointer(ad), int32(len(ad)))
	copy(out[n:], c.tag[:])
	return dst
}

var errOpen = errors.New("aead: message authentication failed")

func (a *simdAEAD) Open(dst, nonce, ciphertext, ad []byte) ([]byte, error) {
	c := a.context(nonce)
	head, n := len(dst), len(ciphertext)-len(c.tag)
	if n < 0 {
		return nil, errOpen
	}
	// In place, what grows would lose it: there is room, as the ciphertext is longer.
	dst = slices.Grow(dst, n)[:head+n]
	out := dst[head:]
	hostAEADOpen(unsafe.Pointer(&c), pointer(out), pointer(ciphertext), int32(n), pointer(ad), int32(len(ad)))
	if subtle.ConstantTimeCompare(c.tag[:], ciphertext[n:]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return dst, nil
}
