package vnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tailscale/wireguard-go/tun"
)

// conn makes packets of one flow.
type conn struct {
	v6, udp  bool
	port     uint16
	seq, ack uint32
	id       uint16
}

func (c *conn) packet(payload []byte, flags, tos byte, options []byte) []byte {
	l4 := make([]byte, 8, 60)
	proto := byte(protoUDP)
	if c.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	} else {
		proto = protoTCP
		l4 = append(make([]byte, 20), options...)
		binary.BigEndian.PutUint32(l4[4:], c.seq)
		binary.BigEndian.PutUint32(l4[8:], c.ack)
		l4[12] = byte(len(l4) / 4 << 4)
		l4[13] = flags
		l4[14] = 0x7f
	}
	binary.BigEndian.PutUint16(l4, c.port)
	binary.BigEndian.PutUint16(l4[2:], 443)
	l4 = append(l4, payload...)
	var ip, src, dst []byte
	if c.v6 {
		ip = make([]byte, 40)
		ip[0], ip[1], ip[6], ip[7] = 0x60|tos>>4, tos<<4, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		ip[8], ip[23], ip[24], ip[39] = 0xfd, 1, 0xfd, 2
		src, dst = ip[8:24], ip[24:40]
	} else {
		ip = make([]byte, 20)
		ip[0], ip[1], ip[6], ip[8], ip[9] = 0x45, tos, 0x40, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		binary.BigEndian.PutUint16(ip[4:], c.id)
		copy(ip[12:], []byte{100, 64, 0, 1, 100, 64, 0, 2})
		src, dst = ip[12:16], ip[16:20]
		binary.BigEndian.PutUint16(ip[10:], ^tun.Checksum(ip, 0))
	}
	at := 6
	if !c.udp {
		at = 16
	}
	csum := ^tun.Checksum(l4, tun.PseudoHeaderChecksum(proto, src, dst, uint16(len(l4))))
	if c.udp && csum == 0 {
		csum = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], csum)
	return append(ip, l4...)
}

// virtio is a packet as the kernel gives it: a header, its checksum partial.
func virtio(kind byte, size int, pkt []byte) []byte {
	b := make([]byte, HeaderLen, HeaderLen+len(pkt))
	ip, src, dst := 20, pkt[12:16], pkt[16:20]
	if pkt[0]>>4 == 6 {
		ip, src, dst = 40, pkt[8:24], pkt[24:40]
	}
	proto, field := byte(protoTCP), 16
	if kind == gsoUDP || kind == gsoNone && (pkt[9] == protoUDP || ip == 40 && pkt[6] == protoUDP) {
		proto, field = protoUDP, 6
	}
	b[0], b[1] = needsChecksum, kind
	binary.LittleEndian.PutUint16(b[2:], 9999) // not to be relied on
	binary.LittleEndian.PutUint16(b[4:], uint16(size))
	binary.LittleEndian.PutUint16(b[6:], uint16(ip))
	binary.LittleEndian.PutUint16(b[8:], uint16(field))
	b = append(b, pkt...)
	binary.BigEndian.PutUint16(b[HeaderLen+ip+field:], tun.PseudoHeaderChecksum(proto, src, dst, uint16(len(pkt)-ip)))
	return b
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// all splits a packet into buffers of 3,000 bytes.
func all(t *testing.T, b []byte) (out [][]byte) {
	t.Helper()
	var s Splitter
	if err := s.Add(b); err != nil {
		t.Fatal(err)
	}
	for s.Pending() {
		buf := make([]byte, 3000)
		n, err := s.Next(buf)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, buf[:n])
	}
	return out
}

