//go:build wasip1

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"time"

	_ "tailscale.com/feature/capture" // for StreamDebugCapture
	"tailscale.com/ipn"
	"tailscale.com/tsnet"
)

// routeTimeout is how long a connection to what is behind this node may take to be made.
const routeTimeout = 10 * time.Second

// maxAnswer is the most of an answer of the LocalAPI that is kept, in bytes.
const maxAnswer = 16 << 20

// localAnswer is what the LocalAPI answered, whatever it was.
type localAnswer struct {
	Status      int    `json:"status"`
	ContentType string `json:"contentType"`
	Body        []byte `json:"body"` // base64 in JSON
}

// localAPI asks Tailscale's LocalAPI, over tsnet's in-memory listener: no socket is open for it.
func (n *node) localAPI(ctx context.Context, method, path string, body []byte) (any, error) {
	if !strings.HasPrefix(path, "/localapi/") {
		return nil, &rpcError{"TSNET_OPTIONS", "localAPI: the path must begin with /localapi/, such as /localapi/v0/status"}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://local-tailscaled.sock"+path, bytes.NewReader(body))
	if err != nil {
		return nil, &rpcError{"TSNET_OPTIONS", "localAPI: " + err.Error()}
	}
	res, err := n.lc.DoLocalRequest(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxAnswer {
		return nil, &rpcError{"TSNET_BACKEND", "localAPI: the answer is larger than 16 MiB"}
	}
	return localAnswer{res.StatusCode, res.Header.Get("Content-Type"), b}, nil
}

// resolve gives the addresses that a name has in the tailnet, IPv4 first.
func (n *node) resolve(ctx context.Context, name string) (any, error) {
	addrs := []string{}
	var firstErr error
	for _, network := range []string{"tcp4", "tcp6"} {
		to, err := n.plan(ctx, network, net.JoinHostPort(name, "1"))
		if err != nil {
			if firstErr == nil {
				firstErr = err
			}
			continue
		}
		if s := to.Addr().String(); len(addrs) == 0 || addrs[0] != s {
			addrs = append(addrs, s)
		}
	}
	if len(addrs) == 0 {
		return nil, firstErr
	}
	return addrs, nil
}

// routePrefs are the preferences that tsnet has no field for.
func (n *node) routePrefs() (*ipn.MaskedPrefs, error) {
	m := &ipn.MaskedPrefs{RouteAllSet: true, AdvertiseRoutesSet: true, Prefs: ipn.Prefs{RouteAll: n.params.AcceptRoutes}}
	for _, s := range n.params.AdvertiseRoutes {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &rpcError{"TSNET_OPTIONS", "advertiseRoutes: " + err.Error()}
		}
		m.AdvertiseRoutes = append(m.AdvertiseRoutes, p.Masked())
	}
	return m, nil
}

// setRoutes tells the backend of the routes, where there are any: its own preference is none.
func (n *node) setRoutes(ctx context.Context) error {
	if !n.params.AcceptRoutes && len(n.params.AdvertiseRoutes) == 0 {
		return nil
	}
	m, err := n.routePrefs()
	if err != nil {
		return err
	}
	_, err = n.lc.EditPrefs(ctx, m)
	return err
}

// useExitNode has what is not in the tailnet go by this node (its name or address); "": by none.
func (n *node) useExitNode(ctx context.Context, which string) error {
	m := &ipn.MaskedPrefs{ExitNodeIDSet: true, ExitNodeIPSet: true}
	if which != "" {
		if err := n.awaitRunning(ctx); err != nil {
			return err
		}
		st, err := n.lc.Status(ctx)
		if err != nil {
			return err
		}
		if err := m.Prefs.SetExitNodeIP(which, st); err != nil {
			return &rpcError{"TSNET_NO_PEER", err.Error()}
		}
	}
	_, err := n.lc.EditPrefs(ctx, m)
	if err == nil {
		n.exitNode.Store(which != "")
	}
	return err
}

// lookUp finds what a name outside the tailnet stands for: by the machine's own name servers, and only where other nodes
// lead to something outside.
func (n *node) lookUp(ctx context.Context, network, addr string) (to netip.AddrPort, ok bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !n.params.AcceptRoutes && !n.exitNode.Load() {
		return to, false
	}
	number, err := net.DefaultResolver.LookupPort(ctx, network, port)
	if err != nil {
		return to, false
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+strings.TrimLeft(network, "tcpud"), host)
	if err != nil {
		return to, false
	}
	reach := n.srv.Sys().Dialer.Get().UseNetstackForIP
	for _, ip := range ips {
		if reach(ip.Unmap()) {
			return netip.AddrPortFrom(ip.Unmap(), uint16(number)), true
		}
	}
	return to, false
}

// fallbackFlow is a tsnet.FallbackTCPHandler: the connections that no listener takes, those to advertised routes among
// them. Whoever listens for them has them; what else goes to an advertised route is joined to a connection to there. The
// handlers return when the connection has ended: netstack takes an address that is not the node's own away at that.
func (n *node) fallbackFlow(src, dst netip.AddrPort) (func(net.Conn), bool) {
	n.mu.Lock()
	id := n.fallback
	n.mu.Unlock()
	if id != 0 {
		return func(c net.Conn) {
			ended, err := n.handOverUntil(c, streamMeta{Listener: id, Local: dst.String(), Remote: src.String()})
			if err == nil {
				<-ended
			}
		}, true
	}
	if !n.advertised(dst.Addr()) {
		return nil, false
	}
	return func(c net.Conn) {
		ctx, cancel := context.WithTimeout(context.Background(), routeTimeout)
		to, err := hostDialer{}.DialContext(ctx, "tcp", dst.String())
		cancel()
		if err != nil {
			abort(c)
			return
		}
		<-n.join(c, to, func() {
			abort(c)
			to.Close()
		})
	}, true
}

func (n *node) advertised(ip netip.Addr) bool {
	for _, s := range n.params.AdvertiseRoutes {
		if p, err := netip.ParsePrefix(s); err == nil && p.Contains(ip) {
			return true
		}
	}
	return false
}

// listenFallback gives all that no other listener takes to listener id. One at a time.
func (n *node) listenFallback(id uint64) error {
	if tunName != "" {
		return &rpcError{"TSNET_LISTEN", "with a tun device the kernel has what no listener takes: listen there (node:net)"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fallback != 0 {
		return &rpcError{"TSNET_LISTEN", "there is a fallback listener already"}
	}
	n.fallback = id
	return nil
}

// listenFunnel is tsnet's, but for TLS, which is the host's to do.
func (n *node) listenFunnel(ctx context.Context, id uint64, addr string, only bool) (any, error) {
	if tunName != "" {
		// tsnet's listener accepts of netstack's port alone then: what the relay hands over would wait for ever.
		return nil, &rpcError{"TSNET_LISTEN", "Funnel cannot be had with a tun device: use a Server without tun for it"}
	}
	// tsnet's own would wait for the login with no end.
	if err := n.awaitRunning(ctx); err != nil {
		return nil, err
	}
	opts := []tsnet.FunnelOption{}
	if only {
		opts = append(opts, tsnet.FunnelOnly())
	}
	ln, err := n.srv.ListenFunnel("tcp", addr, opts...)
	if err != nil {
		return nil, &rpcError{"TSNET_LISTEN", err.Error()}
	}
	// Below TLS: crypto/tls embeds the listener that it was given, with a name that is exported.
	raw, ok := reflect.ValueOf(ln).Elem().FieldByName("Listener").Interface().(net.Listener)
	if !ok {
		ln.Close()
		return nil, &rpcError{"TSNET_LISTEN", "crypto/tls has changed: there is no listener below its own"}
	}
	n.mu.Lock()
	n.listeners[id] = ln
	n.mu.Unlock()
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			meta := streamMeta{Listener: id, Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}
			if f, ok := c.(*ipn.FunnelConn); ok {
				meta.Remote, meta.Target = f.Src.String(), string(f.Target)
			}
			go n.handOver(c, meta)
		}
	}()
	return map[string]string{"addr": ln.Addr().String()}, nil
}

// capture gives the packets of the tailnet, in the clear, as a pcap file that goes on until the other end is done with it.
func (n *node) capture(id uint64) error {
	ctx, cancel := context.WithCancel(context.Background())
	body, err := n.lc.StreamDebugCapture(ctx)
	if err != nil {
		cancel()
		return err
	}
	s, err := openStream(streamMeta{Dial: id, Local: ":0", Remote: ":0"})
	if err != nil {
		cancel()
		return err
	}
	go func() {
		// The other end is heard of at once, not at the next packet.
		io.Copy(io.Discard, s)
		cancel()
	}()
	go func() {
		io.Copy(s, body)
		body.Close()
		cancel()
		s.Close()
	}()
	return nil
}
