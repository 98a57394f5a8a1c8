// Package vnet is what lies between WireGuard's packets, one by one, and those of a tun device of Linux with
// IFF_VNET_HDR: each has a virtio_net_hdr in front (linux/virtio_net.h), and may hold many segments of a flow.
package vnet

import (
	"encoding/binary"
	"errors"
)

// HeaderLen is the size of a virtio_net_hdr without its number of buffers, as a tun device has it.
const HeaderLen = 10

// MaxPacket is the most that an IP packet has.
const MaxPacket = 1<<16 - 1

// CopySum copies src to dst, which has room for it, and returns the sum of its 16-bit words in big-endian order, in
// ones' complement (RFC 1071); a last byte that is alone counts as the first of a word. It is for hosts that can do it
// faster than Go's code; it must be set before first use.
var CopySum = func(dst, src []byte) uint16 {
	copy(dst, src)
	return sum(src)
}

func sum(b []byte) uint16 {
	var s uint64
	for len(b) >= 8 {
		w := binary.BigEndian.Uint64(b)
		s += w>>32 + w&0xffffffff
		b = b[8:]
	}
	for len(b) >= 2 {
		s += uint64(b[0])<<8 | uint64(b[1])
		b = b[2:]
	}
	if len(b) > 0 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s&0xffff)
}

const (
	needsChecksum = 1 // virtio_net_hdr.flags
	// virtio_net_hdr.gso_type
	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5
	gsoECN   = 0x80 // with one of TCP: the segments have CWR on the first alone

	protoTCP = 6
	protoUDP = 17

	flagFIN = 0x01
	flagPSH = 0x08
	flagACK = 0x10
	flagCWR = 0x80
)

var errBad = errors.New("vnet: a packet that is not valid")

// A Splitter takes packets of the device's apart. Its zero value has none.
type Splitter struct {
	packet []byte // what is left of it to split; nil: nothing
	at     int    // of the next segment's payload
	size   int    // payload of a segment
	index  uint16
	ip     int // length of the IP header
	hdr    int // length of all headers
	v6     bool
	tcp    bool
	ecn    bool
	flags  byte   // of TCP, of all
	seq    uint32 // of the first
	id     uint16 // of the first
	ipSum  uint32 // of the IPv4 header without length, identification and checksum
	sum    uint32 // of addresses, protocol and transport header without what differs
}

// Add takes a packet as it was read, which must stay until Pending is false. An error is of this packet alone.
func (s *Splitter) Add(in []byte) error {
	s.packet = nil
	if len(in) < HeaderLen+20 {
		return errBad
	}
	flags, kind := in[0], in[1]
	size := int(binary.LittleEndian.Uint16(in[4:]))
	start := int(binary.LittleEndian.Uint16(in[6:]))
	offset := int(binary.LittleEndian.Uint16(in[8:]))
	in = in[HeaderLen:]
	if kind == gsoNone {
		if flags&needsChecksum != 0 {
			field := start + offset
			if field+2 > len(in) {
				return errBad
			}
			// The field holds the sum of the pseudo header: it is part of the sum.
			sum := ^CopySum(in[start:], in[start:])
			if sum == 0 {
				sum = 0xffff // of UDP, where 0 is none; of TCP as good as 0
			}
			binary.BigEndian.PutUint16(in[field:], sum)
		}
		s.packet, s.at, s.hdr, s.size = in, 0, 0, 0
		return nil
	}
	// Where the transport header begins is also said by start; its own length must be read (the length in the
	// virtio_net_hdr may be that of the whole first segment).
	*s = Splitter{size: size, ecn: kind&gsoECN != 0}
	var proto byte
	switch in[0] >> 4 {
	case 4:
		s.ip = int(in[0]&15) * 4
		if s.ip < 20 || len(in) < s.ip {
			return errBad
		}
		proto = in[9]
		s.id = binary.BigEndian.Uint16(in[4:])
		s.sum = uint32(sum(in[12:20]))
	case 6:
		s.v6, s.ip = true, 40
		if len(in) < s.ip {
			return errBad
		}
		proto = in[6]
		s.sum = uint32(sum(in[8:40]))
	default:
		return errBad
	}
	if start != s.ip || size == 0 {
		return errBad // extension headers of IPv6 among others: the kernel does not join such
	}
	s.sum += uint32(proto)
	switch kind &^ gsoECN {
	case gsoTCPv4, gsoTCPv6:
		if proto != protoTCP || s.v6 != (kind&^gsoECN == gsoTCPv6) || len(in) < s.ip+20 {
			return errBad
		}
		s.tcp = true
		tcp := in[s.ip:]
		s.hdr = s.ip + int(tcp[12]>>4)*4
		if s.hdr < s.ip+20 || len(in) <= s.hdr {
			return errBad
		}
		s.seq, s.flags = binary.BigEndian.Uint32(tcp[4:]), tcp[13]
		binary.BigEndian.PutUint32(tcp[4:], 0)
		tcp[13], tcp[16], tcp[17] = 0, 0, 0
	case gsoUDP:
		if proto != protoUDP || len(in) <= s.ip+8 {
			return errBad
		}
		s.hdr = s.ip + 8
		binary.BigEndian.PutUint32(in[s.ip+4:], 0) // length and checksum
	default:
		return errBad
	}
	if !s.v6 {
		clear(in[2:6]) // length and identification
		clear(in[10:12])
		s.ipSum = uint32(sum(in[:s.ip]))
	}
	s.sum += uint32(sum(in[s.ip:s.hdr]))
	s.packet, s.at = in, s.hdr
	return nil
}

// Pending tells whether there is something left to split.
func (s *Splitter) Pending() bool { return s.packet != nil }

// Next lays the next packet into out and returns its length. An error is of the whole packet that was added: it fits not.
func (s *Splitter) Next(out []byte) (int, error) {
	in := s.packet
	if s.size == 0 {
		s.packet = nil
		if len(in) > len(out) {
			return 0, errBad
		}
		return copy(out, in), nil
	}
	end := min(s.at+s.size, len(in))
	n := s.hdr + end - s.at
	if n > len(out) {
		s.packet = nil
		return 0, errBad
	}
	out = out[:n]
	copy(out, in[:s.hdr])
	sum := s.sum + uint32(n-s.ip) + uint32(CopySum(out[s.hdr:], in[s.at:end]))
	if s.v6 {
		binary.BigEndian.PutUint16(out[4:], uint16(n-s.ip))
	} else {
		id := s.id + s.index
		binary.BigEndian.PutUint16(out[2:], uint16(n))
		binary.BigEndian.PutUint16(out[4:], id)
		binary.BigEndian.PutUint16(out[10:], ^fold(s.ipSum+uint32(n)+uint32(id)))
	}
	l4 := out[s.ip:]
	if s.tcp {
		flags := s.flags
		if end < len(in) {
			flags &^= flagFIN | flagPSH // they are the last one's
		}
		if s.ecn && s.index > 0 {
			flags &^= flagCWR
		}
		seq := s.seq + uint32(s.at-s.hdr)
		binary.BigEndian.PutUint32(l4[4:], seq)
		l4[13] = flags
		sum += seq>>16 + seq&0xffff + uint32(flags)
		binary.BigEndian.PutUint16(l4[16:], ^fold(sum))
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(n-s.ip))
		csum := ^fold(sum + uint32(n-s.ip))
		if csum == 0 {
			csum = 0xffff
		}
		binary.BigEndian.PutUint16(l4[6:], csum)
	}
	s.at = end
	s.index++
	if end == len(in) {
		s.packet = nil
	}
	return n, nil
}
