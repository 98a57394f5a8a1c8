package vnet

import (
	"bytes"
	"encoding/binary"
)

// maxFlows is how many flows are joined at once; one more writes the oldest.
const maxFlows = 16

// A Joiner joins packets, as they come from WireGuard, to what a tun device takes as one: TCP segments of a flow that
// follow one another, and UDP datagrams of one size. They are joined as bytes, one copy of each. The rules are those
// of the kernel's own (net/ipv4/tcp_offload.c, udp_offload.c), but that a packet is joined only to the one before it
// of its flow. The order within a flow is kept.
type Joiner struct {
	// Write writes a packet with its virtio_net_hdr; b is valid until it returns.
	Write func(b []byte) error
	// UDP tells whether the kernel takes joined datagrams (Linux 6.2).
	UDP bool

	flows [maxFlows]*flow
	used  int
}

// A flow is what packets are being added to.
type flow struct {
	n     int // bytes of the packet so far
	ip    int // length of the IP header
	hdr   int // length of all headers
	size  int // payload of the first
	next  uint32
	count int
	tcp   bool
	good  bool // the checksum of the first is right
	open  bool // nothing ends it yet
	buf   [HeaderLen + MaxPacket]byte
}

// segment is what must be known of a packet that might be joined.
type segment struct {
	ip, hdr int
	tcp     bool
	flags   byte
	seq     uint32
}

// parse tells whether a packet might be joined. With ip not 0 it is at least one of TCP or UDP, whose flow it must not
// overtake.
func parse(pkt []byte, udp bool) (s segment, ok bool) {
	if len(pkt) < 28 {
		return s, false
	}
	var proto byte
	switch pkt[0] >> 4 {
	case 4:
		// No options, no fragment, nothing behind it.
		if pkt[0] != 0x45 || pkt[6]&0x3f != 0 || pkt[7] != 0 || int(binary.BigEndian.Uint16(pkt[2:])) != len(pkt) {
			return s, false
		}
		s.ip, proto = 20, pkt[9]
	case 6:
		if len(pkt) < 48 || int(binary.BigEndian.Uint16(pkt[4:])) != len(pkt)-40 {
			return s, false
		}
		s.ip, proto = 40, pkt[6]
	}
	switch {
	case proto == protoTCP && len(pkt) >= s.ip+20:
		s.tcp = true
		s.hdr = s.ip + int(pkt[s.ip+12]>>4)*4
		s.flags = pkt[s.ip+13]
		s.seq = binary.BigEndian.Uint32(pkt[s.ip+4:])
		// Bare acknowledgements, SYN, FIN, RST, URG, CWR, ECE stay alone.
		return s, s.hdr >= s.ip+20 && s.hdr < len(pkt) && s.flags&^flagPSH == flagACK
	case proto == protoUDP && udp:
		s.hdr = s.ip + 8
		// A datagram without a checksum (IPv4) stays without.
		return s, s.hdr < len(pkt) && int(binary.BigEndian.Uint16(pkt[s.ip+4:])) == len(pkt)-s.ip &&
			binary.BigEndian.Uint16(pkt[s.ip+6:]) != 0
	}
	return segment{}, false
}

