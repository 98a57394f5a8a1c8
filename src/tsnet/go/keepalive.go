//go:build wasip1

package main

import (
	"net"
	"os"
	"reflect"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"tailscale.com/ipn"
)

// keepAliveIdle is how long a connection may be silent before its peer is asked whether it is still there. netstack's
// own two hours let a peer that is gone without a word keep its connections for as long.
var keepAliveIdle = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TSNET_KEEPALIVE")); err == nil && d > 0 {
		return d
	}
	return time.Minute
}()

// endpointOf returns netstack's endpoint behind a connection; nil where there is none. gonet has no other door to it.
func endpointOf(c net.Conn) tcpip.Endpoint {
	if f, ok := c.(*ipn.FunnelConn); ok {
		c = f.Conn
	}
	t, ok := c.(*gonet.TCPConn)
	if !ok {
		return nil
	}
	return *(*tcpip.Endpoint)(unsafe.Pointer(reflect.ValueOf(t).Elem().FieldByName("ep").UnsafeAddr()))
}

// keepAlive has a connection end when its peer does not answer for twice keepAliveIdle: neither to four probes of a
// silent connection, nor to data, which netstack would send again without end. A peer whose window is shut, but which
// answers, stays (patches-gvisor/0005).
func keepAlive(c net.Conn) {
	ep := endpointOf(c)
	if ep == nil {
		return
	}
	idle := tcpip.KeepaliveIdleOption(keepAliveIdle)
	interval := tcpip.KeepaliveIntervalOption(keepAliveIdle / 4)
	timeout := tcpip.TCPUserTimeoutOption(2 * keepAliveIdle)
	ep.SocketOptions().SetKeepAlive(true)
	// None of these can fail on a TCP endpoint.
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOpt(&timeout)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, 4)
}
