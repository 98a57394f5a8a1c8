//go:build wasip1

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/ipv6"
	"tailscale.com/net/batching"
	"tailscale.com/net/packet"
	"tailscale.com/types/nettype"
)

const (
	// maxSegments is the most datagrams that Linux cuts one message into, or joins to one (UDP_MAX_SEGMENTS).
	maxSegments = 64
	// maxPayload is what one message holds at most: an IPv4 packet without its headers.
	maxPayload = 1<<16 - 1 - 20 - 8
)

// udpConn is a batching.Conn, which magicsock uses as such, and, with peer set, a net.Conn and net.PacketConn as the
// resolver wants one. Several datagrams of one size for one peer go to the host, and come from it, as one message.
type udpConn struct {
	f     *os.File
	rc    syscall.RawConn
	fd    int32
	local *net.UDPAddr
	peer  netip.AddrPort

	rmu  sync.Mutex
	rbuf []byte // of maxPayload; made when first read from
	rest []byte // of rbuf: what has been received and not yet read
	size int    // of each datagram of rest
	from netip.AddrPort

	wmu  sync.Mutex
	wbuf []byte // of maxPayload; made when first a batch is sent
}

func listenUDP(network, address string) (*udpConn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ip := netip.IPv4Unspecified()
	if network == "udp6" {
		ip = netip.IPv6Unspecified()
	}
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return nil, err
		}
	}
	var p uint16
	if _, err := fmt.Sscan(port, &p); err != nil {
		return nil, fmt.Errorf("listen %s %s: bad port", network, address)
	}
	family := int32(4)
	if ip.Is6() {
		family = 6
	}
	a16 := ip.As16()
	fd := hostUDPOpen(unsafe.Pointer(&a16), family, int32(p))
	if err := errnoOf(fd); err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	f := newFile(fd, network+" "+address)
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &udpConn{f: f, rc: rc, fd: fd, local: net.UDPAddrFromAddrPort(nameOf(fd, false))}, nil
}

// A receive that fails is tried again after minPause, then after twice that, up to maxPause.
const (
	minPause = 10 * time.Millisecond
	maxPause = 250 * time.Millisecond
)

// passes tells whether an error of a receive may be over soon (the system is short of memory), while the socket is
// still there. WireGuard's receiver ends at the first error that is not temporary, and at the eleventh that is, and
// nothing starts it again: it hears of no other.
func passes(err error) bool {
	switch err {
	case syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.ENOSYS:
		return false
	}
	return true
}

// receive fills c.rest when it is empty. Without wait, an empty socket gives EAGAIN. c.rmu is held.
func (c *udpConn) receive(wait bool) error {
	if len(c.rest) > 0 {
		return nil
	}
	if c.rbuf == nil {
		c.rbuf = make([]byte, maxPayload)
	}
	var src struct {
		name sockName
		size [2]byte
	}
	var n int32
	try := func(uintptr) bool {
		n = hostUDPRecv(c.fd, unsafe.Pointer(unsafe.SliceData(c.rbuf)), int32(len(c.rbuf)), unsafe.Pointer(&src))
		return n != -int32(syscall.EAGAIN)
	}
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		if wait {
			if err := c.rc.Read(try); err != nil {
				return udpErr("read", err)
			}
		} else if !try(0) {
			return syscall.EAGAIN
		}
		err := errnoOf(n)
		if err == nil {
			break
		}
		if !wait || !passes(err) {
			return udpErr("read", err)
		}
		time.Sleep(pause)
	}
	c.rest = c.rbuf[:n]
	c.size = int(src.size[0]) | int(src.size[1])<<8
	if c.size == 0 {
		c.size = int(n)
	}
	c.from = src.name.addrPort()
	return nil
}

// next takes one datagram of c.rest. What does not fit into b is lost, as with recvfrom(2).
func (c *udpConn) next(b []byte) int {
	d := c.rest[:min(c.size, len(c.rest))]
	c.rest = c.rest[len(d):]
	return copy(b, d)
}

