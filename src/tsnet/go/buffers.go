//go:build wasip1

package main

import (
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/tsnet"
	"tailscale.com/wgengine/netstack"
)

// sendBuffer is what netstack takes of a connection before its peer has taken anything, in bytes. It grows with what
// the peer takes at a time (twice the congestion window), to 6 MiB as Tailscale has it. netstack begins with 1 MiB,
// which is what peers that read nothing then hold: 1.8 MiB each with what Go adds, of a memory that never shrinks.
const sendBuffer = 256 << 10

// boundSendBuffers has connections begin with sendBuffer. A server on a device of the kernel's has a stack, too, which
// is told as well: it costs nothing.
func boundSendBuffers(srv *tsnet.Server) error {
	ns, ok := srv.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return nil
	}
	var opt tcpip.TCPSendBufferSizeRangeOption
	if err := ns.Stack().TransportProtocolOption(tcp.ProtocolNumber, &opt); err != nil {
		return fmt.Errorf("send buffers: %v", err)
	}
	opt.Default = sendBuffer
	if err := ns.Stack().SetTransportProtocolOption(tcp.ProtocolNumber, &opt); err != nil {
		return fmt.Errorf("send buffers: %v", err)
	}
	return nil
}
