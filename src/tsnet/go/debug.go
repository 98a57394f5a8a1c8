//go:build wasip1

package main

import (
	"net"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/wgengine/netstack"
)

// connectionDebug is a connection of the module's TCP as it is now (../types.ts, ConnectionDebug).
// Sequence numbers are as on the wire; sizes are in bytes, times in ms.
type connectionDebug struct {
	Local   string        `json:"local"`
	Remote  string        `json:"remote"`
	State   string        `json:"state"`
	Locked  string        `json:"locked,omitempty"` // "user" or "stack": what holds its lock
	Queued  bool          `json:"queued"`
	Send    *sendDebug    `json:"send,omitempty"`
	Receive *receiveDebug `json:"receive,omitempty"`
	Timers  *timersDebug  `json:"timers,omitempty"`
}

type sendDebug struct {
	Una         uint32  `json:"una"`
	Nxt         uint32  `json:"nxt"`
	Wnd         uint32  `json:"wnd"`
	Scale       uint8   `json:"scale"`
	Buffered    int     `json:"buffered"`
	Buffer      int     `json:"buffer"`
	Outstanding int     `json:"outstanding"`
	Cwnd        int     `json:"cwnd"`
	Congestion  string  `json:"congestion"`
	RTO         float64 `json:"rto"`
	Since       float64 `json:"since"`
}

type receiveDebug struct {
	Nxt        uint32  `json:"nxt"`
	Wup        uint32  `json:"wup"`
	Wnd        uint32  `json:"wnd"`
	Scale      uint8   `json:"scale"`
	Acked      uint32  `json:"acked"`
	Buffered   int     `json:"buffered"`
	Buffer     int     `json:"buffer"`
	OutOfOrder int     `json:"outOfOrder"`
	Since      float64 `json:"since"`
}

type timersDebug struct {
	Resend       *float64 `json:"resend,omitempty"`
	Probe        *float64 `json:"probe,omitempty"`
	DelayedAck   *float64 `json:"delayedAck,omitempty"`
	WindowProbes *int     `json:"windowProbes,omitempty"`
}

// debugConnections lists the TCP connections of the tailnet, without those that only listen.
func (n *node) debugConnections() []connectionDebug {
	out := []connectionDebug{}
	ns, ok := n.srv.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return out
	}
	for _, e := range ns.Stack().RegisteredEndpoints() {
		e, ok := e.(*tcp.Endpoint)
		if !ok || e.EndpointState() == tcp.StateListen {
			continue
		}
		out = append(out, connectionDebugOf(e.DebugState()))
	}
	return out
}

func connectionDebugOf(d tcp.DebugState) connectionDebug {
	c := connectionDebug{
		Local: hostPort(d.ID.LocalAddress, d.ID.LocalPort), Remote: hostPort(d.ID.RemoteAddress, d.ID.RemotePort),
		State: d.State.String(), Queued: d.Queued,
	}
	if d.Locked {
		c.Locked = "stack"
		if d.ByUser {
			c.Locked = "user"
		}
	}
	if !d.Connected {
		return c
	}
	buffered := max(d.SndBufUsed, 0) // a FIN that is acknowledged counts as a byte less
	c.Send = &sendDebug{
		Una: uint32(d.SndUna), Nxt: uint32(d.SndNxt), Wnd: uint32(d.SndWnd), Scale: d.SndWndScale, Buffered: buffered, Buffer: d.SndBufSize,
		Outstanding: d.Outstanding, Cwnd: d.SndCwnd, Congestion: d.Congestion, RTO: ms(d.RTO), Since: ms(d.SinceSent),
	}
	c.Receive = &receiveDebug{
		Nxt: uint32(d.RcvNxt), Wup: uint32(d.RcvWUP), Wnd: uint32(d.RcvWnd), Scale: d.RcvWndScale, Acked: uint32(d.MaxSentAck),
		Buffered: d.RcvBufUsed, Buffer: d.RcvBufSize, OutOfOrder: d.RcvPending, Since: ms(d.SinceReceived),
	}
	left := func(t *time.Duration) *float64 {
		if t == nil {
			return nil
		}
		l := ms(*t)
		return &l
	}
	c.Timers = &timersDebug{Resend: left(d.Resend), Probe: left(d.Probe), DelayedAck: left(d.DelayedAck)}
	if d.Probing {
		c.Timers.WindowProbes = &d.Probes
	}
	return c
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func hostPort(a tcpip.Address, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}