// Add takes a packet that lies at offset in b, which is at least HeaderLen: what is not joined is written at once, with
// its header in front of it.
func (j *Joiner) Add(b []byte, offset int) error {
	pkt := b[offset:]
	s, ok := parse(pkt, j.UDP)
	at := -1
	if s.ip > 0 {
		for i := j.used - 1; i >= 0; i-- {
			if j.flows[i].same(pkt, s) {
				at = i
				break
			}
		}
	}
	var err error
	if at >= 0 {
		f := j.flows[at]
		if ok && f.add(pkt, s) {
			return nil
		}
		err = j.flushAt(at)
	}
	if !ok {
		head := b[offset-HeaderLen:]
		clear(head[:HeaderLen])
		return first(err, j.Write(head))
	}
	if j.used == maxFlows {
		err = first(err, j.flushAt(0))
	}
	if j.flows[j.used] == nil {
		j.flows[j.used] = new(flow)
	}
	j.flows[j.used].begin(pkt, s)
	j.used++
	return err
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// same tells whether a packet is of the flow.
func (f *flow) same(pkt []byte, s segment) bool {
	h := f.buf[HeaderLen:]
	if f.ip != s.ip || f.tcp != s.tcp || binary.LittleEndian.Uint32(h[f.ip:]) != binary.LittleEndian.Uint32(pkt[f.ip:]) {
		return false
	}
	if f.ip == 20 {
		return binary.LittleEndian.Uint64(h[12:]) == binary.LittleEndian.Uint64(pkt[12:])
	}
	return bytes.Equal(h[8:40], pkt[8:40])
}

// pseudo is the sum of the pseudo header, but for the length.
func pseudo(pkt []byte, ip int, tcp bool) uint32 {
	proto := uint32(protoUDP)
	if tcp {
		proto = protoTCP
	}
	if ip == 20 {
		return proto + uint32(sum(pkt[12:20]))
	}
	return proto + uint32(sum(pkt[8:40]))
}

// lay copies the payload of a packet behind what is there, and tells whether its checksum is right.
func (f *flow) lay(at int, pkt []byte, s segment) bool {
	payload := CopySum(f.buf[at:], pkt[s.hdr:])
	return fold(pseudo(pkt, s.ip, s.tcp)+uint32(len(pkt)-s.ip)+uint32(sum(pkt[s.ip:s.hdr]))+uint32(payload)) == 0xffff
}

func (f *flow) begin(pkt []byte, s segment) {
	copy(f.buf[HeaderLen:], pkt[:s.hdr])
	f.n, f.ip, f.hdr, f.tcp, f.count = len(pkt), s.ip, s.hdr, s.tcp, 1
	f.size = len(pkt) - s.hdr
	f.next = s.seq + uint32(f.size)
	f.good = f.lay(HeaderLen+s.hdr, pkt, s)
	f.open = f.good && s.flags&flagPSH == 0
	if s.ip == 20 && sum(pkt[:20]) != 0xffff {
		f.open = false
	}
}

// maxDatagrams is the most that Linux takes as one (UDP_MAX_SEGMENTS).
const maxDatagrams = 64

// add joins a packet to the flow. When it cannot, the flow is as it was.
func (f *flow) add(pkt []byte, s segment) bool {
	payload := len(pkt) - s.hdr
	if !f.open || f.hdr != s.hdr || payload > f.size || f.n+payload > MaxPacket || !f.alike(pkt, s) {
		return false
	}
	if f.tcp {
		if f.next != s.seq {
			return false
		}
	} else if f.count == maxDatagrams {
		return false
	}
	if s.ip == 20 && sum(pkt[:20]) != 0xffff || !f.lay(HeaderLen+f.n, pkt, s) {
		return false
	}
	f.n += payload
	f.count++
	f.next += uint32(payload)
	f.open = payload == f.size
	if s.flags&flagPSH != 0 {
		f.buf[HeaderLen+f.ip+13] |= flagPSH
		f.open = false
	}
	return true
}

// alike tells whether all is the same that the joined packet has once: traffic class, hop limit, DF; of TCP the
// acknowledgement, the window and the options.
func (f *flow) alike(pkt []byte, s segment) bool {
	h := f.buf[HeaderLen:]
	if f.ip == 20 {
		if h[1] != pkt[1] || h[6] != pkt[6] || h[8] != pkt[8] {
			return false
		}
	} else if binary.LittleEndian.Uint32(h) != binary.LittleEndian.Uint32(pkt) || h[7] != pkt[7] {
		return false
	}
	return !f.tcp || binary.LittleEndian.Uint32(h[f.ip+8:]) == binary.LittleEndian.Uint32(pkt[f.ip+8:]) &&
		binary.LittleEndian.Uint16(h[f.ip+14:]) == binary.LittleEndian.Uint16(pkt[f.ip+14:]) &&
		(f.hdr == f.ip+20 || bytes.Equal(h[f.ip+20:f.hdr], pkt[f.ip+20:f.hdr]))
}

func (j *Joiner) flushAt(i int) error {
	f := j.flows[i]
	j.used--
	copy(j.flows[i:], j.flows[i+1:j.used+1])
	j.flows[j.used] = f
	return j.write(f)
}

// write writes what a flow has. The checksums have been verified: the kernel takes that of a joined packet as partial,
// and does not look at it again.
func (j *Joiner) write(f *flow) error {
	b := f.buf[:HeaderLen+f.n]
	clear(b[:HeaderLen])
	if f.count > 1 {
		pkt := b[HeaderLen:]
		b[0] = needsChecksum
		field := 6
		switch {
		case !f.tcp:
			b[1] = gsoUDP
		case f.ip == 20:
			b[1], field = gsoTCPv4, 16
		default:
			b[1], field = gsoTCPv6, 16
		}
		binary.LittleEndian.PutUint16(b[2:], uint16(f.hdr))
		binary.LittleEndian.PutUint16(b[4:], uint16(f.size))
		binary.LittleEndian.PutUint16(b[6:], uint16(f.ip))
		binary.LittleEndian.PutUint16(b[8:], uint16(field))
		if f.ip == 20 {
			binary.BigEndian.PutUint16(pkt[2:], uint16(f.n))
			pkt[10], pkt[11] = 0, 0
			binary.BigEndian.PutUint16(pkt[10:], ^sum(pkt[:20]))
		} else {
			binary.BigEndian.PutUint16(pkt[4:], uint16(f.n-40))
		}
		if !f.tcp {
			binary.BigEndian.PutUint16(pkt[f.ip+4:], uint16(f.n-f.ip))
		}
		binary.BigEndian.PutUint16(pkt[f.ip+field:], fold(pseudo(pkt, f.ip, f.tcp)+uint32(f.n-f.ip)))
	}
	return j.Write(b)
}

// Flush writes what has been joined so far.
func (j *Joiner) Flush() (err error) {
	for _, f := range j.flows[:j.used] {
		err = first(err, j.write(f))
	}
	j.used = 0
	return err
}
