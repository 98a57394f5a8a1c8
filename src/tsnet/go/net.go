//go:build wasip1

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"tailscale.com/net/dnscache"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/types/nettype"
)

// installHostNetwork puts the host's sockets behind everything of Tailscale that talks to the outside.
func installHostNetwork() {
	netns.HookDialer = func(*net.Dialer) netns.Dialer { return hostDialer{} }
	nettype.HookListenPacket = func(_ context.Context, network, address string) (nettype.PacketConn, error) {
		return listenUDP(network, address)
	}
	netmon.RegisterInterfaceGetter(hostInterfaces)
	// What Go reads from /etc is a copy that the host keeps (../host/names.ts), looked at every five seconds: the host itself says
	// which servers there are now.
	var turn atomic.Uint32
	*net.DefaultResolver = net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, chosen string) (net.Conn, error) {
			servers, err := queryJSON[[]string](queryNameservers)
			if err != nil {
				return nil, err
			}
			if len(servers) == 0 {
				return nil, errors.New("the host has no name server")
			}
			// Where Go does not know them, each dial takes the next one: it retries a failed lookup by dialling again.
			server := chosen
			if !slices.Contains(servers, chosen) {
				server = servers[int(turn.Add(1)-1)%len(servers)]
			}
			ap, err := netip.ParseAddrPort(server)
			if err != nil {
				return nil, err
			}
			if network == "tcp" || network == "tcp4" || network == "tcp6" {
				return dialTCP(ctx, ap)
			}
			bind := "0.0.0.0:0"
			if ap.Addr().Is6() {
				bind = "[::]:0"
			}
			c, err := listenUDP("udp", bind)
			if err != nil {
				return nil, err
			}
			c.peer = ap
			return c, nil
		},
	}
	// What Tailscale looks up for the control client, DERP and its own cache goes through a resolver of its own, which
	// would ask an address that Go chose (there is no resolv.conf here), and so nobody.
	dnscache.Get().Forward = net.DefaultResolver
}

type hostInterface struct {
	Name  string   `json:"name"`
	Index int      `json:"index"`
	MTU   int      `json:"mtu"`
	Addrs []string `json:"addrs"` // CIDR
	Loop  bool     `json:"loop"`
}

func hostInterfaces() ([]netmon.Interface, error) {
	list, err := queryJSON[[]hostInterface](queryInterfaces)
	if err != nil {
		return nil, err
	}
	var out []netmon.Interface
	for _, hi := range list {
		if hi.Name == tunName {
			continue // it leads into the tailnet
		}
		flags := net.FlagUp | net.FlagRunning | net.FlagMulticast
		if hi.Loop {
			flags = net.FlagUp | net.FlagRunning | net.FlagLoopback
		}
		ni := netmon.Interface{
			Interface: &net.Interface{Index: hi.Index, MTU: hi.MTU, Name: hi.Name, Flags: flags},
			AltAddrs:  []net.Addr{}, // not nil, or net.Interface would be asked
		}
		for _, s := range hi.Addrs {
			if p, err := netip.ParsePrefix(s); err == nil {
				ni.AltAddrs = append(ni.AltAddrs, &net.IPNet{
					IP:   p.Addr().AsSlice(),
					Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
				})
			}
		}
		out = append(out, ni)
	}
	return out, nil
}

// streamConn is a net.Conn over a stream of the host.
type streamConn struct {
	*os.File
	fd            int32
	local, remote net.Addr
}

func (c *streamConn) LocalAddr() net.Addr  { return c.local }
func (c *streamConn) RemoteAddr() net.Addr { return c.remote }
func (c *streamConn) CloseWrite() error    { return syscall.Shutdown(int(c.fd), syscall.SHUT_WR) }

// Read hides *os.PathError, which callers of a net.Conn do not look into.
func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.File.Read(b)
	return n, netErr("read", err)
}

func (c *streamConn) Write(b []byte) (int, error) {
	n, err := c.File.Write(b)
	return n, netErr("write", err)
}

// isClosed reports whether a descriptor's owner closed it. internal/poll's own error for that, which raw conns give,
// has no exported value.
func isClosed(err error) bool {
	return errors.Is(err, os.ErrClosed) || strings.HasSuffix(err.Error(), "use of closed file")
}

func netErr(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if isClosed(err) {
		return net.ErrClosed
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &net.OpError{Op: op, Net: "tcp", Err: err}
}

func dialTCP(ctx context.Context, ap netip.AddrPort) (net.Conn, error) {
	a16 := ap.Addr().As16()
	fd := hostTCPOpen(unsafe.Pointer(&a16), int32(ap.Port()))
	if err := errnoOf(fd); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(ap), Err: err}
	}
	f := newFile(fd, "tcp "+ap.String())
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	rc, err := f.SyscallConn()
	if err == nil {
		var res int32
		err = rc.Write(func(uintptr) bool {
			res = hostSockError(fd)
			return res != -int32(syscall.EINPROGRESS)
		})
		if err == nil {
			err = errnoOf(res)
		}
	}
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(ap), Err: err}
	}
	f.SetWriteDeadline(time.Time{})
	return &streamConn{
		File: f, fd: fd,
		local:  net.TCPAddrFromAddrPort(nameOf(fd, false)),
		remote: net.TCPAddrFromAddrPort(ap),
	}, nil
}

// hostDialer is a netns.Dialer. Addresses of one name are tried in turn, the next one 300 ms after the one before or
// when that failed (RFC 8305 section 5, without its sorting).
type hostDialer struct{}

func (d hostDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (hostDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	family := "ip"
	switch network {
	case "tcp":
	case "tcp4":
		family = "ip4"
	case "tcp6":
		family = "ip6"
	case "udp", "udp4", "udp6":
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		c, err := listenUDP(network, map[bool]string{true: "[::]:0", false: "0.0.0.0:0"}[ap.Addr().Is6()])
		if err != nil {
			return nil, err
		}
		c.peer = ap
		return c, nil
	default:
		return nil, net.UnknownNetworkError(network)
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = []netip.Addr{ip}
	} else if ips, err = net.DefaultResolver.LookupNetIP(ctx, family, host); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c   net.Conn
		err error
	}
	results := make(chan result, len(ips))
	var firstErr error
	next, pending := 0, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next < len(ips) || pending > 0 {
		var tick <-chan time.Time
		if next < len(ips) {
			tick = timer.C
		}
		select {
		case <-tick:
			ap := netip.AddrPortFrom(ips[next].Unmap(), uint16(port))
			next++
			pending++
			go func() {
				c, err := dialTCP(ctx, ap)
				results <- result{c, err}
			}()
			timer.Reset(300 * time.Millisecond)
		case r := <-results:
			pending--
			if r.err == nil {
				go func(n int) { // connections that came too late
					for range n {
						if r := <-results; r.c != nil {
							r.c.Close()
						}
					}
				}(pending)
				return r.c, nil
			}
			if firstErr == nil {
				firstErr = r.err
			}
			timer.Reset(0)
		}
	}
	if firstErr == nil {
		firstErr = fmt.Errorf("no addresses for %s", host)
	}
	return nil, firstErr
}

var _ net.Conn = (*streamConn)(nil)
