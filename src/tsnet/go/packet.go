//go:build wasip1

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Datagrams cross on a stream of the host's, each with a header: a little-endian uint16 with the length of what follows
// the header, then the other end's address and port (sockName).
const packetHeader = 2 + len(sockName{})

// maxDatagram is the most that UDP carries.
const maxDatagram = 65535 - 8

// udpSock is what both kinds of tsnet's UDP sockets can do; a dialled one has one peer, whatever address is given.
type udpSock struct {
	read  func(b []byte) (int, netip.AddrPort, error)
	write func(b []byte, to netip.AddrPort) error
	close func() error
}

// listenPacket binds a UDP port (0: any) of host, or of both addresses of the node.
func (n *node) listenPacket(ctx context.Context, id uint64, host string, port uint16) (any, error) {
	if err := n.awaitRunning(ctx); err != nil {
		return nil, err
	}
	var ips []netip.Addr
	if host != "" {
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return nil, &rpcError{"TSNET_OPTIONS", fmt.Sprintf("%q is not an IP address", host)}
		}
		ips = []netip.Addr{ip}
	} else {
		ip4, ip6 := n.srv.TailscaleIPs()
		for _, ip := range []netip.Addr{ip4, ip6} {
			if ip.IsValid() {
				ips = append(ips, ip)
			}
		}
	}
	var conns []net.PacketConn
	var locals []string
	fail := func(err error) (any, error) {
		for _, pc := range conns {
			pc.Close()
		}
		return nil, &rpcError{"TSNET_LISTEN", err.Error()}
	}
	for _, ip := range ips {
		pc, err := n.srv.ListenPacket("udp", netip.AddrPortFrom(ip, port).String())
		if err != nil {
			return fail(err)
		}
		conns = append(conns, pc)
		ap, err := netip.ParseAddrPort(pc.LocalAddr().String())
		if err != nil {
			return fail(err)
		}
		port = ap.Port() // the same for both
		locals = append(locals, ap.String())
	}
	socks := make([]udpSock, len(conns))
	byFamily := map[bool]net.PacketConn{}
	for i, pc := range conns {
		byFamily[ips[i].Is4()] = pc
		socks[i] = udpSock{read: func(b []byte) (int, netip.AddrPort, error) {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return n, netip.AddrPort{}, err
			}
			u, ok := from.(*net.UDPAddr)
			if !ok {
				return 0, netip.AddrPort{}, fmt.Errorf("a datagram from %v, which is no UDP address", from)
			}
			ap := u.AddrPort()
			return n, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
		}, close: pc.Close}
	}
	write := func(b []byte, to netip.AddrPort) error {
		pc := byFamily[to.Addr().Is4()]
		if pc == nil {
			return fmt.Errorf("the socket has no address of the kind of %v", to)
		}
		_, err := pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
		return err
	}
	return map[string]any{"locals": locals}, n.handOverPackets(socks, write, streamMeta{Dial: id, Local: locals[0], Remote: locals[0]})
}

// dialPacket makes a UDP socket that has one peer.
func (n *node) dialPacket(ctx context.Context, id uint64, addr string) (any, error) {
	to, err := n.plan(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	c, err := n.srv.Dial(ctx, "udp", to.String())
	if err != nil {
		return nil, &rpcError{"TSNET_DIAL", err.Error()}
	}
	sock := udpSock{read: func(b []byte) (int, netip.AddrPort, error) {
		n, err := c.Read(b)
		return n, to, err
	}, close: c.Close}
	write := func(b []byte, _ netip.AddrPort) error {
		_, err := c.Write(b)
		return err
	}
	return map[string]any{"locals": []string{c.LocalAddr().String()}},
		n.handOverPackets([]udpSock{sock}, write, streamMeta{Dial: id, Local: c.LocalAddr().String(), Remote: to.String()})
}

// handOverPackets joins UDP sockets of the tailnet to a new stream of the host's, which ends them.
func (n *node) handOverPackets(socks []udpSock, write func([]byte, netip.AddrPort) error, meta streamMeta) error {
	var closing atomic.Bool
	closeAll := sync.OnceFunc(func() {
		closing.Store(true)
		for _, s := range socks {
			s.close()
		}
	})
	s, err := openStream(meta)
	if err != nil {
		closeAll()
		return err
	}
	var done sync.WaitGroup
	var out sync.Mutex // whole datagrams
	for _, sock := range socks {
		done.Go(func() {
			buf := make([]byte, packetHeader+maxDatagram)
			for {
				size, from, err := sock.read(buf[packetHeader:])
				if err != nil {
					if !closing.Load() {
						hostStreamReset(s.fd)
					}
					return
				}
				a16 := from.Addr().As16()
				binary.LittleEndian.PutUint16(buf, uint16(size))
				copy(buf[2:], a16[:])
				binary.LittleEndian.PutUint16(buf[18:], from.Port())
				out.Lock()
				_, err = s.Write(buf[:packetHeader+size])
				out.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	done.Go(func() {
		defer closeAll()
		r := bufio.NewReaderSize(s, 64<<10)
		buf := make([]byte, maxDatagram)
		for {
			var head [packetHeader]byte
			if _, err := io.ReadFull(r, head[:]); err != nil {
				return
			}
			b := buf[:binary.LittleEndian.Uint16(head[:])]
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			// A datagram that cannot be sent is one that is lost.
			_ = write(b, (*sockName)(unsafe.Pointer(&head[2])).addrPort())
		}
	})
	go func() {
		done.Wait()
		s.CloseWrite()
		s.Close()
	}()
	return nil
}