func (c *udpConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if err := c.receive(true); err != nil {
		return 0, netip.AddrPort{}, err
	}
	return c.next(b), c.from, nil
}

// ReadBatch implements batching.Conn: it waits for the first datagram alone.
func (c *udpConn) ReadBatch(msgs []ipv6.Message, _ int) (n int, err error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for n < len(msgs) {
		if err := c.receive(n == 0); err != nil {
			if n > 0 {
				return n, nil // an error, if it was one, comes again or is over
			}
			return 0, err
		}
		addr := net.UDPAddrFromAddrPort(c.from)
		for len(c.rest) > 0 && n < len(msgs) {
			msgs[n].N = c.next(msgs[n].Buffers[0])
			msgs[n].Addr = addr
			n++
		}
		if n == 0 {
			msgs[n].N, msgs[n].Addr = 0, addr // an empty datagram
			return 1, nil
		}
	}
	return n, nil
}

func (c *udpConn) WriteToUDPAddrPort(b []byte, ap netip.AddrPort) (int, error) {
	if err := c.send(b, ap, 0); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *udpConn) send(b []byte, ap netip.AddrPort, segment int) error {
	a16 := ap.Addr().As16()
	var n int32
	try := func(uintptr) bool {
		n = hostUDPSend(c.fd, unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)), unsafe.Pointer(&a16), int32(ap.Port()), int32(segment))
		return n != -int32(syscall.EAGAIN)
	}
	if !try(0) {
		if err := c.rc.Write(try); err != nil {
			return udpErr("write", err)
		}
	}
	if err := errnoOf(n); err != nil {
		return udpErr("write", err)
	}
	return nil
}

// WriteBatchTo implements batching.Conn: datagrams of one size that follow one another, and one shorter one after them,
// are one message.
func (c *udpConn) WriteBatchTo(buffs [][]byte, ap netip.AddrPort, geneve packet.GeneveHeader, offset int) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.wbuf == nil {
		c.wbuf = make([]byte, 0, maxPayload)
	}
	wbuf, size, count := c.wbuf[:0], 0, 0
	flush := func() error {
		if count == 0 {
			return nil
		}
		segment := size
		if count == 1 {
			segment = 0
		}
		err := c.send(wbuf, ap, segment)
		wbuf, count = wbuf[:0], 0
		return err
	}
	for _, b := range buffs {
		if geneve.VNI.IsSet() {
			geneve.Encode(b)
		} else {
			b = b[offset:]
		}
		// A shorter one ends the message: size is then not what has been added last.
		if count > 0 && (len(b) > size || count == maxSegments || len(wbuf)+len(b) > maxPayload || len(wbuf) != count*size) {
			if err := flush(); err != nil {
				return err
			}
		}
		if count == 0 {
			size = len(b)
		}
		wbuf = append(wbuf, b...)
		count++
	}
	return flush()
}

func udpErr(op string, err error) error {
	if isClosed(err) {
		return net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "udp", Err: err}
}

func (c *udpConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}
func (c *udpConn) Write(b []byte) (int, error) { return c.WriteToUDPAddrPort(b, c.peer) }
func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, ap, err := c.ReadFromUDPAddrPort(b)
	return n, net.UDPAddrFromAddrPort(ap), err
}
func (c *udpConn) WriteTo(b []byte, a net.Addr) (int, error) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0, err
	}
	return c.WriteToUDPAddrPort(b, ap)
}
func (c *udpConn) Close() error                       { return c.f.Close() }
func (c *udpConn) LocalAddr() net.Addr                { return c.local }
func (c *udpConn) RemoteAddr() net.Addr               { return net.UDPAddrFromAddrPort(c.peer) }
func (c *udpConn) SetDeadline(t time.Time) error      { return c.f.SetDeadline(t) }
func (c *udpConn) SetReadDeadline(t time.Time) error  { return c.f.SetReadDeadline(t) }
func (c *udpConn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

var (
	_ batching.Conn          = (*udpConn)(nil)
	_ nettype.ConnPacketConn = (*udpConn)(nil)
)
