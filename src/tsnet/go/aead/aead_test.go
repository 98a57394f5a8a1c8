//go:build wasip1

package aead

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/crypto/chacha20poly1305"
)

// simdAEAD against Go's own code, as WireGuard calls it and otherwise. ../../test/aead.test.ts runs it, and gives it the SIMD module.
func TestAEADAgainstGo(t *testing.T) {
	if !Load() {
		t.Fatal("the SIMD module cannot be loaded")
	}
	r := rand.New(rand.NewPCG(3, 4))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	refused := 0
	for i := range 3000 {
		ours := new(simdAEAD)
		copy(ours.key[:], random(len(ours.key)))
		theirs, err := chacha20poly1305.New(ours.key[:])
		if err != nil {
			t.Fatal(err)
		}
		nonce, ad, text := random(12), random(r.IntN(40)), random(r.IntN(1600))
		// What stands before stays; there is room behind it, or there is not.
		before := random(r.IntN(40))
		want := theirs.Seal(bytes.Clone(before), nonce, text, ad)
		dst := append(make([]byte, 0, len(before)+r.IntN(2*len(want))), before...)
		if got := ours.Seal(dst, nonce, text, ad); !bytes.Equal(got, want) {
			t.Fatalf("%d: sealing %d bytes behind %d", i, len(text), len(before))
		}
		// As WireGuard does it: in one buffer, at any address, behind a header.
		buf := make([]byte, r.IntN(32)+len(want)+32)
		at := r.IntN(len(buf) - len(want))
		packet := buf[at : at+len(before)+len(text)]
		copy(packet, before)
		copy(packet[len(before):], text)
		sealed := ours.Seal(packet[:len(before)], nonce, packet[len(before):], ad)
		if !bytes.Equal(sealed, want) || unsafe.SliceData(sealed) != unsafe.SliceData(packet) {
			t.Fatalf("%d: sealing %d bytes in place", i, len(text))
		}
		content := sealed[len(before):]
		if i%3 > 0 {
			got, err := ours.Open(content[:0], nonce, content, ad)
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("%d: opening %d bytes in place: %v", i, len(text), err)
			}
			continue
		}
		// One bit of the text, the tag, the nonce or the additional data.
		parts := [][]byte{content, content[len(text):], nonce}
		if len(ad) > 0 {
			parts = append(parts, ad)
		}
		part := parts[r.IntN(len(parts))]
		part[r.IntN(len(part))] ^= 1 << r.IntN(8)
		if _, err := theirs.Open(nil, nonce, content, ad); err == nil {
			t.Fatal("Go takes it")
		}
		if got, err := ours.Open(content[:0], nonce, content, ad); err == nil || got != nil {
			t.Fatalf("%d: a changed bit is taken", i)
		}
		if !bytes.Equal(content[:len(text)], make([]byte, len(text))) {
			t.Fatalf("%d: what was refused can be read", i)
		}
		refused++
	}
	for n := range 16 {
		if _, err := new(simdAEAD).Open(nil, make([]byte, 12), make([]byte, n), nil); err == nil {
			t.Fatalf("%d bytes, less than a tag, are taken", n)
		}
	}
	t.Logf("%d messages with a changed bit refused", refused)
}

// CopySum against a sum word by word, at any address.
func TestCopySum(t *testing.T) {
	if !Load() {
		t.Fatal("the SIMD module cannot be loaded")
	}
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 2000 {
		n := r.IntN(3000)
		if i%100 == 0 {
			n = 65535 - r.IntN(3)
		}
		buf := make([]byte, n+32)
		src := buf[r.IntN(16):][:n]
		var want uint32
		for k := range src {
			src[k] = byte(r.Uint32())
			if i%3 == 0 {
				src[k] = 0xff
			}
			want += uint32(src[k]) << (8 * uint(1-k%2))
			want = want>>16 + want&0xffff
		}
		dst := make([]byte, n+3)
		if got := CopySum(dst[:n+1], src); uint32(got) != want && !(got == 0 && want == 0xffff) {
			t.Fatalf("%d: %d bytes: %x, want %x", i, n, got, want)
		}
		if !bytes.Equal(dst[:n], src) || !bytes.Equal(dst[n:], make([]byte, 3)) {
			t.Fatalf("%d: %d bytes are not copied as they are", i, n)
		}
		if in := bytes.Clone(src); CopySum(src, src) != CopySum(dst, in) || !bytes.Equal(in, src) {
			t.Fatalf("%d: in place", i)
		}
	}
}