// What comes out of a splitter is what comes out of wireguard-go's GSOSplit.
func TestSplitAgainstWireGuard(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 600 {
		c := conn{v6: r.IntN(2) == 0, udp: r.IntN(3) == 0, port: uint16(r.Uint32()), seq: r.Uint32(), ack: r.Uint32(), id: uint16(r.Uint32())}
		size := 1 + r.IntN(1300)
		payload := random(r, 1+r.IntN(min(64*size, 65000)))
		var options []byte
		if r.IntN(2) == 0 {
			options = random(r, 12)
		}
		kind, types := byte(gsoTCPv4), tun.GSOTCPv4
		switch {
		case len(payload) <= size:
			kind, types = gsoNone, tun.GSONone
			payload = payload[:min(len(payload), 1300)]
		case c.udp:
			kind, types = gsoUDP, tun.GSOUDPL4
		case c.v6:
			kind, types = gsoTCPv6, tun.GSOTCPv6
		}
		in := virtio(kind, size, c.packet(payload, flagACK|byte(r.Uint32())&(flagPSH|flagFIN), byte(r.Uint32()), options))
		ip, l4, field := 20, 20+len(options), 16
		if c.v6 {
			ip = 40
		}
		if c.udp {
			l4, field = 8, 6
		}
		want := make([][]byte, 64)
		for i := range want {
			want[i] = make([]byte, 1500)
		}
		sizes := make([]int, len(want))
		n, err := tun.GSOSplit(bytes.Clone(in[HeaderLen:]), tun.GSOOptions{
			GSOType: types, HdrLen: uint16(ip + l4), CsumStart: uint16(ip), CsumOffset: uint16(field), GSOSize: uint16(size), NeedsCsum: true,
		}, want, sizes, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := all(t, in)
		if len(got) != n {
			t.Fatalf("%d: %d packets, want %d", i, len(got), n)
		}
		for k := range n {
			if at := ip + 6; c.udp && want[k][at] == 0 && want[k][at+1] == 0 {
				want[k][at], want[k][at+1] = 0xff, 0xff // upstream's 0 would be "none" (RFC 768)
			}
			if !bytes.Equal(got[k], want[k][:sizes[k]]) {
				t.Fatalf("%d: packet %d of %d (%+v, size %d):\n got  %x\n want %x", i, k, n, c, size, got[k][:ip+l4], want[k][:ip+l4])
			}
		}
	}
}

// What the kernel would not give is an error, and not a panic.
func TestSplitRefuses(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	refused := 0
	for range 8000 {
		c := conn{v6: r.IntN(2) == 0, udp: r.IntN(3) == 0}
		in := virtio([]byte{gsoNone, gsoTCPv4, gsoTCPv6, gsoUDP}[r.IntN(4)], 100, c.packet(random(r, 30+r.IntN(500)), flagACK, 0, nil))
		for range 1 + r.IntN(4) {
			in[r.IntN(min(len(in), 60))] = byte(r.Uint32())
		}
		in = in[:r.IntN(len(in)+1)]
		var s Splitter
		if s.Add(in) != nil {
			refused++
		}
		buf := make([]byte, 400)
		for s.Pending() {
			s.Next(buf)
		}
	}
	if refused < 400 {
		t.Errorf("%d refused", refused)
	}
}

// What is joined and split again is what went in, in the order of each flow, and as much as may be is joined.
func TestJoin(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	in, out := 0, 0
	for round := range 150 {
		conns := make([]conn, 1+r.IntN(20))
		for i := range conns {
			conns[i] = conn{v6: r.IntN(3) == 0, udp: r.IntN(4) == 0, port: uint16(1000 + i), seq: r.Uint32(), ack: r.Uint32()}
		}
		odd := r.IntN(3) == 0
		mss := 200 + r.IntN(1000)
		want := map[string][]string{}
		got := map[string][]string{}
		key := func(pkt []byte) string {
			if pkt[0]>>4 == 6 {
				return fmt.Sprintf("%x", pkt[8:44])
			}
			return fmt.Sprintf("%x", pkt[12:24])
		}
		j := Joiner{UDP: r.IntN(3) > 0, Write: func(b []byte) error {
			out++
			if b[1] == gsoNone {
				if b[0] != 0 {
					t.Fatalf("round %d: a checksum is left to do", round)
				}
				got[key(b[HeaderLen:])] = append(got[key(b[HeaderLen:])], fmt.Sprintf("%x", b[HeaderLen:]))
				return nil
			}
			for _, pkt := range all(t, bytes.Clone(b)) {
				got[key(pkt)] = append(got[key(pkt)], fmt.Sprintf("%x", pkt))
			}
			return nil
		}}
		for range 1 + r.IntN(128) {
			c := &conns[r.IntN(len(conns))]
			if r.IntN(3) > 0 {
				c = &conns[0]
			}
			size, flags, tos, options := mss, byte(flagACK), byte(0), []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
			if odd {
				switch r.IntN(16) {
				case 0:
					size = 0
				case 1:
					size = r.IntN(2 * mss)
				case 2:
					flags |= flagPSH
				case 3:
					flags |= []byte{1, 2, 4, 0x20, 0x40, 0x80}[r.IntN(6)]
				case 4:
					tos = 2
				case 5:
					c.ack++
				case 6:
					options = nil
				case 7:
					c.seq += uint32(r.IntN(1000)) // one is lost
				case 8:
					c.seq -= uint32(r.IntN(1000)) // sent again
				}
			}
			pkt := c.packet(random(r, size), flags, tos, options)
			c.seq += uint32(size)
			c.id++
			if odd && r.IntN(20) == 0 {
				pkt[len(pkt)-1-r.IntN(len(pkt)-24)] ^= 1 << r.IntN(8) // damaged: the kernel is to see it
			}
			want[key(pkt)] = append(want[key(pkt)], fmt.Sprintf("%x", pkt))
			in++
			offset := HeaderLen + r.IntN(20)
			if err := j.Add(append(make([]byte, offset), pkt...), offset); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Flush(); err != nil {
			t.Fatal(err)
		}
		for p := range want {
			// A lost one counts too: the identification goes on only where segments follow one another.
			if a, b := fmt.Sprint(ids(got[p])), fmt.Sprint(ids(want[p])); a != b {
				t.Fatalf("round %d, flow %s:\n got  %.2000s\n want %.2000s", round, p, a, b)
			}
		}
	}
	if out > in*2/5 {
		t.Errorf("%d packets became %d", in, out)
	}
	t.Logf("%d packets became %d", in, out)
}

// ids drops identification and header checksum of IPv4, which a joined packet has once.
func ids(packets []string) []string {
	out := make([]string, len(packets))
	for i, p := range packets {
		if p[0] == '4' {
			p = p[:8] + p[12:20] + p[24:]
		}
		out[i] = p
	}
	return out
}

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 500 {
		b := random(r, r.IntN(3000))
		dst := make([]byte, len(b))
		if got, want := CopySum(dst, b), tun.Checksum(b, 0); got != want && !(got == 0xffff && want == 0 || got == 0 && want == 0xffff) {
			t.Fatalf("%d bytes: %x, want %x", len(b), got, want)
		}
		if !bytes.Equal(dst, b) {
			t.Fatal("not copied")
		}
	}
}
